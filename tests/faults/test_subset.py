"""The most telling rows of the fault matrix; `make faults` runs all of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from segnode_cli.supervise import check_programs
from segnode_contract.errors import SetupError

from .faulty_node import FaultyNode, faulty_node
from .judge import flaw, parsed
from .matrix import Outcome, chosen, try_once, verify
from .phantom import small_series
from .table import Row

ROWS = chosen(
    [
        "F1:in infer",
        "F1:in store",
        "F1:after spool, before store",
        "F1:after store, before ledger",
        "F2:in infer",
        "F3:in store",
        "F4:in infer",
        "F6:child stopped past its lease: before store",
        "F8:ring not heard yet",
        "F9:Redis down",
        "F11:killed: 1 s after",
        "F11:intake.decide.before",
        "F14:before they are read",
        "F17:in infer",
        "F18:500",
        "F18:cut after",
        "F18:other",
    ]
)


@pytest.fixture(scope="module")
def node() -> Iterator[FaultyNode]:
    """One node for all rows: what one leaves behind, the next one meets."""
    try:
        check_programs()
    except SetupError as error:
        if os.environ.get("CI"):
            pytest.fail(error.sentence)
        pytest.skip(error.sentence)
    with faulty_node() as node:
        yield node


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.fault} {row.point}")
def test_nothing_is_lost_doubled_or_half_stored(node: FaultyNode, row: Row) -> None:
    outcome = Outcome(fault=row.fault, point=row.point)
    try_once(row, node, outcome)
    assert outcome.clean, outcome.notes


def test_the_judge_sees_what_is_not_whole(node: FaultyNode) -> None:
    series = small_series()
    node.begin()
    node.send(series)
    node.settle(60)
    [(seg, file)] = node.judge.results(series)
    assert flaw(seg, file, series) == ""
    assert "no readable" in flaw(parsed(file[:200]), file[:200], series)
    short = parsed(file[:-2000])
    assert "not decoded" in flaw(short, file[:-2000], series)
    empty = parsed(file)
    empty.PixelData = bytes(len(empty.PixelData))
    assert "0 voxels of body" in flaw(empty, file, series)
    part = parsed(file)
    del part.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    assert "not among those covered" in flaw(part, file, series)


def test_ledger_and_archive_agree_after_all(node: FaultyNode) -> None:
    outcome = Outcome(fault="all", point="afterwards")
    for finding in node.judge.findings(node.sent) + node.judge.strays(node.sent):
        outcome.notes.append(f"{finding.kind}: {finding.text}")
    verify(node, {code for row in ROWS for code in row.differs}, outcome)
    assert outcome.notes == []
