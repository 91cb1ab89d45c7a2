"""What was tallied, as numbers for tables and lines for plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segnode_contract.ledger.statistics import DAY_S, Buckets
from segnode_contract.ledger.tally import percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long something took, in seconds; None where nothing was counted."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None


def times_of(buckets: Buckets) -> Times:
    """Return the percentiles of what was tallied."""
    return Times(
        count=sum(buckets.values()),
        p50=percentile(buckets, 50),
        p95=percentile(buckets, 95),
        p99=percentile(buckets, 99),
    )


def plot_of(
    days: Sequence[int], times: Mapping[int, Times], lines: Iterable[str]
) -> dict[str, Any]:
    """Return what `plots.js` draws: a line for each percentile of `lines`, a gap where none is.

    Parameters
    ----------
    times
        By day.
    """
    return {
        "at": [day * DAY_S for day in days],
        "lines": [
            {"name": name, "seconds": [_rounded(times.get(day), name) for day in days]}
            for name in lines
        ],
    }


def _rounded(times: Times | None, name: str) -> float | None:
    seconds = getattr(times, name, None)
    return None if seconds is None else round(seconds, 3)
