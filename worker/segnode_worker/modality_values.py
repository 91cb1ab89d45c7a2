"""Modality values of slices: what the stored ones mean (PS3.3 C.11.1.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segnode_worker.attributes import BROKEN
from segnode_worker.pixels import Pixels
from segnode_worker.slices import Slice


def kind_of(slices: Sequence[Slice]) -> np.dtype[np.int16] | np.dtype[np.float32]:
    """Return the smallest of both that holds the values of all slices."""
    whole = all(_is_whole(_slope(one)) and _is_whole(_intercept(one)) for one in slices)
    fits = all(one.image.modality == "CT" or _largest(one) <= 32767 for one in slices)
    return np.dtype(np.int16) if whole and fits else np.dtype(np.float32)


def padding_of(one: Slice) -> float | None:
    """Return the modality value that stands for no image (PS3.3 C.7.5.1.1.2), if any does."""
    try:
        stored = one.image.header.get("PixelPaddingValue")
        return None if stored is None else float(stored) * _slope(one) + _intercept(one)
    except BROKEN:
        return None


def modality_values(slices: Sequence[Slice], kind: np.dtype[Any]) -> NDArray[Any]:
    """Decode slice by slice into one volume (PS3.3 C.11.1.1.2)."""
    images = {one.image.uid: one.image for one in slices}
    pixels = {uid: Pixels(image) for uid, image in images.items()}
    first = slices[0].image
    voxels = np.empty((len(slices), first.rows, first.columns), kind)
    for plane, one in zip(voxels, slices, strict=True):
        values = pixels[one.image.uid].stored_values(one.frame or 1)
        if kind == np.int16:
            _put_whole(plane, values, int(_slope(one)), int(_intercept(one)))
        else:
            plane[:] = values * _slope(one) + _intercept(one)
    return voxels


def _put_whole(plane: NDArray[np.int16], values: NDArray[Any], slope: int, intercept: int) -> None:
    """Write modality values that are whole.

    Those beyond int16, as a padding value of -32768 makes them, are held at its ends.
    """
    lowest, highest = int(values.min()) + intercept, int(values.max()) + intercept
    if slope == 1 and min(lowest, intercept) >= -32768 and max(highest, intercept) <= 32767:
        plane[:] = values  # what is beyond int16 wraps around, and back again by the next line
        plane += intercept
    else:
        wide = values.astype(np.int64) * slope + intercept
        plane[:] = wide.clip(-32768, 32767)


def _largest(one: Slice) -> float:
    """Return the largest value that its bits can mean; of CT those beyond int16 are padding."""
    stored = one.image.bits[1] - one.image.representation
    return (2.0 ** min(stored, 64) - 1) * _slope(one) + _intercept(one)


def _is_whole(value: float) -> bool:
    return value.is_integer() and abs(value) < 1 << 24


def _slope(one: Slice) -> float:
    return 1.0 if one.slope is None else one.slope


def _intercept(one: Slice) -> float:
    return 0.0 if one.intercept is None else one.intercept
