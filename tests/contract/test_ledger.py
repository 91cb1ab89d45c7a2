"""The ledger does the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from segnode_contract.errors import (
    ArchiveUnavailable,
    LedgerSchemaError,
    LedgerUnavailable,
    ModelProcessDied,
    OutOfMemory,
    SeriesChanged,
    UnsuitableSeries,
)
from segnode_contract.findings import Findings, Measurement
from segnode_contract.identity import content_digest, job_key
from segnode_contract.job import Claim, NewJob, ResultObject, Stage
from segnode_contract.ledger import (
    ActLedger,
    IntakeLedger,
    LeaseLedger,
    Ledger,
    LedgerView,
    OutboxLedger,
    WorkerLedger,
    WorkLedger,
)
from segnode_contract.ledger.intake import Decision, Verdict
from segnode_contract.ledger.leases import Lease
from segnode_contract.ledger.overlays import study_overlays
from segnode_contract.ledger.schema import metadata
from segnode_contract.ledger.work import LeaseLost
from segnode_contract.settings import Limits

ARCHIVE = "archive-1"
DIGEST = "d" * 64
LIMITS = Limits()


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


def arrive(
    ledger: Ledger, *jobs: NewJob, orthanc_id: str = "o1", archive: str = ARCHIVE
) -> list[str]:
    intake = IntakeLedger(ledger)
    intake.note(archive, 7, [orthanc_id])
    quiet = next(q for q in intake.quiet(archive, 0) if q.orthanc_id == orthanc_id)
    return intake.decide(
        archive,
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


def claim(ledger: Ledger, worker: str = "w1") -> Claim | None:
    return WorkLedger(ledger, worker, LIMITS).claim("default", [DIGEST])


def reap(ledger: Ledger) -> list[str]:
    """Let the lease of every job run out, and take the jobs back."""
    with ledger.write() as connection:
        connection.execute(text("update job set lease_until = lease_until - 61"))
    leases = LeaseLedger(ledger, LIMITS)
    return leases.take_back(leases.expired(), "reaper")


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
    assert WorkLedger(ledger, "w1", LIMITS).claim("default", ["e" * 64]) is None
    assert WorkLedger(ledger, "w1", LIMITS).claim("other lane", [DIGEST]) is None


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


def finish_store(work: WorkLedger, held: Claim) -> None:
    uid = f"2.{held.key[:3]}"
    seg = ResultObject(role="SEG", instance_uid=uid, series_uid="2.1", data=b"seg")
    volume = Measurement(segment=1, name="volume", value=3.5, unit="ml")
    work.made(held, [seg], Findings(measurements=(volume,)), "i" * 64)
    work.stored(held, uid)
    work.confirmed(held, seg)


@pytest.fixture
def finished(ledger: Ledger) -> Iterator[Ledger]:
    arrive(ledger, new_job(), new_job(model="ct-lung-density"))
    for _ in range(2):
        held = the_claim(ledger)
        work = WorkLedger(ledger, "w1", LIMITS)
        with work.stage(held, Stage.STORE):
            finish_store(work, held)
        work.done(held, peak_mb=120)
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
    overlays = study_overlays(finished, "1.2").overlays
    assert [(o.series_uid, o.model) for o in overlays] == [
        ("1.2.1", "ct-tissue"),
        ("1.2.1", "ct-lung-density"),
    ]


def test_a_superseded_result_is_no_overlay(finished: Ledger) -> None:
    arrive(finished, new_job(instances=4))
    assert [o.model for o in study_overlays(finished, "1.2").overlays] == ["ct-lung-density"]


def test_a_permanent_error_fails_at_once(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    held, work = the_claim(ledger), WorkLedger(ledger, "w1", LIMITS)
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
    held, work = the_claim(ledger), WorkLedger(ledger, "w1", LIMITS)
    work.failed(held, ArchiveUnavailable("The archive does not answer."), peak_mb=1)
    assert state(ledger, held.key) == "queued"
    assert claim(ledger) is None
    with ledger.write() as connection:
        connection.execute(text("update job set not_before = not_before - 6"))
    assert claim(ledger) is not None


def test_a_lost_lease_refuses_what_comes_late(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    late = the_claim(ledger)
    assert reap(ledger) == [late.key]
    second = the_claim(ledger)
    assert second.epoch == late.epoch + 1
    with pytest.raises(LeaseLost):
        finish_store(WorkLedger(ledger, "w1", LIMITS), late)
    WorkLedger(ledger, "w1", LIMITS).heartbeat(second)


def test_a_job_that_takes_three_workers_down_is_dead(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    for _ in range(3):
        assert claim(ledger) is not None
        reap(ledger)
    job = LedgerView(ledger).job(new_job().key)
    assert job is not None
    assert (job.row.state, job.row.error_code) == ("dead", "worker-lost")
    assert claim(ledger) is None


def test_a_ring_is_sent_once_and_again_when_nobody_came(ledger: Ledger) -> None:
    outbox = OutboxLedger(ledger, LIMITS)
    arrive(ledger, new_job())
    [ring] = outbox.due()
    assert ring.lane == "default"
    outbox.published([ring])
    assert outbox.due() == []
    with ledger.write() as connection:
        connection.execute(text("update outbox set published_at = published_at - 31"))
        connection.execute(text("update job set not_before = not_before - 31"))
    assert outbox.due() == [replace(ring, again=True)]
    assert claim(ledger) is not None
    outbox.tidy()
    assert outbox.due() == []


def test_a_superseded_result_is_looked_for_when_its_content_comes_back(finished: Ledger) -> None:
    arrive(finished, new_job(instances=4))
    assert state(finished, new_job().key) == "superseded"
    assert arrive(finished, new_job()) == [new_job().key]
    held = the_claim(finished)
    assert [known.role for known in WorkLedger(finished, "w1", LIMITS).known(held)] == ["SEG"]
    assert state(finished, new_job(instances=4).key) == "superseded"


def test_a_job_superseded_before_its_end_runs_when_its_content_comes_back(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    arrive(ledger, new_job(instances=4))
    assert arrive(ledger, new_job()) == [new_job().key]
    assert the_claim(ledger).key == new_job().key


def test_the_same_series_in_a_replaced_archive_is_done_again(finished: Ledger) -> None:
    assert arrive(finished, new_job(), archive="archive-2") == [new_job().key]
    assert state(finished, new_job().key) == "queued"


def test_a_result_is_one_set(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    held, work = the_claim(ledger), WorkLedger(ledger, "w1", LIMITS)
    objects = [
        ResultObject(role=role, instance_uid=f"2.{n}", series_uid="2", data=b"x")
        for n, role in enumerate(("SEG", "SR"))
    ]
    work.made(held, objects, Findings(), "i" * 64)
    assert [known.role for known in work.known(held)] == ["SEG", "SR"]
    work.confirmed(held, objects[0])
    with pytest.raises(RuntimeError, match="1 of 2"):
        work.done(held, peak_mb=1)
    work.confirmed(held, objects[1])
    work.done(held, peak_mb=1)
    assert state(ledger, held.key) == "done"


def test_transient_errors_wait_longer_each_time_and_never_for_ever(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    work = WorkLedger(ledger, "w1", LIMITS)
    waits = []
    for _ in range(9):
        held = the_claim(ledger)
        work.failed(held, ArchiveUnavailable("The archive does not answer."), peak_mb=1)
        with ledger.write() as connection:
            wait = text("select not_before - updated_at from job")
            waits.append(round(connection.execute(wait).scalar_one()))
            connection.execute(text("update job set not_before = 0"))
    assert waits == [5, 15, 45, 120, 300, 600, 900, 900, 900]
    with ledger.write() as connection:
        connection.execute(text("update job set tried_since = tried_since - 72 * 3600"))
    work.failed(the_claim(ledger), ArchiveUnavailable("The archive does not answer."), peak_mb=1)
    assert state(ledger, new_job().key) == "dead"


def test_three_deaths_of_the_model_process_are_enough(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    work = WorkLedger(ledger, "w1", LIMITS)
    for expected in ("queued", "queued", "dead"):
        work.failed(the_claim(ledger), ModelProcessDied("It ended."), peak_mb=1)
        assert state(ledger, new_job().key) == expected
        with ledger.write() as connection:
            connection.execute(text("update job set not_before = 0"))


def test_too_little_memory_is_tried_once_more_at_once_on_the_cpu(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    work, first = WorkLedger(ledger, "w1", LIMITS), the_claim(ledger)
    assert not first.on_cpu
    work.failed(first, OutOfMemory("The model had not enough memory."), peak_mb=1)
    assert the_claim(ledger).on_cpu


def test_a_retry_is_an_act_with_a_name(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    key = new_job().key
    assert not ActLedger(ledger).retry(key, "jane")
    for _ in range(3):
        assert claim(ledger) is not None
        reap(ledger)
    assert state(ledger, key) == "dead"
    assert ActLedger(ledger).retry(key, "jane")
    assert the_claim(ledger).key == key
    job = LedgerView(ledger).job(key)
    assert job is not None
    assert ("jane", "retried by hand") in [(e.actor, e.detail) for e in job.events]
    assert job.row.error_code is None


def test_a_job_that_is_handed_back_is_no_loss(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    leases = LeaseLedger(ledger, LIMITS)
    for _ in range(5):
        assert claim(ledger, "host/1/2/3") is not None
        assert leases.held("host2") == []
        assert leases.hand_back(leases.held("host"), "host/1") == [new_job().key]
    assert state(ledger, new_job().key) == "queued"


def test_a_lease_that_went_on_is_not_taken_back(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    the_claim(ledger)
    leases = LeaseLedger(ledger, LIMITS)
    old = Lease(key=new_job().key, epoch=1, owner="w1")
    reap(ledger)
    the_claim(ledger)
    assert leases.take_back([old], "late") == []
    assert state(ledger, new_job().key) == "running"


def test_an_upgrade_makes_waiting_jobs_anew(ledger: Ledger) -> None:
    old, new = WorkerLedger(ledger, "old"), WorkerLedger(ledger, "new")
    old.announce("ct-tissue", "1.0.0", DIGEST, "card")
    arrive(ledger, new_job())
    new.announce("ct-tissue", "2.0.0", "e" * 64, "card")
    intake = IntakeLedger(ledger)
    assert intake.models(60)["ct-tissue"].version == "2.0.0"
    assert intake.replace_stranded(60) == []
    old.announce("ct-tissue", "1.0.0", DIGEST, "card")
    assert intake.models(60)["ct-tissue"].version == "2.0.0"
    with ledger.write() as connection:
        connection.execute(
            text("update model set announced_at = announced_at - 61 where version = '1.0.0'")
        )
    assert intake.replace_stranded(60) == [new_job().key]
    assert state(ledger, new_job().key) == "superseded"
    assert [q.orthanc_id for q in intake.quiet(ARCHIVE, 0)] == ["o1"]


def test_a_card_that_is_none_any_more_hides_no_job(ledger: Ledger) -> None:
    WorkerLedger(ledger, "old").announce("ct-tissue", "1.0.0", DIGEST, "card")
    assert LedgerView(ledger).card("ct-tissue", DIGEST) is None


def test_workers_say_how_they_are(ledger: Ledger) -> None:
    worker = WorkerLedger(ledger, "host/1")
    worker.seen("ready")
    worker.seen("no-space", "12 MB are free")
    [row] = LedgerView(ledger).workers()
    assert (row.name, row.state, row.detail) == ("host/1", "no-space", "12 MB are free")
    worker.gone()
    assert LedgerView(ledger).workers() == []


def test_a_ledger_of_the_first_version_is_brought_up_to_date(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.migrate("0001")
    with ledger.write() as connection:
        connection.execute(text("insert into model values ('m', 'd', '1.0.0', 'card', 'w', 12.5)"))
    ledger.migrate()
    assert IntakeLedger(ledger).models(60)["m"].announced_at == 12.5
    ledger.close()


def test_images_that_came_once_more_have_their_result_looked_for(finished: Ledger) -> None:
    again = replace(new_job(), last_instance_at=1.0)
    assert arrive(finished, again) == [again.key]
    assert arrive(finished, again) == []
    held = the_claim(finished)
    assert [known.role for known in WorkLedger(finished, "w1", LIMITS).known(held)] == ["SEG"]


def test_a_failed_job_is_superseded_too(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    WorkLedger(ledger, "w1", LIMITS).failed(
        the_claim(ledger), UnsuitableSeries("A slice is missing.", code="missing-slice"), 1
    )
    arrive(ledger, new_job(instances=4))
    assert state(ledger, new_job().key) == "superseded"
    assert not ActLedger(ledger).retry(new_job().key, "jane")


def test_a_superseded_run_is_closed(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    the_claim(ledger)
    arrive(ledger, new_job(instances=4))
    job = LedgerView(ledger).job(new_job().key)
    assert job is not None
    assert [run.outcome for run in job.runs] == ["superseded"]


def test_a_job_stays_on_the_cpu_whatever_comes_between(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    work = WorkLedger(ledger, "w1", LIMITS)
    work.failed(the_claim(ledger), OutOfMemory("Too little."), peak_mb=1)
    work.failed(the_claim(ledger), ArchiveUnavailable("Away."), peak_mb=1)
    with ledger.write() as connection:
        connection.execute(text("update job set not_before = 0"))
    assert the_claim(ledger).on_cpu


def test_waiting_for_a_worker_is_no_failure(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    with ledger.write() as connection:
        connection.execute(text("update job set tried_since = tried_since - 100 * 3600"))
    work = WorkLedger(ledger, "w1", LIMITS)
    work.failed(the_claim(ledger), ArchiveUnavailable("Away."), peak_mb=1)
    assert state(ledger, new_job().key) == "queued"


def test_a_lease_that_was_extended_meanwhile_has_not_expired(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    held = the_claim(ledger)
    with ledger.write() as connection:
        connection.execute(text("update job set lease_until = lease_until - 61"))
    leases = LeaseLedger(ledger, LIMITS)
    expired = leases.expired()
    assert [lease.key for lease in expired] == [held.key]
    WorkLedger(ledger, "w1", LIMITS).heartbeat(held)
    assert leases.take_back(expired, "reaper", expired=True) == []
    assert state(ledger, held.key) == "running"


def test_a_new_ring_passes_the_repeats_of_a_long_queue(ledger: Ledger) -> None:
    outbox = OutboxLedger(ledger, LIMITS)
    for number in range(3):
        arrive(ledger, new_job(number), orthanc_id=f"o{number}")
    outbox.published(outbox.due())
    with ledger.write() as connection:
        connection.execute(text("update outbox set published_at = published_at - 31"))
        connection.execute(text("update job set not_before = not_before - 31"))
    arrive(ledger, replace(new_job(7), lane="other"), orthanc_id="o7")
    assert [ring.lane for ring in outbox.due(limit=2)] == ["other", "default"]


def test_two_workers_announce_the_same_model_at_once(ledger: Ledger) -> None:
    errors: list[Exception] = []

    def announce(name: str) -> None:
        try:
            for number in range(20):
                worker = WorkerLedger(ledger, name)
                worker.announce("ct-tissue", "1.0.0", str(number), "card")
                worker.seen("ready")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=announce, args=(name,)) for name in ("a", "b", "a")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_child_forked_during_a_transaction_can_write(ledger_url: str) -> None:
    first = Ledger(ledger_url)
    first.migrate()
    first.close()
    parent = Ledger.open(ledger_url, forks=True)
    inside, over = threading.Event(), threading.Event()

    def write() -> None:
        with parent.write() as connection:
            connection.execute(text("update archive set seen_at = 1"))
            inside.set()
            over.wait(0.5)

    thread = threading.Thread(target=write)
    thread.start()
    inside.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads
        pid = os.fork()
    if pid == 0:
        try:
            child = Ledger.open(ledger_url)
            WorkerLedger(child, "child").seen("ready")
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
    parent.close()


def test_a_waiting_job_goes_where_its_route_sends_it_now(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    outbox = OutboxLedger(ledger, LIMITS)
    outbox.published(outbox.due())
    assert arrive(ledger, replace(new_job(), lane="gpu", last_instance_at=1.0)) == []
    assert [ring.lane for ring in outbox.due()] == ["gpu"]
    assert WorkLedger(ledger, "w1", LIMITS).claim("gpu", [DIGEST]) is not None


def test_a_result_that_was_not_stored_is_made_anew_when_images_came_again(ledger: Ledger) -> None:
    """The patient's name may have been corrected meanwhile."""
    arrive(ledger, new_job())
    work, held = WorkLedger(ledger, "w1", LIMITS), the_claim(ledger)
    seg = ResultObject(role="SEG", instance_uid="2.1", series_uid="2", data=b"seg")
    work.made(held, [seg], Findings(), "i" * 64)
    work.failed(held, ArchiveUnavailable("The archive does not answer."), peak_mb=1)
    assert arrive(ledger, replace(new_job(), last_instance_at=1.0)) == []
    with ledger.write() as connection:
        connection.execute(text("update job set not_before = 0"))
    assert work.known(the_claim(ledger)) == []


