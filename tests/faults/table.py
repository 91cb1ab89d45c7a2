"""What a fault is: a row of the matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .faulty_node import FaultyNode

Strike = Callable[[FaultyNode], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault at one point."""

    fault: str
    """F1 to F24."""
    point: str
    strike: Strike
    """Sends, strikes, and where the fault lasts, ends it."""
    site: str = "plain"
    """Which node it needs, see `matrix.SITES`."""
    limit_s: float = 60.0
    """A result that is not there this long after is lost."""
    differs: tuple[str, ...] = ()
    """Findings of `segnode verify` that the fault itself is."""
    times: int | None = None
    """How often it is tried where the command says nothing; three times where absent."""


ROWS: list[Row] = []


def row(
    fault: str,
    point: str,
    strike: Strike,
    *,
    site: str = "plain",
    limit_s: float = 60.0,
    differs: tuple[str, ...] = (),
    times: int | None = None,
) -> None:
    """Add a row to the matrix."""
    ROWS.append(
        Row(
            fault=fault,
            point=point,
            strike=strike,
            site=site,
            limit_s=limit_s,
            differs=differs,
            times=times,
        )
    )
