"""What the proof of a label map compares, where it is not what it compares of any segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from segnode_contract.card import Segment
from segnode_contract.errors import ProofFailed
from segnode_contract.form import Form
from segnode_worker.decoded import Held, slice_of
from segnode_worker.stack import Stack

_BACKGROUND = ("125040", "DCM")  # PS3.16 D


def without_background(segments: Sequence[Dataset]) -> Sequence[Dataset]:
    """Return the items of the segments proper; the last one must describe the value 0.

    Every pixel value must be described (PS3.3 C.8.20.2.3.3), and where the background comes first
    OHIF 3.13.2 shows each segment in the colour of the one before it.
    """
    *rest, last = segments
    kind = last.SegmentedPropertyTypeCodeSequence[0]
    said = (kind.CodeValue, kind.CodingSchemeDesignator)
    if (last.SegmentNumber, said) != (0, _BACKGROUND):
        raise ProofFailed(
            f"The last segment of the label map is {last.SegmentNumber}, {said}; its background "
            "must stand there."
        )
    return rest


def prove_labelmap(
    made: Held, stack: Stack, labels: NDArray[np.uint8], shown: Mapping[int, Segment]
) -> None:
    """Compare every frame with the one plane of labels, and see that no slice lacks one."""
    _prove_kind(made.head)
    if len(made.frames) != made.head.NumberOfFrames:
        raise ProofFailed(
            f"The result says that it has {made.head.NumberOfFrames} frames, and describes "
            f"{len(made.frames)}."
        )
    (plane,) = labels
    numbers = np.zeros(256, np.uint8)
    for number, segment in shown.items():
        numbers[segment.value] = number
    positions = np.array([source.position for source in stack.sources])
    held: set[int] = set()
    for pixels, frame in zip(made.numbers(), made.frames, strict=True):
        place = slice_of(frame, positions, stack.sources)
        if place in held:
            raise ProofFailed(f"The label map has two frames in slice {place + 1}.")
        held.add(place)
        _compare(pixels, numbers[plane[place]], place)
    for place in sorted(set(range(len(plane))) - held):
        _compare(np.zeros_like(plane[place]), numbers[plane[place]], place)


def _prove_kind(made: Dataset) -> None:
    # not in which transfer syntax: an archive may keep it in another, and the voxels say the rest
    pairs = {
        "SOP class": (made.SOPClassUID, Form.LABELMAP.storage),
        "pixel padding value": (made.PixelPaddingValue, 0),
        "sign of pixels": (made.PixelRepresentation, 0),
        "photometric interpretation": (made.PhotometricInterpretation, "MONOCHROME2"),
    }
    for name, (has, needs) in pairs.items():
        if has != needs:
            raise ProofFailed(f"The {name} of the label map is {has}; {needs} is needed.")


def _compare(found: NDArray[np.uint8], meant: NDArray[np.uint8], place: int) -> None:
    wrong = found != meant
    if wrong.any():
        first = np.unravel_index(wrong.argmax(), wrong.shape)
        number = int(meant[first]) or int(found[first])
        raise ProofFailed(
            f"Segment {number} differs from the labels in slice {place + 1}, where "
            f"{np.count_nonzero(wrong)} voxels of the label map do."
        )
