"""Binary morphology in millimetres, with boxes, and connected regions.

Masks are bool tensors of shape ``(slices, rows, columns)``. What lies outside the volume is
unknown, so it neither grows into it (`dilated`) nor eats from it (`eroded`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from segnode_models.builtin.grid import Spacing

_WITHIN_SLICE = np.array([np.zeros((3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.zeros((3, 3))])

Radii = tuple[int, int, int]


def radii(radius_mm: float, spacing_mm: Spacing) -> Radii:
    """Return `radius_mm` in voxels of each axis, rounded, halves down."""
    slices, rows, columns = (ceil(radius_mm / spacing - 0.5) for spacing in spacing_mm)
    return slices, rows, columns


def dilated(mask: Tensor, by: Radii) -> Tensor:
    """Return `mask` grown by a box, axis by axis."""
    for axis, radius in enumerate(by):
        grown = mask.clone()
        for shift in range(1, min(radius, mask.shape[axis] - 1) + 1):
            length = mask.shape[axis] - shift
            grown.narrow(axis, shift, length).logical_or_(mask.narrow(axis, 0, length))
            grown.narrow(axis, 0, length).logical_or_(mask.narrow(axis, shift, length))
        mask = grown
    return mask


def eroded(mask: Tensor, by: Radii) -> Tensor:
    """Return `mask` shrunk by a box."""
    return ~dilated(~mask, by)


def opened(mask: Tensor, by: Radii) -> Tensor:
    """Return `mask` without what is thinner than the box."""
    return dilated(eroded(mask, by), by)


def closed(mask: Tensor, by: Radii) -> Tensor:
    """Return `mask` with gaps narrower than the box closed, also beside the volume's faces."""
    slices, rows, columns = by
    padded = functional.pad(mask, (columns, columns, rows, rows, slices, slices))
    whole = eroded(dilated(padded, by), by)
    return whole[
        slices : slices + mask.shape[0],
        rows : rows + mask.shape[1],
        columns : columns + mask.shape[2],
    ]


def neighbour_mean(values: Tensor) -> Tensor:
    """Return the mean over each voxel and its 26 neighbours, the faces repeated."""
    padded = functional.pad(values[None, None], (1, 1, 1, 1, 1, 1), mode="replicate")
    return functional.avg_pool3d(padded, 3, stride=1)[0, 0]


def smoothed(hu: Tensor, sigma_mm: float, spacing_mm: Spacing) -> Tensor:
    """Return `hu` under a Gaussian of standard deviation `sigma_mm`; the faces are repeated."""
    for axis, spacing in enumerate(spacing_mm):
        sigma = sigma_mm / spacing
        radius = round(3 * sigma)
        offsets = torch.arange(-radius, radius + 1, dtype=hu.dtype, device=hu.device)
        weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
        weights /= weights.sum()
        before = hu.narrow(axis, 0, 1).repeat_interleave(radius, dim=axis)
        after = hu.narrow(axis, hu.shape[axis] - 1, 1).repeat_interleave(radius, dim=axis)
        padded = torch.cat([before, hu, after], dim=axis)
        size = hu.shape[axis]
        hu = torch.zeros_like(hu)
        for shift, weight in enumerate(weights.tolist()):
            hu.add_(padded.narrow(axis, shift, size), alpha=weight)
    return hu


def filled_slices(mask: Tensor) -> Tensor:
    """Return `mask` with the holes of each axial slice filled."""
    background = (~mask).cpu().numpy()
    regions, count = ndimage.label(background, _WITHIN_SLICE)
    outside = np.zeros(count + 1, dtype=bool)
    for face in (regions[:, 0], regions[:, -1], regions[:, :, 0], regions[:, :, -1]):
        outside[face] = True
    outside[0] = False
    return torch.from_numpy(~outside[regions]).to(mask.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """Face-connected regions of a mask, numbered from 1."""

    index: NDArray[np.int32]
    sizes: NDArray[np.int64]
    """Voxels by number; entry 0, the background, is zero."""
    device: torch.device

    def of(self, numbers: NDArray[np.bool_]) -> Tensor:
        """Return the mask of the regions whose entry in `numbers` is true."""
        return torch.from_numpy(numbers[self.index]).to(self.device)

    def means(self, values: Tensor) -> NDArray[np.float64]:
        """Return the mean of `values` in each region."""
        sums = np.bincount(self.index.ravel(), values.cpu().numpy().ravel(), len(self.sizes))
        return sums / np.maximum(self.sizes, 1)

    def touched_by(self, mask: Tensor) -> NDArray[np.bool_]:
        """Return, by number, whether a region shares a voxel with `mask`."""
        touched = np.zeros(len(self.sizes), dtype=bool)
        touched[self.index[mask.cpu().numpy()]] = True
        touched[0] = False
        return touched


def regions(mask: Tensor, *, within_slices: bool = False) -> Regions:
    """Find the face-connected regions of `mask`, in space or in each axial slice."""
    structure = _WITHIN_SLICE if within_slices else ndimage.generate_binary_structure(3, 1)
    index, count = ndimage.label(mask.cpu().numpy(), structure)
    sizes = np.bincount(index.ravel(), minlength=count + 1)
    sizes[0] = 0
    return Regions(index=index.astype(np.int32, copy=False), sizes=sizes, device=mask.device)
