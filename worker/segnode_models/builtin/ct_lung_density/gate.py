"""When lung density must not be reported, and why."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from segnode_models.builtin.ct_lung_density.density import LEFT, RIGHT, Density
from segnode_models.model import InputVolume

_COVERAGE_MM = 100
_THICKEST_MM = 3.05  # 3 mm, and what headers make of it
_SMALLEST_LUNG_ML = 500
_CUT_MM2 = 100
_THORACIC = ("CHEST", "THORAX", "TORAX", "THORACIC", "LUNG", "WHOLEBODY")


def reasons_against(
    volume: InputVolume, lungs: NDArray[np.uint8], right: Density, left: Density
) -> list[str]:
    """Return a sentence for everything that makes the measures worthless; empty when none does.

    `lungs` is plane 0 of the labels.
    """
    return [*_about_series(volume), *_about_lungs(volume, lungs, right, left)]


def _about_series(volume: InputVolume) -> Iterator[str]:
    part = volume.attributes.get("BodyPartExamined", "").upper().replace(" ", "")
    if part and not any(word in part for word in _THORACIC):
        yield "The header says that a body part other than the chest was examined."
    if volume.attributes.get("Interpolated") == "yes":
        yield "The voxels are interpolated between tilted or uneven slices, which smooths them."
    coverage_mm = volume.hu.shape[0] * volume.spacing_mm[0]
    if coverage_mm < _COVERAGE_MM:
        yield f"The images cover {coverage_mm:.0f} mm; {_COVERAGE_MM} mm are needed."
    said = (_acquired_mm(volume, k) for k in ("SliceThickness", "SpacingBetweenSlices"))
    thickness_mm = max(*volume.spacing_mm, *said)
    if thickness_mm > _THICKEST_MM:
        yield f"Slices or voxels are {thickness_mm:.1f} mm thick; at most 3 mm can be measured."


def _acquired_mm(volume: InputVolume, keyword: str) -> float:
    try:
        return float(volume.attributes.get(keyword, "0"))
    except ValueError:
        return 0.0


def _about_lungs(
    volume: InputVolume, lungs: NDArray[np.uint8], right: Density, left: Density
) -> Iterator[str]:
    for name, value, density in (("right", RIGHT, right), ("left", LEFT, left)):
        if not density.volume_ml:
            yield f"No {name} lung was found."
        elif density.volume_ml < _SMALLEST_LUNG_ML:
            yield (
                f"The {name} lung has {density.volume_ml:.0f} ml in the images; at least "
                f"{_SMALLEST_LUNG_ML} ml are needed."
            )
        if _cut_by_a_face(lungs, value, volume.spacing_mm):
            yield f"The {name} lung is cut by the edge of the images."


def _cut_by_a_face(
    lungs: NDArray[np.uint8], value: int, spacing_mm: tuple[float, float, float]
) -> bool:
    """Return whether the lung meets a face of the volume with more than 1 cm²."""
    for axis in range(3):
        area_mm2 = np.prod(spacing_mm) / spacing_mm[axis]
        for end in (0, -1):
            if (lungs.take(end, axis) == value).sum() * area_mm2 > _CUT_MM2:
                return True
    return False
