"""From the images' grid to the model's, and the result back, slab by slab.

Both grids have the same axes and the same outer edges, so that nothing shifts: only the number of
voxels along each axis differs. Between voxels' centres values are interpolated linearly; beyond the
outermost centres they stay (as ``torch.nn.functional.interpolate`` does with
``align_corners=False``).

On the way back a voxel is decided on the images' grid (linear) or on the model's (nearest). There
never is a float volume of all channels on the images' grid: 104 channels would take 66 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from segnode_contract.card import Card
from segnode_contract.card_network import Triple
from segnode_contract.errors import ModelFailed

Shape = tuple[int, int, int]
"""Voxels along slices, rows and columns."""

_SLAB_BYTES = 32 << 20
"""Small enough that a cancelled job ends in time, large enough to keep a GPU busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridChange:
    """Two grids over one volume."""

    source: Shape
    """Of the images."""
    model: Shape

    @classmethod
    def to_spacing(cls, source: tuple[int, ...], source_mm: Triple, wanted_mm: Triple) -> Self:
        """Return the change to the grid of about `wanted_mm`; whole voxels fill the volume."""
        slices, rows, columns = (
            max(1, round(count * mm / wanted))
            for count, mm, wanted in zip(source, source_mm, wanted_mm, strict=True)
        )
        return cls(source=(source[0], source[1], source[2]), model=(slices, rows, columns))

    def to_model(self, volumes: Sequence[NDArray[np.generic]], device: torch.device) -> Tensor:
        """Interpolate volumes of shape `source`.

        Returns
        -------
        torch.Tensor
            float32 on `device`, shape ``(len(volumes), *model)``.
        """
        values = torch.empty((len(volumes), *self.model), device=device)
        for volume, out in zip(volumes, values, strict=True):
            self._interpolate(volume, out)
        return values

    def _interpolate(self, volume: NDArray[np.generic], out: Tensor) -> None:
        """Interpolate slab by slab of the model's slices, within the slices first."""
        between = _Between.of(self.source[0], self.model[0])
        step = _slices_per_slab(4 * self.source[1] * self.source[2])
        for start in range(0, self.model[0], step):
            slab = slice(start, start + step)
            first, last = int(between.below[slab][0]), int(between.above[slab][-1])
            # copied, as neither turned nor read-only memory becomes a tensor
            given = torch.from_numpy(np.array(volume[first : last + 1]))
            planes = _resized(given.to(out.device, torch.float32), self.model[1:])
            out[slab] = between.mix(planes[None], slab, first)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Between:
    """Where the slices of one grid lie among those of another."""

    below: NDArray[np.intp]
    above: NDArray[np.intp]
    share: NDArray[np.float64]
    """Of the one above, 0 to below 1."""

    @classmethod
    def of(cls, given: int, wanted: int) -> Self:
        place = ((np.arange(wanted) + 0.5) * given / wanted - 0.5).clip(0, given - 1)
        below = np.floor(place).astype(np.intp)
        return cls(below=below, above=np.ceil(place).astype(np.intp), share=place - below)

    def mix(self, planes: Tensor, slab: slice, first: int) -> Tensor:
        """Return the wanted slices `slab`, of planes ``(channels, slices, …)`` from `first` on."""
        below, above, share = (
            torch.from_numpy(part[slab]).to(planes.device)
            for part in (self.below - first, self.above - first, self.share.astype(np.float32))
        )
        return torch.lerp(planes[:, below], planes[:, above], share[:, None, None])


def _resized(planes: Tensor, size: tuple[int, ...]) -> Tensor:
    """Interpolate each of the planes ``(slices, rows, columns)``."""
    if tuple(planes.shape[1:]) == size:
        return planes
    return functional.interpolate(planes[None], size=size, mode="bilinear")[0]


