"""The plugin's side: what changed in the archive, and what was decided about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, case, exists, select, update

from segnode_contract.errors import SeriesChanged
from segnode_contract.job import OPEN_STATES, RETRIED, JobState, NewJob
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.events import record
from segnode_contract.ledger.upsert import upsert

_STRANDED = 100
"""So many jobs at most are made anew in one transaction."""


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
            upsert(
                connection,
                schema.archive,
                {"archive_id": archive_id},
                {"last_change": last_change, "seen_at": now_s()},
            )
            _touch(connection, archive_id, series)

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

    def unlisted(self, archive_id: str, series: Iterable[str]) -> list[str]:
        """Return those of `series` (Orthanc ids) that were never noted."""
        table = schema.series
        with self._ledger.read() as connection:
            known = connection.scalars(
                select(table.c.orthanc_id).where(table.c.archive_id == archive_id)
            )
            return sorted(set(series) - set(known))

    def recent(self, archive_id: str, since_s: float) -> dict[str, int]:
        """Return the number of instances with which recent series were decided, by Orthanc id."""
        table = schema.series
        with self._ledger.read() as connection:
            rows = connection.execute(
                select(table.c.orthanc_id, table.c.instance_count).where(
                    table.c.archive_id == archive_id,
                    table.c.decided_at.is_not(None),
                    table.c.last_instance_at >= now_s() - since_s,
                )
            )
            return {row[0]: row[1] for row in rows}

    def touch(self, archive_id: str, series: Iterable[str]) -> None:
        """Have series (Orthanc ids) decided after a quiet period, as if an image had come."""
        with self._ledger.write() as connection:
            _touch(connection, archive_id, series)

    def own_series(self, series_uid: str) -> bool:
        """Return whether the series is a result of ours."""
        with self._ledger.read() as connection:
            found = connection.scalar(
                select(schema.result.c.job_key).where(schema.result.c.series_uid == series_uid)
            )
            return found is not None

    def decide(self, archive_id: str, decision: Decision) -> list[str]:
        """Store a decision, its jobs and their rings in one transaction.

        A job that exists already is left as it is, unless it was superseded and its content is
        back, or it has its result and the images came once more or lie in another archive or study
        now. Every other job of the same series and model is superseded. Where an instance came
        since, the decision is dropped: the series is asked again after its quiet period.

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

    def models(self, silent_s: float) -> dict[str, AnnouncedModel]:
        """Return each model by name, in the version that came last.

        Versions that no worker announced for `silent_s` seconds count only where there is no other.
        """
        table = schema.model
        alive = case((table.c.announced_at >= now_s() - silent_s, 1), else_=0)
        with self._ledger.read() as connection:
            rows = connection.execute(
                select(table).order_by(alive, table.c.first_announced_at, table.c.digest)
            ).all()
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

    def replace_stranded(self, silent_s: float) -> list[str]:
        """Supersede queued jobs whose model version is gone while another one is there.

        Their series are decided again, so that an upgrade loses no job.

        Returns
        -------
        list of str
            Keys of the jobs.
        """
        job, model, series = schema.job, schema.model, schema.series
        alive = and_(model.c.name == job.c.model, model.c.announced_at >= now_s() - silent_s)
        stranded = (
            select(job.c.key, job.c.archive_id, job.c.study_uid, job.c.series_uids)
            .where(
                job.c.state == JobState.QUEUED,
                exists().where(alive),
                ~exists().where(alive, model.c.digest == job.c.model_digest),
            )
            .limit(_STRANDED)  # the rest at the next tick: nobody else writes meanwhile
        )
        with self._ledger.read() as connection:
            if connection.execute(stranded.limit(1)).first() is None:
                return []
        with self._ledger.write() as connection:
            rows = connection.execute(stranded.with_for_update()).all()
            for key, archive_id, study_uid, series_uids in rows:
                _supersede(connection, key, "no worker has this version of the model any more")
                connection.execute(
                    update(series)
                    .where(
                        series.c.archive_id == archive_id,
                        series.c.study_uid == study_uid,
                        series.c.series_uid.in_(series_uids.split("\\")),
                    )
                    .values(decided_at=None)
                )
            return [row.key for row in rows]


def _touch(connection: Connection, archive_id: str, series: Iterable[str]) -> None:
    for orthanc_id in series:
        upsert(
            connection,
            schema.series,
            {"archive_id": archive_id, "orthanc_id": orthanc_id},
            {"last_instance_at": now_s(), "decided_at": None},
        )


