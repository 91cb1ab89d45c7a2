"""The plugin's side: what changed in the archive, and what was decided about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Table, and_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from segnode_contract.job import OPEN_STATES, JobState, NewJob
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.events import record


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietSeries:
    """A series for which no instance came during the quiet period."""

    orthanc_id: str
    last_instance_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one route said about a series: taken, or the reason why not."""

    route: str
    taken: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is decided about a series: a verdict per route, and the jobs."""

    orthanc_id: str
    last_instance_at: float
    study_uid: str
    series_uid: str
    instance_count: int
    verdicts: tuple[Verdict, ...]
    jobs: tuple[NewJob, ...]
    final: bool = True
    """False where the series is asked again, because no worker has the model yet, say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncedModel:
    """A model that some worker has."""

    name: str
    version: str
    digest: str
    card: str
    announced_at: float


class IntakeLedger:
    """What intake reads and writes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def cursor(self, archive_id: str) -> int | None:
        """Return the last change seen of this archive, None for one never met."""
        with self._ledger.read() as connection:
            return connection.scalar(
                select(schema.archive.c.last_change).where(
                    schema.archive.c.archive_id == archive_id
                )
            )

    def note(self, archive_id: str, last_change: int, series: Iterable[str]) -> None:
        """Store the cursor together with the series (Orthanc ids) that the changes touched."""
        with self._ledger.write() as connection:
            _upsert(
                connection,
                schema.archive,
                {"archive_id": archive_id},
                {"last_change": last_change, "seen_at": now_s()},
            )
            for orthanc_id in series:
                _upsert(
                    connection,
                    schema.series,
                    {"archive_id": archive_id, "orthanc_id": orthanc_id},
                    {"last_instance_at": now_s(), "decided_at": None},
                )

    def quiet(self, archive_id: str, quiet_s: float) -> list[QuietSeries]:
        """Return undecided series whose last instance is at least `quiet_s` seconds old."""
        table = schema.series
        with self._ledger.read() as connection:
            rows = connection.execute(
                select(table.c.orthanc_id, table.c.last_instance_at)
                .where(
                    table.c.archive_id == archive_id,
                    table.c.decided_at.is_(None),
                    table.c.last_instance_at <= now_s() - quiet_s,
                )
                .order_by(table.c.last_instance_at)
            )
            return [QuietSeries(orthanc_id=row[0], last_instance_at=row[1]) for row in rows]

    def own_series(self, series_uid: str) -> bool:
        """Return whether the series is a result of ours."""
        with self._ledger.read() as connection:
            found = connection.scalar(
                select(schema.result.c.job_key).where(schema.result.c.series_uid == series_uid)
            )
            return found is not None

    def decide(self, archive_id: str, decision: Decision) -> list[str]:
        """Store a decision, its jobs and their rings in one transaction.

        A job that exists already is left as it is. An older job of the same series and model is
        superseded. Where an instance came since, the decision is dropped: the series is asked
        again after its quiet period.

        Returns
        -------
        list of str
            Keys of the jobs that are new.
        """
        table = schema.series
        with self._ledger.write() as connection:
            decided = connection.execute(
                update(table)
                .where(
                    table.c.archive_id == archive_id,
                    table.c.orthanc_id == decision.orthanc_id,
                    table.c.last_instance_at == decision.last_instance_at,
                )
                .values(
                    decided_at=now_s() if decision.final else None,
                    study_uid=decision.study_uid,
                    series_uid=decision.series_uid,
                    instance_count=decision.instance_count,
                    decision=[asdict(verdict) for verdict in decision.verdicts],
                )
            )
            if decided.rowcount == 0:
                return []
            return [job.key for job in decision.jobs if _queue(connection, archive_id, job)]

    def forget(self, archive_id: str, orthanc_id: str) -> None:
        """Drop an undecided series that the archive no longer has."""
        with self._ledger.write() as connection:
            connection.execute(
                schema.series.delete().where(
                    schema.series.c.archive_id == archive_id,
                    schema.series.c.orthanc_id == orthanc_id,
                )
            )

    def models(self) -> dict[str, AnnouncedModel]:
        """Return the newest announcement of each model, by name."""
        table = schema.model
        with self._ledger.read() as connection:
            rows = connection.execute(select(table).order_by(table.c.announced_at)).all()
        return {
            row.name: AnnouncedModel(
                name=row.name,
                version=row.version,
                digest=row.digest,
                card=row.card,
                announced_at=row.announced_at,
            )
            for row in rows
        }


def _queue(connection: Connection, archive_id: str, job: NewJob) -> bool:
    table = schema.job
    if connection.scalar(select(table.c.key).where(table.c.key == job.key)) is not None:
        return False
    joined = "\\".join(sorted(job.series_uids))  # DICOM's own separator of values
    values = asdict(job) | {
        "archive_id": archive_id,
        "series_uids": joined,
        "state": JobState.QUEUED,
        "not_before": now_s(),
        "attempts": 0,
        "deliveries": 0,
        "lease_epoch": 0,
        "created_at": now_s(),
        "updated_at": now_s(),
    }
    older = and_(
        table.c.series_uids == joined,
        table.c.model == job.model,
        table.c.archive_id == archive_id,
        or_(table.c.state == JobState.DONE, table.c.state.in_(OPEN_STATES)),
    )
    for key in connection.scalars(select(table.c.key).where(older)).all():
        connection.execute(
            update(table)
            .where(table.c.key == key)
            .values(state=JobState.SUPERSEDED, updated_at=now_s())
        )
        record(connection, key, "intake", "superseded", f"by job {job.key}")
    connection.execute(table.insert().values(values))
    connection.execute(
        schema.outbox.insert().values(job_key=job.key, lane=job.lane, due_at=now_s())
    )
    record(connection, job.key, "intake", "queued", f"route {job.route}")
    return True


def _upsert(
    connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values({**key, **values})
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=dict(values)))
