"""What every model is, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

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
    `SliceThickness`), ``ContrastBolus``: ``yes`` where any tag tells of contrast medium, and of
    slices on no regular grid ``Interpolated``: ``yes``, and the widest `SpacingBetweenSlices`."""
    others: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Modality values of the other series that the card names, by role, on the grid of `hu`."""
    prior: NDArray[np.uint8] | None = None
    """Label planes of the result that the card builds on, ``(planes, slices, rows, columns)``."""
    prepared: object = None
    """What the model's `preparation` made of the images before the model's turn came, if it did."""

    def channels(self, card: Card) -> list[NDArray[np.int16] | NDArray[np.float32]]:
        """Return the images in the order of `Card.inputs`; zeros for one that is not there."""
        absent = np.zeros_like(self.hu, dtype=np.float32)
        others = [self.others.get(one.role, absent) for one in card.inputs[1:]]
        return [self.hu, *others]


Told = Callable[[float], None]
"""Takes how much of the work is done, 0 to 1, and raises `Stopped` when it is not wanted any more.

A model calls it often, twice a second say: it is how a cancelled job ends in time."""


class Stopped(Exception):
    """Nobody waits for the result."""


@runtime_checkable
class Prepares(Protocol):
    """A model that can look at images while another job is on the device.

    Its `preparation` takes a volume and gives what `segment` then finds as `InputVolume.prepared`.
    It runs on the CPU, beside a model, and outlives its own model, so that it holds no weights.
    """

    preparation: Callable[[InputVolume], object]


class Model(Protocol):
    """A loaded model."""

    card: Card

    def segment(self, volume: InputVolume, labels: NDArray[np.uint8], told: Told) -> Findings:
        """Write the label planes into `labels`, zero at the call.

        Parameters
        ----------
        volume
            The images.
        labels
            Shape ``(planes, slices, rows, columns)``, on the grid of `volume.hu`.
        told
            See `Told`.

        Returns
        -------
        Findings
            Segments left out with their reason, and measurements.

        Raises
        ------
        ModelFailed
            With a code of its own where the network, its card and the images do not fit.
        Stopped
            Out of `told`.
        """