def _slices_per_slab(bytes_per_slice: int) -> int:
    return max(1, _SLAB_BYTES // bytes_per_slice)


Enlarge = Callable[[Tensor], Tensor]
"""Takes the scores of one channel, ``(slices, rows, columns)``, to the grid of the decision."""


class Decision(Protocol):
    """How scores of channels become label planes."""

    def __call__(self, scores: Tensor, enlarge: Enlarge) -> Tensor:
        """Return uint8 ``(planes, slices, rows, columns)``.

        Parameters
        ----------
        scores
            ``(channels, slices, rows, columns)``.
        enlarge
            To be called for each channel that matters.

        Raises
        ------
        ModelFailed
            If the card has no segment for what was found.
        """


class HighestWins:
    """The channel with the highest score takes a voxel; channel 0 is the background."""

    def __init__(self, card: Card) -> None:
        self._card = card

    def __call__(self, scores: Tensor, enlarge: Enlarge) -> Tensor:
        """Decide (see `Decision`)."""
        winner = _highest(scores, enlarge)
        values = torch.zeros((self._card.planes, len(scores)), dtype=torch.uint8)
        strange = torch.ones(len(scores), dtype=torch.bool)
        strange[0] = False
        for segment in self._card.segments:
            values[segment.plane, segment.channel] = segment.value
            strange[segment.channel] = False
        if strange.any():
            self._refuse(winner[strange.to(winner.device)[winner]])
        return values.to(winner.device)[:, winner]

    def _refuse(self, strange: Tensor) -> None:
        if strange.numel():
            raise ModelFailed(
                f"The network of {self._card.name} found its channel {int(strange[0])}, which is "
                "no segment of the card; card and weights do not belong together.",
                code="model-strange-label",
            )


def _highest(scores: Tensor, enlarge: Enlarge) -> Tensor:
    """Return the index of the highest channel, the first of equals.

    Channels come one by one, the most promising first: once the rest stay below the least of the
    scores that won so far, they cannot win anywhere. Most of 104 channels never get enlarged.
    """
    peaks = scores.amax((1, 2, 3))
    order = peaks.argsort(descending=True, stable=True).tolist()
    best = enlarge(scores[order[0]])
    winner = torch.full_like(best, order[0], dtype=torch.long)
    for channel in order[1:]:
        if peaks[channel] < best.min():
            break
        score = enlarge(scores[channel])
        better = (score > best) | ((score == best) & (winner > channel))
        winner.masked_fill_(better, channel)
        best = torch.maximum(best, score)
    return winner


class EachAbove:
    """A segment is where its channel is above the threshold, whatever the others are.

    Within one plane the later segment of the card stands.
    """

    def __init__(self, card: Card, threshold: float) -> None:
        self._card = card
        self._threshold = threshold

    def __call__(self, scores: Tensor, enlarge: Enlarge) -> Tensor:
        """Decide (see `Decision`)."""
        segments = self._card.segments
        above = [enlarge(scores[segment.channel]) > self._threshold for segment in segments]
        shape = (self._card.planes, *above[0].shape)
        planes = torch.zeros(shape, dtype=torch.uint8, device=scores.device)
        for segment, mask in zip(segments, above, strict=True):
            planes[segment.plane].masked_fill_(mask, segment.value)
        return planes


class WayBack:
    """Takes finished slices of the model's grid in their order and writes labels.

    Parameters
    ----------
    labels
        Written into, ``(planes, *change.source)``.
    linear
        Scores are interpolated and decided on the images' grid; else labels are decided on the
        model's, and each voxel of the images has that of the model's voxel in which it lies.
    """

    def __init__(
        self, change: GridChange, decide: Decision, labels: NDArray[np.uint8], *, linear: bool
    ) -> None:
        self._change = change
        self._decide = decide
        self._labels = labels
        self._linear = linear
        self._between = (_Between.of if linear else _nearest)(change.model[0], change.source[0])
        self._held: Tensor | None = None
        self._first = 0
        """Slice of the model's grid with which `_held` begins."""
        self._written = 0

    def take(self, scores: Tensor) -> None:
        """Take the next slices and write what can be told by now.

        Parameters
        ----------
        scores
            Probabilities say, ``(channels, slices, *change.model[1:])``.
        """
        new = scores if self._linear else self._decide(scores, lambda score: score)
        held = new if self._held is None else torch.cat([self._held, new], dim=1)
        taken = self._first + held.shape[1]
        ready = int(np.searchsorted(self._between.above, taken))
        step = self._step(len(scores))
        for start in range(self._written, ready, step):
            slab = slice(start, min(start + step, ready))
            write = self._decided if self._linear else self._repeated
            self._labels[:, slab] = write(held, slab).cpu().numpy()
        needed = int(self._between.below[ready]) if ready < self._change.source[0] else taken
        needed = min(needed, taken)
        self._held, self._first, self._written = held[:, needed - self._first :], needed, ready

    def _step(self, channels: int) -> int:
        """Return how many slices go at once: all channels before, a few arrays after enlarging."""
        (_, *small), (_, *large) = self._change.model, self._change.source
        return _slices_per_slab(4 * (channels * small[0] * small[1] + 4 * large[0] * large[1]))

    def _decided(self, held: Tensor, slab: slice) -> Tensor:
        mixed = self._between.mix(held, slab, self._first)
        return self._decide(mixed, lambda score: _resized(score, self._change.source[1:]))

    def _repeated(self, held: Tensor, slab: slice) -> Tensor:
        slices = self._between.below[slab] - self._first
        (_, *small), (_, *large) = self._change.model, self._change.source
        rows, columns = (
            _nearest(given, wanted).below for given, wanted in zip(small, large, strict=True)
        )
        for axis, index in enumerate((slices, rows, columns), 1):
            held = held.index_select(axis, torch.from_numpy(index).to(held.device))
        return held


def _nearest(given: int, wanted: int) -> _Between:
    """Return, for each wanted slice, the given one in which its centre lies."""
    place = (2 * np.arange(wanted) + 1) * given // (2 * wanted)
    return _Between(below=place, above=place, share=np.zeros(wanted))
