"""Of which images a volume of modality values can be made; said before a pixel is decoded."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from segnode_contract.errors import UnsuitableSeries
from segnode_worker.instance import Instance
from segnode_worker.pixels import NATIVE
from segnode_worker.slices import Slice

_LARGEST_SLICE = 1 << 26
"""Pixels: 8192 x 8192."""
LARGEST_SERIES = 1 << 32
"""Bytes, of the files and again of the voxels: 8192 slices of 512 x 512 in 16 bits."""
_ANY_RATIO = 1 << 28
_LARGEST_RATIO = 200
"""Of the bytes of voxels to those of files, beyond `_ANY_RATIO`. JPEG-LS makes 340 of empty slices,
3 of a patient's."""
_ABSURD_SCALE = 1e9
_OTHER_UNITS = ("US", "OD", "MGML", "PCT", "Z_EFF", "ED", "EDW", "HU_MOD")  # PS3.3 C.11.1.1.2

_IMAGE_CLASSES = (
    CTImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
)
# fmt: off
_MODALITIES = {
    "CR", "CT", "DOC", "DX", "ES", "KO", "MG", "MR", "NM", "OT", "PR", "PT", "REG", "RF",
    "RTDOSE", "RTPLAN", "RTSTRUCT", "RWV", "SEG", "SM", "SR", "US", "XA",
}
# fmt: on
"""Those that a sentence may name (PS3.3 C.7.3.1.1.1); a damaged file may have a name there."""


def check_image(image: Instance, modality: str) -> None:
    """Refuse what is not a slice with modality values, before a pixel is decoded."""
    if image.modality != modality:
        said = image.modality if image.modality in _MODALITIES else "of no known modality"
        raise unsuitable("modality", f"is {said}, not {modality}")
    if image.frames != 1 and not image.enhanced:
        raise unsuitable(
            "multi-frame",
            f"holds the image {image.uid} of {image.frames} frames and does not describe each of "
            "them; one frame is needed, or an enhanced multi-frame image",
        )
    if image.class_uid not in _IMAGE_CLASSES:
        raise unsuitable(
            "sop-class", f"holds the image {image.uid} of the SOP class {image.class_uid}"
        )
    if not image.has_pixels:
        raise unsuitable("no-pixel-data", f"holds the image {image.uid} without pixels")
    if image.samples != 1 or image.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise unsuitable(
            "photometric",
            f"holds the image {image.uid} of {image.samples} samples per pixel, "
            "not of one grey value",
        )
    _check_decodable(image)


def without_localizers(slices: Sequence[Slice]) -> tuple[list[Slice], list[str]]:
    others = [one for one in slices if "LOCALIZER" not in one.image_type]
    if not others:
        raise unsuitable("localizer", f"holds a localizer only, the image {slices[0].name}")
    count = len(slices) - len(others)
    said = f"{count} images of the series were not segmented: they are localizers."
    return others, [said] if count else []


def check_rescale(one: Slice) -> None:
    scale = (one.slope, one.intercept)
    known = [value for value in scale if value is not None]
    absurd = not all(abs(value) <= _ABSURD_SCALE for value in known)  # nor is NaN
    if one.image.modality == "CT" and (len(known) < len(scale) or one.slope == 0 or absurd):
        raise unsuitable(
            "not-hounsfield",
            f"has no Hounsfield units: Rescale Slope and Intercept of the image {one.name} are "
            f"{scale}",
        )
    if absurd or one.slope == 0:
        raise unsuitable(
            "rescale", f"has the Rescale Slope and Intercept {scale} in the image {one.name}"
        )
    if one.image.modality == "CT" and one.rescale_type not in ("", "HU"):
        said = one.rescale_type if one.rescale_type in _OTHER_UNITS else "another"
        raise unsuitable(
            "not-hounsfield",
            f"has no Hounsfield units: Rescale Type of the image {one.name} is {said}",
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
        raise unsuitable(
            "transfer-syntax",
            f"is compressed by the transfer syntax {syntax}, which nothing here can decode",
        )


def check_distinct(images: Sequence[Instance]) -> None:
    names = Counter(image.uid for image in images)
    name, times = names.most_common(1)[0]
    if times > 1:
        raise unsuitable("duplicate-instance", f"holds the image {name} {times} times")


def check_size(images: Sequence[Instance], slices: Sequence[Slice], itemsize: int) -> None:
    """Refuse more voxels than a machine holds, or than so small files can mean."""
    largest = max(image.rows * image.columns for image in images)
    size = largest * len(slices) * itemsize
    ratio = size / sum(len(image.file) for image in images)
    bomb = size > _ANY_RATIO and ratio > _LARGEST_RATIO
    if largest > _LARGEST_SLICE or size > LARGEST_SERIES or bomb:
        raise unsuitable("too-large", f"says that it has {len(slices)} slices of {largest} pixels")


def unsuitable(code: str, what: str) -> UnsuitableSeries:
    """Return the error for a series of which no volume can be made."""
    return UnsuitableSeries(f"The series {what}.", code=code)
