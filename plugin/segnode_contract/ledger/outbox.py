"""The publisher's side: rings that are due, and leases that ran out."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, select, update

from segnode_contract.job import JobState
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.events import record

REPEAT_S = 30.0
"""A ring that no worker has followed for this long is sent again: Redis may have been wiped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    id: int
    lane: str


class OutboxLedger:
    """What the publisher and the reaper read and write."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def due(self, limit: int = 100) -> list[Ring]:
        """Return rings to send: those never sent, and those sent whose job still waits."""
        outbox, job = schema.outbox, schema.job
        waits = exists().where(
            job.c.key == outbox.c.job_key,
            job.c.state == JobState.QUEUED,
            job.c.not_before <= now_s() - REPEAT_S,
        )
        unsent: ColumnElement[bool] = outbox.c.published_at.is_(None)
        unheard = and_(outbox.c.published_at <= now_s() - REPEAT_S, waits)
        with self._ledger.read() as connection:
            rows = connection.execute(
                select(outbox.c.id, outbox.c.lane)
                .where(outbox.c.due_at <= now_s(), unsent | unheard)
                .order_by(outbox.c.due_at)
                .limit(limit)
            )
            return [Ring(id=row[0], lane=row[1]) for row in rows]

    def published(self, ring: Ring) -> None:
        """Note that the broker took the ring."""
        with self._ledger.write() as connection:
            connection.execute(
                update(schema.outbox)
                .where(schema.outbox.c.id == ring.id)
                .values(published_at=now_s())
            )

    def tidy(self) -> None:
        """Delete rings whose job no longer waits."""
        outbox, job = schema.outbox, schema.job
        waits = exists().where(job.c.key == outbox.c.job_key, job.c.state == JobState.QUEUED)
        with self._ledger.write() as connection:
            connection.execute(
                outbox.delete().where(outbox.c.published_at <= now_s() - REPEAT_S, ~waits)
            )

    def reap(self, deliveries: int) -> list[str]:
        """Queue jobs whose lease ran out again; after `deliveries` runs a job is dead.

        Returns
        -------
        list of str
            Keys of the jobs.
        """
        job, run = schema.job, schema.run
        with self._ledger.write() as connection:
            lost = connection.execute(
                select(job.c.key, job.c.lane, job.c.deliveries, job.c.lease_owner)
                .where(job.c.state == JobState.RUNNING, job.c.lease_until < now_s())
                .with_for_update(skip_locked=True)
            ).all()
            for key, lane, delivered, owner in lost:
                dead = delivered >= deliveries
                state = JobState.DEAD if dead else JobState.QUEUED
                sentence = f"Worker {owner} went silent in the middle of the job, run {delivered}"
                sentence += (
                    " and the last: it is not tried again by itself."
                    if dead
                    else "; it is tried again."
                )
                connection.execute(
                    update(job)
                    .where(job.c.key == key)
                    .values(
                        state=state,
                        lease_owner=None,
                        lease_until=None,
                        not_before=now_s(),
                        error_code="worker-lost",
                        error_sentence=sentence,
                        updated_at=now_s(),
                    )
                )
                connection.execute(
                    update(run)
                    .where(run.c.job_key == key, run.c.ended_at.is_(None))
                    .values(ended_at=now_s(), outcome="lost", error_code="worker-lost")
                )
                if not dead:
                    connection.execute(
                        schema.outbox.insert().values(job_key=key, lane=lane, due_at=now_s())
                    )
                record(connection, key, "reaper", str(state), sentence)
            return [row.key for row in lost]
