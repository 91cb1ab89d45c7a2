"""A job that somebody cancels, and how far a running one is; on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest

from segnode_contract.errors import ArchiveUnavailable, LedgerUnavailable, ModelFailed
from segnode_contract.job import Stage
from segnode_contract.ledger import ActLedger, Ledger, LedgerView, WorkLedger
from segnode_contract.ledger.work import LeaseLost
from segnode_contract.settings import Limits

from .test_ledger import DIGEST, arrive, new_job

KEY = new_job().key


def running(ledger: Ledger):
    arrive(ledger, new_job())
    work = WorkLedger(ledger, "w1", Limits())
    claim = work.claim("default", [DIGEST])
    assert claim is not None
    return work, claim


def the_job(ledger: Ledger):
    job = LedgerView(ledger).job(KEY)
    assert job is not None
    return job


def test_a_waiting_job_that_is_cancelled_is_never_taken(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    assert ActLedger(ledger).cancel(KEY, "ada")
    assert WorkLedger(ledger, "w1", Limits()).claim("default", [DIGEST]) is None
    job = the_job(ledger)
    assert job.row.state == "cancelled"
    assert [(e.actor, e.kind) for e in job.events][-1] == ("ada", "cancelled")


def test_a_running_job_that_is_cancelled_is_its_workers_no_more(ledger: Ledger) -> None:
    work, claim = running(ledger)
    work.check(claim)
    assert ActLedger(ledger).cancel(KEY, "ada")
    with pytest.raises(LeaseLost):
        work.check(claim)
    with pytest.raises(LeaseLost):
        work.progress(claim, None)
    with pytest.raises(LeaseLost):
        work.failed(claim, ModelFailed("late"), 1)
    assert [run.outcome for run in the_job(ledger).runs] == ["cancelled"]


def test_a_result_that_is_being_stored_is_not_cancelled(ledger: Ledger) -> None:
    work, claim = running(ledger)
    with work.stage(claim, Stage.STORE):
        assert not ActLedger(ledger).cancel(KEY, "ada")
    assert the_job(ledger).row.state == "running"


def test_nor_is_one_that_an_earlier_run_may_have_stored(ledger: Ledger) -> None:
    work, claim = running(ledger)
    with pytest.raises(ArchiveUnavailable), work.stage(claim, Stage.STORE):
        raise ArchiveUnavailable("no answer")
    work.failed(claim, ArchiveUnavailable("no answer"), 1)
    assert the_job(ledger).row.state == "queued"
    assert not ActLedger(ledger).cancel(KEY, "ada")


def test_a_cancelled_job_is_retried_by_an_act(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    ActLedger(ledger).cancel(KEY, "ada")
    assert not ActLedger(ledger).cancel(KEY, "ada")
    assert ActLedger(ledger).retry(KEY, "ada")
    assert WorkLedger(ledger, "w1", Limits()).claim("default", [DIGEST]) is not None


def test_a_ledger_that_is_away_for_a_moment_ends_no_model(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, claim = running(ledger)

    def away(*_: object) -> None:
        raise LedgerUnavailable("It does not answer.")

    monkeypatch.setattr(ledger, "write", away)
    monkeypatch.setattr(ledger, "read", away)
    work.progress(claim, 0.25)


def test_progress_is_seen_while_the_job_runs_and_not_after(ledger: Ledger) -> None:
    work, claim = running(ledger)
    assert the_job(ledger).row.progress is None
    work.progress(claim, 0.25)
    assert the_job(ledger).row.progress == 0.25
    work.progress(claim, 0.5)  # within a second of the other: passed over
    assert the_job(ledger).row.progress == 0.25
    work.failed(claim, ModelFailed("no"), 1)
    assert the_job(ledger).row.progress is None