def test_images_that_came_in_another_study_have_their_result_there(finished: Ledger) -> None:
    moved = replace(new_job(), study_uid="1.3", last_instance_at=1.0)
    assert arrive(finished, moved) == [moved.key]
    held = the_claim(finished)
    assert held.study_uid == "1.3"
    assert WorkLedger(finished, "w1", LIMITS).known(held) == []


def test_a_failed_job_of_a_replaced_archive_waits_for_an_act(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    error = UnsuitableSeries("The gantry is tilted.", code="gantry-tilt")
    WorkLedger(ledger, "w1", LIMITS).failed(the_claim(ledger), error, peak_mb=1)
    assert arrive(ledger, new_job(), archive="another") == []
    assert state(ledger, new_job().key) == "failed"


def test_a_running_job_of_a_replaced_archive_begins_anew(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    the_claim(ledger)
    assert arrive(ledger, new_job(), archive="another") == [new_job().key]
    job = LedgerView(ledger).job(new_job().key)
    assert job is not None
    assert [(run.outcome, run.ended_at is None) for run in job.runs] == [("superseded", False)]


def test_a_changed_series_is_waited_for_after_the_archive_was_away(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    work = WorkLedger(ledger, "w1", Limits(back_off_s=(0.0,)))
    work.failed(the_claim(ledger), ArchiveUnavailable("No answer."), peak_mb=1)
    three_hours_ago(ledger)
    for expected in ("queued", "dead"):
        work.failed(the_claim(ledger), SeriesChanged("Other images."), peak_mb=1)
        assert state(ledger, new_job().key) == expected
        three_hours_ago(ledger)
    job = LedgerView(ledger).job(new_job().key)
    assert job is not None
    assert "Given up after" in (job.row.error_sentence or "")
    # when the images are whole again, nobody has to ask
    again = replace(new_job(), last_instance_at=1.0)
    assert arrive(ledger, again) == [again.key]


def three_hours_ago(ledger: Ledger) -> None:
    with ledger.write() as connection:
        connection.execute(text("update job set tried_since = tried_since - 10800"))
        connection.execute(text("update run set ended_at = ended_at - 10800"))


def test_a_ghost_is_a_child_that_did_not_notice_its_loss(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    work = WorkLedger(ledger, "host/1/2/3", LIMITS)
    held = work.claim("default", [DIGEST])
    assert held is not None
    leases = LeaseLedger(ledger, LIMITS)
    assert leases.ghosts("host/1") == set()
    reap(ledger)
    assert leases.ghosts("host/1") == {("host/1/2/3", held.run_id)}
    assert leases.ghosts("host/11") == set()
    work.left(held, 1)
    assert leases.ghosts("host/1") == set()


@pytest.mark.parametrize("forks", [False, True])
def test_a_database_server_that_is_gone_without_a_word_is_noticed(
    ledger_url: str, forks: bool
) -> None:
    if not ledger_url.startswith("postgresql"):
        pytest.skip("SQLite has no server")
    ledger = Ledger(ledger_url, forks=forks)
    with ledger.read() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        asked = driver.info.get_parameters()
    ledger.close()
    assert (asked["tcp_user_timeout"], asked["connect_timeout"]) == ("30000", "10")
