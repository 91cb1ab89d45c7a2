"""Which lung tissue is right and which is left, also where the lungs touch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segnode_models.builtin.grid import Spacing
from segnode_models.builtin.morphology import Regions, dilated, eroded, radii, regions

_DEPTHS_MM = (0, 3, 6, 9, 12, 15)
_LARGE_SHARE = 0.1
_ONE_SIDED_SHARE = 0.8


def split_sides(lungs: Tensor, spacing_mm: Spacing, midline: float) -> tuple[Tensor, Tensor]:
    """Divide `lungs` into right and left, columns growing towards the patient's left.

    The lungs are eroded until every large part lies on one side of the midline, then both sides
    grow back together and meet halfway; where 15 mm do not part them, the midline does.
    """
    left_of_midline = torch.arange(lungs.shape[2], device=lungs.device) > midline
    on_left = left_of_midline.expand(lungs.shape)
    for depth in _DEPTHS_MM:
        core = eroded(lungs, radii(depth, spacing_mm))
        parts = regions(core)
        left_share = parts.means(on_left)
        if _parted(parts, left_share):
            left = parts.of((left_share > 0.5) & (parts.sizes > 0))
            return _grown_back(lungs, core & ~left, left, on_left)
    return lungs & ~on_left, lungs & on_left


def _parted(parts: Regions, left_share: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bool:
    large = parts.sizes > _LARGE_SHARE * parts.sizes.sum()
    one_sided = np.maximum(left_share, 1 - left_share) >= _ONE_SIDED_SHARE
    return bool(large.any() and one_sided[large].all())


def _grown_back(
    lungs: Tensor, right: Tensor, left: Tensor, on_left: Tensor
) -> tuple[Tensor, Tensor]:
    while True:
        free = lungs & ~right & ~left
        new_right = dilated(right, (1, 1, 1)) & free
        new_left = dilated(left, (1, 1, 1)) & free
        if not (new_right.any() or new_left.any()):
            return right | (free & ~on_left), left | (free & on_left)
        both = new_right & new_left
        right = right | (new_right & ~(both & on_left))
        left = left | (new_left & ~(both & ~on_left))
