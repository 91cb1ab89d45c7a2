"""What a stored segmentation holds, read by another way than the one that wrote it.

Nothing here uses highdicom or the writer's own modules. pydicom reads what it is given; only the
thousands of items that describe frames are taken apart here, since most of what they say is said
many times over, and pydicom makes objects of each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_dataset, read_partial
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRLittleEndian

from segnode_contract.errors import ProofFailed
from segnode_worker.archive import as_stream
from segnode_worker.attributes import BROKEN
from segnode_worker.pixels import plugin_for
from segnode_worker.stack import Source

_PIXEL_DATA, _PER_FRAME = 0x7FE00010, 0x52009230
_ITEM = 0xE000FFFE
_SAME_PLACE_MM = 0.01
_UNDEFINED = 0xFFFFFFFF
_DERIVATION, _POSITION, _IDENTIFICATION = 0x00089124, 0x00209113, 0x0062000A
"""Derivation Image, Plane Position and Segment Identification Sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldFrame:
    """What a frame says of itself."""

    segment: int | None = None
    """Referenced Segment Number; None in a label map, whose pixels say it."""
    position: tuple[float, ...] = ()
    """Image Position (Patient), LPS millimetres."""
    images: tuple[tuple[str, int | None], ...] = ()
    """SOP Instance UID, and frame number if any, of each image that it was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A segmentation as it is stored."""

    head: Dataset
    """All but the pixels."""
    frames: tuple[HeldFrame, ...]
    pixels: memoryview | bytes
    """The value of Pixel Data."""

    def bits(self, place: int) -> NDArray[np.bool_]:
        """Return the pixels of a binary frame, counted from 0, as one row (PS3.5 8.1.1)."""
        count = int(self.head.Rows) * int(self.head.Columns)
        first = place * count
        some = np.frombuffer(self.pixels[first // 8 : (first + count + 7) // 8], np.uint8)
        return np.unpackbits(some, bitorder="little")[first % 8 :][:count].view(np.bool_)

    def numbers(self) -> Iterator[NDArray[np.uint8]]:
        """Give the frames of a label map, decoded by pydicom, which did not write them.

        Raises
        ------
        ProofFailed
            If they do not decode, or are others than the head says.
        """
        keywords = (
            *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
            *("BitsAllocated", "BitsStored", "PixelRepresentation"),
        )
        count = len(self.frames)
        options = {_snake(keyword): self.head[keyword].value for keyword in keywords}
        syntax = self.head.file_meta.TransferSyntaxUID
        self._check_length(syntax, count)
        number = 0
        try:
            decoded = get_decoder(syntax).iter_array(
                bytes(self.pixels),
                number_of_frames=count,
                pixel_keyword="PixelData",
                decoding_plugin=plugin_for(syntax),
                **options,
            )
            for number, (frame, _) in enumerate(decoded, 1):
                if number > count:
                    break
                yield frame
        except BROKEN as error:
            raise ProofFailed("The pixels of the result cannot be decoded.") from error
        if number != count:
            has = "more" if number > count else number
            raise ProofFailed(f"The result describes {count} frames and has pixels of {has}.")

    def _check_length(self, syntax: UID, count: int) -> None:
        """Count the pixels that are not compressed; the decoder would pass over more of them."""
        if syntax.is_encapsulated:
            return
        has, needs = len(self.pixels), count * int(self.head.Rows) * int(self.head.Columns)
        if has != needs + needs % 2:
            raise ProofFailed(
                f"The result describes {count} frames, {needs} bytes of pixels, and has {has}."
            )


def read_held(data: bytes | mmap) -> Held:
    """Read a segmentation; pydicom's errors on broken ones pass through."""
    stream = as_stream(data)
    head = read_partial(stream, lambda tag, _vr, _length: tag == _PIXEL_DATA)
    start = stream.tell()
    if head.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian:
        (length,) = struct.unpack_from("<I", data, start + 8)
        pixels: memoryview | bytes = memoryview(data)[start + 12 : start + 12 + length]
    else:
        pixels = dcmread(as_stream(data)).PixelData
    return Held(head=head, frames=tuple(_frames(head)), pixels=pixels)


def _frames(head: Dataset) -> Iterator[HeldFrame]:
    raw = head.get_item(_PER_FRAME)
    if isinstance(raw, RawDataElement) and isinstance(raw.value, bytes) and not raw.is_implicit_VR:
        try:
            return iter([*_parted(raw.value)])
        except struct.error:
            pass  # an archive wrote it anew, with undefined lengths or another way
    return (HeldFrame(**_values(item)) for item in head.PerFrameFunctionalGroupsSequence)


def _parted(items: bytes) -> Iterator[HeldFrame]:
    """Take items of defined length apart into their elements (PS3.5 7.5)."""
    place = 0
    while place < len(items):
        tag, length = struct.unpack_from("<II", items, place)
        place += 8
        if tag != _ITEM or length == _UNDEFINED:
            raise struct.error("no item of defined length")
        said: dict[str, Any] = {}
        for element in _elements(items, place, place + length):
            said |= _said(element)
        yield HeldFrame(**said)
        place += length


def _elements(items: bytes, place: int, end: int) -> Iterator[bytes]:
    """Give the sequences of an item that say which frame it is."""
    while place < end:
        group, number, kind, length = struct.unpack_from("<HH2sxxI", items, place)
        if kind != b"SQ" or length == _UNDEFINED:
            raise struct.error("no sequence of defined length")
        if group << 16 | number in (_DERIVATION, _POSITION, _IDENTIFICATION):
            yield items[place : place + 12 + length]
        place += 12 + length


@lru_cache(maxsize=1 << 14)
def _said(element: bytes) -> Mapping[str, Any]:
    return _values(read_dataset(BytesIO(element), is_implicit_VR=False, is_little_endian=True))


def _values(group: Dataset) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if _IDENTIFICATION in group:
        [item] = group[_IDENTIFICATION].value
        values["segment"] = int(item.ReferencedSegmentNumber)
    if _POSITION in group:
        [item] = group[_POSITION].value
        values["position"] = tuple(float(mm) for mm in item.ImagePositionPatient)
    if _DERIVATION in group:
        values["images"] = tuple(
            (str(image.ReferencedSOPInstanceUID), image.get("ReferencedFrameNumber"))
            for item in group[_DERIVATION].value
            for image in item.SourceImageSequence
        )
    return values


def slice_of(frame: HeldFrame, positions: NDArray[np.float64], sources: Sequence[Source]) -> int:
    """Return the slice of a frame; its position and the image that it names must agree.

    Raises
    ------
    ProofFailed
        If they do not, or no slice lies there.
    """
    distances = np.linalg.norm(positions - frame.position, axis=1)
    slice_ = int(distances.argmin())
    name = "The label map" if frame.segment is None else f"Segment {frame.segment}"
    if not distances[slice_] <= _SAME_PLACE_MM:
        raise ProofFailed(f"{name} has a frame at {frame.position} mm, where no slice lies.")
    source = sources[slice_]
    if frame.images != ((source.uid, source.frame),):
        raise ProofFailed(
            f"{name} names the images (and frames) {frame.images} in slice {slice_ + 1}, where "
            f"{source.uid} lies (frame {source.frame})."
        )
    return slice_


def _snake(keyword: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in keyword).lstrip("_")
