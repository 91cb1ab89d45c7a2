"""What was counted: jobs by day, how runs ended, how long they took, what people did."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from sqlalchemy import Column, func, select

from segnode_contract.destination import DeliveryState
from segnode_contract.job import JobState, Priority
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import day_of, now_s
from segnode_contract.ledger.engine import Ledger

DAY_S = 86400.0

Buckets = dict[int, int]
"""How many were counted, by `tally.bucket_of` of their time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One version of a model that a worker announced."""

    name: str
    version: str
    digest: str
    worker: str
    """That announced it last."""
    first_announced_at: float
    announced_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRow:
    """An error's code, and the jobs that stand failed or dead with it."""

    code: str
    jobs: int
    last_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ActRow:
    """What somebody did by hand."""

    seq: int
    at: float
    actor: str
    kind: str
    detail: str
    job_key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLine:
    """One job without its images: no UID of the archive is in it."""

    key: str
    state: str
    model: str
    model_version: str
    route: str
    priority: str
    modality: str
    revision: int
    created_at: float
    last_instance_at: float
    confirmed_at: float | None
    """When the last object of its result was."""
    error_code: str | None


class Statistics:
    """Reading only; days are numbers since 1970, in UTC, by the ledger's clock."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def last_days(self, count: int) -> range:
        """Return today and the days before it, so many in all."""
        with self._ledger.read() as connection:
            today: int = connection.execute(select(day_of(now_s()))).scalar_one()
        return range(today - count + 1, today + 1)

    def models(self) -> list[ModelRow]:
        """Return all versions of all models by name, of each name the newest first."""
        table = schema.model
        columns = [table.c[name] for name in ModelRow.__dataclass_fields__]
        query = select(*columns).order_by(table.c.name, table.c.first_announced_at.desc())
        with self._ledger.read() as connection:
            return [ModelRow(**row._asdict()) for row in connection.execute(query)]

    def by_model(
        self, days: Sequence[int], measures: Collection[str]
    ) -> dict[str, dict[str, Buckets]]:
        """Return what was tallied on some days together, by model and measure."""
        tallied: dict[str, dict[str, Buckets]] = {}
        for model, measure, bucket, count in self._sums(schema.tally.c.model, days, measures):
            tallied.setdefault(model, {}).setdefault(measure, {})[bucket] = count
        return tallied

    def by_day(
        self, days: Sequence[int], measures: Collection[str], model: str | None = None
    ) -> dict[int, dict[str, Buckets]]:
        """Return what was tallied of a model, or of all together, by day and measure."""
        tallied: dict[int, dict[str, Buckets]] = {}
        for day, measure, bucket, count in self._sums(schema.tally.c.day, days, measures, model):
            tallied.setdefault(day, {}).setdefault(measure, {})[bucket] = count
        return tallied

    def jobs_by_day(self, days: range) -> dict[int, dict[str, int]]:
        """Return how the jobs that were made on each day stand now."""
        job = schema.job
        day = day_of(job.c.created_at)
        query = (
            select(day, job.c.state, func.count())
            # by name: both databases then look in the index alone
            .where(job.c.state.in_(list(JobState)), job.c.created_at >= days[0] * DAY_S)
            .group_by(day, job.c.state)
        )
        stand: dict[int, dict[str, int]] = {}
        with self._ledger.read() as connection:
            for number, state, count in connection.execute(query):
                stand.setdefault(number, {})[state] = count
        return stand

    def failures(self, days: range) -> list[FailureRow]:
        """Return the codes of the jobs made on these days that stand failed or dead."""
        job = schema.job
        jobs = func.count()
        query = (
            select(func.coalesce(job.c.error_code, ""), jobs, func.max(job.c.updated_at))
            .where(
                job.c.state.in_((JobState.FAILED, JobState.DEAD)),
                job.c.created_at >= days[0] * DAY_S,
            )
            .group_by(job.c.error_code)
            .order_by(jobs.desc(), job.c.error_code)
        )
        with self._ledger.read() as connection:
            return [
                FailureRow(code=code, jobs=count, last_at=last)
                for code, count, last in connection.execute(query)
            ]

    def acts(self, days: range, limit: int, *, before: int | None = None) -> list[ActRow]:
        """Return what people did on these days, the newest first.

        Parameters
        ----------
        before
            The `seq` of one; those before it are returned.
        """
        table = schema.event
        columns = [table.c[name] for name in ActRow.__dataclass_fields__]
        query = select(*columns).where(table.c.person).order_by(table.c.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(table.c.seq < before)
        with self._ledger.read() as connection:
            acts = [ActRow(**row._asdict()) for row in connection.execute(query)]
        # no index has the time; but the newest come first
        return list(takewhile(lambda act: act.at >= days[0] * DAY_S, acts))

    def jobs(self, days: range, limit: int) -> Iterator[JobLine]:
        """Return the jobs made on these days, the newest first."""
        job, result = schema.job, schema.result
        names = [name for name in JobLine.__dataclass_fields__ if name != "confirmed_at"]
        confirmed = select(func.max(result.c.confirmed_at)).where(
            result.c.job_key == job.c.key, job.c.state == JobState.DONE
        )
        query = (
            select(
                *(job.c[name] for name in names), confirmed.scalar_subquery().label("confirmed_at")
            )
            .where(job.c.created_at >= days[0] * DAY_S)
            .order_by(job.c.created_at.desc(), job.c.key)
            .limit(limit)
        )
        with self._ledger.read() as connection:
            for row in connection.execute(query):
                values = row._asdict()
                values["priority"] = Priority(row.priority).name.lower()
                yield JobLine(**values)

    def deliveries(self) -> dict[str, int]:
        """Return how many deliveries stand in each state."""
        delivery = schema.delivery
        query = (
            select(delivery.c.state, func.count())
            .where(delivery.c.state.in_(list(DeliveryState)))
            .group_by(delivery.c.state)
        )
        with self._ledger.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def _sums(
        self,
        key: Column[int] | Column[str],
        days: Sequence[int],
        measures: Collection[str],
        model: str | None = None,
    ) -> list[tuple[Any, str, int, int]]:
        """Return sums of the tally.

        Every column of its key is given, so that only rows that count are read.
        """
        table = schema.tally
        models = [model] if model else select(schema.model.c.name).distinct()
        query = select(key, table.c.measure, table.c.bucket, func.sum(table.c.count)).where(
            table.c.day.in_(days), table.c.model.in_(models), table.c.measure.in_(measures)
        )
        query = query.group_by(key, table.c.measure, table.c.bucket)
        with self._ledger.read() as connection:
            return [(one, name, b, n) for one, name, b, n in connection.execute(query)]
