"""Kind `nnunet`: a trained nnU-Net v2 folder, in this process.

nnU-Net's own code prepares the images and runs the networks. The way back onto the images' grid is
ours: nnU-Net takes the scores of all classes there at once, which with 104 classes takes minutes
and tens of gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segnode_contract.card import Card
from segnode_contract.card_network import NnunetNetwork
from segnode_contract.errors import ModelFailed, UnsuitableSeries
from segnode_contract.findings import Findings
from segnode_models.grid_change import EachAbove, GridChange, HighestWins, WayBack
from segnode_models.model import InputVolume, Told
from segnode_models.nnunet.checkpoint import load_checkpoint

if TYPE_CHECKING:  # nnunetv2 is an extra
    from segnode_models.nnunet.plans import Plans

_PREPARED, _SEEN = 0.1, 0.9
"""How much of the work is done before the networks run and after; a rough share."""
_CHUNK_BYTES = 32 << 20
"""Small enough that a cancelled job ends in time."""
_LISTED = 10
_RAS = "HAR"
"""NIfTI's RAS, by slices, rows and columns: nnU-Net's readers take (z, y, x)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the networks see of a volume.

    nnU-Net puts the axis of the widest spacing first, and leaves out borders of zeros.
    """

    data: Tensor
    """float32 ``(channels, …)``."""
    axes: tuple[int, ...]
    """Those of the volume, in the order of `data`."""
    box: tuple[slice, ...]
    """Which part of the volume, by `axes`."""

    def seen_of(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return that part of label planes ``(planes, slices, rows, columns)``, by `axes`."""
        return labels.transpose(0, *(1 + axis for axis in self.axes))[:, *self.box]


class Preparation:
    """nnU-Net's own preprocessing of a volume for one network, on the CPU."""

    def __init__(self, card: Card, plans: Plans) -> None:
        self._card = card
        self._plans = plans

    @torch.inference_mode()
    def __call__(self, volume: InputVolume) -> Prepared:
        """Return what the networks see; `UnsuitableSeries` if the volume is too thin for them."""
        plans = self._plans
        axes = plans.manager.transpose_forward
        _check_extent(volume, axes, plans.configuration.spacing)
        data, _, properties = plans.configuration.preprocessor_class(verbose=False).run_case_npy(
            np.stack(volume.channels(self._card)),
            None,
            {"spacing": [*volume.spacing_mm]},
            plans.manager,
            plans.configuration,
            plans.dataset,
        )
        box = tuple(slice(*ends) for ends in properties["bbox_used_for_cropping"])
        return Prepared(data=torch.from_numpy(data), axes=tuple(axes), box=box)


