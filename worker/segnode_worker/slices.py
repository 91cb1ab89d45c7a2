"""The slices of a series: its single-frame images, or the frames of its multi-frame ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from pydicom import Dataset

from segnode_contract.errors import BrokenInstance
from segnode_worker.attributes import BROKEN, Reader
from segnode_worker.instance import Instance

_FRAME_TYPES = ("CTImageFrameTypeSequence", "MRImageFrameTypeSequence", "PETFrameTypeSequence")
_PHASES = ("TemporalPositionIdentifier", "AcquisitionNumber", "EchoTime", "DiffusionBValue")
"""What tells slices at one place from each other."""
_FRAME_PHASES = {
    "TemporalPositionIndex": "FrameContentSequence",
    "StackID": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
}
"""The same of the frames of a multi-frame image, with the functional group that holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One plane of a series.

    Lengths are in millimetres, in the patient coordinate system (LPS); None is said where the
    attribute is absent or empty.
    """

    image: Instance
    frame: int | None
    """Number of the frame, from 1; None where the image is of a single-frame class."""
    image_type: tuple[str, ...]
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    thickness: float | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    phase: Mapping[str, str]
    """By keyword, what may tell it from another slice at the same place."""

    @property
    def name(self) -> str:
        """What a sentence calls it."""
        return self.image.uid if self.frame is None else f"{self.image.uid} (frame {self.frame})"


def slices_of(image: Instance) -> list[Slice]:
    """Return the slices of an image, in the order of its frames.

    Raises
    ------
    BrokenInstance
        With the code ``frame-groups`` if its frames are not described one by one, or
        ``bad-attribute``.
    """
    with warnings.catch_warnings():
        # pydicom's warnings quote values, which may be a patient's
        warnings.simplefilter("ignore")
        return _frames(image) if image.enhanced else [_single(image)]


def _frames(image: Instance) -> list[Slice]:
    try:
        shared = image.header.SharedFunctionalGroupsSequence
        groups = image.header.PerFrameFunctionalGroupsSequence
        if len(shared) != 1 or len(groups) != image.frames or image.frames < 1:
            raise _frame_groups(image, f"describes {len(groups)} frames and has {image.frames}")
        return [_frame(image, number, group, shared[0]) for number, group in enumerate(groups, 1)]
    except BROKEN as error:
        raise _frame_groups(
            image, f"describes its frames in no way that can be read ({type(error).__name__})"
        ) from error


def _single(image: Instance) -> Slice:
    read = Reader(image.header, f"The image {image.uid}")
    return Slice(
        image=image,
        frame=None,
        image_type=image.image_type,
        position=read.numbers("ImagePositionPatient"),
        orientation=read.numbers("ImageOrientationPatient"),
        spacing=read.numbers("PixelSpacing"),
        thickness=read.number("SliceThickness"),
        slope=read.number("RescaleSlope"),
        intercept=read.number("RescaleIntercept"),
        rescale_type=read.text("RescaleType"),
        phase={
            **{keyword: read.text(keyword) for keyword in _PHASES},
            "ImageType": "\\".join(image.image_type),
        },
    )


def _frame(image: Instance, number: int, own: Dataset, shared: Dataset) -> Slice:
    name = f"Frame {number} of the image {image.uid}"

    def group(keyword: str) -> Reader:
        """Return a functional group: the frame's own, or the one that all frames share."""
        for groups in (own, shared):
            items = groups.get(keyword)
            if items:
                return Reader(items[0], name)
        return Reader(Dataset(), name)

    measures = group("PixelMeasuresSequence")
    values = group("PixelValueTransformationSequence")
    types = (group(keyword).texts("FrameType") for keyword in _FRAME_TYPES)
    image_type = next(filter(None, types), image.image_type)
    return Slice(
        image=image,
        frame=number,
        image_type=image_type,
        position=group("PlanePositionSequence").numbers("ImagePositionPatient"),
        orientation=group("PlaneOrientationSequence").numbers("ImageOrientationPatient"),
        spacing=measures.numbers("PixelSpacing"),
        thickness=measures.number("SliceThickness"),
        slope=values.number("RescaleSlope"),
        intercept=values.number("RescaleIntercept"),
        rescale_type=values.text("RescaleType"),
        phase={
            **{keyword: group(where).text(keyword) for keyword, where in _FRAME_PHASES.items()},
            "ImageType": "\\".join(image_type),
        },
    )


def _frame_groups(image: Instance, what: str) -> BrokenInstance:
    return BrokenInstance(
        f"The image {image.uid} {what}; send it again from where it came.", code="frame-groups"
    )
