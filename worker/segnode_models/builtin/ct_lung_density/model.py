"""ct-lung-density: the lungs and their low attenuation areas, or why they are not measurable."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from segnode_contract.card import Card
from segnode_contract.findings import Findings, Measurement, Withheld
from segnode_models.builtin.ct_lung_density.density import Density, label_lungs
from segnode_models.builtin.ct_lung_density.gate import reasons_against
from segnode_models.model import InputVolume, Told

_RIGHT_SEGMENT, _LEFT_SEGMENT, _LAA_SEGMENT = 1, 2, 3


class CtLungDensity:
    """Density mask in lungs found by threshold and morphology, behind a gate.

    Where the gate closes, lungs that were found stay visible, but low attenuation areas are left
    out and every measure is said to be not measurable: a picture of them would be read as a number.
    """

    def __init__(self, card: Card, device: torch.device) -> None:
        self.card = card
        self._device = device

    def segment(self, volume: InputVolume, labels: NDArray[np.uint8], told: Told) -> Findings:
        """Write the lungs into plane 0 and low attenuation areas into plane 1 (see `Model`)."""
        right, left = label_lungs(volume, labels, self._device)
        told(0.9)
        reasons = reasons_against(volume, labels[0], right, left)
        against = " ".join(reasons)
        if against:
            labels[1] = 0
        return Findings(
            withheld=tuple(_withheld(right, left, against)),
            measurements=tuple(_measurements(right, left, against)),
        )


def _withheld(right: Density, left: Density, against: str) -> Iterator[Withheld]:
    for segment, name, density in (
        (_RIGHT_SEGMENT, "right", right),
        (_LEFT_SEGMENT, "left", left),
    ):
        if not density.volume_ml:
            yield Withheld(segment=segment, reason=f"No {name} lung was found.")
    if against:
        yield Withheld(segment=_LAA_SEGMENT, reason=f"Not measurable: {against}")


def _measurements(right: Density, left: Density, against: str) -> Iterator[Measurement]:
    for segment, density in (
        (_RIGHT_SEGMENT, right),
        (_LEFT_SEGMENT, left),
        (_LAA_SEGMENT, right + left),
    ):
        volume_ml = density.laa_ml if segment == _LAA_SEGMENT else density.volume_ml
        rows = [("Volume", volume_ml, "ml"), ("LAA-950", density.laa_percent, "%")]
        if segment != _LAA_SEGMENT:
            rows.append(("Mean density", density.mean_hu, "[hnsf'U]"))
        for name, value, unit in rows:
            yield Measurement(
                segment=segment,
                name=name,
                value=None if against else value,
                unit=unit,
                reason=f"Not measurable: {against}" if against else "",
            )
