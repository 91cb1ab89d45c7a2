"""The frames of a binary segmentation: which there are, their pixels, and where they lie.

highdicom writes the head of the object. The frames are written here, because a segmentation has
thousands, and as pydicom objects they take longer than all the rest together.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
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
from segnode_worker.stack import Source

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


def frames_of(labels: NDArray[np.uint8], card: Card, withheld: Collection[int]) -> list[Frame]:
    """Return the frames that hold voxels, by segment and then by slice.

    Raises
    ------
    ModelFailed
        If there are voxels of a segment that the model says it left out.
    """
    frames = [
        Frame(segment=segment, slice=number)
        for segment in card.segments
        for number, values in enumerate(labels[segment.plane])
        if (values == segment.value).any()
    ]
    for frame in frames:
        if frame.segment.number in withheld:
            raise ModelFailed(
                f"The model {card.name} says that it left out segment {frame.segment.number}, and "
                f"yet gave voxels of it in slice {frame.slice + 1}; the model is at fault."
            )
    return frames


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
    derivations = {number: _encoded(_derivation(sources[number])) for number in places}
    positions = {number: _encoded(_position(sources[number])) for number in places}
    numbers = {frame.segment.number for frame in frames}
    identifications = {number: _encoded(_identification(number)) for number in numbers}
    content = _encoded(_content())[: -_DIMENSIONS.size]
    for frame in frames:
        number = frame.slice
        item = b"".join(
            (
                derivations[number],
                content,
                _DIMENSIONS.pack(frame.segment.number, places[number]),
                positions[number],
                identifications[frame.segment.number],
            )
        )
        yield _ITEM.pack(0xFFFE, 0xE000, len(item)) + item


def element(
    tag: int, representation: bytes, length: int, parts: Iterable[bytes]
) -> Iterator[bytes]:
    """Give an element in Explicit VR Little Endian: its header and the parts of its value."""
    yield _LONG.pack(tag >> 16, tag & 0xFFFF, representation, length)
    yield from parts


def _derivation(source: Source) -> Dataset:
    image = Dataset()
    image.ReferencedSOPClassUID = source.class_uid
    image.ReferencedSOPInstanceUID = source.uid
    if source.frame is not None:
        image.ReferencedFrameNumber = source.frame
    image.PurposeOfReferenceCodeSequence = [
        _code(codes.cid7202.SourceImageForImageProcessingOperation)
    ]
    image.SpatialLocationsPreserved = "YES"
    derivation = Dataset()
    derivation.DerivationCodeSequence = [_code(codes.cid7203.SegmentationImageDerivation)]
    derivation.SourceImageSequence = [image]
    return _group("DerivationImageSequence", derivation)


def _position(source: Source) -> Dataset:
    position = Dataset()
    position.ImagePositionPatient = [DSfloat(mm, auto_format=True) for mm in source.position]
    return _group("PlanePositionSequence", position)


def _content() -> Dataset:
    content = Dataset()
    content.DimensionIndexValues = [0, 0]
    return _group("FrameContentSequence", content)


def _identification(number: int) -> Dataset:
    identification = Dataset()
    identification.ReferencedSegmentNumber = number
    return _group("SegmentIdentificationSequence", identification)


def _code(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def _group(keyword: str, item: Dataset) -> Dataset:
    group = Dataset()
    setattr(group, keyword, [item])
    return group


def _encoded(dataset: Dataset) -> bytes:
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = False, True
    write_dataset(stream, dataset)
    encoded: bytes = stream.getvalue()
    return encoded
