"""The patient's body in the field of view, without table, clothes and the air around.

Every number was chosen on measurements; larger openings eat limbs, closing before the holes are
filled bridges the gap between arm and trunk and calls the air in it gas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segnode_models.builtin.grid import Grid, Spacing, voxel_ml
from segnode_models.builtin.morphology import (
    Radii,
    dilated,
    eroded,
    filled_slices,
    opened,
    radii,
    regions,
    smoothed,
)

SURFACE_HU = -500


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The body on a coarse grid, and its exact surface on the source grid."""

    grid: Grid
    hu: Tensor
    """Mean HU of the coarse voxels."""
    mask: Tensor
    _inner: Tensor
    _outer: Tensor

    def on_source(self, hu: Tensor, slab: slice) -> Tensor:
        """Return the body in the source slices `slab`, whose values are `hu`."""
        inner, outer = self.grid.enlarge(self._inner, slab), self.grid.enlarge(self._outer, slab)
        return inner | (outer & (hu > SURFACE_HU))


def find_body(hu: NDArray[np.generic], spacing_mm: Spacing, device: torch.device) -> Body:
    """Find the body, on a grid of about 3 mm; the mask is empty where there is none."""
    grid = Grid.of_about(3.0, shape=hu.shape, source_mm=spacing_mm)
    pooled = grid.pool(hu, device)
    mask = body_mask(pooled, grid.spacing_mm)
    one = border(grid)
    return Body(
        grid=grid, hu=pooled, mask=mask, _inner=eroded(mask, one), _outer=dilated(mask, one)
    )


def border(grid: Grid) -> Radii:
    """Return one coarse voxel along the axes that are coarser than the source."""
    slices, rows, columns = (int(factor > 1) for factor in grid.factors)
    return slices, rows, columns


def body_mask(hu: Tensor, spacing_mm: Spacing) -> Tensor:
    """Return the body on the grid of `hu`."""
    foreground = hu > SURFACE_HU
    small, large = radii(3, spacing_mm), radii(6, spacing_mm)
    solid = opened(filled_slices(opened(foreground, small)), large)
    parts = _parts_of_the_body(hu, solid)
    whole = filled_slices(parts | (dilated(parts, small) & foreground))
    return filled_slices(whole | _lungs_cut_by_the_edge(hu, whole, spacing_mm))


def _parts_of_the_body(hu: Tensor, solid: Tensor) -> Tensor:
    """Keep the largest part and those, arms say, with at least 2 % of it that are not foam."""
    found = regions(solid)
    keep = (found.sizes >= 0.02 * found.sizes.max()) & (found.means(hu) > -300)
    keep[found.sizes.argmax()] = True
    keep[0] = False
    return found.of(keep)


def _lungs_cut_by_the_edge(hu: Tensor, body: Tensor, spacing_mm: Spacing) -> Tensor:
    """Return lungs that the field of view opens to the outside, where no slice can close them.

    Smaller ones than 500 ml cannot be told from clothes, thinner ones than 12 mm are the blurred
    rims of skin and table, and what the body does not surround (77 % of a lung's surroundings and
    64 % of a table's were body, measured) is the inside of the table.
    """
    mean = smoothed(hu, 3, spacing_mm)
    aerated = (mean > -930) & (mean < -550) & ~body
    found = regions(opened(aerated, radii(6, spacing_mm)))
    keep = found.sizes * voxel_ml(spacing_mm) > 500
    for number in np.flatnonzero(keep):
        region = torch.from_numpy(found.index == number).to(hu.device)
        around = dilated(region, (2, 2, 2)) & ~dilated(region, (1, 1, 1))
        keep[number] = (
            _meets_the_edge(region)
            and -900 < float(hu[region].median()) < -600
            and float(body[around].float().mean()) > 0.7
        )
    return found.of(keep)


def _meets_the_edge(region: Tensor) -> bool:
    ends = [0, -1]
    return bool(region[:, ends].any() or region[:, :, ends].any())
