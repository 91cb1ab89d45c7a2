"""One single-frame image: what its header says, and its modality values when they are asked for."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from segnode_contract.errors import BrokenInstance

BROKEN = (
    BytesLengthException,
    InvalidDicomError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom and the decoders raise on files that are not as they should be; they share no base
class, and each of these was met on damaged files."""

NATIVE = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
"""Transfer syntaxes whose pixels are not compressed frame by frame (PS3.5 Annex A)."""

_PIXEL_DATA = b"\xe0\x7f\x10\x00"  # (7FE0,0010), little endian
_LARGEST_INFLATED = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What stacking needs of one image; `header` holds the whole dataset without its pixels.

    Lengths are in millimetres, in the patient coordinate system (LPS); None is said where the
    attribute is absent or empty.
    """

    uid: str
    study_uid: str
    series_uid: str
    class_uid: str
    transfer_syntax: UID
    modality: str
    image_type: tuple[str, ...]
    frames: int
    has_pixels: bool
    photometric: str
    samples: int
    rows: int
    columns: int
    bits: tuple[int, int, int]
    """Bits Allocated, Bits Stored, High Bit (PS3.5 8.1.1)."""
    signed: bool
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    thickness: float | None
    frame_of_reference_uid: str
    slope: float | None
    intercept: float | None
    rescale_type: str
    header: Dataset
    file: bytes
    pixel_offset: int
    """Where the Pixel Data element starts in `file`; of no use where the file is deflated."""


def parse_instance(file: bytes, place: int) -> Instance:
    """Read the header of a Part 10 file; `place` names it where it has no UID that can be read.

    Raises
    ------
    BrokenInstance
        If it does not parse, or an attribute's value is not of its kind.
    """
    name = f"Image {place}"
    try:
        with warnings.catch_warnings():
            # pydicom's warnings quote values, which may be a patient's
            warnings.simplefilter("ignore")
            _refuse_bomb(file)
            stream = BytesIO(file)
            header = dcmread(stream, stop_before_pixels=True)
            name = f"The image {_uid(header, 'SOPInstanceUID')}"
            return _instance(header, file, stream.tell())
    except BROKEN as error:
        raise BrokenInstance(
            f"{name} of the series cannot be read ({type(error).__name__}); send it again from "
            "where it came."
        ) from error


def stored_values(instance: Instance) -> NDArray[Any]:
    """Return the stored values, shape ``(rows, columns)``, signed where the image says so.

    Raises
    ------
    BrokenInstance
        If the pixel data is cut short or does not decode.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = _native(instance) if _is_plain(instance) else _decoded(instance)
    except BROKEN as error:
        raise BrokenInstance(
            f"The pixels of the image {instance.uid} cannot be decoded (transfer syntax "
            f"{instance.transfer_syntax}, {type(error).__name__}); send it "
            "again from where it came."
        ) from error
    if values.shape != (instance.rows, instance.columns):
        raise BrokenInstance(
            f"The pixels of the image {instance.uid} decode to {values.shape}, but its header "
            f"says {instance.rows} x {instance.columns}; send it again from where it came."
        )
    return values


def _instance(header: Dataset, file: bytes, pixel_offset: int) -> Instance:
    syntax = header.file_meta.TransferSyntaxUID
    allocated = int(header.get("BitsAllocated") or 0)
    stored = int(header.get("BitsStored") or allocated)
    return Instance(
        uid=_uid(header, "SOPInstanceUID"),
        study_uid=_uid(header, "StudyInstanceUID"),
        series_uid=_uid(header, "SeriesInstanceUID"),
        class_uid=_uid(header, "SOPClassUID"),
        transfer_syntax=syntax,
        modality=str(header.get("Modality") or ""),
        image_type=_texts(header, "ImageType"),
        frames=int(header.get("NumberOfFrames") or 1),
        has_pixels=pixel_offset < len(file) or syntax == DeflatedExplicitVRLittleEndian,
        photometric=str(header.get("PhotometricInterpretation") or ""),
        samples=int(header.get("SamplesPerPixel") or 1),
        rows=int(header.get("Rows") or 0),
        columns=int(header.get("Columns") or 0),
        bits=(allocated, stored, int(header.get("HighBit", stored - 1))),
        signed=header.get("PixelRepresentation") == 1,
        position=_numbers(header, "ImagePositionPatient"),
        orientation=_numbers(header, "ImageOrientationPatient"),
        spacing=_numbers(header, "PixelSpacing"),
        thickness=_number(header, "SliceThickness"),
        frame_of_reference_uid=(
            _uid(header, "FrameOfReferenceUID") if header.get("FrameOfReferenceUID") else ""
        ),
        slope=_number(header, "RescaleSlope"),
        intercept=_number(header, "RescaleIntercept"),
        rescale_type=str(header.get("RescaleType") or ""),
        header=header,
        file=file,
        pixel_offset=pixel_offset,
    )