class NnunetModel:
    """A trained nnU-Net.

    Parameters
    ----------
    folder
        With `plans.json`, `dataset.json` and a folder for each fold. No file is written there.

    Raises
    ------
    ModelFailed
        ``extra-missing``, ``model-weights``, ``model-mismatch``, ``model-channels`` or
        ``model-strange-label``.
    """

    def __init__(
        self, card: Card, network: NnunetNetwork, folder: Path, device: torch.device
    ) -> None:
        try:
            from segnode_models.nnunet.plans import read_plans  # noqa: PLC0415 # an extra
            from segnode_models.nnunet.predictor import Predictor  # noqa: PLC0415
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "nnunetv2":
                raise
            raise ModelFailed(
                f"The model {card.name} is an nnU-Net, and nnunetv2 is not installed; "
                "`setup/venv.sh nnunet` in segnode's checkout installs it.",
                code="extra-missing",
            ) from error
        self.card = card
        self._back = network.back
        self._device = device
        paths = [folder / f"fold_{fold}" / network.checkpoint for fold in network.folds]
        first, *others = [load_checkpoint(path) for path in paths]
        self._plans = read_plans(folder, first.configuration, first.trainer)
        _check_orientation(card, turns_to_ras=self._plans.turns_to_ras)
        _check_channels(card, self._plans.channels)
        _check_segments(card, self._plans.names)
        self.preparation: Callable[[InputVolume], Prepared] = Preparation(card, self._plans)
        self._predictor = Predictor(
            self._plans,
            [one.weights for one in (first, *others)],
            first.mirror_axes,
            network,
            device,
            half=bool(card.half_precision_checked) and device.type == "cuda",
        )

    @torch.inference_mode()
    def segment(self, volume: InputVolume, labels: NDArray[np.uint8], told: Told) -> Findings:
        """Write the label planes (see `Model`)."""
        told(0.0)
        prepared = volume.prepared
        if not isinstance(prepared, Prepared):
            prepared = self.preparation(volume)
        told(_PREPARED)
        scores = self._predictor.scores(
            prepared.data, lambda share: told(_PREPARED + (_SEEN - _PREPARED) * share)
        )
        for share in self._write(scores, prepared.seen_of(labels)):
            told(_SEEN + (1 - _SEEN) * share)
        return Findings()

    def _write(self, scores: Tensor, labels: NDArray[np.uint8]) -> Iterator[float]:
        """Write labels slab by slab, and yield which share is done."""
        heads, slices, rows, columns = scores.shape
        (_, *source) = labels.shape
        regions = self._plans.labels.has_regions
        back = WayBack(
            GridChange(source=(source[0], source[1], source[2]), model=(slices, rows, columns)),
            # of a region's score: the sigmoid function is 0.5 there
            EachAbove(self.card, 0.0) if regions else HighestWins(self.card),
            labels,
            linear=self._back == "linear",
        )
        step = max(1, _CHUNK_BYTES // (4 * heads * rows * columns))
        for start in range(0, slices, step):
            slab = scores[:, start : start + step].to(self._device, torch.float32)
            if not torch.isfinite(slab).all():
                raise ModelFailed(
                    f"The network of {self.card.name} gave NaN or infinity; its weights are "
                    "broken, or half precision is too little for it.",
                    code="model-output",
                )
            back.take(slab)
            yield min(1.0, (start + step) / slices)


def _check_orientation(card: Card, *, turns_to_ras: bool) -> None:
    """Check what the plans tell of it; most say that images were taken as they lay in files."""
    if turns_to_ras and card.orientation != _RAS:
        raise ModelFailed(
            f"The network was trained on images turned to RAS, which a card calls {_RAS}; the card "
            f"of {card.name} has orientation {card.orientation}. Correct it, or left and right "
            "would be mixed up.",
            code="model-mismatch",
        )


def _check_channels(card: Card, channels: int) -> None:
    given = max(1, len(card.inputs))
    if given != channels:
        raise ModelFailed(
            f"The number of input channels is {channels} in dataset.json and {given} in the card "
            f"of {card.name}; each of [[input.series]] is one channel.",
            code="model-channels",
        )


def _check_segments(card: Card, names: Mapping[int, str]) -> None:
    """Check that card and network know the same labels, or regions."""
    known = [f"{channel} {name}" for channel, name in names.items()]
    listed = ", ".join(known[:_LISTED]) + (" …" if len(known) > _LISTED else "")
    for segment in card.segments:
        if segment.channel not in names:
            raise ModelFailed(
                f"The card of {card.name} says that segment '{segment.label}' is channel "
                f"{segment.channel}, which dataset.json does not have; it has {listed}.",
                code="model-mismatch",
            )
    strange = names.keys() - {segment.channel for segment in card.segments}
    if strange:
        raise ModelFailed(
            f"The network gives {min(strange)} '{names[min(strange)]}', which no segment on the "
            f"card of {card.name} has as its channel; dataset.json has {listed}.",
            code="model-strange-label",
        )


def _check_extent(
    volume: InputVolume, transpose_forward: list[int], wanted_mm: list[float]
) -> None:
    """Check that at least one voxel of the network lies along each axis.

    A network of two dimensions says no spacing for the first axis, which it leaves as it is.
    """
    for axis, wanted in zip(reversed(transpose_forward), reversed(wanted_mm), strict=False):
        extent = volume.hu.shape[axis] * volume.spacing_mm[axis]
        if round(extent / wanted) < 1:
            raise UnsuitableSeries(
                f"The volume is {extent:.1f} mm thick, and the network's voxels {wanted:.1f} mm.",
                code="too-thin",
            )
