"""What was tallied, as lines of plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from segnode_contract.ledger.statistics import DAY_S
from segnode_plugin.web.timing import Times


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
