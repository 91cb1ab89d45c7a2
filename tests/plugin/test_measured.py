"""The table of what a job found: a line for each segment of each stack."""

from __future__ import annotations

import pytest

from segnode_contract.findings import Findings, Marked, Measurement, Withheld
from segnode_plugin.web.measured import table_of, value_of

NAMES = {1: "Right lung", 2: "Left lung"}


def one(segment: int, name: str, value: float | None, *, stack: int = 1) -> Measurement:
    reason = "" if value is not None else "Not measurable: It is cut."
    return Measurement(
        segment=segment, name=name, value=value, unit="ml", reason=reason, stack=stack
    )


def test_each_segment_has_a_line_and_each_name_a_column() -> None:
    found = Findings(
        measurements=(one(2, "Volume", 20), one(1, "Volume", 10), one(1, "Mean", 30)),
        withheld=(Withheld(segment=3, reason="It was not found."),),
        marked=(Marked(segment=2, reason="It is small."),),
    )
    table = table_of(found, NAMES)
    assert table.columns == ("Volume", "Mean")
    assert [(line.segment, line.cells) for line in table.lines] == [
        ("Right lung", ("10.0 ml", "30.0 ml")),
        ("Left lung", ("20.0 ml", "")),
        ("3", ("", "")),
    ]
    assert [line.notes for line in table.lines] == [
        (),
        ("shown, but in doubt: It is small.",),
        ("left out: It was not found.",),
    ]


def test_a_reason_stands_once_whatever_was_not_measurable() -> None:
    found = Findings(measurements=(one(1, "Volume", None), one(1, "Mean", None)))
    (line,) = table_of(found, NAMES).lines
    assert line.cells == ("not measurable", "not measurable")
    assert line.notes == ("Not measurable: It is cut.",)


def test_stacks_of_a_series_are_told_from_each_other() -> None:
    found = Findings(measurements=(one(1, "Volume", 10), one(1, "Volume", 20, stack=2)))
    assert [(line.segment, *line.cells) for line in table_of(found, NAMES).lines] == [
        ("Right lung, stack 1", "10.0 ml"),
        ("Right lung, stack 2", "20.0 ml"),
    ]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1234.56, "ml", "1234.6 ml"),
        (0.0443, "ml", "0.0443 ml"),
        (0, "ml", "0.0 ml"),
        (-850.04, "[hnsf'U]", "-850.0 HU"),
        (512.3, "1", "512.3"),
    ],
)
def test_values_are_written_as_people_do(value: float, unit: str, text: str) -> None:
    assert value_of(Measurement(segment=1, name="Mean", value=value, unit=unit)) == text
