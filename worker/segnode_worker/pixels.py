"""The pixels of an image: whether they can be what its header says, and then their values.

Decoders are C code that allocates what a codestream tells it to. So all that can be known before
is looked at before.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from segnode_contract.errors import BrokenInstance
from segnode_worker.attributes import BROKEN
from segnode_worker.instance import Instance

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
"""Transfer syntaxes whose pixels are not compressed frame by frame (PS3.5 Annex A)."""

_UNDEFINED = 0xFFFFFFFF
_ITEM, _LAST_ITEM = 0xE000FFFE, 0xE0DDFFFE
_JPEG_SIZES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
"""Markers of a JPEG frame header: ISO 10918-1 B.1.1.3, and ISO 14495-1 C.1.1 for JPEG-LS."""


class Pixels:
    """The pixels of one image, frame by frame, once they can be what its header says.

    Raises
    ------
    BrokenInstance
        With the code ``pixel-format``, ``truncated``, ``pixel-frames`` or ``pixel-size``.
    """

    def __init__(self, image: Instance) -> None:
        self._image = image
        _check_format(image)
        try:
            self._first, length = _pixel_element(image)
            self._frames = []
            if image.transfer_syntax in NATIVE:
                _check_length(image, self._first, length)
            else:
                self._frames = _codestreams(image, self._first, length)
                for frame in self._frames:
                    _check_codestream(image, frame)
        except (struct.error, IndexError) as error:
            raise _truncated(image) from error

    def stored_values(self, frame: int) -> NDArray[Any]:
        """Return the stored values of a frame, counted from 1, signed where the image says so.

        Returns
        -------
        numpy.ndarray
            Shape ``(rows, columns)``.

        Raises
        ------
        BrokenInstance
            With the code ``undecodable`` or ``pixel-size``.
        """
        image = self._image
        try:
            with warnings.catch_warnings():
                # pydicom's warnings quote values, which may be a patient's
                warnings.simplefilter("ignore")
                values = self._values(frame - 1)
        except BROKEN as error:
            raise BrokenInstance(
                f"The pixels of the image {image.uid} cannot be decoded (transfer syntax "
                f"{image.transfer_syntax}, {type(error).__name__}); send it again from where it "
                "came.",
                code="undecodable",
            ) from error
        if values.shape != (image.rows, image.columns):
            raise _other_size(image, " x ".join(map(str, values.shape)))
        return values

    def _values(self, place: int) -> NDArray[Any]:
        if self._frames:
            return _decoded(self._image, self._frames[place])
        if _is_plain(self._image):
            return _plain(self._image, self._first, place)
        return _native(self._image, place)


def plugin_for(syntax: UID) -> str:
    """Return which decoder of pydicom's to use, empty for the first that is there."""
    # the RLE decoder in Rust, where it is installed, panics past every handler on damaged data
    return "pydicom" if syntax == RLELossless else ""


def _check_format(instance: Instance) -> None:
    """Hold the description of a pixel cell against PS3.5 8.1.1."""
    allocated, stored, high = instance.bits
    together = 0 < stored <= high + 1 <= allocated
    if allocated not in (8, 16, 32) or not together or instance.representation not in (0, 1):
        raise BrokenInstance(
            f"The pixels of the image {instance.uid} are described by Bits Allocated {allocated}, "
            f"Bits Stored {stored}, High Bit {high} and Pixel Representation "
            f"{instance.representation}, which do not go together; it must be mended where it "
            "came from.",
            code="pixel-format",
        )


def _check_length(image: Instance, first: int, length: int) -> None:
    needed = image.frames * image.rows * image.columns * image.bits[0] // 8
    if length == _UNDEFINED or min(length, len(image.file) - first) < needed:
        raise _truncated(image)


def _codestreams(image: Instance, first: int, length: int) -> list[bytes]:
    """Return what each frame is compressed to (PS3.5 A.4)."""
    if length != _UNDEFINED:  # compressed pixels lie in items of their own
        raise _truncated(image)
    items = list(_fragments(image.file, first))
    table, fragments = items[0], items[1:]
    if image.frames == 1:  # one frame is all fragments, whatever the offset table says
        frames = [b"".join(fragments)]
    elif len(fragments) == image.frames:
        frames = fragments
    else:
        frames = _by_offsets(table, fragments)
    if len(frames) != image.frames:
        raise BrokenInstance(
            f"The image {image.uid} has {image.frames} frames, and its pixel data falls into "
            f"{len(frames)}; send it again from where it came.",
            code="pixel-frames",
        )
    if not all(frames):
        raise _truncated(image)
    return frames


def _by_offsets(table: bytes, fragments: Sequence[bytes]) -> list[bytes]:
    """Join the fragments of each frame, which starts where the Basic Offset Table says."""
    starts = set(struct.unpack(f"<{len(table) // 4}I", table))
    frames: list[list[bytes]] = []
    place = 0
    for fragment in fragments:
        if place in starts:
            frames.append([])
        frames[-1].append(fragment)  # a table that does not start at 0 is refused by IndexError
        place += 8 + len(fragment)
    return [b"".join(frame) for frame in frames]