def _queue(connection: Connection, archive_id: str, job: NewJob) -> bool:
    """Make a job, or bring back one that is there; return whether anything is to do."""
    table = schema.job
    place = {
        "archive_id": archive_id,
        "study_uid": job.study_uid,
        "route": job.route,
        "route_rank": job.route_rank,
        "lane": job.lane,
        "model_version": job.model_version,
        "last_instance_at": job.last_instance_at,
        "updated_at": now_s(),
    }
    columns = [table.c[name] for name in (*place, "state", "error_code")]
    known = connection.execute(select(*columns).where(table.c.key == job.key)).first()
    if known is not None and not _comes_back(connection, job, known, place):
        return False
    _supersede_others(connection, job, place)
    fresh = {
        "state": JobState.QUEUED,
        "not_before": now_s(),
        "tried_since": now_s(),
        "attempts": 0,
        "deliveries": 0,
        "lease_owner": None,
        "lease_until": None,
        "error_code": None,
        "error_sentence": None,
        "error_stage": None,
    }
    if known is None:
        made = {"series_uids": _joined(job), "lease_epoch": 0, "created_at": now_s()}
        connection.execute(table.insert().values(asdict(job) | place | made | fresh))
    else:
        _end_run(connection, job.key)
        connection.execute(update(table).where(table.c.key == job.key).values(place | fresh))
    _ring(connection, job)
    record(connection, job.key, "intake", "queued", f"route {job.route}")
    return True


def _comes_back(
    connection: Connection, job: NewJob, known: Row[Any], place: Mapping[str, object]
) -> bool:
    """Return whether a job runs again now that its images were decided again.

    One that failed does so by an act only, unless its images were not whole then.
    """
    came = known.last_instance_at < job.last_instance_at
    elsewhere = known.study_uid != job.study_uid
    moved = elsewhere or known.archive_id != place["archive_id"]
    if known.state == JobState.RUNNING and not moved:
        return False
    if came or moved:
        _doubt(connection, job.key, known.state, elsewhere=elsewhere)
    match known.state:
        case JobState.SUPERSEDED | JobState.RUNNING:
            return True
        case JobState.DONE if came or moved:
            return True
        case JobState.FAILED | JobState.DEAD if came and known.error_code == SeriesChanged.code:
            return True
    if came or moved:
        table = schema.job
        connection.execute(update(table).where(table.c.key == job.key).values(place))
        _supersede_others(connection, job, place)
        if known.state == JobState.QUEUED and known.lane != job.lane:
            _ring(connection, job)
    return False


def _doubt(connection: Connection, key: str, state: str, *, elsewhere: bool) -> None:
    """Hold what is known of a job's result for uncertain.

    Images that came again may have been deleted before, and the result with them: the worker looks
    for a result that was stored. One that was not is made anew, since the patient's name may have
    been corrected, and so is one of another study.
    """
    result = schema.result
    ours = result.c.job_key == key
    if elsewhere or state not in (JobState.DONE, JobState.SUPERSEDED):
        connection.execute(result.delete().where(ours))
    else:
        connection.execute(update(result).where(ours).values(stored_at=None, confirmed_at=None))


def _ring(connection: Connection, job: NewJob) -> None:
    connection.execute(
        schema.outbox.insert().values(job_key=job.key, lane=job.lane, due_at=now_s())
    )


def _joined(job: NewJob) -> str:
    return "\\".join(sorted(job.series_uids))  # DICOM's own separator of values


def _supersede_others(connection: Connection, job: NewJob, place: Mapping[str, object]) -> None:
    table = schema.job
    others = and_(
        table.c.key != job.key,
        table.c.series_uids == _joined(job),
        table.c.model == job.model,
        table.c.archive_id == place["archive_id"],
        table.c.state.in_((JobState.DONE, *OPEN_STATES, *RETRIED)),
    )
    for key in connection.scalars(select(table.c.key).where(others)).all():
        _supersede(connection, key, f"by job {job.key}")


def _supersede(connection: Connection, key: str, why: str) -> None:
    job = schema.job
    connection.execute(
        update(job)
        .where(job.c.key == key)
        .values(state=JobState.SUPERSEDED, lease_owner=None, lease_until=None, updated_at=now_s())
    )
    _end_run(connection, key)
    record(connection, key, "intake", "superseded", why)


def _end_run(connection: Connection, key: str) -> None:
    run = schema.run
    connection.execute(
        update(run)
        .where(run.c.job_key == key, run.c.ended_at.is_(None))
        .values(ended_at=now_s(), outcome=str(JobState.SUPERSEDED))
    )
