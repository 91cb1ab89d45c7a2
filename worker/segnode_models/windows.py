"""A network looks at a volume through a sliding window; finished slices are handed on at once.

Windows and weights are those of `monai.inferers.sliding_window_inference`, which keeps the sums of
all channels over the whole volume. Here windows come in the order of their slices, and sums are
kept only of the slices that the next ones may still reach: as many as a window has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from segnode_contract.card_network import Blend
from segnode_contract.errors import ModelFailed
from segnode_models.grid_change import Shape
from segnode_models.model import Told

Network = Callable[[Tensor], object]
"""Takes ``(1, channels, *patch)`` and should give scores ``(1, other channels, *patch)``."""

_CHUNK_BYTES = 32 << 20
"""Handed on at once: small enough that a cancelled job ends in time."""
_LEAST_WEIGHT = 1e-3
_SHARE_OF_FREE = 0.5
"""Of a GPU's free memory that sums may take; the network wants the rest."""
_AHEAD = 2
"""Windows that may wait for a GPU: enough to keep it busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """How a network looks at a volume."""

    patch: Shape
    """Voxels of a window along slices, rows and columns."""
    overlap: float
    """Of neighbours, as a share of the patch."""
    blend: Blend

    def starts(self, size: Shape) -> tuple[list[int], list[int], list[int]]:
        """Return where windows begin along each axis of a volume, which is no smaller than one."""
        slices, rows, columns = (
            [*range(0, count - patch, max(1, int(patch * (1 - self.overlap)))), count - patch]
            for count, patch in zip(size, self.patch, strict=True)
        )
        return slices, rows, columns

    def weights(self, device: torch.device) -> Tensor:
        """Return how much each voxel of a window counts, float32 of shape `patch`."""
        weights = torch.ones(self.patch, device=device)
        if self.blend == "gaussian":
            for axis, count in enumerate(self.patch):
                offsets = torch.arange(count, device=device) - (count - 1) / 2
                bell = torch.exp(-0.5 * (offsets / (count / 8)) ** 2)
                weights *= bell.reshape([-1 if one == axis else 1 for one in range(3)])
            weights.clamp_(min=max(float(weights.min()), _LEAST_WEIGHT))
        return weights


class Pace:
    """Keeps who hands windows to a GPU from running ahead of it.

    A GPU takes work as fast as it is given and does it later: progress would tell of work that is
    not done, and a job that is to stop would not until the GPU had gone through all of it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._given: deque[torch.cuda.Event] = deque()

    def keep(self) -> None:
        """Wait until no more than a few windows, one each call, are left to do."""
        if self._device.type != "cuda":
            return
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._given.append(event)
        if len(self._given) > _AHEAD:
            self._given.popleft().synchronize()


def slide(
    network: Network,
    values: Tensor,
    windows: Windows,
    *,
    device: torch.device,
    half: bool,
    take: Callable[[Tensor], None],
    told: Told,
) -> None:
    """Run a network over a volume.

    Sums are kept on the device, or on the host where they do not fit.

    Parameters
    ----------
    values
        What the network sees, float32 ``(channels, slices, rows, columns)``, on `device` or on the
        host. A volume smaller than the patch is put into the middle of zeros.
    device
        Where the network is.
    half
        Whether it runs in half precision: float16 on a GPU, bfloat16 on a CPU.
    take
        Is given the finished slices in their order: scores, float32 ``(channels, a few slices,
        rows, columns)`` on `device`, which nobody else keeps.
    told
        Called after each window, and while slices are handed on.

    Raises
    ------
    ModelFailed
        If the network gives something else than finite scores for each voxel of a patch.
    """
    padded, inside = _padded(values, windows.patch)
    depth, rows, columns = padded.shape[1:]
    starts, *across = windows.starts((depth, rows, columns))
    total = len(starts) * len(across[0]) * len(across[1])
    sums: _Sums | None = None
    pace = Pace(device)
    done = 0
    with torch.inference_mode():
        for first, next_first in zip(starts, [*starts[1:], depth], strict=True):
            for row, column in product(*across):
                place = first, row, column
                seen = padded[(slice(None), *_ranges(place, windows.patch))].to(device)
                scores = scores_of(network, seen, half=half)
                if sums is None:
                    sums = _Sums(len(scores), rows, columns, windows.weights(device))
                sums.add(scores, place)
                pace.keep()
                done += 1
                told(done / total)
            for chunk in sums.finished(first, next_first, inside) if sums else ():
                _check_finite(chunk)
                take(chunk)
                told(done / total)


