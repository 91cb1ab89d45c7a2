"""Four worker processes on one ledger: every job is done, and none is started twice."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import pytest
from sqlalchemy import func, select

from segnode_contract.findings import Findings
from segnode_contract.identity import content_digest, derived_uid
from segnode_contract.job import NewJob, ResultObject, Stage
from segnode_contract.ledger import IntakeLedger, LeaseLedger, Ledger, WorkerLedger, WorkLedger
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.intake import Decision
from segnode_contract.ledger.schema import event, job, model, result, run
from segnode_contract.settings import Limits

ARCHIVE = "archive-1"
LANE = "default"
DIGEST = "d" * 64
LIMITS = Limits()
JOBS = 1000
PROCESSES = 4


def new_job(number: int) -> NewJob:
    series = f"1.2.{number}"
    return NewJob(
        key=content_digest([series]),
        study_uid=f"1.3.{number}",
        series_uids=(series,),
        content=content_digest([f"{series}.1"]),
        instance_count=1,
        route="any CT",
        route_rank=0,
        model="ct-tissue",
        model_version="1.0.0",
        model_digest=DIGEST,
        lane=LANE,
        last_instance_at=0.0,
    )


@pytest.fixture
def jobs(ledger: Ledger) -> list[str]:
    """Keys of a thousand queued jobs."""
    intake = IntakeLedger(ledger)
    names = [f"o{number}" for number in range(JOBS)]
    intake.note(ARCHIVE, 1, names)
    quiet = {one.orthanc_id: one for one in intake.quiet(ARCHIVE, 0)}
    for number, name in enumerate(names):
        made = new_job(number)
        decision = Decision(
            orthanc_id=name,
            last_instance_at=quiet[name].last_instance_at,
            study_uid=made.study_uid,
            series_uid=made.series_uids[0],
            instance_count=1,
            verdicts=(),
            jobs=(made,),
        )
        assert intake.decide(ARCHIVE, decision) == [made.key]
    return [new_job(number).key for number in range(JOBS)]


def work_off(url: str, name: str) -> None:
    """Do what a worker child does to the ledger, until there is no job."""
    ledger = Ledger.open(url)
    work = WorkLedger(ledger, name, LIMITS)
    wait_for_the_others()
    while claim := work.claim(LANE, [DIGEST]):
        seg = ResultObject(
            role="SEG",
            instance_uid=derived_uid(claim.key, "seg"),
            series_uid=derived_uid(claim.key, "series"),
            data=claim.key.encode(),
        )
        work.made(claim, [seg], Findings(), "i" * 64)
        with work.stage(claim, Stage.STORE):
            work.stored(claim, seg.instance_uid)
        work.confirmed(claim, seg)
        work.done(claim, 1)
    ledger.close()


def lose(url: str, name: str) -> None:
    """Find the leases that ran out, all at the same moment, and take them back."""
    ledger = Ledger.open(url)
    leases = LeaseLedger(ledger, LIMITS)
    expired = leases.expired()
    wait_for_the_others()
    leases.take_back(expired, name)
    ledger.close()


def wait_for_the_others() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def together(part: Callable[[str, str], None], url: str) -> None:
    """Play a part in several processes that start at the same moment."""
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, part.__name__, url, f"host/{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0] * PROCESSES


def test_four_workers_share_a_thousand_jobs_and_start_none_twice(
    ledger: Ledger, ledger_url: str, jobs: Sequence[str]
) -> None:
    together(work_off, ledger_url)
    with ledger.read() as connection:
        ended = connection.execute(select(job.c.key, job.c.state, job.c.deliveries)).all()
        starts = connection.execute(select(run.c.job_key, run.c.worker, run.c.outcome)).all()
        confirmed = connection.scalars(
            select(result.c.job_key).where(result.c.confirmed_at.is_not(None))
        ).all()
    assert sorted(tuple(row) for row in ended) == sorted((key, "done", 1) for key in jobs)
    assert sorted(row.job_key for row in starts) == sorted(jobs)
    assert {row.outcome for row in starts} == {"done"}
    assert sorted(confirmed) == sorted(jobs)
    assert len({row.worker for row in starts}) == PROCESSES, "one worker had them all"


def test_a_lost_job_is_taken_back_once_however_many_reapers_see_it(
    ledger: Ledger, ledger_url: str, jobs: Sequence[str]
) -> None:
    lost = 100
    work = WorkLedger(ledger, "host/1/1/1", LIMITS)
    for _ in range(lost):
        assert work.claim(LANE, [DIGEST])
    with ledger.write() as connection:
        connection.execute(job.update().values(lease_until=job.c.lease_until - LIMITS.lease_s - 1))
    together(lose, ledger_url)
    with ledger.read() as connection:
        said = select(event.c.job_key, func.count()).where(event.c.detail.like("Worker %"))
        counts = connection.execute(said.group_by(event.c.job_key)).all()
        states = select(func.count()).where(job.c.state == "queued")
        assert connection.scalar(states) == len(jobs)
    assert [row[1] for row in counts] == [1] * lost


def test_two_workers_bring_a_new_model_at_once(ledger: Ledger) -> None:
    said: list[BaseException | None] = []

    def announce() -> None:
        try:
            WorkerLedger(ledger, "host/2").announce("ct-tissue", "1.0.0", DIGEST, "card")
            said.append(None)
        except Exception as error:
            said.append(error)

    other = threading.Thread(target=announce)
    with ledger.write() as connection:
        connection.execute(
            model.insert().values(
                name="ct-tissue",
                digest=DIGEST,
                version="1.0.0",
                card="card",
                worker="host/1",
                first_announced_at=now_s(),
                announced_at=now_s(),
            )
        )
        other.start()
        other.join(1)
    other.join()
    assert said == [None]


if __name__ == "__main__":
    {part.__name__: part for part in (work_off, lose)}[sys.argv[1]](*sys.argv[2:])
