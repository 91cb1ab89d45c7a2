"""What a viewer shows of a study's results, and what it hides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select

from segnode_contract.job import JobState
from segnode_contract.ledger import schema
from segnode_contract.ledger.engine import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """A result that a viewer may show on `series_uid`."""

    series_uid: str
    seg_series_uid: str
    model: str
    version: str
    route: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOverlays:
    """The results of a study."""

    overlays: tuple[Overlay, ...]
    """Of each series and model those of the newest job, one for each stack; the model of the first
    route first."""
    hidden: tuple[str, ...]
    """Series Instance UIDs of results, SEG and SR, that do not count: superseded, withdrawn, or of
    a job that failed at them or is at them still."""


def study_overlays(ledger: Ledger, study_uid: str) -> StudyOverlays:
    """Return what of a study's results is valid, and what is not any more."""
    job, result = schema.job, schema.result
    with ledger.read() as connection:
        valid = connection.execute(
            select(job, result.c.series_uid, result.c.role)
            .join(result, result.c.job_key == job.c.key)
            .where(
                job.c.study_uid == study_uid,
                job.c.state == JobState.DONE,
                result.c.role.startswith("SEG"),
                result.c.confirmed_at.is_not(None),
            )
        ).all()
        over = connection.scalars(
            select(result.c.series_uid)
            .join(job, job.c.key == result.c.job_key)
            .where(job.c.study_uid == study_uid, job.c.state != JobState.DONE)
            .distinct()
            .order_by(result.c.series_uid)
        ).all()
    # not by the database: SQLite would take an index for the order, and read all jobs that are done
    valid = sorted(valid, key=lambda row: (-row.created_at, row.key, row.role))
    return StudyOverlays(overlays=_newest(valid), hidden=tuple(over))


def _newest(rows: Iterable[Row[Any]]) -> tuple[Overlay, ...]:
    """Keep of each series and model the stacks of the newest job, the first of `rows`."""
    newest: dict[tuple[str, str], str] = {}
    kept: list[tuple[int, Overlay]] = []
    for row in rows:
        source = row.series_uids.partition("\\")[0]  # of several series it lies on the first
        if newest.setdefault((source, row.model), row.key) == row.key:
            overlay = Overlay(
                series_uid=source,
                seg_series_uid=row.series_uid,
                model=row.model,
                version=row.model_version,
                route=row.route,
            )
            kept.append((row.route_rank, overlay))
    return tuple(overlay for _, overlay in sorted(kept, key=lambda one: one[0]))
