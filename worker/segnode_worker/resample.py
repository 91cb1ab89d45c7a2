"""Between slices at their true places and the regular grid on which a model sees them.

A tilted gantry shifts each slice against the one before, and a scanner may leave or widen gaps.
`highdicom.Volume` holds neither, nor is any network made for it. So a model is given voxels that
are interpolated on a regular grid, and each slice then takes the labels that lie nearest to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from segnode_worker.geometry import Arrangement

_FINEST = 4
"""The grid has at most so many times the slices that there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """How slices lie on a regular grid of the same orientation and pixel spacing."""

    along: NDArray[np.float64]
    """Where each slice lies along the grid's first axis, in voxels of the grid."""
    aside: NDArray[np.float64]
    """Where its first pixel lies along the other two, shape ``(slices, 2)``, never negative."""
    spacing_mm: float
    """Of the grid's slices."""
    origin: tuple[float, float]
    """Rows and columns from the first slice's first pixel to the grid's."""
    plane: tuple[int, int]
    """Rows and columns of a slice."""

    @classmethod
    def of(cls, arrangement: Arrangement) -> Lattice:
        """Return the grid for slices that do not lie on one.

        Where the slices have one distance, it keeps that. Else it is as fine as the narrowest gap.
        """
        along = np.array(arrangement.along_mm)
        spacing_mm = arrangement.spacing_mm
        if not arrangement.even:
            narrowest = float(np.diff(along).min())
            spacing_mm = max(narrowest, float(along[-1]) / (_FINEST * len(along)))
        first, image = arrangement.aside.min(axis=0), arrangement.slices[0].image
        return cls(
            along=along / spacing_mm,
            aside=arrangement.aside - first,
            spacing_mm=spacing_mm,
            origin=(float(first[0]), float(first[1])),
            plane=(image.rows, image.columns),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows and columns of the grid."""
        rows, columns = (int(n) for n in np.ceil(self.aside.max(axis=0) - 1e-6))
        slices = int(np.ceil(self.along[-1] - 1e-6)) + 1
        return slices, self.plane[0] + rows, self.plane[1] + columns

    def on_grid(self, values: NDArray[Any], padding: float | None = None) -> NDArray[Any]:
        """Interpolate modality values, linear in each direction; the least stands outside.

        Parameters
        ----------
        values
            Shape ``(slices, rows, columns)``, as they were acquired.
        padding
            The value that stands for no image. It is mixed with nothing: a voxel that would be
            made of it takes the value of the nearest one.
        """
        grid = np.empty(self.shape, values.dtype)
        outside = float(values.min())
        known: dict[int, NDArray[np.float32]] = {}
        for place in range(len(grid)):
            before, after, share = self._neighbours(place)
            for number in {before, after} - set(known):
                known[number] = self._moved(values[number], self.aside[number], outside, padding)
            mixed = known[before] * np.float32(1 - share) + known[after] * np.float32(share)
            if padding is not None:
                nearest = known[before if share < 0.5 else after]
                mixed = np.where(
                    (known[before] == padding) | (known[after] == padding), nearest, mixed
                )
            grid[place] = np.rint(mixed) if values.dtype.kind == "i" else mixed
            known = {number: known[number] for number in (before, after)}
        return grid

    def labels_on_grid(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return label planes of the slices on the grid, each voxel as the nearest one.

        Parameters
        ----------
        labels
            Shape ``(planes, slices, rows, columns)``.
        """
        grid = np.zeros((len(labels), *self.shape), np.uint8)
        for place in range(self.shape[0]):
            before, after, share = self._neighbours(place)
            number = before if share < 0.5 else after
            rows, columns = self._window(number)
            grid[:, place, rows, columns] = labels[:, number]
        return grid

    def on_slices(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return label planes of the grid on the slices, each pixel as the nearest voxel.

        Parameters
        ----------
        labels
            Shape ``(planes, slices, rows, columns)``, on the grid.
        """
        found = np.empty((len(labels), len(self.along), *self.plane), np.uint8)
        for number, place in enumerate(np.rint(self.along).astype(int)):
            rows, columns = self._window(number)
            found[:, number] = labels[:, min(place, self.shape[0] - 1), rows, columns]
        return found

    def _neighbours(self, place: int) -> tuple[int, int, float]:
        """Return the slices before and after a slice of the grid, and the share of the latter."""
        after = int(np.searchsorted(self.along, place - 1e-6))
        if after in {0, len(self.along)} or self.along[after] - place < 1e-6:
            number = min(after, len(self.along) - 1)
            return number, number, 0.0
        low, high = self.along[after - 1], self.along[after]
        return after - 1, after, float((place - low) / (high - low))

    def _moved(
        self,
        values: NDArray[Any],
        aside: NDArray[np.float64],
        outside: float,
        padding: float | None,
    ) -> NDArray[np.float32]:
        """Return a slice shifted within its plane."""

        def moved(plane: NDArray[Any], order: Literal[0, 1], beyond: float) -> NDArray[np.float32]:
            shifted: NDArray[np.float32] = affine_transform(
                plane.astype(np.float32),
                np.ones(2),
                offset=-aside,
                output_shape=self.shape[1:],
                order=order,
                mode="constant",
                cval=beyond,
            )
            return shifted

        if padding is None or not (mask := values == padding).any():
            return moved(values, 1, outside)
        touched = moved(mask, 1, 0) > 0
        return np.where(touched, moved(values, 0, outside), moved(values, 1, outside))

    def _window(self, number: int) -> tuple[slice, slice]:
        """Return where a slice lies within the plane of the grid, to the nearest pixel."""
        row, column = np.rint(self.aside[number]).astype(int)
        return slice(row, row + self.plane[0]), slice(column, column + self.plane[1])
