"""Bone by threshold, closed and filled where the inside is marrow and not the spinal canal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segnode_models.builtin.body import border
from segnode_models.builtin.grid import Grid, Spacing
from segnode_models.builtin.morphology import (
    closed,
    dilated,
    eroded,
    filled_slices,
    radii,
    regions,
    smoothed,
)

_DENSE_HU = 130
_CORTEX_HU = 300
_MARROW_HU = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Bone:
    """Bone on a grid of about 1.5 mm, and its exact surface on the source grid."""

    grid: Grid
    mask: Tensor
    _inner: Tensor
    _outer: Tensor

    def on_source(self, hu: Tensor, slab: slice) -> Tensor:
        """Return the bone in the source slices `slab`, whose values are `hu`."""
        inner, outer = self.grid.enlarge(self._inner, slab), self.grid.enlarge(self._outer, slab)
        return (inner & (hu > -200)) | (outer & (hu > _DENSE_HU))


def find_bone(hu: NDArray[np.generic], spacing_mm: Spacing, device: torch.device) -> Bone:
    """Find bone; vessels and organs with contrast medium are found too, so ask first."""
    grid = Grid.of_about(1.5, shape=hu.shape, source_mm=spacing_mm)
    pooled = grid.pool(hu, device)
    dense = _bones_among(pooled, grid)
    whole = _filled(pooled, dense, grid)
    one = border(grid)
    return Bone(
        grid=grid,
        mask=whole,
        _inner=eroded(whole, one) | (whole & ~dense),
        _outer=dilated(whole, one),
    )


def _bones_among(hu: Tensor, grid: Grid) -> Tensor:
    """Return dense regions of at least 1 ml that hold something as dense as cortex."""
    found = regions(hu > _DENSE_HU)
    return found.of(found.touched_by(hu > _CORTEX_HU) & (found.sizes * grid.voxel_ml >= 1))


def _filled(hu: Tensor, dense: Tensor, grid: Grid) -> Tensor:
    """Close gaps and fill marrow; the spinal canal, darker than 50 HU, stays open."""
    shell = closed(dense, radii(3, grid.spacing_mm))
    marrow = filled_slices(shell) & (smoothed(hu, 2, grid.spacing_mm) > _MARROW_HU)
    return (shell | marrow) & (hu > -200)
