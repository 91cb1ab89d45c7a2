"""What pages and commands read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, and_, func, select

from segnode_contract.card import Card, parse_card
from segnode_contract.destination import DeliveryState
from segnode_contract.errors import CardError
from segnode_contract.job import JobState, Priority
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    stage: str
    started_at: float
    seconds: float | None
    """None while it runs, and for the stage in which the run ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    epoch: int
    worker: str
    started_at: float
    ended_at: float | None
    outcome: str | None
    error_code: str | None
    peak_mb: int | None
    stages: tuple[StageTime, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    role: str
    instance_uid: str
    series_uid: str
    digest: str
    bytes: int
    confirmed_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    at: float
    actor: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job as a list shows it."""

    key: str
    base_key: str
    revision: int
    state: str
    study_uid: str
    series_uids: tuple[str, ...]
    instance_count: int
    modality: str
    route: str
    model: str
    model_version: str
    model_digest: str
    lane: str
    priority: str
    builds_on: str
    shadow: bool
    created_at: float
    updated_at: float
    first_instance_at: float | None
    last_instance_at: float
    not_before: float
    error_code: str | None
    error_sentence: str | None
    error_stage: str | None
    progress: float | None
    """Of the model, 0 to 1, while the job runs."""
    findings: dict[str, Any] | None
    stages: tuple[StageTime, ...]
    """Stage times of the newest run."""
    objects: tuple[StoredObject, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRow:
    """One job's result on its way to one destination."""

    job_key: str
    destination: str
    state: str
    """``waiting``, ``sending``, ``done`` or ``failed``; that of its job, where it waits and the job
    is not done any more."""
    attempts: int
    due_at: float
    error_code: str | None
    error_sentence: str | None
    objects: int | None
    """How many the destination took, at the last try and before where that went on."""
    bytes: int | None
    note: str | None
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job with its whole history."""

    row: JobRow
    runs: tuple[RunRow, ...]
    events: tuple[EventRow, ...]
    deliveries: tuple[DeliveryRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesRow:
    """A series that was seen, and what was decided about it."""

    orthanc_id: str
    study_uid: str | None
    series_uid: str | None
    instance_count: int | None
    last_instance_at: float
    decided_at: float | None
    verdicts: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A worker, as it last said of itself."""

    name: str
    state: str
    """``ready``; ``no-space`` or ``no-model``: it takes no jobs."""
    detail: str
    started_at: float
    seen_at: float
    report: dict[str, Any] | None
    """As of `WorkerLedger.seen`, None where it was not said."""


class LedgerView:
    """Reading only."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def now(self) -> float:
        """Return the database's time."""
        with self._ledger.read() as connection:
            return connection.execute(select(now_s())).scalar_one()

    def schema_version(self) -> str | None:
        """Return the revision of the ledger's schema, None when it is empty."""
        return self._ledger.schema_version()

    def workers(self) -> list[WorkerRow]:
        """Return the workers of the last day, those seen last first."""
        table = schema.worker
        with self._ledger.read() as connection:
            rows = connection.execute(select(table).order_by(table.c.seen_at.desc())).all()
        return [WorkerRow(**row._asdict()) for row in rows]

    def jobs(
        self,
        *,
        state: str | None = None,
        study_uid: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[JobRow]:
        """Return jobs, newest first."""
        job = schema.job
        query = select(job).order_by(job.c.created_at.desc(), job.c.key)
        if state is not None:
            query = query.where(job.c.state == state)
        if study_uid is not None:
            query = query.where(job.c.study_uid == study_uid)
        return self.rows(query.limit(limit).offset(offset))

    def states(self, keys: Collection[str]) -> dict[str, tuple[str, str]]:
        """Return key and state of the newest revision of each job of `keys` that there is."""
        job = schema.job
        with self._ledger.read() as connection:
            rows = connection.execute(
                select(job.c.base_key, job.c.key, job.c.state)
                .where(job.c.base_key.in_(keys))
                .order_by(job.c.revision)
            )
            return {row[0]: (row[1], row[2]) for row in rows}

    def revisions(self, base_key: str) -> list[tuple[int, str, str]]:
        """Return number, key and state of each revision of a job."""
        job = schema.job
        with self._ledger.read() as connection:
            rows = connection.execute(
                select(job.c.revision, job.c.key, job.c.state)
                .where(job.c.base_key == base_key)
                .order_by(job.c.revision)
            )
            return [(row[0], row[1], row[2]) for row in rows]

    def counts(self) -> dict[str, int]:
        """Return the number of jobs in each state that has any."""
        job = schema.job
        with self._ledger.read() as connection:
            rows = connection.execute(select(job.c.state, func.count()).group_by(job.c.state))
            return {row[0]: row[1] for row in rows}

    def job(self, key: str) -> Job | None:
        """Return the one job whose key begins with `key`; None when there is none, or several."""
        column = schema.job.c.key
        # keys are hexadecimal digits, after the last of which comes g; LIKE would read every row
        begins = and_(column >= key, column < f"{key}g")
        rows = self.rows(select(schema.job).where(begins).limit(2))
        if len(rows) != 1:
            return None
        whole = rows[0].key
        with self._ledger.read() as connection:
            runs = connection.execute(
                select(schema.run).where(schema.run.c.job_key == whole).order_by(schema.run.c.id)
            ).all()
            stages = connection.execute(
                select(schema.stage)
                .where(schema.stage.c.run_id.in_([run.id for run in runs]))
                .order_by(schema.stage.c.id)
            ).all()
            events = connection.execute(
                select(schema.event)
                .where(schema.event.c.job_key == whole)
                .order_by(schema.event.c.seq)
            ).all()
        return Job(
            row=rows[0],
            runs=tuple(_run(run, stages) for run in runs),
            events=tuple(
                EventRow(at=e.at, actor=e.actor, kind=e.kind, detail=e.detail) for e in events
            ),
            deliveries=tuple(self.deliveries(whole)),
        )

    def deliveries(self, job_key: str = "", *, limit: int = 1000) -> list[DeliveryRow]:
        """Return the deliveries of a job; without one, all that are not done, newest first.

        Without one, those of results that do not count any more are left out.
        """
        job, delivery = schema.job, schema.delivery
        sending = and_(delivery.c.lease_until.is_not(None), delivery.c.lease_until >= now_s())
        query = (
            select(delivery, job.c.state.label("job_state"), sending.label("sending"))
            .join(job, job.c.key == delivery.c.job_key)
            .order_by(delivery.c.updated_at.desc(), delivery.c.job_key, delivery.c.destination)
            .limit(limit)
        )
        if job_key:
            query = query.where(delivery.c.job_key == job_key)
        else:
            query = query.where(
                delivery.c.state != DeliveryState.DONE, job.c.state == JobState.DONE
            )
        with self._ledger.read() as connection:
            return [_delivery(row) for row in connection.execute(query)]

    def failed_deliveries(self) -> int:
        """Return how many deliveries of results that count have failed."""
        job, delivery = schema.job, schema.delivery
        with self._ledger.read() as connection:
            return connection.execute(
                select(func.count())
                .select_from(delivery.join(job, job.c.key == delivery.c.job_key))
                .where(delivery.c.state == DeliveryState.FAILED, job.c.state == JobState.DONE)
            ).scalar_one()

    def card(self, model: str, digest: str) -> Card | None:
        """Return the card of a model that some worker announced, None if it is none any more.

        What a version asks of a card need not be what the one asked that announced it.
        """
        table = schema.model
        with self._ledger.read() as connection:
            text = connection.scalar(
                select(table.c.card).where(table.c.name == model, table.c.digest == digest)
            )
        try:
            return parse_card(text, where=f"the card of {model}") if text else None
        except CardError:
            return None

    def series(self, study_uid: str) -> list[SeriesRow]:
        """Return the series of a study that were decided, with each route's verdict."""
        table = schema.series
        with self._ledger.read() as connection:
            rows = connection.execute(
                select(table).where(table.c.study_uid == study_uid).order_by(table.c.series_uid)
            ).all()
        return [
            SeriesRow(
                orthanc_id=row.orthanc_id,
                study_uid=row.study_uid,
                series_uid=row.series_uid,
                instance_count=row.instance_count,
                last_instance_at=row.last_instance_at,
                decided_at=row.decided_at,
                verdicts=tuple(row.decision or ()),
            )
            for row in rows
        ]

    def rows(self, query: Select[Any]) -> list[JobRow]:
        """Return the jobs that a query on the job table finds."""
        run, stage, result = schema.run, schema.stage, schema.result
        with self._ledger.read() as connection:
            jobs = connection.execute(query).all()
            keys = [job.key for job in jobs]
            newest = (
                select(func.max(run.c.id)).where(run.c.job_key.in_(keys)).group_by(run.c.job_key)
            )
            stages = connection.execute(
                select(run.c.job_key, stage)
                .join(run, run.c.id == stage.c.run_id)
                .where(stage.c.run_id.in_(newest))
                .order_by(stage.c.id)
            ).all()
            objects = connection.execute(
                select(result).where(result.c.job_key.in_(keys)).order_by(result.c.role)
            ).all()
        return [_job_row(job, stages, objects) for job in jobs]


def _job_row(job: Row[Any], stages: Sequence[Row[Any]], objects: Sequence[Row[Any]]) -> JobRow:
    return JobRow(
        key=job.key,
        base_key=job.base_key,
        revision=job.revision,
        state=job.state,
        study_uid=job.study_uid,
        series_uids=tuple(job.series_uids.split("\\")),
        instance_count=job.instance_count,
        modality=job.modality,
        route=job.route,
        model=job.model,
        model_version=job.model_version,
        model_digest=job.model_digest,
        lane=job.lane,
        priority=Priority(job.priority).name.lower(),
        builds_on=job.builds_on,
        shadow=job.shadow,
        created_at=job.created_at,
        updated_at=job.updated_at,
        first_instance_at=job.first_instance_at,
        last_instance_at=job.last_instance_at,
        not_before=job.not_before,
        error_code=job.error_code,
        error_sentence=job.error_sentence,
        error_stage=job.error_stage,
        progress=job.progress if job.state == JobState.RUNNING else None,
        findings=job.findings,
        stages=tuple(_stage(row) for row in stages if row.job_key == job.key),
        objects=tuple(
            StoredObject(
                role=o.role,
                instance_uid=o.instance_uid,
                series_uid=o.series_uid,
                digest=o.digest,
                bytes=o.bytes,
                confirmed_at=o.confirmed_at,
            )
            for o in objects
            if o.job_key == job.key
        ),
    )


def _delivery(row: Row[Any]) -> DeliveryRow:
    state = row.state
    if state == DeliveryState.WAITING and row.job_state != JobState.DONE:
        state = row.job_state
    elif state == DeliveryState.WAITING and row.sending:
        state = "sending"
    return DeliveryRow(
        job_key=row.job_key,
        destination=row.destination,
        state=state,
        attempts=row.attempts,
        due_at=row.due_at,
        error_code=row.error_code,
        error_sentence=row.error_sentence,
        objects=row.objects,
        bytes=row.bytes,
        note=row.note,
        updated_at=row.updated_at,
    )


def _run(run: Row[Any], stages: Sequence[Row[Any]]) -> RunRow:
    return RunRow(
        epoch=run.epoch,
        worker=run.worker,
        started_at=run.started_at,
        ended_at=run.ended_at,
        outcome=run.outcome,
        error_code=run.error_code,
        peak_mb=run.peak_mb,
        stages=tuple(_stage(row) for row in stages if row.run_id == run.id),
    )


def _stage(row: Row[Any]) -> StageTime:
    return StageTime(stage=row.stage, started_at=row.started_at, seconds=row.seconds)
