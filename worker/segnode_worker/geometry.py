"""Where the slices of a series lie, and whether they form one regular grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segnode_contract.errors import UnsuitableSeries
from segnode_worker.instance import Instance

_SAME_DIRECTION = 1e-3  # direction cosines are often written with four digits
_SAME_PLACE_MM = 0.01
_UNEVEN = 0.1  # of the spacing: positions are often written with one digit
_SIDEWAYS = 0.5  # of a pixel
_SMALLEST_MM, _LARGEST_MM = 1e-3, 100  # of a voxel's side
_FARTHEST_MM = 1e5


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Slices in order along the normal of their plane, evenly spaced.

    The normal is the cross product of the column and row directions, so that (slice, row, column)
    is a right-handed system, as `highdicom.Volume` has it.
    """

    slices: tuple[Instance, ...]
    orientation: tuple[float, ...]
    """Image Orientation (Patient), made orthonormal to the last digit."""
    spacing_mm: float
    """Distance of neighbouring slices."""


def arrange(slices: Sequence[Instance]) -> Arrangement:
    """Order the slices and find their spacing.

    Raises
    ------
    UnsuitableSeries
        With the code ``geometry``, ``mixed-series``, ``mixed-size``, ``mixed-spacing``,
        ``mixed-orientation``, ``mixed-frame-of-reference``, ``duplicate-position``,
        ``gantry-tilt``, ``missing-slice`` or ``uneven-spacing``.
    """
    for image in slices:
        _check_plane(image)
    _check_alike(slices)
    orientation = _orthonormal(slices[0])
    row, column = orientation
    normal = np.cross(column, row)
    positions = np.array([image.position for image in slices])
    order = np.argsort(positions @ normal, kind="stable")
    ordered = tuple(slices[i] for i in order)
    offsets = positions[order] - positions[order[0]]
    along = offsets @ normal
    _check_distinct(along, ordered)
    _check_straight(offsets, along, normal, ordered[0])
    return Arrangement(
        slices=ordered,
        orientation=(*row.tolist(), *column.tolist()),
        spacing_mm=_even_spacing(along, ordered),
    )


def _check_plane(image: Instance) -> None:
    """Refuse a slice that does not say where it is (PS3.3 C.7.6.2.1.1)."""
    expected = {
        "Image Position (Patient)": (image.position, 3),
        "Image Orientation (Patient)": (image.orientation, 6),
        "Pixel Spacing": (image.spacing, 2),
    }
    for name, (values, count) in expected.items():
        if values is None or len(values) != count or not np.isfinite(values).all():
            said = "none" if values is None else _listed(values)
            raise _unsuitable("geometry", f"{name} of the image {image.uid} is {said}")
    if image.rows < 1 or image.columns < 1:
        raise _unsuitable(
            "geometry", f"the image {image.uid} has {image.rows} rows, {image.columns} columns"
        )
    if any(abs(mm) > _FARTHEST_MM for mm in image.position or ()):
        raise _unsuitable(
            "geometry",
            f"Image Position (Patient) of the image {image.uid} is {_listed(image.position or ())}",
        )
    if not all(_SMALLEST_MM <= mm <= _LARGEST_MM for mm in image.spacing or ()):
        raise _unsuitable("geometry", f"Pixel Spacing of the image {image.uid} is {image.spacing}")
    axes = np.array(image.orientation).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=_SAME_DIRECTION):
        raise _unsuitable(
            "geometry",
            f"Image Orientation (Patient) of the image {image.uid} is {image.orientation}, not two "
            "unit vectors at a right angle",
        )
    if not image.frame_of_reference_uid:
        raise _unsuitable("geometry", f"the image {image.uid} has no Frame of Reference UID")


