"""Where slices lie, and how they lie to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segnode_contract.errors import UnsuitableSeries
from segnode_worker.slices import Slice

_SAME_DIRECTION = 1e-3  # direction cosines are often written with four digits
_SAME_PLACE_MM = 0.01
_SAME_SPACING_MM = 1e-4
_UNEVEN = 0.1  # of the spacing: positions are often written with one digit
_SIDEWAYS = 0.5  # of a pixel
_MISSING = 1.5  # of the usual gap
_STEEPEST = 45.0  # degrees
_SMALLEST_MM, _LARGEST_MM = 1e-3, 100  # of a voxel's side
_FARTHEST_MM = 1e5


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Parallel slices in order along the normal of their plane.

    The normal is the cross product of the column and row directions, so that (slice, row, column)
    is a right-handed system, as `highdicom.Volume` has it.
    """

    slices: tuple[Slice, ...]
    orientation: tuple[float, ...]
    """Image Orientation (Patient), made orthonormal to the last digit."""
    along_mm: tuple[float, ...]
    """Place of each slice along the normal from the first, made even where it nearly is."""
    aside: NDArray[np.float64]
    """Shift of each slice within its plane, in rows and columns, shape ``(slices, 2)``."""
    spacing_mm: float
    """Distance of neighbouring slices; where it is not the same everywhere, the usual one."""
    limitations: tuple[str, ...]
    """Sentences on what is not as it should be."""

    @property
    def even(self) -> bool:
        """Whether all neighbours have the same distance."""
        gaps = np.diff(self.along_mm)
        return bool(np.allclose(gaps, self.spacing_mm, rtol=0, atol=1e-9))

    @property
    def regular(self) -> bool:
        """Whether the slices are the planes of one regular grid, as `highdicom.Volume` needs."""
        return self.even and not self.aside.any()


def arrange(slices: Sequence[Slice], largest_gap_mm: float | None = None) -> Arrangement:
    """Order slices of one plane and find how they lie to each other.

    Parameters
    ----------
    slices
        Alike in size, orientation, spacing and frame of reference.
    largest_gap_mm
        The widest distance of neighbours over which the model may be given interpolated voxels;
        None for none that is wider than the others.

    Raises
    ------
    UnsuitableSeries
        With the code ``duplicate-position``, ``gantry-tilt``, ``shifted-slices``,
        ``missing-slice``, ``wide-gap`` or ``geometry``.
    """
    # the digits of directions may differ from slice to slice, and files come in any order
    row, column = _orthonormal(min(slices, key=lambda one: one.name))
    normal = np.cross(column, row)
    positions = np.array([one.position for one in slices])
    order = np.argsort(positions @ normal, kind="stable")
    ordered = tuple(slices[i] for i in order)
    offsets = positions[order] - positions[order[0]]
    along = offsets @ normal
    _check_distinct(along, ordered)
    aside, tilt = _aside(offsets, along, np.stack([column, row]), ordered[0])
    along, spacing_mm, unevenness = _spaced(along, ordered, largest_gap_mm)
    return Arrangement(
        slices=ordered,
        orientation=(*row.tolist(), *column.tolist()),
        along_mm=tuple(along.tolist()),
        aside=aside,
        spacing_mm=spacing_mm,
        limitations=(*tilt, *unevenness),
    )


