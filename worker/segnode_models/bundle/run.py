"""A MONAI bundle at work: from images in memory to what its own postprocessing gives."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import SlidingWindowInferer
from monai.utils.misc import ensure_tuple_rep, fall_back_tuple
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from segnode_contract.card_network import BundleNetwork
from segnode_contract.errors import ModelFailed
from segnode_models.bundle.config import BundleParts, read_bundle
from segnode_models.bundle.inversion import ChannelwiseInversion
from segnode_models.bundle.scripts import BundleScripts
from segnode_models.memory import lacks_memory
from segnode_models.model import Told
from segnode_models.windows import Pace

T = TypeVar("T")

_PREPARED, _INFERRED = 0.1, 0.85
"""How much of the work is done after the first steps and after the network; a rough share."""


class Bundle:
    """A loaded bundle.

    Parameters
    ----------
    half
        Whether the network runs in half precision.
    """

    def __init__(
        self, folder: Path, network: BundleNetwork, device: torch.device, *, half: bool
    ) -> None:
        self._image, self._pred, self._config = network.image, network.pred, network.config
        self._device, self._half = device, half
        self._scripts = BundleScripts(folder)
        with self._scripts.importable(), _quiet():
            self._parts: BundleParts = read_bundle(folder, network, device)

    @torch.no_grad()
    def run(
        self, images: Sequence[NDArray[np.generic]], affine: NDArray[np.float64], told: Told
    ) -> Tensor:
        """Return what the bundle makes of an image, after its postprocessing.

        Parameters
        ----------
        images
            Of one shape, one per channel.
        affine
            From voxel indices to RAS millimetres.

        Raises
        ------
        ModelFailed
            ``model-channels``, if the network takes another number; ``model-output``, if it gives
            numbers that are not finite, or no tensor.
        Stopped
            Out of `told`.
        """
        parts = self._parts
        with self._scripts.importable(), _quiet():
            with parts.reader.holding(images, affine):
                data: dict[str, Any] = {self._image: "image"}
                for _, step in _begun(parts.preprocessing, told, 0.0, _PREPARED):
                    data = step(data)
            data[self._image] = self._on_device(data[self._image])
            data[self._pred] = self._inferred(data[self._image], told)
            # no name but `data` holds a result, so that each goes as soon as the next is there
            for part, after in _begun(parts.postprocessing, told, _INFERRED, 1.0):
                data = after(data, part) if isinstance(after, ChannelwiseInversion) else after(data)
        result = data[self._pred]
        if not isinstance(result, Tensor):
            raise ModelFailed(
                f"The bundle's postprocessing gives {type(result).__name__}; a tensor is needed.",
                code="model-output",
            )
        return result.as_tensor() if isinstance(result, MetaTensor) else result

    def _on_device(self, image: object) -> Tensor:
        if not isinstance(image, Tensor) or image.ndim != 4:
            shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ModelFailed(
                f"The bundle's preprocessing gives an image of shape {shape}; channels and three "
                "axes are needed: add EnsureChannelFirstd, say, to the preprocessing in "
                f"{self._config}, and add the model again.",
                code="model-mismatch",
            )
        return image.to(self._device)

    def _inferred(self, image: Tensor, told: Told) -> Tensor:
        """Return the network's output for one image, channels first."""
        parts = self._parts
        inputs = image.as_tensor() if isinstance(image, MetaTensor) else image
        calls = _calls(parts.inferer, inputs.shape[1:])
        network = _Telling(parts.network, calls, told, Pace(self._device))
        try:
            with torch.autocast(self._device.type, torch.float16, enabled=self._half):
                output = parts.inferer(inputs[None], network)
        except RuntimeError as error:
            if lacks_memory(error) or parts.channels in {None, len(image)}:
                raise
            raise ModelFailed(
                f"The network takes {parts.channels} channels by the bundle's metadata.json, and "
                f"its preprocessing made {len(image)} of the images; mend the series on the card "
                "and add the model again.",
                code="model-channels",
            ) from error
        if not isinstance(output, Tensor) or len(output) != 1:
            raise ModelFailed(
                f"The bundle's network gives {type(output).__name__}; one tensor is needed.",
                code="model-output",
            )
        if not all(end.isfinite() for end in torch.aminmax(output)):
            raise ModelFailed(
                "The bundle's network gave numbers that are not finite; check its weights, and "
                "whether it bears half precision.",
                code="model-output",
            )
        found = output[0]
        if isinstance(image, MetaTensor):
            return MetaTensor(found, meta=image.meta, applied_operations=image.applied_operations)
        return found


class _Telling(Module):
    """A network that tells of each call, of which there are `calls` where that is known."""

    def __init__(self, network: Module, calls: int | None, told: Told, pace: Pace) -> None:
        super().__init__()
        self._network, self._calls, self._told, self._pace = network, calls, told, pace
        self._done = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._pace.keep()
        share = min(1.0, self._done / self._calls) if self._calls else 0.0
        self._told(_PREPARED + (_INFERRED - _PREPARED) * share)
        self._done += 1
        return self._network(*args, **kwargs)


def _calls(inferer: object, shape: Sequence[int]) -> int | None:
    """Return how often a sliding window calls the network for an image of that shape."""
    if not isinstance(inferer, SlidingWindowInferer):
        return None
    if isinstance(inferer.roi_size, Sequence) and len(inferer.roi_size) != len(shape):
        return None
    windows = 1
    overlaps = ensure_tuple_rep(inferer.overlap, len(shape))
    for size, roi, overlap in zip(
        shape, fall_back_tuple(inferer.roi_size, shape), overlaps, strict=True
    ):
        step = max(1, int(roi * (1 - overlap)))
        windows *= math.ceil(max(0, size - roi) / step) + 1
    return math.ceil(windows / inferer.sw_batch_size)


def _begun(steps: Sequence[T], told: Told, start: float, end: float) -> Iterator[tuple[Told, T]]:
    """Yield each step with a `Told` for its part of the work, having told that it begins."""
    length = (end - start) / max(1, len(steps))
    for number, step in enumerate(steps):
        part = partial(_tell, told, start + number * length, length)
        part(0.0)
        yield part, step


def _tell(told: Told, start: float, length: float, share: float) -> None:
    told(start + length * share)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hear no warnings of MONAI's: on readers that are not installed, on old configurations."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"monai\.")
        yield
