"""From a card to a loaded model: one adapter for each kind.

Each import stands in its function: torch takes more than a second, MONAI and nnU-Net several, which
reading cards must not cost, and the latter two need not be installed.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path

from segnode_contract.card import Card
from segnode_contract.card_network import BundleNetwork, NnunetNetwork, TorchScriptNetwork
from segnode_contract.errors import CardError
from segnode_models.model import Model


def load_builtin(card: Card, device: str) -> Model:
    """Make a built-in model.

    Raises
    ------
    CardError
        If there is none of that name.
    """
    import torch

    from segnode_models.builtin.ct_lung_density.model import CtLungDensity
    from segnode_models.builtin.ct_tissue.model import CtTissue

    match card.name:
        case "ct-tissue":
            return CtTissue(card, torch.device(device))
        case "ct-lung-density":
            return CtLungDensity(card, torch.device(device))
    raise CardError(f"There is no built-in model '{card.name}'.")


def load_network(card: Card, folder: Path, device: str) -> Model:
    """Load the model in `folder`, whose files were checked.

    Raises
    ------
    ModelFailed
        If the weights cannot be read, do not fit the card, or a library is missing.
    """
    import torch

    match card.network:
        case TorchScriptNetwork() as network:
            from segnode_models.torchscript import TorchScriptModel

            return TorchScriptModel(card, network, folder, torch.device(device))
        case BundleNetwork() as network:
            from segnode_models.bundle.model import MonaiBundleModel

            return MonaiBundleModel(card, network, folder, torch.device(device))
        case NnunetNetwork() as network:
            from segnode_models.nnunet.model import NnunetModel

            return NnunetModel(card, network, folder, torch.device(device))
    raise CardError(f"{folder.name}/card.toml: a {card.kind} model has no network to load.")
