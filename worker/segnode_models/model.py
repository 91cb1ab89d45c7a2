"""What every model is, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card
from segnode_contract.findings import Findings


@dataclass(frozen=True, slots=True, kw_only=True)
class InputVolume:
    """The images of one job, in the orientation that the card asks for."""

    hu: NDArray[np.int16] | NDArray[np.float32]
    """Modality values, Hounsfield units for CT, shape ``(slices, rows, columns)``."""
    spacing_mm: tuple[float, float, float]
    """Distance of neighbours along slices, rows and columns."""
    attributes: Mapping[str, str]
    """A short list of technical attributes by keyword (`BodyPartExamined`, `ConvolutionKernel`,
    `SliceThickness`), and ``ContrastBolus``: ``yes`` where any tag tells of contrast medium."""
    others: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Modality values of the other series that the card names, by role, on the grid of `hu`."""
    prior: NDArray[np.uint8] | None = None
    """Label planes of the result that the card builds on, ``(planes, slices, rows, columns)``."""


class Model(Protocol):
    """A loaded model."""

    card: Card

    def segment(self, volume: InputVolume, labels: NDArray[np.uint8]) -> Findings:
        """Write the label planes into `labels`, zero at the call.

        Parameters
        ----------
        volume
            The images.
        labels
            Shape ``(planes, slices, rows, columns)``, on the grid of `volume.hu`.

        Returns
        -------
        Findings
            Segments left out with their reason, and measurements.
        """
