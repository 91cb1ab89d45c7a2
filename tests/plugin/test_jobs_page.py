"""The list of jobs: what is found, by whom, and what is done to it."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from segnode_contract.destination import Destination
from segnode_contract.errors import PeerRefused
from segnode_contract.ledger import ActLedger, DeliveryLedger, Ledger, LedgerView, write_shared
from segnode_contract.ledger.deliveries import Taken
from segnode_contract.settings import Limits, load_settings
from segnode_plugin.web import bulk
from segnode_plugin.web.filters import asked

from .pages import CONFIG, SCRIPT, Named, client, token
from .rows import claim_job, fail_job, finish_job, queue_job

ID = "CANARY-4711"
NOTHING = (
    "there was nothing to try again, or a newer job has its place, or what it builds on is "
    "withdrawn."
)


class Patients(Named):
    """An archive in which a patient has studies 1.2, with jobs, and 1.9, with none."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []

    def studies_with(self, keyword: str, value: str) -> list[str]:
        self.asked.append((keyword, value))
        return ["1.2", "1.9"] if value == ID else []


@pytest.fixture
def archive() -> Patients:
    return Patients()


@pytest.fixture
def pages(ledger: Ledger, archive: Patients) -> FlaskClient:
    return client(ledger, archive, user="operator")


