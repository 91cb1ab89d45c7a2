"""The two lungs, on a coarse grid and with their exact surface on the source grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segnode_models.builtin.body import Body, border, find_body
from segnode_models.builtin.ct_lung_density.airway import find_airway
from segnode_models.builtin.ct_lung_density.sides import split_sides
from segnode_models.builtin.grid import Grid, Spacing
from segnode_models.builtin.morphology import (
    closed,
    dilated,
    eroded,
    filled_slices,
    radii,
    regions,
)

_CANDIDATE_HU = -500
_EDGE_HU = -400
_SMALLEST_ML = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Lung:
    """One lung, its vessels included."""

    grid: Grid
    mask: Tensor
    _inner: Tensor
    _outer: Tensor

    def on_source(self, hu: Tensor, slab: slice) -> Tensor:
        """Return the lung in the source slices `slab`, whose values are `hu`."""
        inner, outer = self.grid.enlarge(self._inner, slab), self.grid.enlarge(self._outer, slab)
        return inner | (outer & (hu < _EDGE_HU))


def find_lungs(
    hu: NDArray[np.generic], spacing_mm: Spacing, device: torch.device
) -> tuple[Lung, Lung]:
    """Find right and left lung; a mask is empty where there is none."""
    body = find_body(hu, spacing_mm, device)
    midline = _midline(body)
    airway = find_airway(body, midline)
    right, left = split_sides(_lung_tissue(body, airway), body.grid.spacing_mm, midline)
    whole_right = _with_vessels(right, body) & ~left
    whole_left = _with_vessels(left, body) & ~whole_right
    return (
        _lung(whole_right, body, body.mask & ~airway & ~whole_left),
        _lung(whole_left, body, body.mask & ~airway & ~whole_right),
    )


def _midline(body: Body) -> float:
    """Return the mean column of the body, which is where its columns are many."""
    columns = body.mask.sum(dim=(0, 1)).cpu().numpy()
    return float(np.average(np.arange(len(columns)), weights=columns)) if columns.any() else 0.0


def _lung_tissue(body: Body, airway: Tensor) -> Tensor:
    """Return aerated tissue inside the body that is not as empty as gas in the bowel.

    The 90th percentile decides: a lung holds denser tissue, gas does not. The median would call
    bowel gas lung on a scanner that reads 20 HU too high.
    """
    deep = eroded(body.mask, radii(3, body.grid.spacing_mm))
    found = regions((body.hu < _CANDIDATE_HU) & deep & ~airway)
    interior = eroded(torch.from_numpy(found.index > 0), radii(3, body.grid.spacing_mm)).numpy()
    hu = body.hu.cpu().numpy()
    keep = found.sizes * body.grid.voxel_ml >= _SMALLEST_ML
    for number in np.flatnonzero(keep):
        region = found.index == number
        inside = region & interior
        dense_end = np.percentile(hu[inside if inside.any() else region], 90)
        keep[number] = -900 <= dense_end <= -300
    return found.of(keep)


def _with_vessels(lung: Tensor, body: Body) -> Tensor:
    return filled_slices(closed(lung, radii(6, body.grid.spacing_mm)))


def _lung(whole: Tensor, body: Body, allowed: Tensor) -> Lung:
    """Let the surface follow -400 HU: from one coarse voxel inside to one outside."""
    one = radii(3, body.grid.spacing_mm)
    within = whole & allowed
    soft = eroded(within, one) | (dilated(within, one) & allowed & (body.hu < _EDGE_HU))
    fine = border(body.grid)
    return Lung(
        grid=body.grid,
        mask=soft,
        _inner=eroded(soft, fine),
        _outer=dilated(soft, fine) & allowed,
    )
