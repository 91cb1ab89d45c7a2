"""A model that somebody runs on a series, whatever the routes say."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from segnode_contract.ledger import ActLedger, IntakeLedger, Ledger, LedgerView, WorkerLedger
from segnode_contract.ledger.view import Job, JobRow
from segnode_contract.route import Route
from segnode_contract.settings import Settings, load_settings
from segnode_models.registry import builtin_models
from segnode_plugin.deciding import Arrived, Known, decide
from segnode_plugin.facts import series_facts
from segnode_plugin.route_file import Rules
from segnode_plugin.web import by_hand
from segnode_plugin.web.site import Site

from .pages import CONFIG, SCRIPT, client, token
from .rows import finish_job
from .shelf import Shelf

FIVE = [f"1.2.3.{n}" for n in range(1, 6)]
ROUTES = (
    Route(name="first", model="ct-lung-density", modality="CT"),
    Route(name="second", model="ct-tissue", modality="CT", lane="gpu"),
    Route(name="third", model="ct-tissue", modality="CT", lane="cpu"),
)


@pytest.fixture
def shelf() -> Shelf:
    shelf = Shelf()
    shelf.add("o1", "1.2.3", *FIVE, SeriesNumber="2", SeriesDescription=f"thin {SCRIPT}")
    return shelf


@pytest.fixture
def settings() -> Settings:
    known = load_settings(CONFIG)
    return replace(known, intake=replace(known.intake, quiet_s=0.0), routes=ROUTES)


@pytest.fixture
def site(ledger: Ledger, shelf: Shelf, settings: Settings) -> Site:
    for model in builtin_models():
        card = model.card
        WorkerLedger(ledger, "w1").announce(card.name, card.version, model.digest, card.source)
    IntakeLedger(ledger).note("a", 1, [])
    return Site(ledger=ledger, settings=settings, archive=shelf)


def pages_of(site: Site, user: str = "operator") -> FlaskClient:
    made = by_hand.pages(site, lambda: Rules(routes=site.settings.routes))
    return client(site.ledger, site.archive, user=user, settings=site.settings, blueprints=[made])


def read(pages: FlaskClient, uid: str = "1.2.3") -> str:
    answer = pages.get(f"/segnode/series/{uid}/run")
    assert answer.status_code == 200, answer.text
    assert SCRIPT not in answer.text
    return html.unescape(re.sub(r"\s+", " ", answer.text))


def run(site: Site, model: str = "ct-tissue", *, uid: str = "1.2.3", **more: str) -> TestResponse:
    pages = pages_of(site)
    word = token(pages.get("/segnode/series/1.2.3/run").text)
    data = {"token": word, "model": model, **more}
    return pages.post(f"/segnode/series/{uid}/run", data=data)


def job_of(site: Site, answer: TestResponse) -> Job:
    assert answer.status_code == 302, answer.text
    found = LedgerView(site.ledger).job(answer.headers["Location"].rpartition("/")[2])
    assert found is not None
    return found


def jobs(site: Site) -> list[JobRow]:
    return LedgerView(site.ledger).jobs()


def card_source() -> str:
    listed = next(each for each in builtin_models() if each.card.name == "ct-tissue")
    return listed.card.source.replace('name = "ct-tissue"', 'name = "other"', 1)


def test_every_announced_model_is_listed_with_whether_it_fits(site: Site) -> None:
    source = card_source().replace("min_slices = 3", "min_slices = 50")
    WorkerLedger(site.ledger, "w1").announce("other", "1.0", "f" * 64, source)
    text = read(pages_of(site))
    assert "Series 2 CT thin" in text
    assert "<button>Run ct-tissue</button>" in text
    assert "Cannot: 5 images; the model other needs 50 slices." in text
    assert text.index("Run ct-tissue") < text.index("Cannot:")


def test_the_job_comes_behind_all_routes_in_the_lane_of_its_model(site: Site) -> None:
    found = job_of(site, run(site))
    row = found.row
    assert (row.model, row.route, row.lane, row.priority) == (
        "ct-tissue",
        "by hand",
        "gpu",
        "routine",
    )
    assert (row.study_uid, row.series_uids, row.instance_count) == ("1.2", ("1.2.3",), 5)
    assert (row.modality, row.state) == ("CT", "queued")
    with site.ledger.read() as connection:
        [rank] = connection.exec_driver_sql("select route_rank from job").scalars()
    assert rank == len(ROUTES)


def test_its_history_says_who(site: Site) -> None:
    found = job_of(site, run(site))
    assert ("operator", "by hand") in [(each.actor, each.kind) for each in found.events]


def test_it_can_be_urgent(site: Site) -> None:
    assert job_of(site, run(site, priority="stat")).row.priority == "stat"


def test_a_model_without_a_route_goes_to_the_default_lane(site: Site) -> None:
    object.__setattr__(site, "settings", replace(site.settings, routes=ROUTES[:1]))
    assert job_of(site, run(site)).row.lane == "default"


def test_what_a_route_made_of_the_same_images_is_shown_and_not_run_twice(
    site: Site, ledger: Ledger
) -> None:
    found = job_of(site, run(site))
    finish_job_in(site, "gpu")
    again = job_of(site, run(site))
    assert (again.row.key, again.row.state) == (found.row.key, "done")
    assert len(jobs(site)) == 1
    assert f'<a href="/segnode/jobs/{found.row.key}">' in read(pages_of(site))


def finish_job_in(site: Site, lane: str) -> None:
    with site.ledger.write() as connection:
        connection.exec_driver_sql("update job set lane = 'default'")
    finish_job(site.ledger)
    with site.ledger.write() as connection:
        connection.exec_driver_sql(f"update job set lane = '{lane}'")


def test_a_withdrawn_result_is_made_anew(site: Site) -> None:
    found = job_of(site, run(site))
    finish_job_in(site, "gpu")
    ActLedger(site.ledger).withdraw(found.row.key, "ada", "wrong side")
    again = job_of(site, run(site))
    assert (again.row.revision, again.row.state) == (1, "queued")
    assert again.row.base_key == found.row.key


def test_when_the_images_came_is_what_was_noted(site: Site, ledger: Ledger) -> None:
    IntakeLedger(ledger).note("a", 1, ["o1"])
    with ledger.write() as connection:
        connection.exec_driver_sql(
            "update series set first_instance_at = 100, last_instance_at = 200"
        )
    row = job_of(site, run(site)).row
    assert (row.first_instance_at, row.last_instance_at) == (100.0, 200.0)


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"Modality": "MR"}, "Modality is MR, CT is wanted"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "Image Type says LOCALIZER"),
    ],
    ids=["modality", "localizer"],
)
def test_a_series_that_does_not_fit_is_refused_with_the_reason(
    site: Site, shelf: Shelf, tags: dict[str, str], why: str
) -> None:
    run_once = pages_of(site)
    word = token(run_once.get("/segnode/series/1.2.3/run").text)
    shelf.add("o1", "1.2.3", *FIVE, **tags)
    assert f"Cannot: {why}." in read(run_once)
    answer = run_once.post("/segnode/series/1.2.3/run", data={"token": word, "model": "ct-tissue"})
    assert f"ct-tissue was not run: {why}." in answer.text
    assert jobs(site) == []


def test_derived_images_that_no_route_takes_can_be_run_by_hand(site: Site, shelf: Shelf) -> None:
    shelf.add("o1", "1.2.3", *FIVE, ImageType="DERIVED\\SECONDARY\\MPR")
    assert job_of(site, run(site)).row.state == "queued"


def test_a_model_that_takes_several_series_is_left_to_routes(site: Site) -> None:
    roles = "".join(f'[[input.series]]\nrole = "{role}"\n' for role in ("venous", "arterial"))
    source = card_source().replace("[[segments]]", f"{roles}\n[[segments]]", 1)
    WorkerLedger(site.ledger, "w1").announce("other", "1.0", "f" * 64, source)
    assert "it takes several series together (venous, arterial)" in read(pages_of(site))
    assert "only a route can choose" in run(site, "other").text


def test_a_model_that_builds_on_another_is_left_to_routes(site: Site) -> None:
    source = card_source().replace("[input]\n", '[input]\nbuilds_on = "ct-tissue"\n', 1)
    WorkerLedger(site.ledger, "w1").announce("other", "1.0", "f" * 64, source)
    assert "it builds on the result of ct-tissue" in read(pages_of(site))
    assert "only a route can give it" in run(site, "other").text


def test_a_card_of_another_version_is_said_to_be_one(site: Site) -> None:
    WorkerLedger(site.ledger, "w1").announce("other", "1.0", "f" * 64, "no card")
    assert "its card is of another version of segnode" in read(pages_of(site))


@pytest.mark.parametrize("model", ["", "nothing", "../x"])
def test_a_model_that_nobody_announced_is_refused(site: Site, model: str) -> None:
    assert "no worker has announced it" in run(site, model).text
    assert jobs(site) == []


def test_an_unknown_priority_is_refused(site: Site) -> None:
    assert "was not run" in run(site, priority="background").text
    assert jobs(site) == []


def test_a_series_of_ours_is_refused(site: Site, shelf: Shelf) -> None:
    job_of(site, run(site))
    finish_job_in(site, "gpu")
    with site.ledger.write() as connection:
        connection.exec_driver_sql("update result set series_uid = '2.5'")
    shelf.add("r1", "2.5", *FIVE)
    text = read(pages_of(site), "2.5")
    assert "this series is a result of ours, and no input" in text
    assert "<form" not in text


def test_two_series_of_one_uid_are_refused(site: Site, shelf: Shelf) -> None:
    pages = pages_of(site)
    word = token(pages.get("/segnode/series/1.2.3/run").text)
    shelf.add("o2", "1.2.3", study="7.7")
    assert "2 series in the archive have this Series Instance UID" in read(pages)
    answer = pages.post("/segnode/series/1.2.3/run", data={"token": word, "model": "ct-tissue"})
    assert "delete the wrong ones there first" in answer.text
    assert jobs(site) == []


def test_a_series_that_still_arrives_is_waited_for(site: Site, settings: Settings) -> None:
    IntakeLedger(site.ledger).note("a", 1, ["o1"])
    slow = replace(settings, intake=replace(settings.intake, quiet_s=60.0))
    waiting = replace(site, settings=slow)
    text = read(pages_of(waiting))
    assert re.search(r"an image of it came \d s ago, and more may follow", text)
    assert "<form" not in text


@pytest.mark.parametrize("uid", ["9.9", "x", "1.2.3'"])
def test_a_series_that_the_archive_lacks_is_not_found(site: Site, uid: str) -> None:
    assert pages_of(site).get(f"/segnode/series/{uid}/run").status_code == 404
    assert run(site, uid=uid).status_code in (403, 404)


def test_a_viewer_can_start_nothing(site: Site) -> None:
    pages = pages_of(site, "viewer")
    assert pages.get("/segnode/series/1.2.3/run").status_code == 403
    data = {"token": token(pages.get("/segnode/jobs").text), "model": "ct-tissue"}
    assert pages.post("/segnode/search", data=data).status_code == 200
    assert pages.post("/segnode/series/1.2.3/run", data=data).status_code == 403
    assert jobs(site) == []


def test_without_models_it_says_what_to_do(ledger: Ledger, shelf: Shelf) -> None:
    bare = Site(ledger=ledger, settings=load_settings(CONFIG), archive=shelf)
    assert "No worker has announced a model. Start one" in read(pages_of(bare))


def test_without_an_archive_it_says_so(ledger: Ledger) -> None:
    bare = Site(ledger=ledger, settings=load_settings(CONFIG))
    assert "there is no archive behind this page" in read(pages_of(bare))


def test_a_route_makes_the_same_job_of_the_same_images(site: Site, shelf: Shelf) -> None:
    found = job_of(site, run(site))
    facts = series_facts(shelf, "o1")
    assert facts is not None
    known = Known(
        routes=ROUTES[1:2],
        priorities=(),
        models=IntakeLedger(site.ledger).models(60.0),
        ours=lambda uid: False,
    )
    [job] = decide(Arrived(series=(facts,), trigger="series", came_at=(0.0,)), known).jobs
    assert job.key == found.row.key


def test_before_intake_has_met_the_archive_it_says_wait(site: Site) -> None:
    with site.ledger.write() as connection:
        connection.exec_driver_sql("delete from archive")
    assert "intake has not met this archive yet" in read(pages_of(site))