def words(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def read(pages: FlaskClient, address: str = "jobs") -> str:
    answer = pages.get(f"/segnode/{address}")
    assert answer.status_code == 200, answer.text
    return answer.text


def numbers(page: str) -> list[int]:
    """Return the numbers of the jobs that a page lists, as `queue_job` was told them."""
    return [int(key, 16) for key in re.findall(r'id="job-([0-9a-f]{8})', page)]


def alter(ledger: Ledger, number: int, **values: Any) -> None:
    sets = ", ".join(f"{name} = :{name}" for name in values)
    with ledger.write() as connection:
        connection.execute(
            text(f"update job set {sets} where key = :job"), values | {"job": key(number)}
        )


def key(number: int) -> str:
    return f"{number:08x}" + "e" * 56


def states(ledger: Ledger) -> dict[int, str]:
    return {int(job.key[:8], 16): job.state for job in LedgerView(ledger).jobs()}


def acts_on(ledger: Ledger) -> list[tuple[str | None, str, str, str]]:
    """Return job, actor, kind and detail of what people did, in order."""
    with ledger.read() as connection:
        rows = connection.execute(
            text("select job_key, actor, kind, detail from event where person order by seq")
        )
        return [(row[0], row[1], row[2], row[3]) for row in rows]


def do(pages: FlaskClient, what: str, **form: Any) -> str:
    """Do something to jobs, and return what the page says that one is led to."""
    answer = pages.post(
        f"/segnode/jobs/{what}",
        data={"token": token(read(pages))} | form,
        follow_redirects=True,
    )
    assert answer.status_code == 200, answer.text
    found = re.search(r'class="good" role="status">(.*?)</p>', answer.text)
    return html.unescape(found[1]) if found else words(answer.text)


def test_an_empty_node_says_what_to_do_next(pages: FlaskClient) -> None:
    said = words(read(pages))
    assert "No job yet" in said
    assert "segnode send" in said


def test_a_state_without_jobs_says_so(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    assert "No job is failed." in read(pages, "jobs?state=failed")


def test_the_list_shows_stages_and_counts(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    finish_job(ledger)
    queue_job(ledger, number=2)
    queue_job(ledger, number=3)
    fail_job(ledger)
    page = read(pages)
    for count in ("all <b>3</b>", "queued <b>1</b>", "done <b>1</b>", "failed <b>1</b>"):
        assert count in page
    for stage in ("store", "confirm"):
        assert f'<rect class="{stage}"' in page
    assert "3 jobs match, newest first" in words(page)
    assert numbers(page) == [3, 2, 1]


def test_a_failed_job_shows_its_code_stage_and_sentence(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    fail_job(ledger)
    for address in ("jobs", "jobs?state=failed"):
        page = read(pages, address)
        assert "<strong>gantry-tilt</strong> in stack" in page
        assert "18.5 degrees; &lt;b&gt;this" in page
        assert '<span class="stack">stack, ended there</span>' in page
        assert "Open in OHIF" not in page


def test_a_list_says_what_each_job_is_of(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    alter(ledger, 1, modality="CT", priority=0, revision=2)
    said = words(read(pages))
    assert f"{SCRIPT} d · a" in said
    assert re.search(r"ct-tissue \S+ revision 2 tissue, stat CT 112 images", said)
    assert SCRIPT not in read(pages)


def test_without_an_archive_the_list_shows_no_names_and_misses_none(ledger: Ledger) -> None:
    queue_job(ledger)
    said = words(read(client(ledger)))
    assert " 1.2 ct-tissue" in said
    assert "not in the archive" not in said


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("state=queued", [3, 2, 1]),
        ("state=failed", [4]),
        ("model=ct-tissue", [4, 3, 1]),
        ("model=other", [2]),
        ("route=chest", [3]),
        ("modality=MR", [3, 2]),
        ("code=gantry-tilt", [4]),
        ("state=queued&modality=MR&route=chest", [3]),
        ("state=failed&modality=MR", []),
        ("model=never+heard+of", []),
        ("from=2026-11-02", [4, 3, 2]),
        ("to=2026-11-02", [2, 1]),
        ("from=2026-11-02&to=2026-11-03", [3, 2]),
        ("from=2026-11-03&to=2026-11-02", []),
    ],
)
def test_a_filter_finds_what_it_says(
    pages: FlaskClient, ledger: Ledger, query: str, found: list[int]
) -> None:
    queue_job(ledger, number=4)
    fail_job(ledger)
    for number in (1, 2, 3):
        queue_job(ledger, number=number)
    midnight = 1793491200.0  # 2026-11-01T00:00:00Z
    for number in (1, 2, 3, 4):
        # the last moment of the first day, and the first ones of those after it
        alter(
            ledger,
            number,
            created_at=midnight + 86400 * (number - 1) + (86399 if number == 1 else 0),
        )
    alter(ledger, 2, model="other", modality="MR")
    alter(ledger, 3, route="chest", modality="MR")
    page = read(pages, f"jobs?{query}")
    assert numbers(page) == found
    assert found or "No job matches this filter." in page


def test_days_are_utc_wherever_the_node_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        wanted = asked({"from": "2026-11-02", "to": "2026-11-02"}.get).wanted
    finally:
        monkeypatch.undo()
        time.tzset()
    assert (wanted.since, wanted.until) == (1793577600.0, 1793664000.0)


def test_a_filter_offers_what_the_ledger_has_and_keeps_what_was_chosen(
    pages: FlaskClient, ledger: Ledger
) -> None:
    for number in (1, 2):
        queue_job(ledger, number=number)
    fail_job(ledger)
    alter(ledger, 2, route="chest", model="b-model", modality="MR")
    page = read(pages, "jobs?route=tissue&from=2026-01-02")
    for option in (
        "<option>b-model</option><option>ct-tissue</option>",
        "<option>chest</option><option selected>tissue</option>",
        "<option>MR</option>",
        "<option>gantry-tilt</option>",
    ):
        assert option in page
    assert 'type="date" value="2026-01-02"' in page
    assert "<option selected>gone</option>" in read(pages, "jobs?model=gone")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("state=x", "state is 'x'; one of waiting, queued,"),
        ("from=2026-13-45", "from is '2026-13-45'; a day such as 2026-11-24 is needed"),
        ("to=yesterday", "to is 'yesterday'; a day"),
        ("from=0001-01-01", "from is '0001-01-01'; a day"),
        ("to=9999-12-31", "to is '9999-12-31'; a day"),
        ("model=%00", "model is ''; 64 letters at most"),
        ("route=" + "x" * 65, "route is 'xxx"),
        ("code=%ff%fe", "No job matches"),
        (f"model={SCRIPT}", "No job matches"),
        ("modality=' or 1=1 --", "No job matches"),
    ],
)
def test_a_filter_that_is_none_is_left_out_and_said(
    pages: FlaskClient, ledger: Ledger, query: str, said: str
) -> None:
    queue_job(ledger)
    page = read(pages, f"jobs?{query}")
    assert said in words(page)
    assert SCRIPT not in page
    assert ("No job matches" in said) == (numbers(page) == [])


def test_fifty_jobs_make_a_page_and_the_filter_is_kept(pages: FlaskClient, ledger: Ledger) -> None:
    for number in range(1, 53):
        queue_job(ledger, number=number, study_uid=f"1.{number}")
    query = "state=queued&route=tissue"
    first, second = (read(pages, f"jobs?{query}&page={n}") for n in (1, 2))
    assert (len(numbers(first)), len(numbers(second))) == (50, 2)
    address = "/segnode/jobs?state=queued&amp;route=tissue&amp;page="
    assert f'rel="next" href="{address}2"' in first
    assert f'rel="prev" href="{address}1"' in second
    assert "No more jobs" in read(pages, "jobs?page=99999999999999999999")
    assert "No more jobs" in read(pages, "jobs?page=100000")
    assert len(numbers(read(pages, "jobs?page=x"))) == 50


def test_an_unchanged_list_is_not_sent_again(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    tag = pages.get("/segnode/jobs").headers["ETag"]
    again = pages.get("/segnode/jobs", headers={"If-None-Match": tag})
    assert (again.status_code, again.data) == (304, b"")
    claim_job(ledger)
    assert pages.get("/segnode/jobs", headers={"If-None-Match": tag}).status_code == 200


def test_a_list_asks_for_itself_again_with_its_filter(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    answer = pages.get("/segnode/jobs?state=queued&route=tissue")
    assert 'hx-get="/segnode/jobs?state=queued&amp;route=tissue" hx-select="#list"' in answer.text
    assert f'data-tag="{answer.get_etag()[0]}"' in answer.text


def search(pages: FlaskClient, by: str = "patient", value: str = ID) -> str:
    data = {"token": token(read(pages)), "by": by, "value": value}
    answer = pages.post("/segnode/search", data=data)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.text


def test_a_patients_jobs_are_found_and_the_studies_without_one(
    pages: FlaskClient, ledger: Ledger, archive: Patients
) -> None:
    queue_job(ledger, number=1, study_uid="1.2")
    queue_job(ledger, number=2, study_uid="1.3")
    page = search(pages, value=f" {ID} ")
    assert archive.asked == [("PatientID", ID)]
    assert numbers(page) == [1]
    assert "2 studies found." in page
    assert 'no job: <a href="/segnode/studies/1.9/explain">see why' in page
    assert "/segnode/studies/1.2/explain" not in page


def test_an_accession_number_that_is_nowhere_says_so(pages: FlaskClient, archive: Patients) -> None:
    page = search(pages, "accession", "no-such")
    assert archive.asked == [("AccessionNumber", "no-such")]
    assert "The archive has no study with this accession number." in page


def test_that_somebody_searched_is_recorded_and_not_for_whom(
    pages: FlaskClient, ledger: Ledger
) -> None:
    search(pages)
    search(pages, "accession", "no-such")
    assert acts_on(ledger) == [
        (None, "operator", "search", "by patient ID: 2 studies"),
        (None, "operator", "search", "by accession number: 0 studies"),
    ]
    with ledger.read() as connection:
        events = connection.execute(text("select * from event")).all()
    assert ID not in str(events)


@pytest.mark.parametrize("value", ["", " ", "*", "A*", "A?", "A\\B", "x" * 65, "a\x00b", "a\nb"])
def test_a_search_is_for_one_whole_value(
    pages: FlaskClient, ledger: Ledger, archive: Patients, value: str
) -> None:
    assert 'class="trouble">A patient ID' in search(pages, value=value)
    assert archive.asked == []
    assert acts_on(ledger) == []


def test_a_search_by_anything_else_is_none(pages: FlaskClient, archive: Patients) -> None:
    assert "Say whether it is a patient ID" in search(pages, by="PatientName")
    assert archive.asked == []


def test_without_an_archive_nobody_can_be_searched_for(ledger: Ledger) -> None:
    pages = client(ledger)
    assert "Needs the archive" in read(pages)
    assert "Only the archive knows patients" in search(pages)
    assert acts_on(ledger) == []


def test_no_address_takes_a_patients_id(pages: FlaskClient, archive: Patients) -> None:
    assert pages.get("/segnode/search", query_string={"value": ID}).status_code == 405
    assert pages.post("/segnode/search", data={"by": "patient", "value": ID}).status_code == 403
    read(pages, f"jobs?value={ID}&by=patient")
    assert archive.asked == []


def test_jobs_that_failed_are_tried_again_and_others_left(
    pages: FlaskClient, ledger: Ledger
) -> None:
    for number in (1, 2, 3):
        queue_job(ledger, number=number)
    fail_job(ledger)
    fail_job(ledger)
    said = do(pages, "retry", keys=[key(1), key(2), key(3)])
    assert said == f"2 jobs are tried again; with 1 job {NOTHING}"
    assert set(states(ledger).values()) == {"queued"}
    assert acts_on(ledger) == [
        (key(number), "operator", "queued", "retried by hand") for number in (1, 2)
    ]


def test_a_withdrawn_job_is_made_anew(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    finish_job(ledger)
    ActLedger(ledger).withdraw(key(1), "admin", "The liver is a spleen.")
    answer = pages.post(
        "/segnode/jobs/retry",
        data={"token": token(read(pages)), "keys": key(1), "back": "job"},
    )
    new = next(job for job in LedgerView(ledger).jobs() if job.key != key(1))
    assert (new.state, new.revision) == ("queued", 1)
    assert answer.headers["Location"].startswith(f"/segnode/jobs/{new.key}?did=retry&changed=1")


def test_open_jobs_are_cancelled(pages: FlaskClient, ledger: Ledger) -> None:
    for number in (1, 2):
        queue_job(ledger, number=number)
    fail_job(ledger)
    said = do(pages, "cancel", keys=[key(1), key(2)])
    assert said == "1 job is cancelled; 1 job had ended, or had begun to store a result."
    assert states(ledger) == {1: "failed", 2: "cancelled"}
    assert acts_on(ledger) == [(key(2), "operator", "cancelled", "by hand")]


def test_the_series_of_jobs_are_decided_again(pages: FlaskClient, ledger: Ledger) -> None:
    for number in (1, 2, 3):
        queue_job(ledger, number=number)
    alter(ledger, 2, series_uids="1.2.4\\1.2.5")
    alter(ledger, 3, series_uids="9.9")
    said = do(pages, "replay", keys=[key(2), key(3)])
    assert said == "The series of 1 job is decided again; of 1 job intake knows no series."
    with ledger.read() as connection:
        open_again = connection.scalars(
            text("select orthanc_id from series where decided_at is null order by orthanc_id")
        ).all()
    assert open_again == ["o2", "o3"]
    assert (key(2), "operator", "replay", "its series are decided again") in acts_on(ledger)
    assert (None, "operator", "replay", "2 series are decided again") in acts_on(ledger)


def test_all_that_a_filter_finds_are_asked_for_before_anything_is_done(
    pages: FlaskClient, ledger: Ledger
) -> None:
    for number in range(1, 5):
        queue_job(ledger, number=number)
    for _ in range(3):
        fail_job(ledger)
    alter(ledger, 3, route="chest")
    form = {"which": "all", "state": "failed", "route": "tissue", "keys": key(4)}
    said = do(pages, "retry", **form)
    assert "Try 2 jobs again? Those that match: state failed , route tissue ." in said
    assert sorted(states(ledger).values()) == ["failed", "failed", "failed", "queued"]
    assert do(pages, "retry", **form, sure="1") == "2 jobs are tried again."
    assert states(ledger) == {1: "queued", 2: "queued", 3: "failed", 4: "queued"}
    assert "No job matches any more" in do(pages, "retry", **form)


def test_after_an_act_one_is_back_at_the_filter(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    data = {"token": token(read(pages)), "keys": key(1), "state": "queued", "from": "2026-01-01"}
    answer = pages.post("/segnode/jobs/cancel", data=data)
    assert answer.headers["Location"] == (
        "/segnode/jobs?state=queued&from=2026-01-01&did=cancel&changed=1"
    )


def test_withdrawn_results_do_not_come_back_with_all_that_is_tried_again(
    pages: FlaskClient, ledger: Ledger
) -> None:
    queue_job(ledger, number=1)
    finish_job(ledger)
    ActLedger(ledger).withdraw(key(1), "ada", "it calls the table bone")
    queue_job(ledger, number=2)
    fail_job(ledger)
    assert "Withdrawn ones are left alone." in do(pages, "retry", which="all")
    assert do(pages, "retry", which="all", sure="1") == "1 job is tried again."
    assert states(ledger) == {1: "withdrawn", 2: "queued"}
    asked = do(pages, "retry", which="all", state="withdrawn")
    assert "withdrawn as wrong may come back" in asked


def test_so_many_at_most_are_taken_at_once(
    pages: FlaskClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MOST", 2)
    for number in (1, 2, 3):
        queue_job(ledger, number=number)
    assert "The newest 2 at most are taken at once." in do(pages, "cancel", which="all")
    assert do(pages, "cancel", which="all", sure="1") == "2 jobs are cancelled."
    assert states(ledger) == {1: "queued", 2: "cancelled", 3: "cancelled"}
    data = {"token": token(read(pages)), "keys": [key(number) for number in (1, 2, 3)]}
    assert pages.post("/segnode/jobs/cancel", data=data).status_code == 400


@pytest.mark.parametrize(
    "form",
    [
        {"keys": ["1'--"]},
        {"keys": [SCRIPT]},
        {"keys": [key(1).upper()]},
        {"which": "all", "state": "fialed", "sure": "1"},
        {"which": "all", "to": "tomorrow", "sure": "1"},
    ],
)
def test_what_is_not_understood_changes_nothing(
    pages: FlaskClient, ledger: Ledger, form: Mapping[str, Any]
) -> None:
    queue_job(ledger)
    data = {"token": token(read(pages))} | dict(form)
    assert pages.post("/segnode/jobs/cancel", data=data).status_code == 400
    assert states(ledger) == {1: "queued"}


def test_a_job_that_is_not_there_is_none_that_was_changed(pages: FlaskClient) -> None:
    assert do(pages, "retry", keys=key(7)) == f"With 1 job {NOTHING}"
    assert do(pages, "replay", keys=key(7)) == "Of 1 job intake knows no series."


def test_nothing_chosen_is_said(pages: FlaskClient) -> None:
    assert "no job was chosen" in do(pages, "cancel")


@pytest.mark.parametrize(
    "query",
    ["did=x&changed=1", "did=retry&changed=-1", "did=retry&changed=²", "did=retry&changed=9999999"],
)
def test_an_address_cannot_make_a_page_say_anything(pages: FlaskClient, query: str) -> None:
    said = words(read(pages, f"jobs?{query}"))
    assert "tried again" not in said


def test_a_viewer_is_shown_no_acts_and_may_do_none(ledger: Ledger) -> None:
    queue_job(ledger)
    pages = client(ledger, Named())
    page = read(pages)
    assert 'name="keys"' not in page
    assert "formaction" not in page
    for what in ("retry", "cancel", "replay"):
        data = {"token": token(page), "keys": key(1)}
        assert pages.post(f"/segnode/jobs/{what}", data=data).status_code == 403
    assert states(ledger) == {1: "queued"}


def test_an_operator_is_shown_a_box_for_each_job_and_what_can_be_done(
    pages: FlaskClient, ledger: Ledger
) -> None:
    for number in (1, 2):
        queue_job(ledger, number=number)
    page = read(pages)
    assert page.count('name="keys"') == 2
    for what in ("retry", "cancel", "replay"):
        assert f'formaction="/segnode/jobs/{what}"' in page
    assert "all 2 that match, not only those ticked" in words(page)


def test_a_page_names_each_thing_once(pages: FlaskClient, ledger: Ledger) -> None:
    for number in (1, 2):
        queue_job(ledger, number=number)
    for page in (read(pages), search(pages)):
        ids = re.findall(r'\bid="([^"]*)"', page)
        assert len(ids) == len(set(ids))


def test_a_delivery_that_failed_is_tried_again(pages: FlaskClient, ledger: Ledger) -> None:
    shared = load_settings(CONFIG).shared
    pacs = Destination(name="pacs", aet="PACS", host="127.0.0.1")
    write_shared(ledger, replace(shared, destinations=(pacs,)))
    queue_job(ledger)
    finish_job(ledger)
    deliveries = DeliveryLedger(ledger, "s1", Limits())
    held = deliveries.claim("pacs")
    assert held is not None
    deliveries.failed(held, PeerRefused("It refused it."), Taken(objects=0, bytes=0))
    assert deliveries.claim("pacs") is None
    assert do(pages, "retry", keys=key(1)) == "1 job is tried again."
    assert deliveries.claim("pacs") is not None
    assert states(ledger) == {1: "done"}
