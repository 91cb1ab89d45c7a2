"""A volume that cannot be true is withheld or marked, as the card says, and named."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from segnode_contract.card import Card
from segnode_contract.findings import Findings, Measurement
from segnode_worker.plausible import counts_of, judged
from segnode_worker.proof import prove
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.stack import Stack

TENTH = np.full(9, 0.1)
"""Of a millilitre, for a pixel of each slice."""


@pytest.fixture
def strict(card: Card) -> Card:
    """Right lung (segment 2) may have 1 to 2 ml; the phantom's has more or less."""
    segments = [replace(s, plausible_ml=(1.0, 2.0)) if s.number == 2 else s for s in card.segments]
    return replace(card, segments=tuple(segments))


@pytest.fixture
def on_slices(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return labels[:, ::-1].copy()


def test_a_volume_outside_is_withheld_and_the_value_named(
    strict: Card, on_slices: NDArray[np.uint8]
) -> None:
    others = on_slices[1] * (on_slices[1] != 1)
    findings = judged(
        on_slices, counts_of(on_slices), strict, Findings(), TENTH
    )  # 60 voxels are 6 ml
    assert [(w.segment, w.reason) for w in findings.withheld] == [
        (2, "Implausible: 6 ml, and the model's card says that 1 to 2 ml can be true.")
    ]
    assert np.array_equal(on_slices[1], others)
    assert 2 not in {m.segment for m in findings.measurements}


def test_what_a_model_measured_of_a_withheld_segment_is_no_number_any_more(
    strict: Card, on_slices: NDArray[np.uint8]
) -> None:
    density = Measurement(segment=2, name="Mean density", value=-800.0, unit="[hnsf'U]")
    findings = judged(
        on_slices, counts_of(on_slices), strict, Findings(measurements=(density,)), TENTH
    )
    (found,) = [m for m in findings.measurements if m.segment == 2]
    assert found.value is None
    assert "6 ml" in found.reason


def test_a_card_can_have_it_marked_instead(
    strict: Card, on_slices: NDArray[np.uint8], stack: Stack, identity: ResultIdentity
) -> None:
    card = replace(strict, implausible="mark")
    before = on_slices.copy()
    findings = judged(on_slices, counts_of(on_slices), card, Findings(), TENTH)
    assert np.array_equal(on_slices, before)
    assert findings.withheld == ()
    data = b"".join(encode(stack, on_slices, card, findings, identity, datetime(2026, 2, 3)))
    prove(data, stack=stack, labels=on_slices, card=card, findings=findings)
    segment = _segment(data, 2)
    assert segment.SegmentLabel == "Right lung (implausible)"
    assert "6 ml" in segment.SegmentDescription


def test_a_withheld_segment_has_no_frame_and_says_so_where_viewers_look(
    strict: Card, on_slices: NDArray[np.uint8], stack: Stack, identity: ResultIdentity
) -> None:
    findings = judged(on_slices, counts_of(on_slices), strict, Findings(), TENTH)
    data = b"".join(encode(stack, on_slices, strict, findings, identity, datetime(2026, 2, 3)))
    prove(data, stack=stack, labels=on_slices, card=strict, findings=findings)
    assert _segment(data, 2).SegmentLabel == "Right lung (left out)"
    frames = dcmread(BytesIO(data)).PerFrameFunctionalGroupsSequence
    shown = {f.SegmentIdentificationSequence[0].ReferencedSegmentNumber for f in frames}
    assert shown == {1, 3, 4}


def test_an_absent_segment_is_no_fault(strict: Card, on_slices: NDArray[np.uint8]) -> None:
    on_slices[on_slices == 1] = 0
    findings = judged(on_slices, counts_of(on_slices), strict, Findings(), TENTH)
    assert findings.withheld == findings.marked == ()


def test_volumes_that_nobody_measured_are_measured(
    card: Card, on_slices: NDArray[np.uint8], stack: Stack
) -> None:
    known = Measurement(segment=1, name="Volume", value=3.0, unit="ml")
    findings = judged(
        on_slices, counts_of(on_slices), card, Findings(measurements=(known,)), stack.slice_ml
    )
    volumes = {m.segment: m.value for m in findings.measurements if m.name == "Volume"}
    assert volumes[1] == 3.0
    assert volumes[2] == pytest.approx(60 * 3.0 * 1.5 * 1.25 / 1000)  # voxels of the phantom, mm
    assert volumes[5] == 0.0


def _segment(data: bytes, number: int) -> Dataset:
    segments = dcmread(BytesIO(data)).SegmentSequence
    return next(s for s in segments if s.SegmentNumber == number)
