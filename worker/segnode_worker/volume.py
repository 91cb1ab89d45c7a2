"""To the model's grid and back, by `highdicom.Volume` alone."""

from __future__ import annotations

import highdicom as hd
import numpy as np
from numpy.typing import NDArray


def for_model(volume: hd.Volume, orientation: str) -> hd.Volume:
    """Turn a volume so that its axes grow as the card says; an oblique one as nearly as it can be.

    Voxels are neither moved nor interpolated; the array is a view.

    Parameters
    ----------
    volume
        The images as they were acquired.
    orientation
        `Card.orientation`: ``HPL`` is slices towards the head, rows towards posterior, columns
        towards the patient's left.
    """
    return volume.to_patient_orientation(orientation)


def on_source(
    labels: NDArray[np.uint8], model_volume: hd.Volume, source_volume: hd.Volume
) -> NDArray[np.uint8]:
    """Return label planes on the grid of the images.

    Parameters
    ----------
    labels
        Shape ``(planes, slices, rows, columns)`` on the grid of `model_volume`.
    model_volume
        What `for_model` gave.
    source_volume
        What `for_model` was given.

    Returns
    -------
    numpy.ndarray
        Shape ``(planes, slices, rows, columns)`` on the grid of `source_volume`.
    """
    grid = source_volume.get_geometry()
    turned = [model_volume.with_array(plane).match_geometry(grid).array for plane in labels]
    return np.stack(turned)
