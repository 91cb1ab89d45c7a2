"""From the files of a series to one volume of Hounsfield units."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    CTImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from segnode_contract.errors import UnsuitableSeries
from segnode_worker.geometry import Arrangement, arrange
from segnode_worker.instance import BROKEN, Instance, parse_instance
from segnode_worker.pixels import NATIVE, check_pixels, stored_values

_LARGEST_SLICE = 1 << 26
"""Pixels: 8192 x 8192."""
_LARGEST_SERIES = 1 << 32
"""Bytes, of the files and again of the voxels: 8192 slices of 512 x 512 in 16 bits."""
_ANY_RATIO = 1 << 28
_LARGEST_RATIO = 200
"""Of the bytes of voxels to those of files, beyond `_ANY_RATIO`. JPEG-LS makes 340 of empty slices,
3 of a patient's."""
_ABSURD_SCALE = 1e9
_OTHER_UNITS = ("US", "OD", "MGML", "PCT", "Z_EFF", "ED", "EDW", "HU_MOD")  # PS3.3 C.11.1.1.2

_IMAGE_CLASSES = (CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage)
_TECHNICAL = ("BodyPartExamined", "ConvolutionKernel", "SliceThickness", "KVP")
# fmt: off
_MODALITIES = {
    "CR", "CT", "DOC", "DX", "ES", "KO", "MG", "MR", "NM", "OT", "PR", "PT", "REG", "RF",
    "RTDOSE", "RTPLAN", "RTSTRUCT", "RWV", "SEG", "SM", "SR", "US", "XA",
}
# fmt: on
"""Those that a sentence may name (PS3.3 C.7.3.1.1.1); a damaged file may have a name there."""
_CONTRAST = (
    "ContrastBolusAgent",
    "ContrastBolusAgentSequence",
    "ContrastBolusVolume",
    "ContrastBolusTotalDose",
    "ContrastBolusRoute",
)
_LONGEST_TEXT = 64  # of LO, PS3.5 6.2
_NO_CONTRAST = {"", "NONE", "NO", "N", "0", "0.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The images of a series as one volume, and where each slice came from."""

    volume: hd.Volume
    """int16 Hounsfield units (float32 where a rescale is not whole), shape ``(slices, rows,
    columns)``; `affine` maps voxel indices to LPS millimetres (PS3.3 C.7.6.2.1.1)."""
    sources: tuple[Dataset, ...]
    """The header of each slice, in the volume's order, without pixel data."""
    attributes: Mapping[str, str]
    """As `InputVolume.attributes` of the models."""
    digest: str
    """SHA-256 of voxels and geometry, which do not change by transport as files do."""


def stack_series(files: Sequence[bytes], *, min_slices: int = 1, modality: str = "CT") -> Stack:
    """Stack the instances of one series, in any order, into one volume.

    Parameters
    ----------
    files
        Part 10 files, one single-frame image each, in any transfer syntax that can be decoded.
    min_slices, modality
        What the model needs, from its card.

    Raises
    ------
    UnsuitableSeries
        If they are not slices of one regular volume; `code` names the reason.
    BrokenInstance
        If a file does not parse or decode.
    """
    images = _parsed(files)
    for image in images:
        _check_image(image, modality)
    _check_count(images, min_slices)
    kind = _kind(images)
    _check_size(images, kind.itemsize)
    arrangement = arrange(images)
    for image in images:
        check_pixels(image)
    voxels = _modality_values(arrangement.slices, kind)
    return Stack(
        volume=_volume(voxels, arrangement),
        sources=tuple(image.header for image in arrangement.slices),
        attributes=_attributes([image.header for image in arrangement.slices]),
        digest=_digest(voxels, arrangement),
    )


def _parsed(files: Sequence[bytes]) -> list[Instance]:
    """Read all headers, holding no more than one may of what was deflated."""
    images: list[Instance] = []
    size = 0
    for place, file in enumerate(files, 1):
        images.append(parse_instance(file, place))
        size += len(images[-1].file)
        if size > _LARGEST_SERIES:
            raise _unsuitable("too-large", f"has more than {_LARGEST_SERIES} bytes of files")
    if not images:
        raise _unsuitable(
            "no-images",
            "has no images in the archive: it was deleted, or its UID stands in two studies",
        )
    return images


def _check_image(image: Instance, modality: str) -> None:
    """Refuse what is not a slice with modality values, before a pixel is decoded."""
    if image.modality != modality:
        said = image.modality if image.modality in _MODALITIES else "of no known modality"
        raise _unsuitable("modality", f"is {said}, not {modality}")
    if "LOCALIZER" in image.image_type:
        raise _unsuitable("localizer", f"holds a localizer, the image {image.uid}")
    if image.frames != 1 or "SharedFunctionalGroupsSequence" in image.header:
        raise _unsuitable(
            "multi-frame", f"holds the image {image.uid} of {image.frames} frames; one is needed"
        )
    if image.class_uid not in _IMAGE_CLASSES:
        raise _unsuitable(
            "sop-class", f"holds the image {image.uid} of the SOP class {image.class_uid}"
        )
    if not image.has_pixels:
        raise _unsuitable("no-pixel-data", f"holds the image {image.uid} without pixels")
    if image.samples != 1 or image.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise _unsuitable(
            "photometric",
            f"holds the image {image.uid} of {image.samples} samples per pixel, "
            "not of one grey value",
        )
    _check_rescale(image)
    _check_decodable(image)


def _check_rescale(image: Instance) -> None:
    scale = (image.slope, image.intercept)
    known = [value for value in scale if value is not None]
    absurd = not all(abs(value) <= _ABSURD_SCALE for value in known)  # nor is NaN
    if image.modality == "CT" and (len(known) < len(scale) or image.slope == 0 or absurd):
        raise _unsuitable(
            "not-hounsfield",
            f"has no Hounsfield units: Rescale Slope and Intercept of the image {image.uid} are "
            f"{scale}",
        )
    if absurd or image.slope == 0:
        raise _unsuitable(
            "rescale", f"has the Rescale Slope and Intercept {scale} in the image {image.uid}"
        )
    if image.modality == "CT" and image.rescale_type not in ("", "HU"):
        said = image.rescale_type if image.rescale_type in _OTHER_UNITS else "another"
        raise _unsuitable(
            "not-hounsfield",
            f"has no Hounsfield units: Rescale Type of the image {image.uid} is {said}",
        )


def _check_decodable(image: Instance) -> None:
    syntax = image.transfer_syntax
    if syntax in NATIVE:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a syntax that is no UID is refused all the same
            known = get_decoder(syntax).is_available
    except NotImplementedError:
        known = False
    if not known:
        raise _unsuitable(
            "transfer-syntax",
            f"is compressed by the transfer syntax {syntax}, which nothing here can decode",
        )


def _check_count(images: Sequence[Instance], min_slices: int) -> None:
    if len(images) < min_slices:
        raise _unsuitable(
            "too-few-slices", f"has {len(images)} slices, and the model needs {min_slices}"
        )
    names = Counter(image.uid for image in images)
    name, times = names.most_common(1)[0]
    if times > 1:
        raise _unsuitable("duplicate-instance", f"holds the image {name} {times} times")


def _check_size(images: Sequence[Instance], itemsize: int) -> None:
    """Refuse more voxels than a machine holds, or than so small files can mean."""
    largest = max(image.rows * image.columns for image in images)
    size = largest * len(images) * itemsize
    ratio = size / sum(len(image.file) for image in images)
    bomb = size > _ANY_RATIO and ratio > _LARGEST_RATIO
    if largest > _LARGEST_SLICE or size > _LARGEST_SERIES or bomb:
        raise _unsuitable("too-large", f"says that it has {len(images)} slices of {largest} pixels")


def _kind(images: Sequence[Instance]) -> np.dtype[np.int16] | np.dtype[np.float32]:
    whole = all(_is_whole(_slope(i)) and _is_whole(_intercept(i)) for i in images)
    return np.dtype(np.int16) if whole else np.dtype(np.float32)


def _modality_values(slices: Sequence[Instance], kind: np.dtype[Any]) -> NDArray[Any]:
    """Decode slice by slice into one volume (PS3.3 C.11.1.1.2).

    Whole numbers beyond int16, as a padding value of -32768 makes them, are held at its ends.
    """
    voxels = np.empty((len(slices), slices[0].rows, slices[0].columns), kind)
    for place, image in enumerate(slices):
        values = stored_values(image)
        if kind == np.int16:
            wide = values.astype(np.int64) * int(_slope(image)) + int(_intercept(image))
            voxels[place] = wide.clip(-32768, 32767)
        else:
            voxels[place] = values * _slope(image) + _intercept(image)
    return voxels


def _is_whole(value: float) -> bool:
    return value.is_integer() and abs(value) < 1 << 24


def _slope(image: Instance) -> float:
    return 1.0 if image.slope is None else image.slope


def _intercept(image: Instance) -> float:
    return 0.0 if image.intercept is None else image.intercept


def _volume(voxels: NDArray[Any], arrangement: Arrangement) -> hd.Volume:
    first = arrangement.slices[0]
    return hd.Volume.from_attributes(
        array=voxels,
        image_position=first.position or (),
        image_orientation=arrangement.orientation,
        pixel_spacing=first.spacing or (),
        spacing_between_slices=arrangement.spacing_mm,
        coordinate_system="PATIENT",
        frame_of_reference_uid=first.frame_of_reference_uid,
    )


def _attributes(headers: Sequence[Dataset]) -> dict[str, str]:
    first = headers[0]
    with warnings.catch_warnings():
        # pydicom's warnings quote values, which may be a patient's
        warnings.simplefilter("ignore")
        found = {keyword: _text(first, keyword)[:_LONGEST_TEXT] for keyword in _TECHNICAL}
        contrast = any(
            _text(header, keyword).strip().upper() not in _NO_CONTRAST
            for header in headers
            for keyword in _CONTRAST
        )
    return {k: v for k, v in found.items() if v} | {"ContrastBolus": "yes" if contrast else "no"}


def _text(header: Dataset, keyword: str) -> str:
    try:
        value = header.get(keyword)
    except BROKEN:
        return ""
    if value is None:
        return ""
    if keyword.endswith("Sequence"):
        return f"{len(value)} items" if len(value) else ""
    return str(value)


def _digest(voxels: NDArray[Any], arrangement: Arrangement) -> str:
    digest = hashlib.sha256(f"{voxels.dtype} {voxels.shape} {arrangement.orientation}".encode())
    for image in arrangement.slices:
        digest.update(f"{image.position} {image.spacing}".encode())
    digest.update(voxels.data)
    return digest.hexdigest()


def _unsuitable(code: str, what: str) -> UnsuitableSeries:
    return UnsuitableSeries(f"The series {what}.", code=code)
