"""What the page of a study says of each series: what ran, what did not, and why."""

from __future__ import annotations

import html
import re

import pytest
from flask.testing import FlaskClient

from segnode_contract.ledger import ActLedger, IntakeLedger, Ledger
from segnode_contract.settings import load_settings
from segnode_plugin.web import by_hand
from segnode_plugin.web.site import Site

from .pages import CONFIG, SCRIPT, client
from .rows import fail_job, finish_job, queue_job
from .shelf import Shelf


@pytest.fixture
def shelf() -> Shelf:
    shelf = Shelf()
    shelf.add("o1", "1.2.3", SeriesNumber="2", SeriesDescription=f"thin {SCRIPT}")
    return shelf


@pytest.fixture
def pages(ledger: Ledger, shelf: Shelf) -> FlaskClient:
    return client(ledger, shelf)


def read(pages: FlaskClient, uid: str = "1.2") -> str:
    answer = pages.get(f"/segnode/studies/{uid}")
    assert answer.status_code == 200, answer.text
    assert SCRIPT not in answer.text
    return html.unescape(re.sub(r"\s+", " ", answer.text))


def sections(text: str) -> dict[str, str]:
    """Return what stands under each heading of the second level."""
    found = re.findall(r"<h2>(.*?)</h2>(.*?)(?=<h2>|</main>)", text)
    return {re.sub(r"<[^>]+>", "", heading): words for heading, words in found}


