"""Jobs by day as columns of a chart: a piece for each state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segnode_contract.job import OPEN_STATES, JobState

ENDS = (
    JobState.DONE,
    JobState.FAILED,
    JobState.DEAD,
    JobState.CANCELLED,
    JobState.WITHDRAWN,
    JobState.SUPERSEDED,
    *reversed(OPEN_STATES),
)
"""From the foot of a column up."""
_GAP = 0.2
"""Between two columns, as a share of their distance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Jobs of one day and state; `top` and `height` are percent of the chart."""

    state: str
    count: int
    top: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One day; `left` and `width` are percent of the chart."""

    day: int
    left: float
    width: float
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """All days, and the number of jobs that the chart's upper edge stands for."""

    top: int
    columns: tuple[Column, ...]


def chart_of(days: Sequence[int], stand: Mapping[int, Mapping[str, int]]) -> Chart:
    """Lay out the jobs of some days.

    Parameters
    ----------
    stand
        Number of jobs by day and state.
    """
    top = _even(max((sum(each.values()) for each in stand.values()), default=0))
    step = 100 / len(days)
    return Chart(
        top=top,
        columns=tuple(
            Column(
                day=day,
                left=round(step * (place + _GAP / 2), 3),
                width=round(step * (1 - _GAP), 3),
                pieces=_pieces(stand.get(day, {}), top),
            )
            for place, day in enumerate(days)
        ),
    )


def _pieces(counts: Mapping[str, int], top: int) -> tuple[Piece, ...]:
    pieces, foot = [], 100.0
    for state in ENDS:
        count = counts.get(state, 0)
        height = 100 * count / top
        foot -= height
        if count:
            piece = Piece(state=state, count=count, top=round(foot, 3), height=round(height, 3))
            pieces.append(piece)
    return tuple(pieces)


def _even(most: int) -> int:
    """Return the next round number of which a half is whole."""
    size = 1
    while size * 10 < most:
        size *= 10
    return next(size * step for step in (2, 4, 6, 8, 10) if size * step >= most)
