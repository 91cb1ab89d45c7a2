"""A volume that cannot be true is withheld or marked, as the card says, and named."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from segnode_contract.card import Card
from segnode_contract.findings import Findings, Measurement, Withheld
from segnode_worker.intensity import measured
from segnode_worker.plausible import counts_of, judged
from segnode_worker.proof import prove
from segnode_worker.report import report
from segnode_worker.report_proof import prove_report
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
    [volume] = [m for m in findings.measurements if m.segment == 2]
    assert (volume.name, volume.value, volume.unit) == ("Volume", None, "ml")
    assert volume.reason == findings.withheld[0].reason


def test_what_a_model_measured_of_a_withheld_segment_is_no_number_any_more(
    strict: Card, on_slices: NDArray[np.uint8]
) -> None:
    density = Measurement(segment=2, name="Mean density", value=-800.0, unit="[hnsf'U]")
    findings = judged(
        on_slices, counts_of(on_slices), strict, Findings(measurements=(density,)), TENTH
    )
    found = [m for m in findings.measurements if m.segment == 2]
    assert [m.name for m in found] == ["Mean density", "Volume"]
    assert all(m.value is None and "6 ml" in m.reason for m in found)


def test_the_volume_of_what_a_model_left_out_is_not_measurable(
    card: Card, on_slices: NDArray[np.uint8]
) -> None:
    on_slices[1][on_slices[1] == 1] = 0
    said = Findings(withheld=(Withheld(segment=2, reason="Cut."), Withheld(segment=5, reason="X.")))
    known = Measurement(segment=5, name="Volume", value=None, unit="ml", reason="Said by it.")
    said = replace(said, measurements=(known,))
    findings = judged(on_slices, counts_of(on_slices), card, said, TENTH)
    volumes = {m.segment: (m.value, m.reason) for m in findings.measurements}
    assert len(findings.measurements) == len(volumes) == len(card.segments)
    assert volumes[2] == (None, "Cut.")
    assert volumes[5] == (None, "Said by it.")


def test_a_result_of_which_all_is_left_out_has_a_report(
    card: Card, on_slices: NDArray[np.uint8], stack: Stack, identity: ResultIdentity
) -> None:
    on_slices[:] = 0
    reasons = {s.number: f"No {s.label}." for s in card.segments}
    said = Findings(withheld=tuple(Withheld(segment=n, reason=why) for n, why in reasons.items()))
    counts = counts_of(on_slices)
    findings = judged(on_slices, counts, card, said, TENTH)
    findings = measured(stack, on_slices, counts, card, findings)
    made_at = datetime(2026, 2, 3)
    seg = b"".join(encode(stack, on_slices, card, findings, identity, made_at))
    sr = report(stack, card, findings, identity, made_at)
    prove_report(sr, seg, stack, card, findings)
    assert all(reason in str(dcmread(BytesIO(sr))) for reason in reasons.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_a_model_measured_and_is_no_number_is_not_measurable(
    card: Card, on_slices: NDArray[np.uint8], value: float
) -> None:
    said = Findings(
        measurements=(
            Measurement(segment=1, name="Volume", value=value, unit="ml"),
            Measurement(segment=1, name="Mean", value=40.0, unit="[hnsf'U]"),
        )
    )
    findings = judged(on_slices, counts_of(on_slices), card, said, TENTH)
    volume, mean, *_ = findings.measurements
    reason = f"Not measurable: the model test-tissue gave {value} in place of a number."
    assert (volume.value, volume.reason) == (None, reason)
    assert mean == said.measurements[1]
    json.dumps(findings.to_json(), allow_nan=False)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_intensities_beyond_numbers_are_not_measurable(
    card: Card, on_slices: NDArray[np.uint8], stack: Stack
) -> None:
    values = np.full(stack.values.shape, np.inf, np.float32)
    endless = replace(stack, volume=stack.volume.with_array(values), values=values)
    findings = measured(endless, on_slices, counts_of(on_slices), card, Findings())
    assert findings.measurements
    assert all(m.value is None and m.reason for m in findings.measurements)
    json.dumps(findings.to_json(), allow_nan=False)


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