def _uid(header: Dataset, keyword: str) -> str:
    value = str(header[keyword].value)
    # leading zeros, which PS3.5 9.1 forbids, are met in practice
    if not re.fullmatch(r"[0-9.]{1,64}", value):
        raise ValueError(f"{keyword} is not a UID")
    return value


def _texts(header: Dataset, keyword: str) -> tuple[str, ...]:
    value = header.get(keyword)
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(part) for part in value)


def _numbers(header: Dataset, keyword: str) -> tuple[float, ...] | None:
    value = header.get(keyword)
    if value is None or value == "":
        return None
    return (float(value),) if isinstance(value, int | float) else tuple(float(v) for v in value)


def _number(header: Dataset, keyword: str) -> float | None:
    values = _numbers(header, keyword)
    return values[0] if values else None


def _is_plain(instance: Instance) -> bool:
    plain = instance.transfer_syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
    return plain and instance.bits[0] == 16


def _native(instance: Instance) -> NDArray[Any]:
    """Read 16-bit little endian pixels where they lie, without copying the file."""
    file, start = instance.file, instance.pixel_offset
    implicit = instance.transfer_syntax == ImplicitVRLittleEndian
    if file[start : start + 4] != _PIXEL_DATA:
        raise ValueError("no Pixel Data element")
    first = start + (8 if implicit else 12)
    (length,) = struct.unpack_from("<I", file, first - 4)
    count = instance.rows * instance.columns
    if length < 2 * count or len(file) - first < 2 * count:
        raise ValueError("the pixel data is cut short")
    words = np.frombuffer(file, "<u2", count, first).reshape(instance.rows, instance.columns)
    return _without_spare_bits(words, instance, instance.bits[2])


def _decoded(instance: Instance) -> NDArray[Any]:
    syntax = instance.transfer_syntax
    # the RLE decoder in Rust, where it is installed, panics past every handler on damaged data
    plugin = "pydicom" if syntax == RLELossless else ""
    values = pixel_array(dcmread(BytesIO(instance.file)), raw=True, decoding_plugin=plugin)
    native = syntax in NATIVE
    high = instance.bits[2] if native else instance.bits[1] - 1
    return _without_spare_bits(values, instance, high)


def _without_spare_bits(values: NDArray[Any], instance: Instance, high: int) -> NDArray[Any]:
    """Drop what lies beside the stored bits (old overlays, say) and spread the sign."""
    width, stored = values.dtype.itemsize * 8, instance.bits[1]
    if not 0 < stored <= high + 1 <= width:
        raise ValueError("Bits Stored, High Bit and Bits Allocated do not go together")
    cells = np.dtype(f"{'i' if instance.signed else 'u'}{width // 8}")
    values = values.astype(values.dtype.newbyteorder("="), copy=False).view(cells)
    if stored == width:
        return values
    spread: NDArray[Any] = (values << (width - 1 - high)) >> (width - stored)
    return spread


def _refuse_bomb(file: bytes) -> None:
    """Refuse a deflated file that grows beyond all reason, before pydicom inflates it whole."""
    if b"1.2.840.10008.1.2.1.99" not in file[:1024]:
        return
    (meta_length,) = struct.unpack_from("<I", file, 140)  # (0002,0000), PS3.10 7.1
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    rest, size = file[144 + meta_length :], 0
    while rest and not stream.eof:
        size += len(stream.decompress(rest, 1 << 20))
        rest = stream.unconsumed_tail
        if size > _LARGEST_INFLATED:
            raise ValueError("it inflates to more than 1 GiB")