def check_plane(one: Slice) -> None:
    """Refuse a slice that does not say where it is (PS3.3 C.7.6.2.1.1).

    Raises
    ------
    UnsuitableSeries
        With the code ``geometry``.
    """
    expected = {
        "Image Position (Patient)": (one.position, 3),
        "Image Orientation (Patient)": (one.orientation, 6),
        "Pixel Spacing": (one.spacing, 2),
    }
    for name, (values, count) in expected.items():
        if values is None or len(values) != count or not np.isfinite(values).all():
            said = "none" if values is None else _listed(values)
            raise _unsuitable("geometry", f"{name} of the image {one.name} is {said}")
    if one.image.rows < 1 or one.image.columns < 1:
        raise _unsuitable(
            "geometry",
            f"the image {one.name} has {one.image.rows} rows, {one.image.columns} columns",
        )
    if any(abs(mm) > _FARTHEST_MM for mm in one.position or ()):
        raise _unsuitable(
            "geometry",
            f"Image Position (Patient) of the image {one.name} is {_listed(one.position or ())}",
        )
    if not all(_SMALLEST_MM <= mm <= _LARGEST_MM for mm in one.spacing or ()):
        raise _unsuitable("geometry", f"Pixel Spacing of the image {one.name} is {one.spacing}")
    axes = np.array(one.orientation).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=_SAME_DIRECTION):
        raise _unsuitable(
            "geometry",
            f"Image Orientation (Patient) of the image {one.name} is {one.orientation}, not two "
            "unit vectors at a right angle",
        )
    if not one.image.frame_of_reference_uid:
        raise _unsuitable("geometry", f"the image {one.name} has no Frame of Reference UID")


def alike(one: Slice, other: Slice) -> str:
    """Return what keeps two slices from being of one stack, empty for nothing."""
    if (one.image.rows, one.image.columns) != (other.image.rows, other.image.columns):
        return "size"
    if one.image.frame_of_reference_uid != other.image.frame_of_reference_uid:
        return "frame of reference"
    if not _close(one.orientation, other.orientation, _SAME_DIRECTION):
        return "orientation"
    if not _close(one.spacing, other.spacing, _SAME_SPACING_MM):
        return "pixel spacing"
    return ""


def doubled(slices: Sequence[Slice]) -> bool:
    """Return whether two slices that are alike lie at one place."""
    row, column = _orthonormal(slices[0])
    along = np.sort(np.array([one.position for one in slices]) @ np.cross(column, row))
    return bool((np.diff(along) < _SAME_PLACE_MM).any())


def _check_distinct(along: NDArray[np.float64], ordered: Sequence[Slice]) -> None:
    same = np.flatnonzero(np.diff(along) < _SAME_PLACE_MM)
    if not same.size:
        return
    one, other = ordered[same[0]], ordered[same[0] + 1]
    if np.linalg.norm(np.subtract(one.position or (), other.position or ())) < _SAME_PLACE_MM:
        what = "where another does"
        cure = "and nothing in them tells them apart; each phase or echo should be its own series"
    else:
        what = "beside another, at one height"
        cure = "parts of several places should be series of their own"
    raise _unsuitable(
        "duplicate-position",
        f"{same.size} of its images lie {what}, the first at {_place(one)} mm, {cure}",
    )


def _aside(
    offsets: NDArray[np.float64],
    along: NDArray[np.float64],
    axes: NDArray[np.float64],
    first: Slice,
) -> tuple[NDArray[np.float64], list[str]]:
    """Return each slice's shift in rows and columns, none where all are within half a pixel."""
    shifts = offsets @ axes.T
    pixel_mm = np.array(first.spacing)
    sideways = np.linalg.norm(shifts, axis=1)
    farthest = int(sideways.argmax())
    if sideways[farthest] <= _SIDEWAYS * pixel_mm.min():
        return np.zeros_like(shifts), []
    slope = along @ shifts / (along @ along)
    crooked = np.abs(shifts - np.outer(along, slope)).max() > _SIDEWAYS * pixel_mm.min()
    said = _crooked(sideways, first) if crooked else _tilted(float(np.linalg.norm(slope)))
    return shifts / pixel_mm, [f"{said}; the model saw them resampled."]


def _tilted(slope: float) -> str:
    angle = float(np.degrees(np.arctan(slope)))
    if angle > _STEEPEST:
        raise _unsuitable(
            "gantry-tilt",
            f"its slices are stacked {angle:.1f} degrees aside of their normal, and more than "
            f"{_STEEPEST:g} is no gantry tilt",
        )
    return f"The slices are stacked {angle:.1f} degrees aside of their normal (gantry tilt)"


