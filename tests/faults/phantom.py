"""Small CT series whose answer is known: an upright tube of soft tissue with a rod of bone."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field

import numpy as np
from pydicom import Dataset

from segnode_cli.ct_series import ct_series

SLICES, SIZE, SPACING_MM = 24, 64, (5.0, 5.0, 5.0)
POISON, MEMORY, HANG = 3001, 3002, 3003
"""Values of one voxel that the test's model process takes as an order, see `odd_server.py`."""


@dataclass(kw_only=True)
class Series:
    """A series that was made to be sent, and what must become of it."""

    images: list[Dataset]
    body_voxels: int
    """How many voxels of the images are body."""
    codes: tuple[str, ...] = ()
    """Empty where a result must come; else the codes with which its job may end instead."""
    contents: list[frozenset[str]] = field(default_factory=list)
    """The instances sent so far, after each sending: the last one must have the result."""

    @property
    def study_uid(self) -> str:
        return str(self.images[0].StudyInstanceUID)

    @property
    def series_uid(self) -> str:
        return str(self.images[0].SeriesInstanceUID)

    def sent(self, count: int) -> None:
        """Note that the first `count` images are in the archive."""
        self.contents.append(frozenset(str(i.SOPInstanceUID) for i in self.images[:count]))


def small_series(order: int | None = None, codes: tuple[str, ...] = ()) -> Series:
    """Make a series; no two are alike.

    Parameters
    ----------
    order
        `POISON` and its like.
    codes
        As `Series.codes`.
    """
    radius_mm = random.uniform(70, 110)  # no secret
    axis = (np.arange(SIZE) - SIZE / 2 + 0.5) * SPACING_MM[1]
    from_axis = np.hypot(axis[:, None], axis[None, :])
    plane = np.full((SIZE, SIZE), -1000, np.int16)
    body = from_axis < radius_mm
    plane[body] = 40
    plane[from_axis < 15] = 700
    hu = np.repeat(plane[None], SLICES, axis=0)
    if order is not None:
        hu[SLICES // 2, SIZE // 2, SIZE // 2] = order
    return Series(
        images=ct_series(hu, spacing_mm=SPACING_MM, seed=str(uuid.uuid4())),
        body_voxels=int(body.sum()) * SLICES,
        codes=codes,
    )
