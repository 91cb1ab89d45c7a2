"""What an administrator sees of the past, and takes away as a file."""

from __future__ import annotations

import csv
import io
import re

import pytest
from flask.testing import FlaskClient
from sqlalchemy import update

from segnode_contract.errors import UnsuitableSeries
from segnode_contract.ledger import ActLedger, Ledger, schema
from segnode_contract.ledger.clock import now_s
from segnode_plugin.web.days import day_text
from segnode_plugin.web.days_chart import chart_of
from segnode_plugin.web.spreadsheet import csv_text

from .conftest import PageNode
from .pages import SCRIPT, Named, client
from .rows import fail_job, finish_job, queue_job

SHEETS = ("days", "latency", "failures", "people", "jobs")


@pytest.fixture
def pages(ledger: Ledger) -> FlaskClient:
    return client(ledger, Named())


def do_all(ledger: Ledger) -> list[str]:
    """Leave a job that is done, one that failed, one that somebody retried and one that waits."""
    keys = [queue_job(ledger, number=n, study_uid=f"1.2.{n}") for n in range(1, 5)]
    finish_job(ledger)
    fail_job(ledger)
    fail_job(ledger)
    ActLedger(ledger).retry(keys[2], "operator")
    return keys


def move(ledger: Ledger, key: str, days: int) -> None:
    """Let a job have been made so many days ago."""
    with ledger.write() as connection:
        made = {"created_at": now_s() - days * 86400}
        connection.execute(update(schema.job).where(schema.job.c.key == key).values(made))


def rows(pages: FlaskClient, name: str) -> list[dict[str, str]]:
    answer = pages.get(f"/segnode/history/{name}.csv")
    assert answer.status_code == 200
    return list(csv.DictReader(io.StringIO(answer.data.decode("utf-8-sig"))))


def words(text: str) -> str:
    """Return what a page says, without its tags."""
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_a_node_without_a_past_says_what_makes_one(pages: FlaskClient) -> None:
    text = pages.get("/segnode/history").text
    assert "No job was made in these days." in text
    assert "segnode send" in text
    assert "No result came by itself in these days." in text
    assert "No job of these days stands failed or dead." in text
    assert "Nobody did anything by hand in these days." in text


def test_jobs_are_counted_by_how_they_stand_now(pages: FlaskClient, ledger: Ledger) -> None:
    do_all(ledger)
    text = words(pages.get("/segnode/history").text)
    assert "done 1 failed 1 queued 2" in text


def test_a_count_leads_to_its_jobs(pages: FlaskClient, ledger: Ledger) -> None:
    do_all(ledger)
    text = pages.get("/segnode/history?days=7").text
    [day] = [row["day (UTC)"] for row in rows(pages, "days") if row["done"] == "1"]
    link = f'<a href="/segnode/jobs?state=failed&amp;from={day}&amp;to={day}">1</a>'
    assert link in text
    assert pages.get(f"/segnode/jobs?state=failed&from={day}&to={day}").status_code == 200


def test_only_the_days_asked_for_are_shown(pages: FlaskClient, ledger: Ledger) -> None:
    keys = do_all(ledger)
    move(ledger, keys[0], 20)
    assert "done <b>1</b>" not in pages.get("/segnode/history?days=7").text
    assert "done <b>1</b>" in pages.get("/segnode/history?days=30").text
    assert [row["done"] for row in rows(pages, "days")].count("1") == 1


@pytest.mark.parametrize("days", ["0", "-1", "31", "x", "99999999999"])
def test_another_range_than_those_offered_is_no_page(pages: FlaskClient, days: str) -> None:
    assert pages.get(f"/segnode/history?days={days}").status_code == 404


