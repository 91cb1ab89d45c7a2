"""Kind `torchscript`: weights with their program, everything else by the card; no Python code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segnode_contract.card import Card
from segnode_contract.card_network import Activation, Intensity, TorchScriptNetwork
from segnode_contract.errors import ModelFailed
from segnode_contract.findings import Findings
from segnode_models.grid_change import (
    Decision,
    EachAbove,
    GridChange,
    HighestWins,
    WayBack,
)
from segnode_models.memory import lacks_memory
from segnode_models.model import InputVolume, Told
from segnode_models.program import load_program
from segnode_models.windows import Windows, scores_of, slide

_MOST_CHANNELS = 8
"""Tried, to tell how many a network takes when it refuses the card's number."""
_OTHER_DEVICE = ("same device", "'CUDA' backend")
"""Words of torch's where a program names a device itself; what it names is not moved by loading."""


class TorchScriptModel:
    """A TorchScript program of one network.

    Raises
    ------
    ModelFailed
        If the file is no such program, or the network and the card do not fit.
    """

    def __init__(
        self, card: Card, network: TorchScriptNetwork, folder: Path, device: torch.device
    ) -> None:
        self.card = card
        self._network = network
        self._device = device
        self._half = bool(card.half_precision_checked) and device.type == "cuda"
        self._program = load_program(folder / network.weights, device)
        self._check_channels()

    @torch.inference_mode()
    def segment(self, volume: InputVolume, labels: NDArray[np.uint8], told: Told) -> Findings:
        """Write the label planes (see `Model`)."""
        network = self._network
        told(0)
        change = GridChange.to_spacing(volume.hu.shape, volume.spacing_mm, network.spacing_mm)
        values = change.to_model(volume.channels(self.card), self._device)
        for channel in values:
            map_intensity(channel, network.intensity)
        back = WayBack(change, self._decision(), labels, linear=network.back == "linear")
        slide(
            self._program,
            values,
            Windows(patch=network.patch, overlap=network.overlap, blend=network.blend),
            device=self._device,
            half=self._half,
            take=lambda scores: back.take(activated(scores, network.activation)),
            told=told,
        )
        return Findings()

    def _decision(self) -> Decision:
        if self._network.activation == "softmax":
            return HighestWins(self.card)
        return EachAbove(self.card, self._network.threshold)

    def _check_channels(self) -> None:
        """Ask the network about an empty patch, and compare with the card."""
        inputs = max(1, len(self.card.inputs))
        try:
            channels = len(self._scores_of_nothing(inputs))
        except RuntimeError as error:
            if lacks_memory(error):
                raise
            raise self._refused(inputs, error) from error
        for segment in self.card.segments:
            if not 0 <= segment.channel < channels:
                raise ModelFailed(
                    f"The card of {self.card.name} has the segment '{segment.label}' in channel "
                    f"{segment.channel}; the network gives channels 0 to {channels - 1}.",
                    code="model-mismatch",
                )

    @torch.inference_mode()
    def _scores_of_nothing(self, inputs: int) -> Tensor:
        seen = torch.zeros((inputs, *self._network.patch), device=self._device)
        return scores_of(self._program, seen, half=self._half)

    def _refused(self, inputs: int, error: RuntimeError) -> ModelFailed:
        """Return why the network does not take a patch: is it the number of channels?"""
        if any(words in str(error) for words in _OTHER_DEVICE):
            return ModelFailed(
                f"The network of {self.card.name} was traced on another device than "
                f"{self._device.type}, which its program names; trace it on {self._device.type}, "
                "or save it by torch.jit.script.",
                code="model-mismatch",
            )
        for other in range(1, _MOST_CHANNELS + 1):
            if self._takes(other):
                return ModelFailed(
                    f"The number of input channels is {other} for the network of {self.card.name} "
                    f"and {inputs} in its card; each of [[input.series]] is one channel.",
                    code="model-channels",
                )
        return ModelFailed(
            f"The network of {self.card.name} does not take a patch of "
            f"{' × '.join(map(str, self._network.patch))} voxels; correct 'patch' in the card.",
            code="model-mismatch",
        )

    def _takes(self, inputs: int) -> bool:
        try:
            self._scores_of_nothing(inputs)
        except RuntimeError:
            return False
        except ModelFailed:
            pass  # it took them, whatever it gave
        return True


def map_intensity(values: Tensor, intensity: Intensity) -> None:
    """Turn modality values on the model's grid into what the network was trained on, in place."""
    if intensity.clip is not None:
        values.clamp_(*intensity.clip)
    if intensity.clip is not None and intensity.scale is not None:
        (low, high), (first, last) = intensity.clip, intensity.scale
        values.sub_(low).div_(high - low).mul_(last - first).add_(first)
    elif intensity.per_image:
        std, mean = torch.std_mean(values, correction=0)
        values.sub_(mean).div_(std if std > 0 else 1)
    else:
        values.sub_(intensity.mean).div_(intensity.std)


def activated(scores: Tensor, activation: Activation) -> Tensor:
    """Return probabilities, or the scores themselves for ``none``."""
    match activation:
        case "softmax":
            return scores.softmax(dim=0)
        case "sigmoid":
            return scores.sigmoid_()
        case "none":
            return scores
