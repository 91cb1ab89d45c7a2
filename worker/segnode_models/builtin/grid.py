"""The source grid and a coarser one on it: topology is cheap there, thresholds stay exact here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_SLAB_SLICES = 16

Spacing = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A coarse grid whose voxels are blocks of `factors` source voxels.

    The last block of an axis may stick out of the source grid.
    """

    shape: tuple[int, int, int]
    """Of the source grid: slices, rows, columns."""
    factors: tuple[int, int, int]
    spacing_mm: Spacing
    """Of the coarse grid."""

    @classmethod
    def of_about(cls, size_mm: float, *, shape: tuple[int, ...], source_mm: Spacing) -> Self:
        """Return the grid with voxels of about `size_mm`, never finer than the source."""
        slices, rows, columns = shape
        factors = [
            min(count, max(1, round(size_mm / spacing)))
            for count, spacing in zip(shape, source_mm, strict=True)
        ]
        return cls(
            shape=(slices, rows, columns),
            factors=(factors[0], factors[1], factors[2]),
            spacing_mm=(
                factors[0] * source_mm[0],
                factors[1] * source_mm[1],
                factors[2] * source_mm[2],
            ),
        )

    @property
    def voxel_ml(self) -> float:
        """Volume of one coarse voxel."""
        return voxel_ml(self.spacing_mm)

    def slabs(self) -> Iterator[slice]:
        """Yield ranges of source slices, each a whole number of coarse slices."""
        step = self.factors[0] * max(1, _SLAB_SLICES // self.factors[0])
        for start in range(0, self.shape[0], step):
            yield slice(start, min(start + step, self.shape[0]))

    def pool(self, hu: NDArray[np.generic], device: torch.device) -> Tensor:
        """Return the mean of each block, float32, slab by slab to spare memory."""
        return torch.cat([self._pool_slab(to_float(hu[slab], device)) for slab in self.slabs()])

    def _pool_slab(self, hu: Tensor) -> Tensor:
        # the last slab may be thinner than a block, which torch takes for an error
        block = (min(self.factors[0], len(hu)), *self.factors[1:])
        pooled = functional.avg_pool3d(
            hu[None, None], block, ceil_mode=True, count_include_pad=False
        )
        return pooled[0, 0]

    def enlarge(self, coarse: Tensor, slab: slice) -> Tensor:
        """Return the source slices `slab` of a coarse mask, each block filled with its voxel."""
        first, last = slab.start // self.factors[0], -(-slab.stop // self.factors[0])
        fine = coarse[first:last]
        for axis, factor in enumerate(self.factors):
            if factor > 1:
                fine = fine.repeat_interleave(factor, dim=axis)
        return fine[: slab.stop - slab.start, : self.shape[1], : self.shape[2]]


def to_float(hu: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy into a float32 tensor; any dtype, stride and read-only memory will do."""
    return torch.from_numpy(np.array(hu, dtype=np.float32)).to(device)


def voxel_ml(spacing_mm: Spacing) -> float:
    """Return the volume of a voxel in millilitres."""
    return spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / 1000
