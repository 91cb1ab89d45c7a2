"""Which job comes next: by priority, then by age."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, select, update

from segnode_contract.job import JobState, Priority
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import local_hour, now_s
from segnode_contract.ledger.upsert import upsert
from segnode_contract.settings import Background


def next_job(
    connection: Connection, lane: str, digests: Collection[str], background: Background
) -> Row[Any] | None:
    """Return the job of `lane` that comes first of those that one of these models can do, locked.

    Stat comes before everything. Of `Background.one_in` jobs that are not stat, one is background
    work where any waits and its hours are open.
    """
    job, counter = schema.job, schema.lane
    passed_over = connection.scalar(select(counter.c.passed_over).where(counter.c.name == lane))
    order = [Priority.STAT, Priority.ROUTINE]
    if background.open_at(local_hour(connection)):
        its_turn = (passed_over or 0) >= background.one_in - 1
        order.insert(1 if its_turn else 2, Priority.BACKGROUND)
    for priority in order:
        row = connection.execute(
            select(job)
            .where(
                job.c.lane == lane,
                job.c.state == JobState.QUEUED,
                job.c.priority == int(priority),
                job.c.not_before <= now_s(),
                job.c.model_digest.in_(digests),
            )
            .order_by(job.c.created_at, job.c.route_rank)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).first()
        if row is not None:
            if priority == Priority.ROUTINE and (passed_over or 0) < background.one_in:
                _pass_over_background(connection, lane)
            elif priority == Priority.BACKGROUND and passed_over:
                _start_anew(connection, lane)
            return row
    return None


def _pass_over_background(connection: Connection, lane: str) -> None:
    """Count one more routine job since the last background job."""
    table = schema.lane
    upsert(
        connection,
        table,
        {"name": lane},
        {"passed_over": table.c.passed_over + 1},
        at_first={"passed_over": 1},
    )


def _start_anew(connection: Connection, lane: str) -> None:
    table = schema.lane
    connection.execute(update(table).where(table.c.name == lane).values(passed_over=0))
