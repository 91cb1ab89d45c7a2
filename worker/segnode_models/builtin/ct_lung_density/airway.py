"""Trachea and main bronchi, grown from the trachea until they leak into the lung."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segnode_models.builtin.body import Body
from segnode_models.builtin.morphology import Regions, dilated, radii, regions

_TOP_MM = 120
_MIDLINE_MM = 35
_LEAK_ML = 3.5
_LARGEST_ML = 80


def find_airway(body: Body, midline: float) -> Tensor:
    """Return the airway with its wall (3 mm); empty where no trachea is seen.

    Parameters
    ----------
    body
        The body, on the coarse grid of the answer.
    midline
        Column index between right and left.
    """
    airway = _trachea(body, midline)
    gas = (body.hu < -880) & body.mask
    size = int(airway.sum())
    while size:
        grown = _one_step(airway) & gas
        grown_size = int(grown.sum())
        step_ml = (grown_size - size) * body.grid.voxel_ml
        if not step_ml or step_ml > _LEAK_ML or grown_size * body.grid.voxel_ml > _LARGEST_ML:
            break
        airway, size = grown, grown_size
    return dilated(airway, radii(3, body.grid.spacing_mm))


def _one_step(mask: Tensor) -> Tensor:
    """Grow through faces only: a box would jump a thin wall at its corners."""
    return dilated(mask, (1, 0, 0)) | dilated(mask, (0, 1, 0)) | dilated(mask, (0, 0, 1))


def _trachea(body: Body, midline: float) -> Tensor:
    """Return the longest stack, 15 mm or more, of round enough gas near the midline at the top."""
    gas = (body.hu < -800) & body.mask
    gas[: max(0, gas.shape[0] - round(_TOP_MM / body.grid.spacing_mm[0]))] = False
    blobs = regions(gas, within_slices=True)
    stacks = regions(blobs.of(_like_a_trachea(blobs, body, midline)))
    lengths = np.zeros(len(stacks.sizes))
    slices, *_ = np.nonzero(stacks.index)
    numbers = stacks.index[stacks.index > 0]
    for number in range(1, len(lengths)):
        own = slices[numbers == number]
        lengths[number] = (own.max() - own.min() + 1) * body.grid.spacing_mm[0]
    keep = (lengths >= 15) & (lengths == lengths.max(initial=0))
    return stacks.of(keep) if keep.any() else torch.zeros_like(gas)


def _like_a_trachea(
    blobs: Regions, body: Body, midline: float
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    _, row_mm, column_mm = body.grid.spacing_mm
    area_mm2 = blobs.sizes * row_mm * column_mm
    columns = torch.arange(body.mask.shape[2]).expand(body.mask.shape)
    offset_mm = np.abs(blobs.means(columns) - midline) * column_mm
    return (area_mm2 >= 60) & (area_mm2 <= 800) & (offset_mm <= _MIDLINE_MM)
