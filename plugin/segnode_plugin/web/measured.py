"""What a job found, as a table of its page: a line for each segment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segnode_contract.findings import Findings, Measurement

_UNITS = {"[hnsf'U]": "HU", "1": ""}
"""UCUM as people write it."""
_NOT = "not measurable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One segment."""

    segment: str
    cells: tuple[str, ...]
    """A text for each column, empty where nothing was to be measured."""
    notes: tuple[str, ...]
    """Sentences: what is left out, in doubt or not measurable, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All segments of which anything is known."""

    columns: tuple[str, ...]
    """Names of measurements."""
    lines: tuple[Line, ...]


def table_of(findings: Findings, names: Mapping[int, str]) -> Table:
    """Lay out findings by stack and segment.

    Parameters
    ----------
    names
        What the model's card calls each segment.
    """
    columns = tuple(dict.fromkeys(m.name for m in findings.measurements))
    places = sorted(
        {(m.stack, m.segment) for m in findings.measurements}
        | {(m.stack, m.segment) for m in findings.marked}
        | {(w.stack, w.segment) for w in findings.withheld}
    )
    several = any(stack > 1 for stack, _ in places)
    lines = []
    for stack, number in places:
        name = names.get(number, str(number))
        found = {
            m.name: m for m in findings.measurements if (m.stack, m.segment) == (stack, number)
        }
        lines.append(
            Line(
                segment=f"{name}, stack {stack}" if several else name,
                cells=tuple(value_of(found[c]) if c in found else "" for c in columns),
                notes=_notes(findings, stack, number),
            )
        )
    return Table(columns=columns, lines=tuple(lines))


def value_of(measurement: Measurement) -> str:
    """Return a value as people write it; a small one keeps three digits."""
    value, unit = measurement.value, _UNITS.get(measurement.unit, measurement.unit)
    if value is None:
        return _NOT
    text = f"{value:.1f}" if value == 0 or abs(value) >= 10 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def _notes(findings: Findings, stack: int, number: int) -> tuple[str, ...]:
    """Return what is to be known of a segment, each reason once."""
    place = (stack, number)
    out = [w.reason for w in findings.withheld if (w.stack, w.segment) == place]
    doubts = [m.reason for m in findings.marked if (m.stack, m.segment) == place]
    failed = dict.fromkeys(
        m.reason
        for m in findings.measurements
        if m.value is None and (m.stack, m.segment) == place and m.reason not in out
    )
    return (
        *(f"left out: {reason}" for reason in out),
        *(f"shown, but in doubt: {reason}" for reason in doubts),
        *(reason if reason.lower().startswith(_NOT) else f"{_NOT}: {reason}" for reason in failed),
    )
