"""The plugin's side: what changed in the archive, and what was decided about it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, and_, case, exists, func, select, update

from segnode_contract.job import JobState, NewJob
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.events import record
from segnode_contract.ledger.queue import queue, supersede
from segnode_contract.ledger.revisions import newest, run_anew
from segnode_contract.ledger.upsert import upsert

_STRANDED = 100
"""So many jobs at most are made anew in one transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietSeries:
    """A series for which no instance came during the quiet period."""

    orthanc_id: str
    first_instance_at: float | None
    """Of those that came since it was decided before."""
    last_instance_at: float
    backlog: bool
    """Whether it lay in the archive before anybody waited for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStudy:
    """A study of which some series changed since it was last decided."""

    orthanc_id: str
    changed_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesOfStudy:
    """A series of an open study, as it was noted."""

    orthanc_id: str
    first_instance_at: float | None
    last_instance_at: float
    idle_s: float
    """How long ago its last instance came."""
    backlog: bool
    ours: bool
    """Whether it is a result of ours."""


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
    """A job on which another builds comes before it."""
    final: bool = True
    """False where the series is asked again, because no worker has the model yet, say."""
    study: str = ""
    """Orthanc's id of its study, where that is to be decided as a whole too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyDecision:
    """What the routes that want the whole study decided."""

    orthanc_id: str
    changed_at: float
    verdicts: Mapping[str, tuple[Verdict, ...]]
    """Of these routes, by the Orthanc id of each series; other routes' verdicts stay."""
    jobs: tuple[NewJob, ...]
    final: bool
    """False where a required series, or a model, is waited for."""


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

    def note(
        self, archive_id: str, last_change: int, series: Iterable[str], *, backlog: bool = False
    ) -> None:
        """Store the cursor together with the series (Orthanc ids) that the changes touched.

        Parameters
        ----------
        backlog
            The series lay there before anybody waited for them: their jobs are background work.
        """
        with self._ledger.write() as connection:
            upsert(
                connection,
                schema.archive,
                {"archive_id": archive_id},
                {"last_change": last_change, "seen_at": now_s()},
            )
            _touch(connection, archive_id, series, backlog=backlog)

    def quiet(self, archive_id: str, quiet_s: float) -> list[QuietSeries]:
        """Return undecided series whose last instance is at least `quiet_s` seconds old."""
        table = schema.series
        with self._ledger.read() as connection:
            rows = connection.execute(
                select(
                    table.c.orthanc_id,
                    table.c.first_instance_at,
                    table.c.last_instance_at,
                    table.c.backlog,
                )
                .where(
                    table.c.archive_id == archive_id,
                    table.c.decided_at.is_(None),
                    table.c.last_instance_at <= now_s() - quiet_s,
                )
                .order_by(table.c.backlog, table.c.last_instance_at)
            )
            return [QuietSeries(**row._asdict()) for row in rows]

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

    def newest_archive(self) -> str | None:
        """Return the id of the archive that was read last."""
        table = schema.archive
        with self._ledger.read() as connection:
            return connection.scalar(
                select(table.c.archive_id).order_by(table.c.seen_at.desc()).limit(1)
            )

    def reopen(self, archive_id: str, series: Collection[str], actor: str) -> None:
        """Have series (Orthanc ids) decided once more, as a backlog.

        Jobs that are there stay as they are, for no image came; what is missing is made as
        background work. Who asked for it is recorded.
        """
        table = schema.series
        ours = and_(table.c.archive_id == archive_id, table.c.orthanc_id.in_(series))
        with self._ledger.write() as connection:
            known = set(connection.scalars(select(table.c.orthanc_id).where(ours)))
            connection.execute(
                update(table)
                .where(ours, table.c.decided_at.is_not(None))
                .values(decided_at=None, backlog=True)
            )
            _touch(connection, archive_id, sorted(set(series) - known), backlog=True)
            said = f"{len(series)} series are decided again"
            record(connection, None, actor, "replay", said, person=True)

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
            if decision.study:
                upsert(
                    connection,
                    schema.study,
                    {"archive_id": archive_id, "orthanc_id": decision.study},
                    {"changed_at": now_s(), "decided_at": None},
                )
            return [job.key for job in decision.jobs if queue(connection, archive_id, job)]

    def queue_by_hand(self, archive_id: str, job: NewJob, actor: str) -> str:
        """Make a job that no route asked for, or bring back the one that is there.

        One whose result was withdrawn is made anew, under its next revision.

        Returns
        -------
        str
            Its key: that of its newest revision.
        """
        with self._ledger.write() as connection:
            queue(connection, archive_id, job)
            key = newest(connection, job.key)
            anew = run_anew(connection, key, actor)
            if anew:  # where the images lie now, and as urgent as it was asked for
                queue(connection, archive_id, job)
            key = anew or key
            record(connection, key, actor, "by hand", f"model {job.model}", person=True)
            return key

    def open_studies(self, archive_id: str) -> list[OpenStudy]:
        """Return the studies that are to be decided as a whole, those that changed first first."""
        table = schema.study
        with self._ledger.read() as connection:
            rows = connection.execute(
                select(table.c.orthanc_id, table.c.changed_at)
                .where(table.c.archive_id == archive_id, table.c.decided_at.is_(None))
                .order_by(table.c.changed_at)
            ).all()
        return [OpenStudy(**row._asdict()) for row in rows]

    def series_of_study(self, archive_id: str, series: Collection[str]) -> list[SeriesOfStudy]:
        """Return what is noted of `series` (Orthanc ids)."""
        table, result = schema.series, schema.result
        with self._ledger.read() as connection:
            rows = connection.execute(
                select(
                    table.c.orthanc_id,
                    table.c.first_instance_at,
                    table.c.last_instance_at,
                    (now_s() - table.c.last_instance_at).label("idle_s"),
                    table.c.backlog,
                    exists().where(result.c.series_uid == table.c.series_uid).label("ours"),
                ).where(table.c.archive_id == archive_id, table.c.orthanc_id.in_(series))
            ).all()
        return [SeriesOfStudy(**row._asdict()) for row in rows]

    def idle_s(self, series: Collection[str]) -> float:
        """Return how long ago an image came to any of `series` (Orthanc ids) last.

        Infinitely long where nothing was noted of them; results of ours do not count.
        """
        table, result = schema.series, schema.result
        with self._ledger.read() as connection:
            idle: float | None = connection.scalar(
                select(now_s() - func.max(table.c.last_instance_at)).where(
                    table.c.orthanc_id.in_(series),
                    ~exists().where(result.c.series_uid == table.c.series_uid),
                )
            )
        return float("inf") if idle is None else idle

    def decide_study(self, archive_id: str, decision: StudyDecision) -> list[str]:
        """Store a study's decision, its jobs and their rings in one transaction.

        Jobs are made and superseded as by `decide`; one that is to be the only one of its route
        supersedes the others of that route in the study. Where a series was decided since, the
        decision is dropped: the study is asked again.

        Returns
        -------
        list of str
            Keys of the jobs that are new.
        """
        table = schema.study
        ours = and_(table.c.archive_id == archive_id, table.c.orthanc_id == decision.orthanc_id)
        with self._ledger.write() as connection:
            decided = connection.execute(
                update(table)
                .where(ours, table.c.changed_at == decision.changed_at)
                .values(decided_at=now_s() if decision.final else None)
            )
            if decided.rowcount == 0:
                return []
            for orthanc_id, verdicts in decision.verdicts.items():
                _amend(connection, archive_id, orthanc_id, verdicts)
            return [job.key for job in decision.jobs if queue(connection, archive_id, job)]

    def forget_study(self, archive_id: str, orthanc_id: str) -> None:
        """Drop a study that the archive no longer has."""
        table = schema.study
        with self._ledger.write() as connection:
            connection.execute(
                table.delete().where(
                    table.c.archive_id == archive_id, table.c.orthanc_id == orthanc_id
                )
            )

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
                supersede(connection, key, "no worker has this version of the model any more")
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


def _touch(
    connection: Connection, archive_id: str, series: Iterable[str], *, backlog: bool = False
) -> None:
    table = schema.series
    first = case(
        (table.c.decided_at.is_not(None), now_s()),
        else_=func.coalesce(table.c.first_instance_at, now_s()),
    )
    for orthanc_id in series:
        upsert(
            connection,
            table,
            {"archive_id": archive_id, "orthanc_id": orthanc_id},
            {
                "first_instance_at": first,
                "last_instance_at": now_s(),
                "decided_at": None,
                "backlog": backlog,
            },
            at_first={"first_instance_at": now_s()},
        )


def _amend(
    connection: Connection, archive_id: str, orthanc_id: str, verdicts: Collection[Verdict]
) -> None:
    """Put verdicts in the place of older ones of the same routes."""
    table = schema.series
    ours = and_(table.c.archive_id == archive_id, table.c.orthanc_id == orthanc_id)
    new = {verdict.route: asdict(verdict) for verdict in verdicts}
    old = connection.scalar(select(table.c.decision).where(ours)) or []
    merged = [new.pop(each["route"], each) for each in old]
    connection.execute(update(table).where(ours).values(decision=[*merged, *new.values()]))
