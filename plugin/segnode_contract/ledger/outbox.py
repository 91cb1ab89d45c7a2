"""The publisher's side: rings that are due."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, select, update

from segnode_contract.job import JobState, Priority
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import local_hour, now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.settings import Background, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    id: int
    lane: str
    again: bool
    """Whether it was sent before."""


class OutboxLedger:
    """What the publisher reads and writes."""

    def __init__(
        self, ledger: Ledger, limits: Limits, background: Background | None = None
    ) -> None:
        self._ledger = ledger
        self._repeat_s = limits.ring_s
        self._background = background or Background()

    def due(self, limit: int = 100) -> list[Ring]:
        """Return rings to send: those never sent, and those sent whose job still waits.

        Nobody is rung for background work outside its hours.
        """
        outbox, job = schema.outbox, schema.job
        waits = exists().where(
            job.c.key == outbox.c.job_key,
            job.c.state == JobState.QUEUED,
            job.c.not_before <= now_s() - self._repeat_s,
        )
        unsent: ColumnElement[bool] = outbox.c.published_at.is_(None)
        unheard = and_(outbox.c.published_at <= now_s() - self._repeat_s, waits)
        later = exists().where(
            job.c.key == outbox.c.job_key, job.c.priority == int(Priority.BACKGROUND)
        )
        with self._ledger.read() as connection:
            due = and_(outbox.c.due_at <= now_s(), unsent | unheard)
            if not self._background.open_at(local_hour(connection)):
                due &= ~later
            rows = connection.execute(
                select(outbox.c.id, outbox.c.lane, ~unsent)
                .where(due)
                # repeats of a long queue must not keep a new ring from its lane
                .order_by(outbox.c.published_at.is_not(None), outbox.c.due_at)
                .limit(limit)
            )
            return [Ring(id=row[0], lane=row[1], again=row[2]) for row in rows]

    def published(self, rings: Collection[Ring]) -> None:
        """Note that the broker holds these rings."""
        outbox = schema.outbox
        with self._ledger.write() as connection:
            connection.execute(
                update(outbox)
                .where(outbox.c.id.in_([ring.id for ring in rings]))
                .values(published_at=now_s())
            )

    def tidy(self) -> None:
        """Delete rings whose job no longer waits."""
        outbox, job = schema.outbox, schema.job
        waits = exists().where(job.c.key == outbox.c.job_key, job.c.state == JobState.QUEUED)
        with self._ledger.write() as connection:
            connection.execute(
                outbox.delete().where(outbox.c.published_at <= now_s() - self._repeat_s, ~waits)
            )