def _check_alike(slices: Sequence[Instance]) -> None:
    first = slices[0]
    for image in slices[1:]:
        if (image.study_uid, image.series_uid) != (first.study_uid, first.series_uid):
            raise _unsuitable(
                "mixed-series",
                f"its images are of the series {first.series_uid} and {image.series_uid}",
            )
        sizes = [f"{i.rows} x {i.columns}" for i in (first, image)]
        if sizes[0] != sizes[1]:
            raise _unsuitable("mixed-size", f"its images measure {sizes[0]} and {sizes[1]} pixels")
        if image.frame_of_reference_uid != first.frame_of_reference_uid:
            raise _unsuitable(
                "mixed-frame-of-reference",
                f"its images have the frames of reference {first.frame_of_reference_uid} and "
                f"{image.frame_of_reference_uid}",
            )
        if not _close(image.orientation, first.orientation, _SAME_DIRECTION):
            raise _unsuitable(
                "mixed-orientation",
                f"its images are oriented {first.orientation} and {image.orientation}",
            )
        if not _close(image.spacing, first.spacing, 1e-4):
            raise _unsuitable(
                "mixed-spacing", f"its pixels measure {first.spacing} and {image.spacing} mm"
            )


def _check_distinct(along: NDArray[np.float64], ordered: Sequence[Instance]) -> None:
    same = np.flatnonzero(np.diff(along) < _SAME_PLACE_MM)
    if same.size:
        raise _unsuitable(
            "duplicate-position",
            f"{same.size} of its images lie where another does, the first at "
            f"{_place(ordered[same[0]])} mm (several phases or echoes, perhaps)",
        )


def _check_straight(
    offsets: NDArray[np.float64],
    along: NDArray[np.float64],
    normal: NDArray[np.float64],
    first: Instance,
) -> None:
    """Refuse slices that are shifted sideways by more than half a pixel over the series."""
    sideways = np.linalg.norm(offsets - np.outer(along, normal), axis=1)
    farthest = int(sideways.argmax())
    if sideways[farthest] > _SIDEWAYS * min(first.spacing or ()):
        angle = np.degrees(np.arctan2(sideways[farthest], along[farthest]))
        raise _unsuitable(
            "gantry-tilt",
            f"its slices are not stacked along their normal but {angle:.1f} degrees aside (gantry "
            "tilt); a reconstruction without tilt is needed",
        )


def _even_spacing(along: NDArray[np.float64], ordered: Sequence[Instance]) -> float:
    if len(ordered) == 1:
        thickness = abs(ordered[0].thickness or 1.0)
        if not _SMALLEST_MM <= thickness <= _LARGEST_MM:
            raise _unsuitable(
                "geometry", f"Slice Thickness of the image {ordered[0].uid} is {thickness:g}"
            )
        return thickness
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    widest = int(gaps.argmax())
    if gaps[widest] > 1.5 * usual:
        raise _unsuitable(
            "missing-slice",
            f"slices are missing: the gap after {_place(ordered[widest])} mm is {gaps[widest]:.2f} "
            f"mm, where {usual:.2f} mm is usual",
        )
    spacing = float(along[-1] / (len(along) - 1))
    shift = np.abs(along - spacing * np.arange(len(along)))
    worst = int(shift.argmax())
    if shift[worst] > _UNEVEN * spacing:
        raise _unsuitable(
            "uneven-spacing",
            f"its slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart, and the one at "
            f"{_place(ordered[worst])} mm is {shift[worst]:.2f} mm from its place in an even grid",
        )
    return spacing


def _orthonormal(image: Instance) -> NDArray[np.float64]:
    row, column = np.array(image.orientation, dtype=np.float64).reshape(2, 3)
    row /= np.linalg.norm(row)
    column -= (column @ row) * row
    return np.stack([row, column / np.linalg.norm(column)])


def _close(a: tuple[float, ...] | None, b: tuple[float, ...] | None, limit: float) -> bool:
    return bool(np.allclose(a or (), b or (), rtol=0, atol=limit))


def _place(image: Instance) -> str:
    return _listed(image.position or ())


def _listed(values: Sequence[float]) -> str:
    """Write the first few; a damaged attribute may have thousands."""
    return "(" + ", ".join(f"{value:g}" for value in values[:6]) + ")"


def _unsuitable(code: str, what: str) -> UnsuitableSeries:
    return UnsuitableSeries(f"The series does not form one regular volume: {what}.", code=code)