def test_each_series_is_called_as_people_call_it(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    [heading] = sections(read(pages))
    assert heading.startswith("2 CT thin")


def test_the_clause_that_decided_is_shown(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    text = read(pages)
    assert "<td>chest</td><td>no</td><td>Body Part Examined is HEAD, CHEST is wanted</td>" in text
    assert "<td>tissue</td><td><strong>yes</strong></td><td>every condition holds</td>" in text


def test_series_stand_in_the_order_of_their_numbers(
    pages: FlaskClient, ledger: Ledger, shelf: Shelf
) -> None:
    queue_job(ledger)
    shelf.add("o7", "1.2.77", SeriesNumber="10", SeriesDescription="ten")
    shelf.add("o8", "1.2.78", SeriesNumber="1", SeriesDescription="one")
    assert [heading.split()[0] for heading in sections(read(pages))] == ["1", "2", "10"]


def test_a_failed_job_shows_its_code_stage_and_sentence(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    fail_job(ledger)
    text = read(pages)
    assert "<strong>gantry-tilt</strong> in stack" in text
    assert "no: it is failed</td>" in text


def test_the_result_that_the_viewer_shows_is_named_with_the_reason(
    pages: FlaskClient, ledger: Ledger, shelf: Shelf
) -> None:
    key = queue_job(ledger)
    finish_job(ledger)
    shelf.add("r1", "2.1", "2.1.1", Modality="SEG", SeriesDescription="AI ct-tissue")
    found = sections(read(pages))
    assert (
        "yes, first: its route is the first of those with a result here" in found[next(iter(found))]
    )
    results = found["Results in the archive"]
    assert "SEG AI ct-tissue" in results
    assert f"/segnode/jobs/{key}" in results
    assert len(found) == 2  # the result is no series that waits for a decision


def test_withdrawn_and_superseded_jobs_are_listed_and_not_shown_by_the_viewer(
    pages: FlaskClient, ledger: Ledger
) -> None:
    key = queue_job(ledger)
    finish_job(ledger)
    other = queue_job(ledger, number=2)
    with ledger.write() as connection:
        connection.exec_driver_sql(
            f"update job set state = 'superseded', series_uids = '1.2.3' where key = '{other}'"
        )
    ActLedger(ledger).withdraw(key, "ada", "wrong side")
    text = read(pages)
    assert "no: it is withdrawn</td>" in text
    assert "no: it is superseded</td>" in text


def test_a_revision_is_named(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    finish_job(ledger)
    ActLedger(ledger).withdraw(key, "ada", "wrong side")
    ActLedger(ledger).run_anew(key, "ada")
    assert "tissue, revision 1" in read(pages)


def test_of_two_models_the_one_of_the_first_route_is_shown_first(
    pages: FlaskClient, ledger: Ledger
) -> None:
    first, second = queue_job(ledger), queue_job(ledger, number=2)
    finish_job(ledger)
    finish_job(ledger)
    with ledger.write() as connection:
        connection.exec_driver_sql(
            "update job set series_uids = '1.2.3', model = 'other', route_rank = 5 "
            f"where key = '{second}'"
        )
    text = read(pages)
    rows = dict(re.findall(r"/segnode/jobs/(\w+)\">.*?<td>(yes[^<]*)", text))
    assert rows[first].startswith("yes, first")
    assert rows[second] == "yes, behind that of an earlier route"


def test_a_series_that_intake_never_met_is_said_to_be_so(
    pages: FlaskClient, ledger: Ledger, shelf: Shelf
) -> None:
    queue_job(ledger)
    shelf.add("o9", "1.2.9", SeriesNumber="9", SeriesDescription="late")
    assert "Intake has not met this series" in sections(read(pages))["9 CT late"]


def test_a_series_whose_images_still_come_says_when_it_is_decided(
    pages: FlaskClient, ledger: Ledger, shelf: Shelf
) -> None:
    queue_job(ledger)
    shelf.add("o9", "1.2.9", SeriesNumber="9", SeriesDescription="late")
    IntakeLedger(ledger).note("a", 9, ["o9"])
    quiet_s = load_settings(CONFIG).intake.quiet_s
    words = sections(read(pages))["9 CT late"]
    assert f"Images still come: it is decided {quiet_s:g} s after the last one" in words


def test_images_that_came_after_the_decision_are_counted(
    pages: FlaskClient, ledger: Ledger
) -> None:
    queue_job(ledger)
    assert "3 images in the archive, decided with 112" in read(pages)


def test_a_study_that_only_the_archive_knows_is_explained(pages: FlaskClient) -> None:
    assert "nothing was decided about it" in read(pages)


def test_a_study_that_only_the_ledger_knows_is_remembered(ledger: Ledger) -> None:
    queue_job(ledger)
    text = read(client(ledger, Shelf()))
    assert "The archive has this study no more" in text
    assert "not in the archive any more" in text
    assert "every condition holds" in text


def test_a_job_of_a_series_that_is_forgotten_is_still_there(
    pages: FlaskClient, ledger: Ledger, shelf: Shelf
) -> None:
    key = queue_job(ledger)
    with ledger.write() as connection:
        connection.exec_driver_sql("delete from series")
    shelf.series.clear()
    shelf.add("o5", "1.2.55")
    assert f"/segnode/jobs/{key}" in sections(read(pages))["Jobs of series that are gone"]


def test_without_an_archive_the_decisions_are_shown(ledger: Ledger) -> None:
    queue_job(ledger)
    text = read(client(ledger))
    assert "112 images when it was decided" in text
    assert "no more" not in text


@pytest.mark.parametrize("uid", ["9.9", "1.2'or'1", "x"])
def test_a_study_that_nobody_knows_is_not_found(
    pages: FlaskClient, ledger: Ledger, uid: str
) -> None:
    queue_job(ledger)
    assert pages.get(f"/segnode/studies/{uid}").status_code == 404


def test_who_may_run_a_model_finds_it_at_each_series(ledger: Ledger, shelf: Shelf) -> None:
    queue_job(ledger)
    site = Site(ledger=ledger, settings=load_settings(CONFIG), archive=shelf)
    link = '<a class="button" href="/segnode/series/1.2.3/run">'
    for user, offered in (("viewer", False), ("operator", True), ("admin", True)):
        pages = client(ledger, shelf, user=user, blueprints=[by_hand.pages(site)])
        assert (link in read(pages)) == offered
    assert link not in read(client(ledger, shelf, user="operator"))
