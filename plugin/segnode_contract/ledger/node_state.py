"""How the node is: what troubles are decided from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, case, func, or_, select

from segnode_contract.destination import DeliveryState
from segnode_contract.job import JobState, Priority
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import local_hour, now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.listing import distinct
from segnode_contract.settings import Background
from segnode_contract.troubles import DeadJobs, NodeState, Waiting, WorkerSeen

_ENDED_S = 2.0
"""By then every transaction has ended, so that nothing of that time is seen only later."""
_FIRST = 100
"""Jobs are taken by age: among so many is the one that waits longest."""


def read_state(ledger: Ledger, background: Background, free_mb: float | None) -> NodeState:
    """Return how the node was two seconds ago.

    Parameters
    ----------
    background
        When background work is done: outside its hours it may wait.
    free_mb
        Room for the node's data, None for unknown.
    """
    with ledger.read() as connection:
        now = connection.execute(select(now_s())).scalar_one() - _ENDED_S
        undelivered, undelivered_at = _undelivered(connection, now)
        return NodeState(
            now=now,
            dead=tuple(_dead(connection, now)),
            undelivered=undelivered,
            undelivered_at=undelivered_at,
            waiting=_waiting(connection),
            oldest=min(
                _oldest(connection, background, now), key=lambda each: each.since, default=None
            ),
            workers=tuple(map(_worker, connection.execute(select(schema.worker)))),
            free_mb=free_mb,
        )


def _dead(connection: Connection, now: float) -> Iterator[DeadJobs]:
    job = schema.job
    count = func.count()
    rows = connection.execute(
        select(job.c.error_code, count, func.min(job.c.key), func.max(job.c.updated_at))
        .where(job.c.state == JobState.DEAD, job.c.updated_at <= now)
        .group_by(job.c.error_code)
        .order_by(count.desc(), job.c.error_code)
    )
    for code, number, key, newest_at in rows:
        yield DeadJobs(code=code or "unknown", count=number, key=key, newest_at=newest_at)


def _undelivered(connection: Connection, now: float) -> tuple[int, float]:
    job, delivery = schema.job, schema.delivery
    row = connection.execute(
        select(func.count(), func.max(delivery.c.updated_at))
        .select_from(delivery.join(job, job.c.key == delivery.c.job_key))
        .where(
            delivery.c.state == DeliveryState.FAILED,
            delivery.c.updated_at <= now,
            job.c.state == JobState.DONE,
        )
    ).one()
    return row[0], row[1] or 0.0


def _waiting(connection: Connection) -> int:
    query = select(func.count()).where(schema.job.c.state == JobState.QUEUED)
    return connection.execute(query).scalar_one()


def _oldest(connection: Connection, background: Background, now: float) -> Iterator[Waiting]:
    hour = local_hour(connection)
    for lane in distinct(connection, schema.job.c.lane):
        for priority in Priority:
            found = _first(connection, lane, priority, now)
            if found is None:
                continue
            since = found.since
            if priority == Priority.BACKGROUND:
                if not background.open_at(hour):
                    continue
                # a long queue of it is as it should be, while it gets shorter
                since = max(since, now - _open_for_s(background, hour), _last_start(connection))
            yield Waiting(key=found.key, since=since, code=found.error_code or "")


def _first(connection: Connection, lane: str, priority: Priority, now: float) -> Row[Any] | None:
    job = schema.job
    # one that was tried waits from its first try on, also while it may not be tried again yet
    since = case((job.c.attempts == 0, job.c.not_before), else_=job.c.tried_since)
    first = (
        select(job.c.key, job.c.error_code, since.label("since"))
        .where(
            job.c.lane == lane,
            job.c.state == JobState.QUEUED,
            job.c.priority == int(priority),
            or_(job.c.not_before <= now, job.c.attempts > 0),
        )
        .order_by(job.c.created_at)
        .limit(_FIRST)
        .subquery()
    )
    return connection.execute(select(first).order_by(first.c.since, first.c.key).limit(1)).first()


def _open_for_s(background: Background, hour: float) -> float:
    """Return how long background work may begin already."""
    if background.to_hour - background.from_hour >= 24:
        return float("inf")
    return (hour - background.from_hour) % 24 * 3600.0


def _last_start(connection: Connection) -> float:
    run = schema.run
    newest = select(run.c.started_at).order_by(run.c.id.desc()).limit(1)
    return connection.scalar(newest) or 0.0


def _worker(row: Row[Any]) -> WorkerSeen:
    free_mb = (row.report or {}).get("free_mb")
    return WorkerSeen(
        name=row.name,
        state=row.state,
        started_at=row.started_at,
        seen_at=row.seen_at,
        free_mb=free_mb if isinstance(free_mb, int | float) else None,
    )
