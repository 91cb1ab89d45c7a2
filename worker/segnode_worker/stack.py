"""From the files of a series to one volume of Hounsfield units."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from segnode_contract.errors import UnsuitableSeries
from segnode_worker.attributes import BROKEN
from segnode_worker.geometry import Arrangement, arrange
from segnode_worker.grouping import stacks_in
from segnode_worker.instance import Instance, parse_instance
from segnode_worker.modality_values import kind_of, modality_values, padding_of
from segnode_worker.resample import Lattice
from segnode_worker.slices import Slice, slices_of
from segnode_worker.suitable import (
    LARGEST_SERIES,
    check_distinct,
    check_image,
    check_rescale,
    check_size,
    unsuitable,
    without_localizers,
)

_TECHNICAL = ("BodyPartExamined", "ConvolutionKernel", "SliceThickness", "KVP")
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
class Plane:
    """What the slices of a stack have in common."""

    rows: int
    columns: int
    orientation: tuple[float, ...]
    """Image Orientation (Patient), as the first image says it."""
    spacing_mm: tuple[float, float]
    """Pixel Spacing: of rows and of columns."""
    thickness_mm: float | None
    """Slice Thickness, None where it is not said."""
    slice_spacing_mm: float | None
    """Distance of neighbouring slices, None where it is not the same everywhere, or there is one
    slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The image, or frame of one, that a slice came from."""

    header: Dataset
    """Of the image, without pixel data."""
    uid: str
    """SOP Instance UID of the image."""
    class_uid: str
    """SOP Class UID of the image."""
    series_uid: str
    frame: int | None
    """From 1; None where the image is of a single-frame class."""
    position: tuple[float, float, float]
    """Image Position (Patient), LPS millimetres."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Slices of a series as one volume, and where each of them came from."""

    volume: hd.Volume
    """What a model may see: int16 Hounsfield units (float32 where a rescale is not whole), shape
    ``(slices, rows, columns)``; `affine` maps voxel indices to LPS millimetres (PS3.3
    C.7.6.2.1.1). Interpolated where the slices do not lie on a regular grid."""
    values: NDArray[Any]
    """The same as acquired, one slice per source; the volume's own array where that is regular."""
    sources: tuple[Source, ...]
    """In the order of `values`."""
    plane: Plane
    """What all slices have in common."""
    lattice: Lattice | None
    """How the slices lie on the volume's grid; None where they are its slices."""
    slice_ml: NDArray[np.float64]
    """The volume that one pixel of each slice stands for, in millilitres."""
    limitations: tuple[str, ...]
    """Sentences on what of the series is not as it should be."""
    attributes: Mapping[str, str]
    """As `InputVolume.attributes` of the models."""
    digest: str
    """SHA-256 of voxels and geometry, which do not change by transport as files do."""

    def without_voxels(self) -> Stack:
        """Return the same with zeros that take no memory: enough to prove a result by."""
        nothing = np.broadcast_to(np.int16(0), self.volume.spatial_shape)
        return replace(
            self,
            volume=self.volume.with_array(nothing),
            values=np.broadcast_to(np.int16(0), self.values.shape),
        )

    def on_slices(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return label planes of the volume's grid on the slices, both of four axes."""
        return labels if self.lattice is None else self.lattice.on_slices(labels)

    def on_grid(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return label planes of the slices on the volume's grid, both of four axes."""
        return labels if self.lattice is None else self.lattice.labels_on_grid(labels)


def stack_series(files: Sequence[bytes], *, min_slices: int = 1, modality: str = "CT") -> Stack:
    """Stack the one volume that a series is to be; raises as `stacks_of_series`."""
    stacks = stacks_of_series(files, min_slices=min_slices, modality=modality)
    if len(stacks) > 1:
        raise unsuitable(
            "several-stacks", f"holds {len(stacks)} stacks of slices, where one is needed"
        )
    return stacks[0]


def stacks_of_series(
    files: Sequence[bytes],
    *,
    min_slices: int = 1,
    modality: str = "CT",
    largest_gap_mm: float | None = None,
) -> list[Stack]:
    """Stack the instances of one series, in any order, into volumes, the largest first.

    Parameters
    ----------
    files
        Part 10 files, single-frame or enhanced multi-frame, in any transfer syntax that can be
        decoded.
    min_slices, modality, largest_gap_mm
        What the model needs, from its card.

    Raises
    ------
    UnsuitableSeries
        If they are no slices that can be stacked; `code` names the reason.
    BrokenInstance
        If a file does not parse or decode.
    """
    images = _parsed(files)
    for image in images:
        check_image(image, modality)
    check_distinct(images)
    slices, localizers = without_localizers([one for i in images for one in slices_of(i)])
    for one in slices:
        check_rescale(one)
    groups, left_out = stacks_in(slices, min_slices)
    kind = kind_of([one for group in groups for one in group])
    check_size(images, slices, kind.itemsize)
    notes = [*localizers, *left_out]
    try:
        arrangements = [arrange(groups[0], largest_gap_mm)]
    except UnsuitableSeries as error:
        # what was left out may be what is missing
        raise UnsuitableSeries(" ".join([error.sentence, *notes]), code=error.code) from error
    others, refused = _arranged(groups[1:], largest_gap_mm)
    arrangements += others
    notes += [f"A stack of the series was not segmented: {error.sentence}" for error in refused]
    return [_stack(each, kind, notes) for each in arrangements]


def _arranged(
    groups: Sequence[Sequence[Slice]], largest_gap_mm: float | None
) -> tuple[list[Arrangement], list[UnsuitableSeries]]:
    """Arrange each stack, and return the errors of those that cannot be."""
    arrangements, refused = [], []
    for group in groups:
        try:
            arrangements.append(arrange(group, largest_gap_mm))
        except UnsuitableSeries as error:
            refused.append(error)
    return arrangements, refused


def _stack(arrangement: Arrangement, kind: np.dtype[Any], left_out: Sequence[str]) -> Stack:
    values = modality_values(arrangement.slices, kind)
    lattice = None if arrangement.regular else Lattice.of(arrangement)
    if lattice is not None and np.prod(lattice.shape) * kind.itemsize > LARGEST_SERIES:
        raise unsuitable("too-large", f"needs a grid of {lattice.shape} voxels")
    headers = [one.image.header for one in arrangement.slices]
    voxels = values
    if lattice is not None:
        voxels = lattice.on_grid(values, padding_of(arrangement.slices[0]))
    return Stack(
        volume=_volume(voxels, arrangement, lattice),
        values=values,
        sources=tuple(
            Source(
                header=one.image.header,
                uid=one.image.uid,
                class_uid=one.image.class_uid,
                series_uid=one.image.series_uid,
                frame=one.frame,
                position=_position(one),
            )
            for one in arrangement.slices
        ),
        plane=_plane(arrangement),
        lattice=lattice,
        slice_ml=_slice_ml(arrangement),
        limitations=(*arrangement.limitations, *left_out),
        attributes=_attributes(arrangement, headers),
        digest=_digest(values, arrangement),
    )


def _parsed(files: Sequence[bytes]) -> list[Instance]:
    """Read all headers, holding no more than one may of what was deflated."""
    images: list[Instance] = []
    size = 0
    for place, file in enumerate(files, 1):
        images.append(parse_instance(file, place))
        size += len(images[-1].file)
        if size > LARGEST_SERIES:
            raise unsuitable("too-large", f"has more than {LARGEST_SERIES} bytes of files")
    if not images:
        raise unsuitable(
            "no-images",
            "has no images in the archive: it was deleted, or its UID stands in two studies",
        )
    return images


def _volume(voxels: NDArray[Any], arrangement: Arrangement, lattice: Lattice | None) -> hd.Volume:
    plane, corner = _plane(arrangement), np.array(_position(arrangement.slices[0]))
    spacing_mm = arrangement.spacing_mm
    if lattice is not None:
        row, column = np.array(arrangement.orientation).reshape(2, 3)
        down, right = np.array(lattice.origin) * plane.spacing_mm
        corner = corner + down * column + right * row
        spacing_mm = lattice.spacing_mm
    return hd.Volume.from_attributes(
        array=voxels,
        image_position=corner.tolist(),
        image_orientation=arrangement.orientation,
        pixel_spacing=plane.spacing_mm,
        spacing_between_slices=spacing_mm,
        coordinate_system="PATIENT",
        frame_of_reference_uid=arrangement.slices[0].image.frame_of_reference_uid,
    )


def _plane(arrangement: Arrangement) -> Plane:
    first = arrangement.slices[0]
    down, right = first.spacing or ()
    return Plane(
        rows=first.image.rows,
        columns=first.image.columns,
        orientation=first.orientation or (),
        spacing_mm=(down, right),
        thickness_mm=abs(first.thickness) if first.thickness else None,
        slice_spacing_mm=(
            arrangement.spacing_mm if arrangement.even and len(arrangement.slices) > 1 else None
        ),
    )


def _position(one: Slice) -> tuple[float, float, float]:
    x, y, z = one.position or ()
    return x, y, z


def _slice_ml(arrangement: Arrangement) -> NDArray[np.float64]:
    """Return what a pixel of each slice stands for: half of the way to each neighbour."""
    down, right = arrangement.slices[0].spacing or ()
    along = np.array(arrangement.along_mm)
    if len(along) == 1:
        return np.array([down * right * arrangement.spacing_mm / 1000])
    gaps = np.diff(along)
    reach = (np.append(gaps[0], gaps) + np.append(gaps, gaps[-1])) / 2
    millilitres: NDArray[np.float64] = down * right * reach / 1000
    return millilitres


def _attributes(arrangement: Arrangement, headers: Sequence[Dataset]) -> dict[str, str]:
    first, thickness = headers[0], arrangement.slices[0].thickness
    with warnings.catch_warnings():
        # pydicom's warnings quote values, which may be a patient's
        warnings.simplefilter("ignore")
        found = {keyword: _text(first, keyword)[:_LONGEST_TEXT] for keyword in _TECHNICAL}
        if not found["SliceThickness"] and thickness:  # of a frame
            found["SliceThickness"] = str(thickness)
        if not arrangement.regular:
            found["Interpolated"] = "yes"
        if not arrangement.even:  # the volume's own is interpolated
            found["SpacingBetweenSlices"] = f"{np.diff(arrangement.along_mm).max():.3f}"
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
    for one in arrangement.slices:
        digest.update(f"{one.position} {one.spacing}".encode())
    digest.update(voxels.data)
    return digest.hexdigest()