def scores_of(network: Network, seen: Tensor, *, half: bool) -> Tensor:
    """Return what a network says of one patch.

    Parameters
    ----------
    seen
        ``(channels, *patch)``, on the network's device.

    Returns
    -------
    torch.Tensor
        ``(other channels, *patch)``.

    Raises
    ------
    ModelFailed
        If it gives no scores, or not one for each voxel.
    """
    kind = torch.float16 if seen.device.type == "cuda" else torch.bfloat16
    with torch.autocast(seen.device.type, dtype=kind, enabled=half):
        given = network(seen[None])
    if not isinstance(given, Tensor):
        raise ModelFailed(
            f"The network gave a {type(given).__name__}; one tensor of scores is needed.",
            code="model-output",
        )
    if not given.numel() or not given.is_floating_point():
        raise ModelFailed(
            f"The network gave {str(given.dtype).removeprefix('torch.')} of shape "
            f"{list(given.shape)}; scores in floating point are needed.",
            code="model-output",
        )
    if given.shape[0] != 1 or given.shape[2:] != seen.shape[1:]:
        raise ModelFailed(
            f"The network gave scores of shape {list(given.shape)} for a patch of "
            f"{list(seen.shape[1:])} voxels; [1, channels] and the patch's shape are needed.",
            code="model-mismatch",
        )
    return given[0]


def _check_finite(scores: Tensor) -> None:
    if torch.isfinite(scores.sum(dim=0)).all():
        return
    bad = int((~torch.isfinite(scores)).any(dim=0).sum())
    if bad:  # rather than a sum too large
        raise ModelFailed(
            f"The network gave NaN or infinity in {bad} voxels of {scores.shape[1]} slices; its "
            "weights are broken, or half precision is too little for it.",
            code="model-output",
        )


def _padded(values: Tensor, patch: Shape) -> tuple[Tensor, tuple[slice, slice, slice]]:
    """Return a volume that a window fits into, and where the given one lies in it."""
    lacks = [max(0, least - count) for count, least in zip(values.shape[1:], patch, strict=True)]
    slices, rows, columns = (
        slice(lack // 2, lack // 2 + count)
        for lack, count in zip(lacks, values.shape[1:], strict=True)
    )
    if any(lacks):
        ends = [end for lack in reversed(lacks) for end in (lack // 2, lack - lack // 2)]
        values = functional.pad(values, ends)
    return values, (slices, rows, columns)


def _ranges(place: Shape, patch: Shape) -> tuple[slice, ...]:
    return tuple(slice(at, at + count) for at, count in zip(place, patch, strict=True))


class _Sums:
    """Weighted scores of as many slices as a window has; slice n stands at n modulo their number.

    Parameters
    ----------
    rows, columns
        Of the volume.
    window
        Weights of a window's voxels, on the network's device.
    """

    def __init__(self, channels: int, rows: int, columns: int, window: Tensor) -> None:
        self._device = window.device
        bytes_per_slice = 4 * (channels + 1) * rows * columns
        lacks_room = bytes_per_slice * len(window) > _room(window.device)
        here = torch.device("cpu") if lacks_room else window.device
        self._window = window.to(here)
        self._scores = torch.zeros((channels, len(window), rows, columns), device=here)
        self._weights = torch.zeros((len(window), rows, columns), device=here)
        self._step = max(1, _CHUNK_BYTES // bytes_per_slice)

    def add(self, scores: Tensor, place: Shape) -> None:
        """Add a window's scores ``(channels, *patch)`` where it begins at `place`."""
        scores = scores.to(self._scores.device, torch.float32)
        depth, height, width = self._window.shape
        _, rows, columns = _ranges(place, (depth, height, width))
        turn = place[0] % depth
        for into, part in (
            (slice(turn, depth), slice(0, depth - turn)),
            (slice(0, turn), slice(depth - turn, depth)),
        ):
            self._scores[:, into, rows, columns].addcmul_(scores[:, part], self._window[part])
            self._weights[into, rows, columns] += self._window[part]

    def finished(
        self, first: int, end: int, inside: tuple[slice, slice, slice]
    ) -> Iterator[Tensor]:
        """Yield the scores of slices that no window reaches any more, and forget them."""
        slices, rows, columns = inside
        first, end = max(first, slices.start), min(end, slices.stop)
        for start in range(first, end, self._step):
            numbers = torch.arange(start, min(start + self._step, end), device=self._scores.device)
            numbers %= len(self._weights)
            scores = self._scores[:, numbers] / self._weights[numbers]
            self._scores.index_fill_(1, numbers, 0)
            self._weights.index_fill_(0, numbers, 0)
            yield scores[..., rows, columns].to(self._device)


def _room(device: torch.device) -> float:
    """Return how many bytes sums may take on a device; no question where it is the host itself."""
    if device.type != "cuda":
        return float("inf")
    free, total = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total - used
    return _SHARE_OF_FREE * min(allowed, free + torch.cuda.memory_reserved(device) - used)
