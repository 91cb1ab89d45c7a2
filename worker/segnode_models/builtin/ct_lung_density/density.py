"""Density mask: lungs and low attenuation areas as labels, and what they measure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from segnode_models.builtin.ct_lung_density.lungs import find_lungs
from segnode_models.builtin.grid import to_float, voxel_ml
from segnode_models.model import InputVolume

RIGHT, LEFT = 1, 2
"""Values in plane 0; plane 1 holds low attenuation areas as 1."""

LAA_HU = -950
"""Gevenois et al., AJRCCM 1995;152:653-7; in the density mask of Müller et al., Chest 1988."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """What lung voxels, those of one lung or of both, measure; their HU are not smoothed."""

    volume_ml: float = 0.0
    laa_percent: float = 0.0
    mean_hu: float = 0.0
    laa_ml: float = 0.0

    def __add__(self, other: Density) -> Density:
        """Return the measures of both together."""
        volume_ml = self.volume_ml + other.volume_ml
        if not volume_ml:
            return Density()
        laa_ml = self.laa_ml + other.laa_ml
        total_hu = self.mean_hu * self.volume_ml + other.mean_hu * other.volume_ml
        return Density(
            volume_ml=volume_ml,
            laa_percent=100 * laa_ml / volume_ml,
            mean_hu=total_hu / volume_ml,
            laa_ml=laa_ml,
        )


@torch.inference_mode()
def label_lungs(
    volume: InputVolume, labels: NDArray[np.uint8], device: torch.device
) -> tuple[Density, Density]:
    """Write lungs and low attenuation areas into `labels`, whatever they are worth (see `gate`).

    Returns
    -------
    tuple
        The measures of the right and of the left lung.
    """
    right, left = find_lungs(volume.hu, volume.spacing_mm, device)
    measured = {RIGHT: Density(), LEFT: Density()}
    for slab in right.grid.slabs():
        hu = to_float(volume.hu[slab], device)
        low = hu < LAA_HU
        sides = torch.zeros_like(hu, dtype=torch.uint8)
        for value, lung in ((RIGHT, right), (LEFT, left)):
            here = lung.on_source(hu, slab) & (sides == 0)
            sides[here] = value
            measured[value] += _measure(hu[here], voxel_ml(volume.spacing_mm))
        labels[0, slab] = sides.cpu().numpy()
        labels[1, slab] = (low & (sides > 0)).cpu().numpy()
    return measured[RIGHT], measured[LEFT]


def _measure(hu: torch.Tensor, each_ml: float) -> Density:
    if not len(hu):
        return Density()
    low = int((hu < LAA_HU).sum())
    return Density(
        volume_ml=len(hu) * each_ml,
        laa_percent=100 * low / len(hu),
        mean_hu=float(hu.double().mean()),
        laa_ml=low * each_ml,
    )
