"""A MONAI bundle as a model: its images, its labels, its time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from segnode_contract.card import Card
from segnode_contract.card_network import BundleNetwork
from segnode_contract.errors import ModelFailed
from segnode_contract.findings import Findings
from segnode_models.bundle.labels import write_labels
from segnode_models.model import InputVolume, Told

_RAN = 0.95
"""How much of the work is done when the labels are still to be written."""
_RAS = {
    "R": (1, 0, 0),
    "L": (-1, 0, 0),
    "A": (0, 1, 0),
    "P": (0, -1, 0),
    "H": (0, 0, 1),
    "F": (0, 0, -1),
}
"""Direction of each letter of `Card.orientation`."""


class MonaiBundleModel:
    """A MONAI bundle, as its publisher configured it.

    Parameters
    ----------
    folder
        Its files were checked. No file is written there.

    Raises
    ------
    ModelFailed
        ``extra-missing``, ``model-mismatch`` or ``model-weights``.
    """

    def __init__(
        self, card: Card, network: BundleNetwork, folder: Path, device: torch.device
    ) -> None:
        try:
            from segnode_models.bundle.run import Bundle  # noqa: PLC0415 # MONAI is an extra
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "monai":
                raise
            raise ModelFailed(
                f"The model {card.name} is a MONAI bundle, and MONAI is not installed; "
                "`setup/venv.sh monai` in segnode's checkout installs it.",
                code="extra-missing",
            ) from error
        self.card = card
        half = bool(card.half_precision_checked) and device.type == "cuda"
        self._bundle = Bundle(folder, network, device, half=half)

    def segment(self, volume: InputVolume, labels: NDArray[np.uint8], told: Told) -> Findings:
        """Write the label planes; see `Model.segment`."""
        images = volume.channels(self.card)
        affine = affine_of(self.card.orientation, volume.spacing_mm)
        result = self._bundle.run(images, affine, lambda share: told(_RAN * share))
        write_labels(result, self.card, labels, lambda share: told(_RAN + (1 - _RAN) * share))
        told(1.0)
        return Findings()


def affine_of(orientation: str, spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the affine from voxel indices to RAS millimetres, MONAI's, from the first voxel.

    Where the first voxel lies is not told: no transform of MONAI depends on it.
    """
    affine = np.eye(4)
    for axis, (letter, spacing) in enumerate(zip(orientation, spacing_mm, strict=True)):
        affine[:3, axis] = np.multiply(_RAS[letter], spacing)
    return affine
