"""The steps of a job as a picture: a staircase of bars, in which hours do not hide seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segnode_plugin.web.timeline import WAITS, Step

_LEAST_CAP_S = 1.0
"""A wait of a second is drawn whole, even beside milliseconds of work."""

_LEFT, _WIDTH, _ROW = 240, 1200, 24
_RIGHT = _WIDTH - 110
"""Where bars end, and room for words begins."""
_LEAST_PX = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stair:
    """A step as it is drawn, in units of the picture."""

    step: Step
    y: int
    x: float
    width: float
    broken: bool
    """Whether it is drawn shorter than it was, beside the others."""
    words_x: float
    before: bool
    """Whether its words stand before it, since there is no room behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staircase:
    """The steps as bars, one below the other."""

    stairs: tuple[Stair, ...]
    width: int
    height: int
    row: int

    @property
    def broken(self) -> bool:
        """Whether any wait is drawn shorter than it was."""
        return any(stair.broken for stair in self.stairs)


def staircase_of(steps: Sequence[Step]) -> Staircase:
    """Lay steps out as a staircase.

    Work is drawn to scale. A wait is drawn no longer than that all waits together take half of
    the picture, or a second each, so that seconds of work can be seen beside hours of waiting;
    where it was longer its bar is broken.
    """
    cap = _cap(steps)
    drawn = [min(step.seconds, cap) if step.kind in WAITS else step.seconds for step in steps]
    scale = (_RIGHT - _LEFT) / max(sum(drawn), 1e-9)
    wanted = [max(each * scale, _LEAST_PX) for each in drawn]
    shrink = min(1.0, (_RIGHT - _LEFT) / max(sum(wanted), 1e-9))
    widths = [width * shrink for width in wanted]
    stairs, x = [], float(_LEFT)
    for number, (step, width) in enumerate(zip(steps, widths, strict=True)):
        end = x + width
        before = end > _RIGHT - 120 and x > _LEFT + 160
        stairs.append(
            Stair(
                step=step,
                y=number * _ROW,
                x=round(x, 1),
                width=round(width, 1),
                broken=step.kind in WAITS and step.seconds > cap,
                words_x=round(x - 8 if before else end + 8, 1),
                before=before,
            )
        )
        x = end
    return Staircase(stairs=tuple(stairs), width=_WIDTH, height=len(stairs) * _ROW, row=_ROW)


def _cap(steps: Sequence[Step]) -> float:
    """Return the seconds beyond which a wait is broken."""
    work = sum(step.seconds for step in steps if step.kind not in WAITS)
    waits = sorted(step.seconds for step in steps if step.kind in WAITS)
    if work == 0:
        return waits[(len(waits) - 1) // 2] if waits else 0.0
    left, room = len(waits), work
    for wait in waits:  # short ones leave their share to the others
        if wait > room / left:
            return max(room / left, _LEAST_CAP_S)
        room, left = room - wait, left - 1
    return float("inf")
