"""The list of jobs: what is asked for, a page of it, and what can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Select, and_, func, select, true

from segnode_contract.job import JobState
from segnode_contract.ledger import schema
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.view import JobRow, LedgerView

_DISTINCT = 200
"""So many values of a column at most are offered."""
_LOOKED_AT = 500
"""Values of columns without an index are those of so many jobs, the newest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which jobs are asked for; what is empty or None does not matter."""

    state: str = ""
    model: str = ""
    route: str = ""
    modality: str = ""
    code: str = ""
    """Of the error."""
    since: float | None = None
    """Created at this time or later,"""
    until: float | None = None
    """and before this one."""
    studies: tuple[str, ...] | None = None
    """Study Instance UIDs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the jobs of this ledger have, to choose from."""

    models: list[str]
    routes: list[str]
    modalities: list[str]
    codes: list[str]


class JobListing:
    """Reading only."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def page(self, wanted: Wanted, *, limit: int, offset: int = 0) -> list[JobRow]:
        """Return some of the jobs, newest first."""
        key = schema.job.c.key
        # whole rows of these only: SQLite would sort those of all pages before, results and all
        some = _ordered(select(key).where(_meant(wanted))).limit(limit).offset(offset)
        return LedgerView(self._ledger).rows(_ordered(select(schema.job).where(key.in_(some))))

    def keys(self, wanted: Wanted, most: int) -> list[str]:
        """Return the keys of the jobs, `most` of them at most; newest first.

        Withdrawn ones are meant only where that state is asked for: made anew with many others,
        the same model on the same images would bring the same wrong results back.
        """
        query = _ordered(select(schema.job.c.key).where(_meant(wanted))).limit(most)
        if wanted.state != JobState.WITHDRAWN:
            query = query.where(schema.job.c.state != JobState.WITHDRAWN)
        with self._ledger.read() as connection:
            return list(connection.scalars(query))

    def count(self, wanted: Wanted, most: int) -> int:
        """Return how many jobs there are; `most` where there are more."""
        some = select(schema.job.c.key).where(_meant(wanted)).limit(most).subquery()
        with self._ledger.read() as connection:
            return connection.execute(select(func.count()).select_from(some)).scalar_one()

    def choices(self) -> Choices:
        """Return what to filter by."""
        job = schema.job
        failed = job.c.state.in_((JobState.FAILED, JobState.DEAD))
        with self._ledger.read() as connection:
            return Choices(
                models=distinct(connection, job.c.model),
                routes=distinct(connection, job.c.route),
                modalities=_recent(connection, job.c.modality, true()),
                codes=_recent(connection, job.c.error_code, failed),
            )


def distinct(connection: Connection, column: Column[str]) -> list[str]:
    """Return the values of the first column of an index, in order.

    Each is one step into the index from the value before; DISTINCT would read every row.
    """
    found: list[str] = []
    query = select(func.min(column))
    value: str | None = connection.scalar(query)
    while value is not None and len(found) < _DISTINCT:
        found.append(value)
        value = connection.scalar(query.where(column > value))
    return found


def _recent(connection: Connection, column: Column[str], which: ColumnElement[bool]) -> list[str]:
    newest = select(column).where(which).order_by(schema.job.c.created_at.desc()).limit(_LOOKED_AT)
    return sorted({value for value in connection.scalars(newest) if value})


def _ordered(query: Select[Any]) -> Select[Any]:
    job = schema.job
    return query.order_by(job.c.created_at.desc(), job.c.key)


def _meant(wanted: Wanted) -> ColumnElement[bool]:
    job = schema.job
    same = {
        job.c.state: wanted.state,
        job.c.model: wanted.model,
        job.c.route: wanted.route,
        job.c.modality: wanted.modality,
        job.c.error_code: wanted.code,
    }
    clauses = [column == value for column, value in same.items() if value]
    if wanted.code and not wanted.state:
        # a job that is done has no error: most rows need not be read then
        clauses.append(job.c.state.in_([one for one in JobState if one != JobState.DONE]))
    if wanted.since is not None:
        clauses.append(job.c.created_at >= wanted.since)
    if wanted.until is not None:
        clauses.append(job.c.created_at < wanted.until)
    if wanted.studies is not None:
        clauses.append(job.c.study_uid.in_(wanted.studies))
    return and_(true(), *clauses)