def _crooked(sideways: NDArray[np.float64], first: Slice) -> str:
    """Say how far slices lie aside that do not lie on one line."""
    most = float(sideways.max())
    size_mm = np.array([first.image.rows, first.image.columns]) * first.spacing
    if most > size_mm.min() / 2:
        raise _unsuitable(
            "shifted-slices",
            f"its slices lie up to {most:.1f} mm aside of each other, which is more than half of "
            "one; parts of several places should be series of their own",
        )
    return f"The slices lie up to {most:.1f} mm aside of each other, not on one line"


def _spaced(
    along: NDArray[np.float64], ordered: Sequence[Slice], largest_gap_mm: float | None
) -> tuple[NDArray[np.float64], float, list[str]]:
    """Return the slices' places along the normal, the usual spacing, and what is wrong with it."""
    if len(ordered) == 1:
        said = "The only slice says no thickness; volumes are those of a slice of 1 mm."
        return along, _thickness(ordered[0]), [] if ordered[0].thickness else [said]
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    even_mm = float(along[-1] / (len(along) - 1))
    even = even_mm * np.arange(len(along), dtype=np.float64)
    if gaps.max() <= _MISSING * usual and np.abs(along - even).max() <= _UNEVEN * even_mm:
        return even, even_mm, []
    _check_gaps(gaps, usual, ordered, largest_gap_mm)
    return along, usual, [_unevenness(gaps, usual, ordered)]


def _thickness(only: Slice) -> float:
    thickness = abs(only.thickness or 1.0)
    if not _SMALLEST_MM <= thickness <= _LARGEST_MM:
        raise _unsuitable("geometry", f"Slice Thickness of the image {only.name} is {thickness:g}")
    return thickness


def _check_gaps(
    gaps: NDArray[np.float64],
    usual: float,
    ordered: Sequence[Slice],
    largest_gap_mm: float | None,
) -> None:
    widest = int(gaps.argmax())
    after = f"after {_place(ordered[widest])} mm is {gaps[widest]:.2f} mm"
    limit = "" if largest_gap_mm is None else f"; the model's card takes {largest_gap_mm:g} mm"
    too_wide = largest_gap_mm is not None and gaps[widest] > largest_gap_mm
    if gaps[widest] > _MISSING * usual and (too_wide or largest_gap_mm is None):
        raise _unsuitable(
            "missing-slice",
            f"slices are missing: the gap {after}, where {usual:.2f} mm is usual{limit}",
        )
    if too_wide:
        raise _unsuitable("wide-gap", f"its slices are too far apart: the gap {after}{limit}")


def _unevenness(gaps: NDArray[np.float64], usual: float, ordered: Sequence[Slice]) -> str:
    missing = int(np.count_nonzero(gaps > _MISSING * usual))
    widest = int(gaps.argmax())
    said = f"The slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart"
    if missing:
        said += (
            f" and some seem to be missing: {missing} gaps are wider than {_MISSING:g} times the "
            f"usual {usual:.2f} mm, the widest after {_place(ordered[widest])} mm"
        )
    return f"{said}; what lies between them was interpolated for the model."


def _orthonormal(one: Slice) -> NDArray[np.float64]:
    row, column = np.array(one.orientation, dtype=np.float64).reshape(2, 3)
    row /= np.linalg.norm(row)
    column -= (column @ row) * row
    return np.stack([row, column / np.linalg.norm(column)])


def _close(a: tuple[float, ...] | None, b: tuple[float, ...] | None, limit: float) -> bool:
    return bool(np.allclose(a or (), b or (), rtol=0, atol=limit))


def _place(one: Slice) -> str:
    return _listed(one.position or ())


def _listed(values: Sequence[float]) -> str:
    """Write the first few; a damaged attribute may have thousands."""
    return "(" + ", ".join(f"{value:g}" for value in values[:6]) + ")"


def _unsuitable(code: str, what: str) -> UnsuitableSeries:
    return UnsuitableSeries(f"The series does not form one regular volume: {what}.", code=code)