def test_latency_is_shown_by_day_in_words_and_as_a_plot(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    with ledger.write() as connection:
        late = {"last_instance_at": now_s() - 600}
        connection.execute(update(schema.job).where(schema.job.c.key == key).values(late))
    finish_job(ledger)
    text = pages.get("/segnode/history").text
    assert re.search(r'<td class="number">(9|10) min \d\d s</td>', text)
    assert '"name": "p95"' in text
    [row] = rows(pages, "latency")
    assert float(row["p99 (s)"]) == pytest.approx(600, rel=0.03)


def test_failures_stand_by_code_with_their_share(pages: FlaskClient, ledger: Ledger) -> None:
    for number in range(1, 5):
        queue_job(ledger, number=number)
    for code in ("gantry-tilt", "gantry-tilt", "gantry-tilt", "too-few"):
        fail_job(ledger, UnsuitableSeries("It is refused.", code=code))
    text = pages.get("/segnode/history").text
    assert re.search(r'href="/segnode/jobs\?code=gantry-tilt&amp;from=[-0-9]+&amp;to=', text)
    assert "gantry-tilt 3 75.0 %" in words(text)
    assert [(row["code"], row["share"]) for row in rows(pages, "failures")] == [
        ("gantry-tilt", "0.75"),
        ("too-few", "0.25"),
    ]


def test_a_job_that_was_retried_and_is_done_is_no_failure(
    pages: FlaskClient, ledger: Ledger
) -> None:
    key = queue_job(ledger)
    fail_job(ledger)
    ActLedger(ledger).retry(key, "operator")
    finish_job(ledger)
    assert "No job of these days stands failed" in pages.get("/segnode/history").text


def test_what_people_did_says_who_when_and_to_which_job(pages: FlaskClient, ledger: Ledger) -> None:
    key = do_all(ledger)[2]
    ActLedger(ledger).note("search", "admin", "by patient id: 3 studies")
    text = pages.get("/segnode/history").text
    assert f'<a href="/segnode/jobs/{key}">' in text
    assert "operator queued retried by hand" in words(text)
    assert "admin search by patient id: 3 studies" in words(text)


def test_what_the_node_did_by_itself_is_not_among_it(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    finish_job(ledger)
    assert "Nobody did anything by hand" in pages.get("/segnode/history").text
    assert rows(pages, "people") == []


def test_fifty_acts_make_a_page(pages: FlaskClient, ledger: Ledger) -> None:
    for number in range(52):
        ActLedger(ledger).note("search", "admin", f"number {number} of many")
    first = pages.get("/segnode/history").text
    assert first.count("of many") == 50
    older = re.search(r'rel="next" href="([^"#]+)', first)
    assert older
    second = pages.get(older[1].replace("&amp;", "&")).text
    assert "number 0 of many" in second
    assert second.count("of many") == 2
    assert 'rel="next"' not in second


def test_acts_of_other_days_are_not_shown(pages: FlaskClient, ledger: Ledger) -> None:
    ActLedger(ledger).note("search", "admin", "long ago")
    with ledger.write() as connection:
        connection.execute(update(schema.event).values(at=now_s() - 20 * 86400))
    ActLedger(ledger).note("search", "admin", "today")
    text = pages.get("/segnode/history?days=7").text
    assert "today" in text
    assert "long ago" not in text
    assert "long ago" in pages.get("/segnode/history?days=30").text


@pytest.mark.parametrize("before", ["0", "-5", "x", "9" * 30])
def test_a_page_of_acts_that_is_none_is_no_crash(
    pages: FlaskClient, ledger: Ledger, before: str
) -> None:
    assert pages.get(f"/segnode/history?before={before}").status_code == 200


def test_a_script_in_an_act_is_text(pages: FlaskClient, ledger: Ledger) -> None:
    ActLedger(ledger).note("search", "admin", SCRIPT)
    text = pages.get("/segnode/history").text
    assert SCRIPT not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("name", SHEETS)
def test_each_table_is_a_file_with_its_days_in_the_name(
    pages: FlaskClient, ledger: Ledger, name: str
) -> None:
    do_all(ledger)
    answer = pages.get(f"/segnode/history/{name}.csv?days=7")
    assert answer.content_type == "text/csv; charset=utf-8"
    assert answer.data.startswith(b"\xef\xbb\xbf")
    disposition = answer.headers["Content-Disposition"]
    assert re.fullmatch(
        rf'attachment; filename="segnode-{name}-\d{{4}}-\d\d-\d\d-\d{{4}}-\d\d-\d\d\.csv"',
        disposition,
    )
    assert rows(pages, name)


def test_there_is_no_other_file(pages: FlaskClient) -> None:
    assert pages.get("/segnode/history/patients.csv").status_code == 404


def test_the_list_of_jobs_has_no_names_and_no_uids(pages: FlaskClient, ledger: Ledger) -> None:
    do_all(ledger)
    text = pages.get("/segnode/history/jobs.csv").text
    assert SCRIPT not in text
    assert "1.2." not in text
    listed = {row["job"]: row for row in rows(pages, "jobs")}
    assert len(listed) == 4
    states = sorted(row["state"] for row in listed.values())
    assert states == ["done", "failed", "queued", "queued"]
    done = next(row for row in listed.values() if row["state"] == "done")
    assert done["model"] == "ct-tissue"
    assert 0 <= float(done["result after (s)"]) < 60
    failed = next(row for row in listed.values() if row["state"] == "failed")
    assert failed["error code"] == "gantry-tilt"
    assert failed["result after (s)"] == ""


def test_a_file_says_from_when_a_jobs_time_counts(pages: FlaskClient, ledger: Ledger) -> None:
    keys = [queue_job(ledger, number=n, study_uid=f"1.2.{n}") for n in (1, 2, 3)]
    with ledger.write() as connection:
        connection.execute(update(schema.job).values(last_instance_at=now_s() - 10 * 365 * 86400))
        for key, said in zip(
            keys, ({"revision": 1}, {"priority": 2}, {"priority": 1}), strict=True
        ):
            connection.execute(update(schema.job).where(schema.job.c.key == key).values(said))
    for _ in keys:
        finish_job(ledger)
    listed = {row["job"]: row for row in rows(pages, "jobs")}
    assert [listed[key]["counted from"] for key in keys] == [
        "somebody asked for it",
        "the job was made",
        "the last image",
    ]
    took = [float(listed[key]["result after (s)"]) for key in keys]
    day_s = 86400
    assert max(took[:2]) < day_s < took[2]


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_no_cell_is_run_as_a_formula(pages: FlaskClient, ledger: Ledger, begins: str) -> None:
    said = f'{begins}HYPERLINK("http://evil.example"; "look, here")'
    ActLedger(ledger).note("search", "admin", said)
    [row] = rows(pages, "people")
    assert row["detail"] == f"'{said}"


@pytest.mark.parametrize("cut", [";", ",", "\t"])
def test_nor_is_what_another_separator_would_cut_off(
    pages: FlaskClient, ledger: Ledger, cut: str
) -> None:
    ActLedger(ledger).note("search", "admin", f"wrong side{cut} =1+1")
    [row] = rows(pages, "people")
    assert row["detail"] == f"wrong side{cut}' =1+1"


def test_orthanc_hands_a_file_over_as_it_is(page_node: PageNode) -> None:
    answer = page_node.ask("/segnode/history/jobs.csv?days=7")
    assert answer.status == 200
    assert answer.headers["content-disposition"].startswith('attachment; filename="segnode-jobs-')
    assert answer.body.startswith(b"\xef\xbb\xbfjob,state,")
    assert b",done,ct-tissue," in answer.body


def test_commas_quotes_and_lines_stay_within_their_cell() -> None:
    text = csv_text(["a", "b"], [['say "no", or', "two\r\nlines"], [None, 2.5]])
    assert text == 'a,b\r\n"say ""no"", or","two\r\nlines"\r\n,2.5\r\n'


def test_a_negative_number_stays_a_number() -> None:
    assert csv_text(["a"], [[-2.5]]) == "a\r\n-2.5\r\n"


def test_columns_reach_as_high_as_their_numbers() -> None:
    chart = chart_of(range(10, 12), {11: {"done": 30, "failed": 10}})
    assert chart.top == 40
    empty, full = chart.columns
    assert empty.pieces == ()
    done, failed = full.pieces
    assert (done.top, done.height) == (25, 75)
    assert (failed.top, failed.height) == (0, 25)
    assert empty.left + empty.width < full.left


@pytest.mark.parametrize(("most", "top"), [(0, 2), (2, 2), (3, 4), (10, 10), (11, 20), (61, 80)])
def test_the_scale_ends_at_a_round_number(most: int, top: int) -> None:
    assert chart_of(range(1), {0: {"done": most}}).top == top


def test_a_day_is_written_as_its_date() -> None:
    assert [day_text(0), day_text(20_783)] == ["1970-01-01", "2026-11-26"]
