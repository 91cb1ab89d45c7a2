"""Times of a job as pages show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from segnode_contract.ledger.view import JobRow, StageTime
from segnode_plugin.by_hand import BY_HAND

_LEAST_PERCENT = 0.4
"""A stage is at least so wide, that it can be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A stage as a bar; `left` and `width` are percent of the whole run."""

    stage: str
    started_at: float
    seconds: float | None
    left: float
    width: float


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


def total_s(job: JobRow) -> float | None:
    """Return the seconds from the last image to the last object confirmed, None until then."""
    confirmed = [o.confirmed_at for o in job.objects if o.confirmed_at is not None]
    if not confirmed or len(confirmed) < len(job.objects):
        return None
    return max(confirmed) - job.last_instance_at


def confirmed_words(job: JobRow) -> str:
    """Return how long after the last image a result was confirmed, empty until it is.

    After it was asked for, where that was not because images came.
    """
    total = total_s(job)
    if total is None:
        return ""
    if job.revision or job.route == BY_HAND:
        asked = total + job.last_instance_at - job.created_at
        return f"{duration(asked)} after somebody asked for it"
    return f"{duration(total)} after the last image"


def iso(at: float) -> str:
    """Return a time as ``2026-11-24T10:00:00Z``."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(seconds: float | None) -> str:
    """Return ``0.25 s``, ``12.3 s``, ``2 min 05 s`` or ``3 h 20 min``."""
    if seconds is None:
        return "…"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
