"""What the first page reads: what waits, what runs, what ended, and whether anything changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, case, func, select

from segnode_contract.job import JobState, Priority
from segnode_contract.ledger import schema
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.listing import distinct

MOST_RUNNING = 100
"""So many running jobs at most are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """The queued jobs of one priority; `since` in seconds since 1970 by the ledger's clock."""

    priority: str
    count: int
    since: float
    """Since when the one that comes first waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A job in a worker's hands; times in seconds since 1970 by the ledger's clock."""

    key: str
    model: str
    model_version: str
    route: str
    priority: str
    modality: str
    instance_count: int
    progress: float | None
    """Of the model, 0 to 1."""
    worker: str
    started_at: float
    stage: str
    """Empty where none has begun."""
    stage_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How many jobs ended lately, and are as they ended then."""

    done: int
    failed: int
    dead: int


class NowView:
    """Reading only, and cheap however many jobs have ended."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def pulse(self) -> tuple[Any, ...]:
        """Return what is other after any change of a job or a delivery."""
        job, event = schema.job, schema.event
        newest = select(
            select(func.max(event.c.seq)).scalar_subquery(),
            select(func.max(job.c.updated_at)).scalar_subquery(),
        )
        with self._ledger.read() as connection:
            return tuple(connection.execute(newest).one())

    def queue(self) -> list[Queued]:
        """Return the queued jobs by priority, the most urgent first."""
        found: dict[int, list[Queued]] = {}
        with self._ledger.read() as connection:
            for lane in distinct(connection, schema.job.c.lane):
                for priority, count in connection.execute(_queue_of(lane)).all():
                    since = _first_since(connection, lane, priority)
                    if since is None:
                        continue  # taken meanwhile
                    name = Priority(priority).name.lower()
                    one = Queued(priority=name, count=count, since=since)
                    found.setdefault(priority, []).append(one)
        return [_together(found[priority]) for priority in sorted(found)]

    def running(self) -> list[Running]:
        """Return the running jobs, with the stage of each; the oldest run first."""
        job, run, stage = schema.job, schema.run, schema.stage
        query = (
            select(job, run.c.id.label("run_id"), run.c.worker, run.c.started_at)
            .join(run, run.c.job_key == job.c.key)
            .where(job.c.state == JobState.RUNNING, run.c.ended_at.is_(None))
            .order_by(run.c.id)
            .limit(MOST_RUNNING)
        )
        with self._ledger.read() as connection:
            rows = connection.execute(query).all()
            newest = (
                select(func.max(stage.c.id))
                .where(stage.c.run_id.in_([row.run_id for row in rows]))
                .group_by(stage.c.run_id)
            )
            stages = connection.execute(select(stage).where(stage.c.id.in_(newest))).all()
        return [_running(row, {one.run_id: one for one in stages}) for row in rows]

    def ended(self, since: float) -> Ended:
        """Return how many jobs ended at `since`, by the ledger's clock, or later."""
        job = schema.job

        # not by WHERE, nor grouped: SQLite would read the index of states then, whole
        def number(state: JobState) -> ColumnElement[int]:
            count = func.sum(case((job.c.state == state, 1), else_=0))
            return func.coalesce(count, 0).label(state)

        states = (JobState.DONE, JobState.FAILED, JobState.DEAD)
        query = select(*map(number, states)).where(job.c.updated_at >= since)
        with self._ledger.read() as connection:
            return Ended(**connection.execute(query).one()._asdict())


def _queue_of(lane: str) -> Select[int, int]:
    job = schema.job
    return (
        select(job.c.priority, func.count())
        .where(job.c.lane == lane, job.c.state == JobState.QUEUED)
        .group_by(job.c.priority)
    )


def _first_since(connection: Connection, lane: str, priority: int) -> float | None:
    job = schema.job
    ours: tuple[ColumnElement[bool], ...] = (
        job.c.lane == lane,
        job.c.state == JobState.QUEUED,
        job.c.priority == priority,
    )
    first = select(job.c.tried_since).where(*ours).order_by(job.c.created_at).limit(1)
    return connection.scalar(first)


def _together(lanes: list[Queued]) -> Queued:
    return Queued(
        priority=lanes[0].priority,
        count=sum(each.count for each in lanes),
        since=min(each.since for each in lanes),
    )


def _running(row: Row[Any], stages: dict[int, Row[Any]]) -> Running:
    stage = stages.get(row.run_id)
    return Running(
        key=row.key,
        model=row.model,
        model_version=row.model_version,
        route=row.route,
        priority=Priority(row.priority).name.lower(),
        modality=row.modality,
        instance_count=row.instance_count,
        progress=row.progress,
        worker=row.worker,
        started_at=row.started_at,
        stage=stage.stage if stage is not None else "",
        stage_at=stage.started_at if stage is not None else row.started_at,
    )
