"""The ledger does the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from segnode_contract.errors import (
    ArchiveUnavailable,
    LedgerSchemaError,
    LedgerUnavailable,
    UnsuitableSeries,
)
from segnode_contract.findings import Findings, Measurement
from segnode_contract.identity import content_digest, job_key
from segnode_contract.job import Claim, NewJob, Stage
from segnode_contract.ledger import IntakeLedger, Ledger, LedgerView, OutboxLedger, WorkLedger
from segnode_contract.ledger.intake import Decision, Verdict
from segnode_contract.ledger.schema import metadata
from segnode_contract.ledger.work import LeaseLost

ARCHIVE = "archive-1"
DIGEST = "d" * 64


def new_job(number: int = 1, *, instances: int = 3, model: str = "ct-tissue") -> NewJob:
    uids = [f"1.2.{number}.{i}" for i in range(instances)]
    series = f"1.2.{number}"
    return NewJob(
        key=job_key(
            series_uids=[series],
            instance_uids=uids,
            model=model,
            model_digest=DIGEST,
            parameters={},
            form="BINARY",
        ),
        study_uid="1.2",
        series_uids=(series,),
        content=content_digest(uids),
        instance_count=instances,
        route="any CT",
        route_rank=0 if model == "ct-tissue" else 1,
        model=model,
        model_version="1.0.0",
        model_digest=DIGEST,
        lane="default",
        last_instance_at=0.0,
    )


def arrive(ledger: Ledger, *jobs: NewJob, orthanc_id: str = "o1") -> list[str]:
    intake = IntakeLedger(ledger)
    intake.note(ARCHIVE, 7, [orthanc_id])
    quiet = next(q for q in intake.quiet(ARCHIVE, 0) if q.orthanc_id == orthanc_id)
    return intake.decide(
        ARCHIVE,
        Decision(
            orthanc_id=orthanc_id,
            last_instance_at=quiet.last_instance_at,
            study_uid="1.2",
            series_uid=jobs[0].series_uids[0] if jobs else "1.2.1",
            instance_count=3,
            verdicts=(Verdict(route="any CT", taken=bool(jobs), reason="CT"),),
            jobs=jobs,
        ),
    )


def claim(ledger: Ledger, worker: str = "w1", lease_s: float = 60) -> Claim | None:
    return WorkLedger(ledger, worker).claim("default", [DIGEST], lease_s)


def the_claim(ledger: Ledger) -> Claim:
    found = claim(ledger)
    assert found is not None
    return found


def state(ledger: Ledger, key: str) -> str:
    job = LedgerView(ledger).job(key)
    assert job is not None
    return job.row.state


def test_migrations_make_the_schema_that_the_code_describes(ledger: Ledger) -> None:
    with ledger.read() as connection:
        difference = compare_metadata(MigrationContext.configure(connection), metadata)
    assert difference == []


def test_only_a_migrated_ledger_is_opened(ledger_url: str) -> None:
    with pytest.raises(LedgerSchemaError, match="schema is empty"):
        Ledger.open(ledger_url)
    ledger = Ledger(ledger_url)
    ledger.migrate()
    ledger.migrate()
    Ledger.open(ledger_url).close()
    with ledger.write() as connection:
        connection.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(LedgerSchemaError, match="9999"):
        Ledger.open(ledger_url)
    with pytest.raises(LedgerSchemaError, match="newer segnode"):
        ledger.migrate()
    ledger.close()


def test_a_silent_database_is_named() -> None:
    with pytest.raises(LedgerUnavailable, match="does not answer"):
        Ledger.open("postgresql+psycopg://nobody@127.0.0.1:1/nothing?connect_timeout=1")


def test_cursor_and_what_it_caused_are_stored_together(ledger: Ledger) -> None:
    intake = IntakeLedger(ledger)
    assert intake.cursor(ARCHIVE) is None
    intake.note(ARCHIVE, 12, ["o1", "o2"])
    assert intake.cursor(ARCHIVE) == 12
    assert {q.orthanc_id for q in intake.quiet(ARCHIVE, 0)} == {"o1", "o2"}
    assert intake.quiet(ARCHIVE, 60) == []


def test_a_decision_is_dropped_when_an_instance_came_since(ledger: Ledger) -> None:
    intake = IntakeLedger(ledger)
    intake.note(ARCHIVE, 1, ["o1"])
    [quiet] = intake.quiet(ARCHIVE, 0)
    intake.note(ARCHIVE, 2, ["o1"])
    stale = Decision(
        orthanc_id="o1",
        last_instance_at=quiet.last_instance_at,
        study_uid="1.2",
        series_uid="1.2.1",
        instance_count=3,
        verdicts=(),
        jobs=(new_job(),),
    )
    assert intake.decide(ARCHIVE, stale) == []
    assert LedgerView(ledger).jobs() == []


def test_the_same_content_makes_one_job(ledger: Ledger) -> None:
    assert arrive(ledger, new_job()) == [new_job().key]
    assert arrive(ledger, new_job()) == []
    assert len(LedgerView(ledger).jobs()) == 1


def test_one_more_slice_makes_a_new_job_and_supersedes_the_old(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    [new] = arrive(ledger, new_job(instances=4))
    assert state(ledger, new_job().key) == "superseded"
    assert state(ledger, new) == "queued"


def test_a_job_goes_to_one_worker(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    assert claim(ledger) is not None
    assert claim(ledger, "w2") is None


def test_a_worker_without_the_model_gets_nothing(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    assert WorkLedger(ledger, "w1").claim("default", ["e" * 64], 60) is None
    assert WorkLedger(ledger, "w1").claim("other lane", [DIGEST], 60) is None


def test_workers_that_race_share_the_jobs_out(ledger: Ledger) -> None:
    for number in range(12):
        arrive(ledger, new_job(number), orthanc_id=f"o{number}")
    taken: list[str] = []

    def work(name: str) -> None:
        while found := claim(ledger, name):
            taken.append(found.key)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(new_job(number).key for number in range(12))


@pytest.fixture
def finished(ledger: Ledger) -> Iterator[Ledger]:
    arrive(ledger, new_job(), new_job(model="ct-lung-density"))
    for _ in range(2):
        held = the_claim(ledger)
        work = WorkLedger(ledger, "w1")
        with work.stage(held, Stage.STORE):
            work.will_store(
                held, role="SEG", instance_uid=f"2.{held.key[:3]}", series_uid="2.1", data=b"seg"
            )
            work.stored(held, f"2.{held.key[:3]}")
        work.confirmed(held, f"2.{held.key[:3]}")
        volume = Measurement(segment=1, name="volume", value=3.5, unit="ml")
        work.done(held, Findings(measurements=(volume,)), peak_mb=120)
    yield ledger


def test_a_finished_job_tells_its_story(finished: Ledger) -> None:
    job = LedgerView(finished).job(new_job().key[:12])
    assert job is not None
    assert job.row.state == "done"
    assert [s.stage for s in job.row.stages] == ["queued", "store"]
    assert all(s.seconds is not None and s.seconds >= 0 for s in job.row.stages)
    assert [o.role for o in job.row.objects] == ["SEG"]
    assert job.row.findings is not None
    assert Findings.from_json(job.row.findings).measurements[0].value == 3.5
    assert [e.kind for e in job.events] == ["queued", "running", "done"]
    assert job.runs[0].peak_mb == 120


def test_the_overlay_of_the_first_route_comes_first(finished: Ledger) -> None:
    overlays = LedgerView(finished).overlays("1.2")
    assert [(o.series_uid, o.model) for o in overlays] == [
        ("1.2.1", "ct-tissue"),
        ("1.2.1", "ct-lung-density"),
    ]


def test_a_superseded_result_is_no_overlay(finished: Ledger) -> None:
    arrive(finished, new_job(instances=4))
    assert [o.model for o in LedgerView(finished).overlays("1.2")] == ["ct-lung-density"]


def test_a_permanent_error_fails_at_once(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    held, work = the_claim(ledger), WorkLedger(ledger, "w1")
    with pytest.raises(UnsuitableSeries), work.stage(held, Stage.STACK):
        raise UnsuitableSeries("The gantry is tilted by 18.5 degrees.", code="gantry-tilt")
    work.failed(held, UnsuitableSeries("The gantry is tilted.", code="gantry-tilt"), peak_mb=1)
    job = LedgerView(ledger).job(held.key)
    assert job is not None
    assert (job.row.state, job.row.error_code, job.row.error_stage) == (
        "failed",
        "gantry-tilt",
        "stack",
    )


def test_a_transient_error_waits_and_is_rung_again(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    held, work = the_claim(ledger), WorkLedger(ledger, "w1")
    work.failed(held, ArchiveUnavailable("The archive does not answer."), peak_mb=1)
    assert state(ledger, held.key) == "queued"
    assert claim(ledger) is None
    with ledger.write() as connection:
        connection.execute(text("update job set not_before = not_before - 6"))
    assert claim(ledger) is not None


def test_a_lost_lease_refuses_what_comes_late(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    late = claim(ledger, lease_s=-1)
    assert late is not None
    assert OutboxLedger(ledger).reap(deliveries=3) == [late.key]
    second = the_claim(ledger)
    assert second.epoch == late.epoch + 1
    with pytest.raises(LeaseLost):
        WorkLedger(ledger, "w1").done(late, Findings(), peak_mb=1)
    WorkLedger(ledger, "w1").heartbeat(second, 60)


def test_a_job_that_takes_three_workers_down_is_dead(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    for _ in range(3):
        assert claim(ledger, lease_s=-1) is not None
        OutboxLedger(ledger).reap(deliveries=3)
    job = LedgerView(ledger).job(new_job().key)
    assert job is not None
    assert (job.row.state, job.row.error_code) == ("dead", "worker-lost")
    assert claim(ledger) is None


def test_a_ring_is_sent_once_and_again_when_nobody_came(ledger: Ledger) -> None:
    outbox = OutboxLedger(ledger)
    arrive(ledger, new_job())
    [ring] = outbox.due()
    assert ring.lane == "default"
    outbox.published(ring)
    assert outbox.due() == []
    with ledger.write() as connection:
        connection.execute(text("update outbox set published_at = published_at - 31"))
        connection.execute(text("update job set not_before = not_before - 31"))
    assert outbox.due() == [ring]
    assert claim(ledger) is not None
    outbox.tidy()
    assert outbox.due() == []
