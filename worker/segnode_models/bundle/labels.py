"""From a bundle's result, a label map or a mask per channel, to the label planes of its card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segnode_contract.card import Card, Segment
from segnode_contract.card_network import BundleNetwork
from segnode_contract.errors import ModelFailed
from segnode_models.model import Told

_SLAB_SLICES = 16
_LARGEST_LABEL = 65535
"""In a label map; what is above it holds something else, an image say."""


def write_labels(result: Tensor, card: Card, labels: NDArray[np.uint8], told: Told) -> None:
    """Write a bundle's result into label planes, slab by slab on the device where it lies.

    Parameters
    ----------
    result
        On the grid of `labels`: a label map, without channels or with one, whose values are the
        card's `Segment.channel`; or several channels of 0 and 1, of which that is the index. Where
        two segments of one plane meet, the later one on the card stands.
    labels
        Shape ``(planes, slices, rows, columns)``, zero at the call.

    Raises
    ------
    ModelFailed
        ``model-output``, if it is neither or lies on another grid; ``model-strange-label``, if the
        map has a label that no segment names; ``model-mismatch``, if the card names a channel that
        cannot be.
    Stopped
        Out of `told`.
    """
    grid = labels.shape[1:]
    channels = result[None] if result.ndim == len(grid) else result
    if tuple(channels.shape[1:]) != grid:
        raise ModelFailed(
            f"The bundle's result has shape {tuple(result.shape)}, and its images {grid}; add "
            f"Invertd to the postprocessing in {_config(card)}, so that the result comes back onto "
            "their grid, and add the model again.",
            code="model-output",
        )
    if len(channels) == 1:
        _write_map(channels[0], card, labels, told)
    else:
        _write_masks(channels, card, labels, told)


def _write_map(codes: Tensor, card: Card, labels: NDArray[np.uint8], told: Told) -> None:
    top = _top_label(codes, card)
    for segment in card.segments:
        if segment.channel < 1:
            found = _listed([int(label) for label in torch.unique(codes).tolist() if label])
            raise _no_channel(
                segment,
                f"a label map, where 0 is background, with {found or 'nothing else'}; a label need "
                f"not mean what the network's channel did: see in {_config(card)} what each means",
            )
    size = 1 + max(top, *(segment.channel for segment in card.segments))
    values = torch.zeros((len(labels), size), dtype=torch.uint8, device=codes.device)
    for segment in card.segments:
        values[segment.plane, segment.channel] = segment.value
    seen = torch.zeros(size, dtype=torch.bool, device=codes.device)
    for slab in _slabs(len(codes), told):
        index = codes[slab].long()
        seen[index] = True
        for plane, of_plane in enumerate(values):
            labels[plane, slab] = of_plane[index].cpu().numpy()
    strange = seen & (values == 0).all(0)
    strange[0] = False
    if strange.any():
        names = ", ".join(f"{segment.channel} {segment.label}" for segment in card.segments)
        raise ModelFailed(
            f"The bundle's result has label {_listed(torch.nonzero(strange).flatten().tolist())}, "
            f"which no segment of the card has as its channel; it has {names}. See in "
            f"{_config(card)} what each label means, mend the card and add the model again.",
            code="model-strange-label",
        )


def _top_label(codes: Tensor, card: Card) -> int:
    """Return the largest label of a map, whose values are checked to be labels."""
    lowest, highest = (float(end) for end in torch.aminmax(codes))
    whole = not codes.is_floating_point() or all(
        bool((of_slice == of_slice.round()).all()) for of_slice in codes
    )
    if not (lowest >= 0 and highest <= _LARGEST_LABEL and whole):
        raise ModelFailed(
            f"The bundle's result holds values from {lowest:g} to {highest:g} that are no labels; "
            f"the postprocessing in {_config(card)} needs AsDiscreted after Invertd, or "
            "nearest_interp in Invertd. Mend it and add the model again.",
            code="model-output",
        )
    return int(highest)


def _write_masks(masks: Tensor, card: Card, labels: NDArray[np.uint8], told: Told) -> None:
    for segment in card.segments:
        if not 0 <= segment.channel < len(masks):
            raise _no_channel(segment, f"{len(masks)} channels, numbered from 0")
    for slab in _slabs(masks.shape[1], told):
        found = torch.zeros(labels[:, slab].shape, dtype=torch.uint8, device=masks.device)
        for segment in card.segments:
            values = masks[segment.channel, slab]
            mask = values == 1
            if not (mask | (values == 0)).all():
                raise ModelFailed(
                    f"Channel {segment.channel} of the bundle's result holds other values than 0 "
                    f"and 1; the postprocessing in {_config(card)} needs AsDiscreted after "
                    "Invertd. Mend it and add the model again.",
                    code="model-output",
                )
            found[segment.plane].masked_fill_(mask, segment.value)
        labels[:, slab] = found.cpu().numpy()


def _slabs(slices: int, told: Told) -> Iterator[slice]:
    for start in range(0, slices, _SLAB_SLICES):
        told(start / slices)
        yield slice(start, start + _SLAB_SLICES)


def _no_channel(segment: Segment, gives: str) -> ModelFailed:
    return ModelFailed(
        f"The card says that segment '{segment.label}' is channel {segment.channel}, and the "
        f"bundle gives {gives}; mend the card and add the model again.",
        code="model-mismatch",
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (" …" if len(numbers) > 10 else "")


def _config(card: Card) -> str:
    """Return which file of a bundle its postprocessing stands in."""
    return card.network.config if isinstance(card.network, BundleNetwork) else "its configuration"
