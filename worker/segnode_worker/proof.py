"""Proof that an encoded segmentation holds the labels, by another way than the one that wrote it.

Nothing here uses highdicom or the writer's own modules.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from mmap import mmap

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from segnode_contract.card import Card, Segment
from segnode_contract.errors import ProofFailed
from segnode_contract.findings import Findings
from segnode_contract.form import Form
from segnode_worker.decoded import Held, read_held, slice_of
from segnode_worker.labelmap_proof import prove_labelmap, without_background
from segnode_worker.stack import Source, Stack

_SAME = ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName")


def prove(
    data: bytes | mmap, stack: Stack, labels: NDArray[np.uint8], card: Card, findings: Findings
) -> None:
    """Compare an encoded segmentation with the labels, voxel by voxel.

    Parameters
    ----------
    data
        What `encode` gave.
    stack, labels, card, findings
        What `encode` was given.

    Raises
    ------
    ProofFailed
        Naming the segment and the slice that differ.
    """
    with warnings.catch_warnings():
        # pydicom's warnings quote values, which may be a patient's
        warnings.simplefilter("ignore")
        made = read_held(data)
        is_map = made.head.SegmentationType == Form.LABELMAP
        _prove_head(made.head, stack, labels, bits=8 if is_map else 1)
        segments = made.head.SegmentSequence
        _prove_segments(without_background(segments) if is_map else segments, card)
        _prove_references(made.head, stack.sources)
        withheld = {item.segment for item in findings.withheld}
        shown = {s.number: s for s in card.segments if s.number not in withheld}
        if is_map:
            prove_labelmap(made, stack, labels, shown)
            return
        held = _prove_frames(made, stack, labels, shown or {1: card.segments[0]})
    _prove_complete(held, labels, shown)


def _prove_head(made: Dataset, stack: Stack, labels: NDArray[np.uint8], bits: int) -> None:
    source, same = stack.sources[0].header, stack.plane
    for keyword in _SAME:
        if bytes_of(made, keyword) != bytes_of(source, keyword):
            raise ProofFailed(f"{keyword} of the result is not that of its images.")
    shared = made.SharedFunctionalGroupsSequence[0]
    plane, pixels = shared.PlaneOrientationSequence[0], shared.PixelMeasuresSequence[0]
    pairs = {
        "size": ((made.Rows, made.Columns), labels.shape[2:]),
        "orientation": (plane.ImageOrientationPatient, same.orientation),
        "pixel spacing": (pixels.PixelSpacing, same.spacing_mm),
        "slice spacing": (pixels.get("SpacingBetweenSlices") or 0, same.slice_spacing_mm or 0),
        "bit depth": ((made.BitsAllocated, made.BitsStored), (bits, bits)),
    }
    for name, (has, needs) in pairs.items():
        if not np.allclose(np.array(has, float), np.array(needs, float), rtol=0, atol=1e-5):
            raise ProofFailed(f"The {name} of the result is {has}; that of its images is {needs}.")


def bytes_of(dataset: Dataset, keyword: str) -> bytes:
    """Return a text as it is written, before any character set has its say."""
    if keyword not in dataset:
        return b""
    element = dataset.get_item(keyword)
    raw = element.value if isinstance(element, RawDataElement) else str(element.value).encode()
    return (raw or b"").rstrip(b" \0")


def _prove_segments(segments: Sequence[Dataset], card: Card) -> None:
    """Compare what each number stands for: a code in another's place is the worst of errors."""
    numbers = [int(item.SegmentNumber) for item in segments]
    if numbers != [segment.number for segment in card.segments]:
        raise ProofFailed(f"The result lists the segments {numbers}, not those of its model.")
    for item, segment in zip(segments, card.segments, strict=True):
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        modifiers = kind.get("SegmentedPropertyTypeModifierCodeSequence") or []
        said = (
            (kind.CodeValue, kind.CodingSchemeDesignator),
            tuple(modifier.CodeValue for modifier in modifiers),
            tuple(item.RecommendedDisplayCIELabValue),
        )
        meant = (
            (segment.type.value, segment.type.scheme),
            tuple(modifier.value for modifier in segment.modifiers),
            segment.colour,
        )
        if said != meant:
            raise ProofFailed(
                f"Segment {segment.number} says {said}, and its model's card {meant}."
            )


def _prove_references(made: Dataset, sources: Sequence[Source]) -> None:
    """Compare the images that the result as a whole says it was made from."""
    meant = {(s.series_uid, s.uid) for s in sources}
    said = {
        (series.SeriesInstanceUID, instance.ReferencedSOPInstanceUID)
        for series in made.ReferencedSeriesSequence
        for instance in series.ReferencedInstanceSequence
    }
    if said != meant:
        raise ProofFailed(
            f"The result refers to {len(said)} images, of which {len(said & meant)} are among its "
            f"{len(meant)} sources."
        )


def _prove_frames(
    made: Held, stack: Stack, labels: NDArray[np.uint8], shown: Mapping[int, Segment]
) -> set[tuple[int, int]]:
    """Compare every frame; return the pairs of segment number and slice that have one."""
    frames, size = made.frames, labels.shape[2] * labels.shape[3]
    if len(frames) != made.head.NumberOfFrames or len(made.pixels) * 8 < len(frames) * size:
        raise ProofFailed(
            f"The result says that it has {made.head.NumberOfFrames} frames, describes "
            f"{len(frames)} and holds {len(made.pixels)} bytes of pixels."
        )
    positions = np.array([source.position for source in stack.sources])
    held: set[tuple[int, int]] = set()
    for place, frame in enumerate(frames):
        number = frame.segment or 0
        slice_ = slice_of(frame, positions, stack.sources)
        if number not in shown or (number, slice_) in held:
            raise ProofFailed(
                f"Segment {number} has a frame in slice {slice_ + 1} that it should not have."
            )
        held.add((number, slice_))
        segment = shown[number]
        truth = labels[segment.plane, slice_].reshape(-1) == segment.value
        wrong = np.count_nonzero(made.bits(place) != truth)
        if wrong:
            raise ProofFailed(
                f"Segment {number} differs from the labels in {wrong} voxels of slice {slice_ + 1}."
            )
    return held


def _prove_complete(
    held: set[tuple[int, int]], labels: NDArray[np.uint8], shown: Mapping[int, Segment]
) -> None:
    numbers = {(segment.plane, segment.value): number for number, segment in shown.items()}
    for plane, slices in enumerate(labels):
        for slice_, values in enumerate(slices):
            for value in np.flatnonzero(np.bincount(values.reshape(-1))).tolist():
                number = numbers.get((plane, value))
                if number is not None and (number, slice_) not in held:
                    raise ProofFailed(f"Segment {number} lacks its voxels in slice {slice_ + 1}.")
