"""The frames of a binary segmentation: which there are, their pixels, and where they lie.

highdicom writes the head of the object. The frames are written here, because a segmentation has
thousands, and as pydicom objects they take longer than all the rest together. Those of label maps
are written in `labelmap`.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.valuerep import DSfloat

from segnode_contract.card import Card, Segment
from segnode_contract.errors import ModelFailed
from segnode_worker.plausible import counts_of
from segnode_worker.stack import Source

PIXEL_DATA = 0x7FE00010
UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM = struct.Struct("<HHI")
_LONG = struct.Struct("<HH2sxxI")  # header of an element with a 32-bit length, PS3.5 7.1.2
_DIMENSIONS = struct.Struct("<II")
_AT_ONCE = 8
"""Frames packed together: bits run on from frame to frame (PS3.5 8.1.1), and the bits of 8 frames
always fill whole bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The voxels of one segment in one slice."""

    segment: Segment
    slice: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What of an object follows its head."""

    found: Set[int]
    """Numbers of the segments that have voxels."""
    frames: int
    groups: Sequence[bytes]
    """Items of the Per-frame Functional Groups Sequence."""
    pixel_data: Iterator[bytes]
    """The element with its value."""


def binary_body(
    labels: NDArray[np.uint8], card: Card, withheld: Mapping[int, str], sources: Sequence[Source]
) -> Body:
    """Return a frame for each segment and slice that holds voxels, and one at least."""
    found = frames_of(labels, card, withheld)
    frames = found or [_empty_frame(card, withheld)]
    size = packed_size(labels, frames)
    return Body(
        found={frame.segment.number for frame in found},
        frames=len(frames),
        groups=list(functional_groups(frames, sources)),
        pixel_data=element(PIXEL_DATA, b"OB", size, packed_pixels(labels, frames)),
    )


def _empty_frame(card: Card, withheld: Collection[int]) -> Frame:
    shown = [segment for segment in card.segments if segment.number not in withheld]
    return Frame(segment=(shown or card.segments)[0], slice=0)


def frames_of(labels: NDArray[np.uint8], card: Card, withheld: Collection[int]) -> list[Frame]:
    """Return the frames that hold voxels, by segment and then by slice.

    Raises
    ------
    ModelFailed
        If there are voxels of a segment that the model says it left out.
    """
    counts = counts_of(labels)
    frames = [
        Frame(segment=segment, slice=number)
        for segment in card.segments
        for number in np.flatnonzero(counts[segment.plane, :, segment.value]).tolist()
    ]
    for frame in frames:
        if frame.segment.number in withheld:
            raise left_out_and_given(card, frame.segment.number, frame.slice)
    return frames


def left_out_and_given(card: Card, number: int, slice_: int) -> ModelFailed:
    """Return the error for a model that contradicts itself."""
    return ModelFailed(
        f"The model {card.name} says that it left out segment {number}, and yet gave voxels of it "
        f"in slice {slice_ + 1}; the model is at fault."
    )


def packed_size(labels: NDArray[np.uint8], frames: Sequence[Frame]) -> int:
    """Return how many bytes `packed_pixels` gives, always an even number (PS3.5 8.1.1)."""
    size: int = (len(frames) * labels.shape[2] * labels.shape[3] + 7) // 8
    return size + size % 2


def packed_pixels(labels: NDArray[np.uint8], frames: Sequence[Frame]) -> Iterator[bytes]:
    """Give the bits of the frames, the first pixel in the lowest bit (PS3.5 8.1.1)."""
    masks = np.empty((_AT_ONCE, *labels.shape[2:]), bool)
    size = 0
    for start in range(0, len(frames), _AT_ONCE):
        some = frames[start : start + _AT_ONCE]
        for mask, frame in zip(masks, some, strict=False):
            np.equal(labels[frame.segment.plane, frame.slice], frame.segment.value, out=mask)
        packed = np.packbits(masks[: len(some)], bitorder="little").tobytes()
        size += len(packed)
        yield packed
    if size % 2:
        yield b"\0"


def functional_groups(frames: Sequence[Frame], sources: Sequence[Source]) -> Iterator[bytes]:
    """Give the items of the Per-frame Functional Groups Sequence, one per frame.

    Dimensions are the segment and the place along the normal, as highdicom orders them (PS3.3
    C.7.6.17).
    """
    places = {number: i for i, number in enumerate(sorted({f.slice for f in frames}), 1)}
    derivations = {number: derivation(sources[number]) for number in places}
    positions = {number: position(sources[number]) for number in places}
    numbers = {frame.segment.number for frame in frames}
    identifications = {number: _identification(number) for number in numbers}
    nowhere = content(0, 0)[: -_DIMENSIONS.size]
    for frame in frames:
        number = frame.slice
        yield item(
            derivations[number],
            nowhere,
            _DIMENSIONS.pack(frame.segment.number, places[number]),
            positions[number],
            identifications[frame.segment.number],
        )


def item(*parts: bytes) -> bytes:
    """Return an item of a sequence, or of encapsulated pixel data (PS3.5 7.5, A.4)."""
    value = b"".join(parts)
    return _ITEM.pack(0xFFFE, 0xE000, len(value)) + value


def element(
    tag: int, representation: bytes, length: int, parts: Iterable[bytes]
) -> Iterator[bytes]:
    """Give an element in Explicit VR Little Endian: its header and the parts of its value."""
    yield _LONG.pack(tag >> 16, tag & 0xFFFF, representation, length)
    yield from parts


def end_of_items() -> bytes:
    """Return what ends items of undefined length in all (PS3.5 7.5.2)."""
    return _ITEM.pack(0xFFFE, 0xE0DD, 0)


def derivation(source: Source) -> bytes:
    """Return the functional group that names the image of a frame (PS3.3 C.7.6.16.2.6)."""
    image = Dataset()
    image.ReferencedSOPClassUID = source.class_uid
    image.ReferencedSOPInstanceUID = source.uid
    if source.frame is not None:
        image.ReferencedFrameNumber = source.frame
    image.PurposeOfReferenceCodeSequence = [
        _code(codes.cid7202.SourceImageForImageProcessingOperation)
    ]
    image.SpatialLocationsPreserved = "YES"
    made = Dataset()
    made.DerivationCodeSequence = [_code(codes.cid7203.SegmentationImageDerivation)]
    made.SourceImageSequence = [image]
    return _group("DerivationImageSequence", made)


def position(source: Source) -> bytes:
    """Return the functional group that says where a frame lies (PS3.3 C.7.6.16.2.3)."""
    place = Dataset()
    place.ImagePositionPatient = [DSfloat(mm, auto_format=True) for mm in source.position]
    return _group("PlanePositionSequence", place)


def content(*dimension_index_values: int) -> bytes:
    """Return the functional group that ranks a frame in each dimension (PS3.3 C.7.6.16.2.2)."""
    ranks = Dataset()
    ranks.DimensionIndexValues = list(dimension_index_values)
    return _group("FrameContentSequence", ranks)


def _identification(number: int) -> bytes:
    identification = Dataset()
    identification.ReferencedSegmentNumber = number
    return _group("SegmentIdentificationSequence", identification)


def _code(code: Code) -> Dataset:
    made = Dataset()
    made.CodeValue = code.value
    made.CodingSchemeDesignator = code.scheme_designator
    made.CodeMeaning = code.meaning
    return made


def _group(keyword: str, only: Dataset) -> bytes:
    group = Dataset()
    setattr(group, keyword, [only])
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = False, True
    write_dataset(stream, group)
    encoded: bytes = stream.getvalue()
    return encoded
