"""nnU-Net's predictor, without the thread that it starts for each volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import Tensor

from segnode_contract.card_network import NnunetNetwork
from segnode_contract.errors import ModelFailed
from segnode_models.memory import lacks_memory
from segnode_models.model import Told
from segnode_models.nnunet.plans import Plans
from segnode_models.windows import Pace

_HOST = torch.device("cpu")
_WEIGHT = 10
"""Of a patch's middle; with it, sums in half precision are those of nnU-Net to the last bit."""


class Predictor(nnUNetPredictor):  # type: ignore[misc] # nnunetv2 has no types
    """Averages the networks of several folds, and mirrored views, as nnU-Net does.

    Patches reach nnU-Net's own loop through a thread, which waits for ever, with memory of the
    device, once an error or a stop ends that loop. Here one loop does both.

    Parameters
    ----------
    folds
        State dictionaries.
    mirror_axes
        Those that training allows; empty for none.
    half
        Whether networks run in half precision on a GPU, as nnU-Net's own predictor has them.

    Raises
    ------
    ModelFailed
        ``model-mismatch``, if weights do not fit the network of the plans.
    """

    def __init__(
        self,
        plans: Plans,
        folds: Sequence[Mapping[str, Tensor]],
        mirror_axes: tuple[int, ...],
        setting: NnunetNetwork,
        device: torch.device,
        *,
        half: bool,
    ) -> None:
        tuning = torch.backends.cudnn.benchmark
        with redirect_stdout(None):
            super().__init__(
                tile_step_size=setting.step,
                use_mirroring=setting.mirroring,
                perform_everything_on_device=False,  # `_summed` is told where
                device=device,
                allow_tqdm=False,
            )
        torch.backends.cudnn.benchmark = tuning  # all models share it, and results would vary
        network = plans.network().to(device)
        for weights in folds:
            try:
                network.load_state_dict(weights)
            except RuntimeError as error:
                raise ModelFailed(
                    "The checkpoint's weights do not fit the network that plans.json describes; "
                    "both must come from one training.",
                    code="model-mismatch",
                ) from error
        self._told: Told = lambda _: None
        self._pace = Pace(device)
        self._fold = 0
        """Whose turn it is."""
        self._share = 0.0
        """Of the work that is done."""
        network.register_forward_pre_hook(lambda *_: self._tell())
        self._half = half
        self._folds = [*folds] if len(folds) > 1 else [None]
        """Loaded in turn; None stands for one that is loaded for good."""
        self.manual_initialization(
            network,
            plans.manager,
            plans.configuration,
            None,
            plans.dataset,
            plans.trainer.__name__,
            mirror_axes or None,
        )

    @torch.inference_mode()
    def scores(self, data: Tensor, told: Told) -> Tensor:
        """Return the mean scores of all folds.

        Parameters
        ----------
        data
            What nnU-Net's preprocessing gave, ``(channels, …)``.
        told
            Called before each view of a patch.

        Returns
        -------
        torch.Tensor
            float16 ``(heads, …)``, on the device or, where it does not fit, on the host.

        Raises
        ------
        Stopped
            Out of `told`.
        """
        self._told = told
        total = self._of_fold(0, data)
        for number in range(1, len(self._folds)):
            one = self._of_fold(number, data)
            total = total.to(one.device).add_(one)
        return total.div_(len(self._folds))

    def _tell(self) -> None:
        self._pace.keep()
        self._told(self._share)

    def _of_fold(self, number: int, data: Tensor) -> Tensor:
        self._fold = number
        weights = self._folds[number]
        if weights is not None:
            self.network.load_state_dict(weights)
        scores: Tensor = self.predict_sliding_window_return_logits(data)
        return scores

    def _internal_predict_sliding_window_return_logits(
        self, data: Tensor, slicers: Sequence[tuple[slice | int, ...]], do_on_device: bool = False
    ) -> Tensor:
        if self.device != _HOST:
            try:
                return self._summed(data, slicers, self.device)
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
            torch.cuda.empty_cache()  # not before the error is gone, which holds the sums
        return self._summed(data, slicers, _HOST)

    def _summed(
        self, data: Tensor, places: Sequence[tuple[slice | int, ...]], home: torch.device
    ) -> Tensor:
        """Look at each place of a volume, with sums on the device `home`."""
        data = data.to(home)
        patch = tuple(self.configuration_manager.patch_size)
        weights = compute_gaussian(patch, value_scaling_factor=_WEIGHT, device=home)
        heads = self.label_manager.num_segmentation_heads
        sums = torch.zeros((heads, *data.shape[1:]), dtype=torch.half, device=home)
        seen = torch.zeros(data.shape[1:], dtype=torch.half, device=home)
        for number, place in enumerate(places):
            self._share = (self._fold + number / len(places)) / len(self._folds)
            view = data[place][None].to(self.device)
            with torch.autocast(self.device.type, enabled=self._half):
                scores = self._internal_maybe_mirror_and_predict(view)[0]
            sums[place] += scores.to(home) * weights
            seen[place[1:]] += weights
        return sums.div_(seen)
