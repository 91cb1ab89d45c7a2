"""What routes say of what lies in an archive, and what a replay gives back to intake."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from segnode_contract.findings import Findings
from segnode_contract.job import ResultObject
from segnode_contract.ledger import IntakeLedger, Ledger, LedgerView, WorkLedger
from segnode_contract.route import Route
from segnode_contract.settings import Intake as IntakeSettings
from segnode_contract.settings import Limits
from segnode_plugin.deciding import Known
from segnode_plugin.explaining import Explained, counts, explained, studies_since, words_on
from segnode_plugin.intake import Intake

from .test_intake import Archive, announce, settings

CT = Route(name="CT", model="ct-tissue", modality="CT", min_instances=2)
BEST = Route(
    name="best", model="ct-lung-density", modality="CT", trigger="study", prefer=("most_images",)
)


@pytest.fixture
def archive() -> Archive:
    archive = Archive()
    for number in range(3):
        archive.add("7", f"1.7.{number}", SeriesNumber="7", SeriesDescription="DOE <b>")
    archive.add("8", "1.8.0", SeriesNumber="8")
    return archive


def known(ledger: Ledger, *routes: Route) -> Known:
    intake = IntakeLedger(ledger)
    return Known(
        routes=routes,
        priorities=(),
        models=intake.models(60.0),
        ours=intake.own_series,
        quote=True,
    )


def ask(archive: Archive, ledger: Ledger, *routes: Route) -> dict[tuple[str, str], Explained]:
    words = words_on(archive, "study", known(ledger, *routes), IntakeLedger(ledger).idle_s)
    rows = explained(words, LedgerView(ledger))
    return {(row.series_uid, row.route): row for row in rows}


def intake_with(archive: Archive, ledger: Ledger, *routes: Route) -> Intake:
    quiet = IntakeSettings(quiet_s=0.0, study_quiet_s=0.0)
    return Intake(archive, IntakeLedger(ledger), replace(settings(*routes), intake=quiet))


def test_each_series_and_route_has_its_word_and_its_job(archive: Archive, ledger: Ledger) -> None:
    announce(ledger, "ct-tissue", "ct-lung-density")
    rows = ask(archive, ledger, CT, BEST)
    assert {key: (row.taken, row.state) for key, row in rows.items()} == {
        ("1.7", "CT"): (True, "missing"),
        ("1.7", "best"): (True, "missing"),
        ("1.8", "CT"): (False, ""),
        ("1.8", "best"): (False, ""),
    }
    assert rows["1.8", "CT"].reason == "1 instances, at least 2 are wanted"
    assert rows["1.8", "best"].reason.startswith("series 7 was chosen")
    assert rows["1.7", "CT"].series == "7 CT DOE <b>"
    assert (rows["1.7", "CT"].priority, rows["1.7", "CT"].images) == ("routine", 3)


def test_the_jobs_are_those_that_intake_makes(archive: Archive, ledger: Ledger) -> None:
    announce(ledger, "ct-tissue", "ct-lung-density")
    before = {row.job for row in ask(archive, ledger, CT, BEST).values() if row.job}
    intake_with(archive, ledger, CT, BEST).tick()
    assert {row.key for row in LedgerView(ledger).jobs()} == before
    states = {row.state for row in ask(archive, ledger, CT, BEST).values() if row.job}
    assert states == {"queued"}


def test_a_job_that_two_routes_want_is_counted_once(archive: Archive, ledger: Ledger) -> None:
    announce(ledger)
    rows = ask(archive, ledger, CT, replace(CT, name="again"), BEST)
    assert counts(list(rows.values())) == [
        ("missing", 1),
        ("waiting for a model or a series", 1),
    ]


def test_a_model_that_nobody_has_is_told_of(archive: Archive, ledger: Ledger) -> None:
    announce(ledger)
    row = ask(archive, ledger, BEST)["1.7", "best"]
    assert (row.taken, row.job, row.state) == (True, "", "")
    assert row.reason == "waits: no worker has announced the model"


def test_nothing_is_said_of_a_study_that_is_not_there(ledger: Ledger) -> None:
    assert words_on(Archive(), "study", known(ledger, CT), IntakeLedger(ledger).idle_s) == []


def finish(ledger: Ledger) -> str:
    work = WorkLedger(ledger, "w", Limits())
    claim = work.claim("default", ["d" * 64])
    assert claim is not None
    seg = ResultObject(role="SEG", instance_uid="2.1", series_uid="2", data=b"x")
    work.made(claim, [seg], Findings(), "i")
    work.confirmed(claim, seg)
    work.done(claim, 1)
    return claim.key


def test_a_replay_makes_what_is_missing_and_leaves_what_is_done(
    archive: Archive, ledger: Ledger
) -> None:
    announce(ledger, "ct-tissue", "ct-lung-density")
    intake_with(archive, ledger, CT).tick()
    done = finish(ledger)
    both = intake_with(archive, ledger, CT, BEST)
    both.tick()
    assert len(LedgerView(ledger).jobs()) == 1
    IntakeLedger(ledger).reopen("archive-1", ["7", "8"], "somebody")
    both.tick()
    jobs = {job.key: (job.route, job.state, job.priority) for job in LedgerView(ledger).jobs()}
    assert jobs.pop(done) == ("CT", "done", "background")  # the archive's first reading
    assert list(jobs.values()) == [("best", "queued", "background")]


def test_a_series_that_was_never_noted_is_given_to_intake_as_well(
    archive: Archive, ledger: Ledger
) -> None:
    announce(ledger)
    empty = Archive()
    Intake(empty, IntakeLedger(ledger), settings(CT)).tick()
    intake = IntakeLedger(ledger)
    assert intake.newest_archive() == "archive-1"
    intake.reopen("archive-1", ["7"], "somebody")
    assert [(one.orthanc_id, one.backlog) for one in intake.quiet("archive-1", 0)] == [("7", True)]


def test_a_series_that_is_arriving_is_not_made_a_backlog(archive: Archive, ledger: Ledger) -> None:
    intake = IntakeLedger(ledger)
    intake.note("archive-1", 1, ["7"])
    intake.reopen("archive-1", ["7"], "somebody")
    assert [one.backlog for one in intake.quiet("archive-1", 0)] == [False]


def test_an_archive_that_was_never_read_is_none(ledger: Ledger) -> None:
    assert IntakeLedger(ledger).newest_archive() is None


def test_studies_are_taken_by_the_time_of_their_last_image() -> None:
    since = datetime(2026, 11, 1, 1, tzinfo=UTC)
    listed: list[dict[str, object]] = [
        {"ID": "before", "LastUpdate": "20261101T005959"},
        {"ID": "at", "LastUpdate": "20261101T010000"},
        {"ID": "after", "LastUpdate": "20261224T010000"},
        {"ID": "odd", "LastUpdate": "DOE^JANE"},
    ]
    assert list(studies_since(listed, since)) == ["at", "after"]
    assert list(studies_since(listed, since.astimezone() + timedelta(seconds=1))) == ["after"]
