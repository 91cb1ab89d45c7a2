"""A bundle's result comes back onto the images' grid one channel at a time.

MONAI's `Invertd` takes all channels at once and in double precision, which for 14 channels of a
large CT is 18 GB. Its geometry treats every channel alike, so that one by one they give the same
numbers; and where only the largest of each voxel is wanted, they never stand there together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.post.dictionary import AsDiscreted, Invertd
from torch import Tensor

from segnode_models.model import Told

_CHANNEL_BY_CHANNEL = {
    *("Orientation", "SpatialResample", "ResampleToMatch", "Resize", "Zoom", "Flip", "Rotate90"),
    *("SpatialCrop", "CenterSpatialCrop", "CropForeground", "ResizeWithPadOrCrop"),
    *("SpatialPad", "BorderPad", "DivisiblePad"),
}
"""Transforms of MONAI whose inverse does not look from one channel to another."""

Step = Callable[[Any], dict[Any, Any]]
"""From a bundle's dictionary of tensors to the next one, as MONAI's transforms are."""


class ChannelwiseInversion:
    """What `Invertd` does, and `AsDiscreted` after it where that takes the largest channel.

    Parameters
    ----------
    image
        Key of the image whose geometry is undone.
    """

    def __init__(self, pred: str, image: str, invert: Step, largest: Step | None) -> None:
        self._pred, self._image = pred, image
        self._invert, self._largest = invert, largest

    def __call__(self, data: dict[str, Any], told: Told) -> dict[str, Any]:
        """Do it, and tell before each channel."""
        channels = data[self._pred]
        if len(channels) == 1 or not _geometry_alone(data.get(self._image)):
            whole: dict[str, Any] = self._invert(data)
            return self._largest(whole) if self._largest else whole
        result = _Largest() if self._largest else _All(len(channels))
        for number in range(len(channels)):
            told(number / len(channels))
            alone = {**data, self._pred: channels[number : number + 1]}
            back: dict[str, Any] = self._invert(alone)
            result.add(number, back[self._pred].as_tensor())
        last = back[self._pred]
        back[self._pred] = MetaTensor(
            result.tensor, meta=last.meta, applied_operations=last.applied_operations
        )
        return back


class _All:
    def __init__(self, count: int) -> None:
        self._count = count

    def add(self, number: int, channel: Tensor) -> None:
        if number == 0:
            self.tensor = channel.new_empty((self._count, *channel.shape[1:]))
        self.tensor[number] = channel[0]


class _Largest:
    def add(self, number: int, channel: Tensor) -> None:
        if number == 0:
            self._best, self.tensor = channel, torch.zeros_like(channel, dtype=torch.float32)
            return
        self.tensor.masked_fill_(channel > self._best, number)  # the first of equals, as argmax
        self._best = torch.maximum(self._best, channel)


def with_channelwise_inversion(
    steps: Sequence[Step], pred: str
) -> tuple[Step | ChannelwiseInversion, ...]:
    """Replace each `Invertd` of `pred`, and an `AsDiscreted` that only takes the largest."""
    found: list[Step | ChannelwiseInversion] = []
    waiting = list(reversed(steps))
    while waiting:
        step = waiting.pop()
        if type(step) is Invertd and step.keys == (pred,) and step.post_func == (None,):
            after = waiting[-1] if waiting else None
            largest = after if _takes_the_largest(after, pred) else None
            if largest:
                waiting.pop()
            found.append(ChannelwiseInversion(pred, str(step.orig_keys[0]), step, largest))
        else:
            found.append(step)
    return tuple(found)


def _takes_the_largest(step: Any, pred: str) -> bool:
    return (
        type(step) is AsDiscreted
        and step.keys == (pred,)
        and bool(step.argmax[0])
        and (step.to_onehot[0], step.threshold[0], step.rounding[0]) == (None, None, None)
        and not step.converter.kwargs
    )


def _geometry_alone(image: object) -> bool:
    """Return whether all that was done to an image, and can be undone, is known."""
    if not isinstance(image, MetaTensor):
        return False
    return {done["class"] for done in image.applied_operations} <= _CHANNEL_BY_CHANNEL
