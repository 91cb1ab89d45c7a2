"""How the slices of a series lie, from Orthanc's index alone: no pixel and no file is read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

_SAME_PLACE_MM = 0.01
_OBLIQUE_DEG = 30.0
"""Gantries tilt by up to 30 degrees, and their slices are called axial still."""
_PARALLEL = math.cos(math.radians(5.0))
_AXES = ("SAGITTAL", "CORONAL", "AXIAL")
"""By the patient's axis that the slices' normal lies nearest to: x, y, z of LPS."""

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where the slices lie (PS3.3 C.7.6.2.1.1), None for what cannot be told."""

    orientation: str
    obliquity_deg: float
    """Angle between the normal and the nearest axis."""
    slice_spacing_mm: float | None = None
    """Median distance of neighbours along the normal."""
    largest_gap_mm: float | None = None
    coverage_mm: float | None = None


def shape_of(instances: Iterable[Mapping[str, Any]]) -> Shape | None:
    """Return the shape of a series, None where its images say no orientation, or several.

    Parameters
    ----------
    instances
        Main DICOM tags of each, as Orthanc keeps them.
    """
    placed = [
        (normal, position)
        for tags in instances
        if (normal := _normal(str(tags.get("ImageOrientationPatient"))))
        and (position := _numbers(tags.get("ImagePositionPatient"), 3))
    ]
    if not placed:
        return None
    normal = placed[0][0]
    if any(abs(_dot(normal, other)) < _PARALLEL for other, _ in placed):
        return None
    nearest = max(range(3), key=lambda axis: abs(normal[axis]))
    angle = math.degrees(math.acos(min(1.0, abs(normal[nearest]))))
    orientation = _AXES[nearest] if angle <= _OBLIQUE_DEG else "OBLIQUE"
    along = sorted(_dot(normal, position) for _, position in placed)
    steps = [step for a, b in pairwise(along) if (step := b - a) > _SAME_PLACE_MM]
    if not steps:
        return Shape(orientation=orientation, obliquity_deg=angle)
    spacing = statistics.median(steps)
    return Shape(
        orientation=orientation,
        obliquity_deg=angle,
        slice_spacing_mm=spacing,
        largest_gap_mm=max(steps),
        coverage_mm=along[-1] - along[0] + spacing,
    )


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@lru_cache(maxsize=64)  # the same text stands in every image of a series
def _normal(text: str) -> Vector | None:
    cosines = _numbers(text, 6)
    if cosines is None:
        return None
    (a, b, c), (d, e, f) = cosines[:3], cosines[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    length = math.hypot(*normal)
    if length < 0.5:  # two directions that are none
        return None
    return normal[0] / length, normal[1] / length, normal[2] / length


def _numbers(text: Any, count: int) -> list[float] | None:
    """Return the values of a decimal string (PS3.5 6.2), None where they are not what they are."""
    try:
        values = [float(part) for part in str(text).split("\\")]
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None
