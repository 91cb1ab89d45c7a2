"""What `segnode job` says of a result."""

from __future__ import annotations

from dataclasses import replace

from segnode_cli.jobs import lines_of
from segnode_contract.findings import Findings, Marked, Measurement, Withheld

NAMES = {1: "Right lung", 2: "Left lung"}
VOLUME = Measurement(segment=1, name="Volume", value=10.0, unit="ml")


def test_limitations_of_the_images_are_said() -> None:
    found = Findings(measurements=(VOLUME,), limitations=("2 slices are missing.",))
    assert list(lines_of(found, NAMES)) == [
        "Right lung, Volume: 10.0 ml",
        "limitation of these images: 2 slices are missing.",
    ]


def test_each_line_says_of_which_stack_it_is_where_there_are_several() -> None:
    found = Findings(
        measurements=(
            VOLUME,
            replace(VOLUME, value=None, reason="Not measurable: Cut.", stack=2),
        ),
        marked=(Marked(segment=2, reason="It is small.", stack=2),),
        withheld=(Withheld(segment=3, reason="It was not found."),),
    )
    assert list(lines_of(found, NAMES)) == [
        "Right lung, stack 1, Volume: 10.0 ml",
        "Right lung, stack 2, Volume: not measurable: Cut.",
        "Left lung, stack 2 is shown, but in doubt: It is small.",
        "3, stack 1 is left out: It was not found.",
    ]
