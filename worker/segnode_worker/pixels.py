"""The pixels of one image: whether they can be what its header says, and then their values.

Decoders are C code that allocates what a codestream tells it to. So all that can be known before
is looked at before.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from segnode_contract.errors import BrokenInstance
from segnode_worker.instance import BROKEN, Instance

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
"""Transfer syntaxes whose pixels are not compressed frame by frame (PS3.5 Annex A)."""

_UNDEFINED = 0xFFFFFFFF
_ITEM, _LAST_ITEM = 0xE000FFFE, 0xE0DDFFFE
_JPEG_SIZES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
"""Markers of a JPEG frame header: ISO 10918-1 B.1.1.3, and ISO 14495-1 C.1.1 for JPEG-LS."""


def check_pixels(instance: Instance) -> None:
    """Refuse pixels that are not as the header says, before they are decoded.

    Raises
    ------
    BrokenInstance
        With the code ``pixel-format``, ``truncated`` or ``pixel-size``.
    """
    _check_format(instance)
    try:
        if instance.transfer_syntax in NATIVE:
            _check_length(instance)
        else:
            _check_codestream(instance)
    except (struct.error, IndexError) as error:
        raise _truncated(instance) from error


def stored_values(instance: Instance) -> NDArray[Any]:
    """Return the stored values, shape ``(rows, columns)``, signed where the image says so.

    `check_pixels` comes before.

    Raises
    ------
    BrokenInstance
        With the code ``undecodable`` or ``pixel-size``.
    """
    try:
        with warnings.catch_warnings():
            # pydicom's warnings quote values, which may be a patient's
            warnings.simplefilter("ignore")
            values = _native(instance) if _is_plain(instance) else _decoded(instance)
    except BROKEN as error:
        raise BrokenInstance(
            f"The pixels of the image {instance.uid} cannot be decoded (transfer syntax "
            f"{instance.transfer_syntax}, {type(error).__name__}); send it again from where it "
            "came.",
            code="undecodable",
        ) from error
    if values.shape != (instance.rows, instance.columns):
        raise _other_size(instance, " x ".join(map(str, values.shape)))
    return values


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


def _check_length(instance: Instance) -> None:
    first, length = _pixel_element(instance)
    needed = instance.rows * instance.columns * instance.bits[0] // 8
    if length == _UNDEFINED or min(length, len(instance.file) - first) < needed:
        raise _truncated(instance)


def _check_codestream(instance: Instance) -> None:
    """Compare the size within a codestream with that in the header."""
    first, length = _pixel_element(instance)
    if length != _UNDEFINED:  # compressed pixels lie in items of their own, PS3.5 A.4
        raise _truncated(instance)
    fragments = list(_fragments(instance.file, first))
    frame = b"".join(fragments[1:])  # the first item is the Basic Offset Table
    if not frame:
        raise _truncated(instance)
    if instance.transfer_syntax == RLELossless:
        return
    size = _codestream_size(frame)
    if size != (instance.rows, instance.columns, 1):
        said = "of no size that can be read"
        if size is not None:
            said = f"{size[0]} x {size[1]} of {size[2]} components"
        raise _other_size(instance, said)


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
    plain = instance.transfer_syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
    return plain and instance.bits[0] == 16


def _native(instance: Instance) -> NDArray[Any]:
    """Read 16-bit little endian pixels where they lie, without copying the file."""
    first, _ = _pixel_element(instance)
    count = instance.rows * instance.columns
    words = np.frombuffer(instance.file, "<u2", count, first)
    words = words.reshape(instance.rows, instance.columns)
    return _without_spare_bits(words, instance, instance.bits[2])


def _decoded(instance: Instance) -> NDArray[Any]:
    if instance.transfer_syntax in NATIVE:
        values = pixel_array(dcmread(BytesIO(instance.file)), raw=True)
        return _without_spare_bits(values, instance, instance.bits[2])
    first, _ = _pixel_element(instance)
    # one frame is all fragments, whatever the offset table says
    frame = b"".join(list(_fragments(instance.file, first))[1:])
    # the RLE decoder in Rust, where it is installed, panics past every handler on damaged data
    plugin = "pydicom" if instance.transfer_syntax == RLELossless else ""
    description: dict[str, Any] = {
        "rows": instance.rows,
        "columns": instance.columns,
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "photometric_interpretation": instance.photometric,
        "bits_allocated": instance.bits[0],
        "bits_stored": instance.bits[1],
        "pixel_representation": instance.representation,
        "pixel_keyword": "PixelData",
    }
    values, _ = get_decoder(instance.transfer_syntax).as_array(
        encapsulate([frame], has_bot=False), raw=True, decoding_plugin=plugin, **description
    )
    return _without_spare_bits(values, instance, instance.bits[1] - 1)


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
