"""Jobs whose worker is gone: back to the queue, or dead when it happened too often."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, func, select, update

from segnode_contract.job import JobState
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.events import record
from segnode_contract.ledger.tally import count_lost
from segnode_contract.settings import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A job in somebody's hands."""

    key: str
    epoch: int
    owner: str


class LeaseLedger:
    """What the reaper, and a worker's parent, read and write."""

    def __init__(self, ledger: Ledger, limits: Limits) -> None:
        self._ledger = ledger
        self._limits = limits

    def expired(self) -> list[Lease]:
        """Return the leases that ran out."""
        return self._leases(schema.job.c.lease_until < now_s())

    def held(self, host: str) -> list[Lease]:
        """Return the leases of all workers on a host."""
        return self._leases(schema.job.c.lease_owner.startswith(f"{host}/", autoescape=True))

    def take_back(
        self, leases: Iterable[Lease], actor: str, *, why: str = "", expired: bool = False
    ) -> list[str]:
        """Queue jobs again whose worker is lost; after too many losses a job is dead.

        Parameters
        ----------
        why
            A sentence about the reason, where it is known.
        expired
            Pass over a lease that was extended meanwhile.

        Returns
        -------
        list of str
            Keys of those that were still in these hands.
        """
        with self._ledger.write() as connection:
            taken = [
                lease.key
                for lease in leases
                if not (expired and _extended(connection, lease))
                and self._lost(connection, lease, actor, why)
            ]
            count_lost(connection, taken)
            return taken

    def hand_back(self, leases: Iterable[Lease], actor: str) -> list[str]:
        """Queue jobs again that a worker gives up as it is asked to stop; this is no loss.

        Returns
        -------
        list of str
            As `take_back`.
        """
        said = "handed back: the worker was asked to stop"
        uncounted = schema.job.c.deliveries - 1
        with self._ledger.write() as connection:
            return [
                lease.key
                for lease in leases
                if _release(connection, lease, JobState.QUEUED, deliveries=uncounted)
                and _close(connection, lease, actor, JobState.QUEUED, "handed back", said)
            ]

    def ghosts(self, worker: str) -> set[tuple[str, int]]:
        """Return a worker's children that last ran a job which is theirs no more, with the run.

        Only those that did not say so themselves: one that lives notices soon, unless it hangs
        where not even its heart beats.
        """
        run, job = schema.run, schema.job
        ours = run.c.worker.startswith(f"{worker}/", autoescape=True)
        last = select(func.max(run.c.id)).where(ours).group_by(run.c.worker)
        holds = and_(
            job.c.state == JobState.RUNNING,
            job.c.lease_owner == run.c.worker,
            job.c.lease_epoch == run.c.epoch,
        )
        with self._ledger.read() as connection:
            rows = connection.execute(
                select(run.c.worker, run.c.id)
                .join(job, job.c.key == run.c.job_key)
                .where(run.c.id.in_(last), run.c.peak_mb.is_(None), ~holds)
            ).all()
        return {(row[0], row[1]) for row in rows}

    def _leases(self, condition: ColumnElement[bool]) -> list[Lease]:
        job = schema.job
        with self._ledger.read() as connection:
            rows = connection.execute(
                select(job.c.key, job.c.lease_epoch, job.c.lease_owner).where(
                    job.c.state == JobState.RUNNING, condition
                )
            ).all()
        return [Lease(key=row[0], epoch=row[1], owner=row[2]) for row in rows]

    def _lost(self, connection: Connection, lease: Lease, actor: str, why: str) -> bool:
        job = schema.job
        losses = connection.execute(
            select(job.c.deliveries).where(job.c.key == lease.key)
        ).scalar_one()
        dead = losses >= self._limits.deliveries
        sentence = f"Worker {lease.owner} ended or went silent in the middle of run {lease.epoch}; "
        sentence += (
            f"{losses} losses of workers or model processes are too many to try again by itself: "
            "see the worker's log, then `segnode retry`."
            if dead
            else "the job is tried again."
        )
        sentence += f" {why}" if why else ""
        state = JobState.DEAD if dead else JobState.QUEUED
        error = {"error_code": "worker-lost", "error_sentence": sentence}
        return _release(connection, lease, state, **error) and _close(
            connection, lease, actor, state, "lost", sentence
        )


def _extended(connection: Connection, lease: Lease) -> bool:
    job = schema.job
    held = select(job.c.key).where(job.c.key == lease.key, job.c.lease_until >= now_s())
    return connection.scalar(held.with_for_update()) is not None


def _release(connection: Connection, lease: Lease, state: JobState, **values: object) -> bool:
    job = schema.job
    changed = connection.execute(
        update(job)
        .where(
            job.c.key == lease.key,
            job.c.lease_epoch == lease.epoch,
            job.c.state == JobState.RUNNING,
        )
        .values(
            state=state,
            lease_owner=None,
            lease_until=None,
            not_before=now_s(),
            updated_at=now_s(),
            **values,
        )
    )
    return changed.rowcount > 0


def _close(  # noqa: PLR0917 # what a line of history says, in its order
    connection: Connection, lease: Lease, actor: str, state: JobState, outcome: str, sentence: str
) -> bool:
    run, job = schema.run, schema.job
    connection.execute(
        update(run)
        .where(run.c.job_key == lease.key, run.c.ended_at.is_(None))
        .values(ended_at=now_s(), outcome=outcome)
    )
    if state == JobState.QUEUED:
        lane = select(job.c.lane).where(job.c.key == lease.key).scalar_subquery()
        connection.execute(
            schema.outbox.insert().values(job_key=lease.key, lane=lane, due_at=now_s())
        )
    record(connection, lease.key, actor, str(state), sentence)
    return True
