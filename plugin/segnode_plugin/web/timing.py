"""Times of jobs as pages show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from segnode_contract.job import Stage
from segnode_contract.ledger.statistics import Buckets
from segnode_contract.ledger.tally import LATENCY, percentile
from segnode_contract.ledger.view import JobRow, StageTime
from segnode_plugin.by_hand import BY_HAND

_LEAST_PERCENT = 0.4
"""A stage is at least so wide, that it can be seen."""
_NAMES = {str(Stage.TURN): "wait for the model", LATENCY: "in all"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A stage as a bar; `left` and `width` are percent of the whole run."""

    stage: str
    started_at: float
    seconds: float | None
    left: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long something took, in seconds; None where nothing was counted."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None


class Asked(Protocol):
    """What of a job says why it was made."""

    @property
    def revision(self) -> int: ...
    @property
    def route(self) -> str: ...
    @property
    def priority(self) -> str: ...
    @property
    def created_at(self) -> float: ...
    @property
    def last_instance_at(self) -> float: ...


def bars(stages: Sequence[StageTime], until: float) -> list[Bar]:
    """Return one bar per stage.

    Parameters
    ----------
    stages
        Of one run, in order.
    until
        When the run ended, or now; a stage without a time of its own lasts until then.
    """
    if not stages:
        return []
    first = stages[0].started_at
    ends = [s.started_at + s.seconds if s.seconds is not None else until for s in stages]
    whole = max(max(ends) - first, 1e-3)
    return [
        Bar(
            stage=stage.stage,
            started_at=stage.started_at,
            seconds=stage.seconds,
            left=round(100 * (stage.started_at - first) / whole, 2),
            width=round(max(100 * (end - stage.started_at) / whole, _LEAST_PERCENT), 2),
        )
        for stage, end in zip(stages, ends, strict=True)
    ]


def times_of(buckets: Buckets) -> Times:
    """Return the percentiles of what was tallied."""
    return Times(
        count=sum(buckets.values()),
        p50=percentile(buckets, 50),
        p95=percentile(buckets, 95),
        p99=percentile(buckets, 99),
    )


def counts_from(job: Asked) -> tuple[float, str]:
    """Return from when on a job's time counts, and what that was.

    Where no image that came made it, its images may have lain there for years.
    """
    if job.revision or job.route == BY_HAND:
        return job.created_at, "somebody asked for it"
    if job.priority == "background":
        return job.created_at, "the job was made"
    return job.last_instance_at, "the last image"


def took_s(job: JobRow) -> float | None:
    """Return the seconds until the last object was confirmed, None until then."""
    confirmed = [o.confirmed_at for o in job.objects if o.confirmed_at is not None]
    if not confirmed or len(confirmed) < len(job.objects):
        return None
    return max(confirmed) - counts_from(job)[0]


def confirmed_words(job: JobRow) -> str:
    """Return how long after what a result was confirmed, empty until it is."""
    took = took_s(job)
    return "" if took is None else f"{duration(took)} after {counts_from(job)[1]}"


def stage_name(stage: str) -> str:
    """Return what people call a stage, or the whole of them."""
    return _NAMES.get(stage, stage)


def iso(at: float) -> str:
    """Return a time as ``2026-11-24T10:00:00Z``."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(seconds: float | None) -> str:
    """Return ``0.25 s`` or ``12.3 s``, from a minute on as `age`, as `segnode.js` does."""
    if seconds is None:
        return "…"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    return age(round(seconds))


def age(seconds: float) -> str:
    """Return ``12 s``, ``2 min 05 s``, ``3 h 20 min`` or ``4 d 3 h``, as `segnode.js` does."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
