"""Studies are decided when they are complete, and again when something comes."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from segnode_contract.condition import read_condition
from segnode_contract.ledger import IntakeLedger, Ledger, LedgerView
from segnode_contract.ledger.view import JobRow
from segnode_contract.route import RequiredSeries, Route
from segnode_contract.settings import Intake as IntakeSettings
from segnode_contract.settings import Settings
from segnode_plugin.intake import Intake

from .test_intake import Archive, announce, settings

BEST = Route(
    name="best", model="ct-tissue", modality="CT", trigger="study", prefer=("most_images",)
)


def role(word: str) -> RequiredSeries:
    where = read_condition({"attribute": "SeriesDescription", "contains": word}, "")
    return RequiredSeries(role=word, prefer=("most_images",), where=where)


BOTH = Route(
    name="both",
    model="ct-tissue",
    modality="CT",
    trigger="study",
    series=(role("t1"), role("flair")),
    wait_s=600.0,
)


@pytest.fixture
def archive() -> Archive:
    return Archive()


def with_route(route: Route, quiet_s: float = 30.0) -> Settings:
    quiet = IntakeSettings(quiet_s=0.0, study_quiet_s=quiet_s)
    return replace(settings(route), intake=quiet)


def later(ledger: Ledger, intake: Intake, seconds: float) -> None:
    """Let time pass: every instance came so much earlier."""
    with ledger.write() as connection:
        connection.execute(
            text("update series set last_instance_at = last_instance_at - :s"), {"s": seconds}
        )
    intake._look_at.clear()
    intake._facts.clear()
    intake.tick()


def jobs(ledger: Ledger) -> dict[str, str]:
    return {row.series_uids[-1]: row.state for row in rows(ledger)}


def rows(ledger: Ledger) -> list[JobRow]:
    return LedgerView(ledger).jobs()


def reasons(ledger: Ledger) -> dict[str | None, str]:
    return {
        series.series_uid: series.verdicts[0]["reason"]
        for series in LedgerView(ledger).series("1.2")
    }


def send(archive: Archive, series: str, images: int, **tags: str) -> None:
    for number in range(images):
        archive.add(series, f"1.{series}.{number}", **tags)


def test_a_study_is_decided_when_it_is_quiet_and_not_before(
    archive: Archive, ledger: Ledger
) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), with_route(BEST))
    intake.tick()
    send(archive, "7", 2, SeriesNumber="7")
    send(archive, "8", 5, SeriesNumber="8")
    intake.tick()
    assert jobs(ledger) == {}
    assert set(reasons(ledger).values()) == {
        "every condition holds; waits until the study is complete"
    }
    later(ledger, intake, 31)
    assert jobs(ledger) == {"1.8": "queued"}
    assert reasons(ledger) == {
        "1.7": "series 8 was chosen: most_images wants the one with 5 images, this one has "
        "2 images",
        "1.8": "the best of 2 series that fit",
    }


def test_an_image_of_any_series_keeps_the_study_waiting(archive: Archive, ledger: Ledger) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), with_route(BEST))
    intake.tick()
    send(archive, "7", 2)
    intake.tick()
    with ledger.write() as connection:
        connection.execute(text("update series set last_instance_at = last_instance_at - 31"))
    send(archive, "8", 1)
    intake._look_at.clear()
    intake.tick()
    assert jobs(ledger) == {}


def test_a_better_series_that_comes_late_takes_the_place(archive: Archive, ledger: Ledger) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), with_route(BEST, quiet_s=0.0))
    intake.tick()
    send(archive, "7", 2)
    intake.tick()
    assert jobs(ledger) == {"1.7": "queued"}
    send(archive, "8", 1)
    intake.tick()
    assert jobs(ledger) == {"1.7": "queued"}
    send(archive, "9", 5)
    intake.tick()
    assert jobs(ledger) == {"1.7": "superseded", "1.9": "queued"}


@pytest.mark.parametrize("corrected", ["6", "8"], ids=["lower UID", "higher UID"])
def test_a_corrected_series_under_new_uids_takes_the_place_and_keeps_it(
    archive: Archive, ledger: Ledger, corrected: str
) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), with_route(BEST, quiet_s=0.0))
    intake.tick()
    archive.received = {"7": "20261124T100000", corrected: "20261124T101500"}
    send(archive, "7", 2)
    intake.tick()
    assert jobs(ledger) == {"1.7": "queued"}
    send(archive, corrected, 2)
    intake.tick()
    right = {"1.7": "superseded", f"1.{corrected}": "queued"}
    assert jobs(ledger) == right
    # neither a replay nor images that come again make the old one the later one
    IntakeLedger(ledger).reopen(archive.id, ["7"], "somebody")
    intake.tick()
    send(archive, "7", 2)
    intake.tick()
    assert jobs(ledger) == right


@pytest.mark.parametrize("missing", ["discard", "proceed"])
def test_a_required_series_is_waited_for_and_welcome_after_the_wait(
    archive: Archive, ledger: Ledger, missing: str
) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), with_route(replace(BOTH, missing=missing)))
    intake.tick()
    send(archive, "7", 2, SeriesDescription="T1 sag")
    intake.tick()
    later(ledger, intake, 31)
    assert jobs(ledger) == {}
    assert reasons(ledger) == {"1.7": "fits as 't1'; waits for 'flair', 600 s at most"}
    later(ledger, intake, 600)
    alone = {"1.7": "queued"} if missing == "proceed" else {}
    assert jobs(ledger) == alone
    assert reasons(ledger) == {"1.7": "fits as 't1', but 'flair' did not come within 600 s"}
    send(archive, "8", 3, SeriesDescription="FLAIR tra")
    intake.tick()
    later(ledger, intake, 31)
    assert jobs(ledger) == {"1.8": "queued", **dict.fromkeys(alone, "superseded")}
    whole = next(row for row in rows(ledger) if row.state == "queued")
    assert whole.series_uids == ("1.7", "1.8")
    assert whole.instance_count == 5


def test_a_study_without_its_model_waits_for_it(archive: Archive, ledger: Ledger) -> None:
    intake = Intake(archive, IntakeLedger(ledger), with_route(BEST, quiet_s=0.0))
    intake.tick()
    send(archive, "7", 2)
    intake.tick()
    assert reasons(ledger) == {"1.7": "waits: no worker has announced the model"}
    announce(ledger)
    later(ledger, intake, 0)
    assert jobs(ledger) == {"1.7": "queued"}


def test_a_study_that_was_deleted_is_forgotten(
    archive: Archive, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), with_route(BEST))
    intake.tick()
    send(archive, "7", 2)
    intake.tick()
    whole = archive.get
    monkeypatch.setattr(
        archive, "get", lambda uri: None if uri.startswith("/studies/") else whole(uri)
    )
    later(ledger, intake, 31)
    assert IntakeLedger(ledger).open_studies(archive.id) == []
    assert jobs(ledger) == {}


def test_a_study_with_a_series_that_cannot_be_read_waits_and_holds_nobody(
    archive: Archive,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), with_route(BEST, quiet_s=0.0))
    intake.tick()
    send(archive, "7", 2)
    send(archive, "8", 5)
    whole = archive.get

    def broken(uri: str) -> Any:
        if uri == "/series/8":
            raise RuntimeError("DOE^JANE")
        return whole(uri)

    monkeypatch.setattr(archive, "get", broken)
    with caplog.at_level(logging.WARNING):
        intake.tick()
        intake.tick()
    assert jobs(ledger) == {}
    said = [record.getMessage() for record in caplog.records]
    assert said.count("study not decided") == 1
    assert "DOE" not in caplog.text
    monkeypatch.setattr(archive, "get", whole)
    intake._asked.clear()
    later(ledger, intake, 0)
    assert jobs(ledger) == {"1.8": "queued"}


@pytest.mark.parametrize("seen", [True, False], ids=["as they came", "by another process"])
def test_the_archive_is_asked_for_images_that_were_not_seen_to_come(
    archive: Archive, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), with_route(BEST, quiet_s=0.0))
    intake.tick()
    send(archive, "7", 2)
    if not seen:
        Intake(archive, IntakeLedger(ledger), with_route(BEST, quiet_s=9.0))._note_changes(
            archive.id
        )
    asked: list[str] = []
    whole = archive.get
    monkeypatch.setattr(archive, "get", lambda uri: asked.append(uri) or whole(uri))
    intake.tick()
    assert jobs(ledger) == {"1.7": "queued"}
    assert asked.count("/series/7/instances") == int(not seen)


def test_images_that_came_after_others_were_decided_count_together(
    archive: Archive, ledger: Ledger
) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), with_route(BEST, quiet_s=0.0))
    intake.tick()
    send(archive, "7", 2)
    intake.tick()
    archive.add("7", "1.7.9")
    intake.tick()
    assert {row.instance_count: row.state for row in rows(ledger)} == {
        2: "superseded",
        3: "queued",
    }


def test_a_first_reading_of_an_archive_makes_background_work(
    archive: Archive, ledger: Ledger
) -> None:
    announce(ledger)
    send(archive, "7", 2)
    intake = Intake(archive, IntakeLedger(ledger), settings())
    intake.tick()
    send(archive, "8", 2)
    intake.tick()
    assert {row.series_uids[0]: row.priority for row in rows(ledger)} == {
        "1.7": "background",
        "1.8": "routine",
    }


def test_a_series_that_waits_for_its_model_does_not_open_its_study_again(
    archive: Archive, ledger: Ledger
) -> None:
    announce(ledger)
    absent = Route(name="absent", model="nobody has it", modality="CT")
    intake = Intake(
        archive,
        IntakeLedger(ledger),
        replace(settings(absent, BEST), intake=IntakeSettings(quiet_s=0.0, study_quiet_s=0.0)),
    )
    intake.tick()
    send(archive, "7", 2)
    intake.tick()
    assert jobs(ledger) == {"1.7": "queued"}
    for _ in range(3):
        intake._asked.clear()
        intake.tick()
        assert IntakeLedger(ledger).open_studies(archive.id) == []


def test_what_was_never_looked_at_comes_before_what_waits(
    archive: Archive, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(ledger)
    absent = Route(name="absent", model="nobody has it", modality="CT")
    mr = Route(name="MR", model="ct-tissue", modality="MR")
    intake = Intake(archive, IntakeLedger(ledger), settings(absent, mr))
    intake.tick()
    for number in range(5):
        send(archive, f"1{number}", 1)
    intake.tick()
    seen: list[str] = []
    decide = intake._decide
    monkeypatch.setattr(
        intake, "_decide", lambda a, one: seen.append(one.orthanc_id) or decide(a, one)
    )
    monkeypatch.setattr("segnode_plugin.intake._ASK_AGAIN_S", 0.0)
    send(archive, "20", 1, Modality="MR")
    intake.tick()
    assert seen[0] == "20"
    assert len(seen) == 6


def test_a_study_of_which_only_our_result_is_left_is_forgotten(
    archive: Archive, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), with_route(BEST))
    intake.tick()
    send(archive, "7", 2)
    intake.tick()
    noted = IntakeLedger(ledger).series_of_study(archive.id, ["7"])
    ours = [replace(one, ours=True) for one in noted]
    monkeypatch.setattr(IntakeLedger, "series_of_study", lambda self, a, s: ours)
    later(ledger, intake, 31)
    assert IntakeLedger(ledger).open_studies(archive.id) == []