def _check_codestream(image: Instance, frame: bytes) -> None:
    """Compare the size within a codestream with that in the header."""
    if image.transfer_syntax == RLELossless:
        return
    size = _codestream_size(frame)
    if size != (image.rows, image.columns, 1):
        said = "of no size that can be read"
        if size is not None:
            said = f"{size[0]} x {size[1]} of {size[2]} components"
        raise _other_size(image, said)


def _pixel_element(instance: Instance) -> tuple[int, int]:
    """Return where the value of Pixel Data starts in the file, and its length (PS3.5 7.1)."""
    syntax = instance.transfer_syntax
    first = instance.pixel_offset + (8 if syntax == ImplicitVRLittleEndian else 12)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    (length,) = struct.unpack_from(f"{order}I", instance.file, first - 4)
    return first, length


def _fragments(file: bytes, place: int) -> Iterator[bytes]:
    """Give the items of encapsulated Pixel Data (PS3.5 A.4), each of which must be whole."""
    while True:
        tag, length = struct.unpack_from("<II", file, place)
        if tag == _LAST_ITEM:
            return
        place += 8
        if tag != _ITEM or place + length > len(file):
            raise IndexError("an item of the pixel data is missing or cut short")
        yield file[place : place + length]
        place += length


def _codestream_size(frame: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and components that a JPEG, JPEG-LS or JPEG 2000 stream will have."""
    if not frame.startswith(b"\xff\xd8"):
        return _jpeg2000_size(frame)
    place = 2
    while frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        (length,) = struct.unpack_from(">H", frame, place + 2)
        if marker in _JPEG_SIZES:
            rows, columns, components = struct.unpack_from(">HHB", frame, place + 5)
            return rows, columns, components
        place += 2 + length
    return None


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int] | None:
    start = frame.find(b"\xff\x4f\xff\x51")  # SOC and SIZ, ISO 15444-1 A.5.1; a box may be around
    if start < 0:
        return None
    right, bottom, left, top = struct.unpack_from(">IIII", frame, start + 8)
    (components,) = struct.unpack_from(">H", frame, start + 40)
    return bottom - top, right - left, components


def _is_plain(instance: Instance) -> bool:
    return instance.transfer_syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian)


def _plain(image: Instance, first: int, place: int) -> NDArray[Any]:
    """Read little endian pixels where they lie, without copying the file."""
    count, size = image.rows * image.columns, image.bits[0] // 8
    words = np.frombuffer(image.file, f"<u{size}", count, first + size * place * count)
    return _without_spare_bits(words.reshape(image.rows, image.columns), image, image.bits[2])


def _native(image: Instance, place: int) -> NDArray[Any]:
    values = pixel_array(dcmread(BytesIO(image.file)), raw=True, index=place)
    return _without_spare_bits(values, image, image.bits[2])


def _decoded(image: Instance, frame: bytes) -> NDArray[Any]:
    description: dict[str, Any] = {
        "rows": image.rows,
        "columns": image.columns,
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "photometric_interpretation": image.photometric,
        "bits_allocated": image.bits[0],
        "bits_stored": image.bits[1],
        "pixel_representation": image.representation,
        "pixel_keyword": "PixelData",
    }
    values, _ = get_decoder(image.transfer_syntax).as_array(
        encapsulate([frame], has_bot=False),
        raw=True,
        decoding_plugin=plugin_for(image.transfer_syntax),
        **description,
    )
    return _without_spare_bits(values, image, image.bits[1] - 1)


def _without_spare_bits(values: NDArray[Any], instance: Instance, high: int) -> NDArray[Any]:
    """Drop what lies beside the stored bits (old overlays, say) and spread the sign."""
    width, stored = values.dtype.itemsize * 8, instance.bits[1]
    if not 0 < stored <= high + 1 <= width:
        raise ValueError("the decoder gave fewer bits than are stored")
    cells = np.dtype(f"{'i' if instance.representation else 'u'}{width // 8}")
    values = values.astype(values.dtype.newbyteorder("="), copy=False).view(cells)
    if stored == width:
        return values
    spread: NDArray[Any] = (values << (width - 1 - high)) >> (width - stored)
    return spread


def _truncated(instance: Instance) -> BrokenInstance:
    return BrokenInstance(
        f"The pixel data of the image {instance.uid} is cut short; send it again from where it "
        "came.",
        code="truncated",
    )


def _other_size(instance: Instance, found: str) -> BrokenInstance:
    return BrokenInstance(
        f"The pixels of the image {instance.uid} are {found}, but its header says "
        f"{instance.rows} x {instance.columns}; send it again from where it came.",
        code="pixel-size",
    )
