"""What a card says of its network, by the kind of model; a built-in model has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from segnode_contract.card_table import TomlTable
from segnode_contract.errors import CardError

Activation = Literal["softmax", "sigmoid", "none"]
Blend = Literal["gaussian", "constant"]
Back = Literal["linear", "nearest"]
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """How modality values become what a network was trained on.

    They are clipped, then mapped: from `clip` onto `scale`, or by ``(value - mean) / std``, with
    mean and standard deviation of the whole volume where `per_image` holds.
    """

    clip: tuple[float, float] | None
    scale: tuple[float, float] | None
    mean: float
    std: float
    per_image: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchScriptNetwork:
    """Kind `torchscript`: weights with their program, and all else by this card."""

    weights: str
    """Path in the model's folder."""
    spacing_mm: Triple
    """Distance of voxels along the card's axes, slices first, that the network was trained on."""
    intensity: Intensity
    patch: tuple[int, int, int]
    """Voxels that the network sees at once, along the card's axes."""
    overlap: float
    """Of neighbouring patches, as a share of the patch."""
    blend: Blend
    """How overlapping patches are weighed."""
    activation: Activation
    threshold: float
    """Of a probability, above which a voxel belongs to its segment; not for softmax."""
    back: Back
    """How the result comes back onto the images' grid: scores interpolated and decided there, or
    labels decided on the network's grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleNetwork:
    """Kind `monai-bundle`: its own pre- and post-processing, from its own configuration."""

    config: str
    """Path of the inference configuration, JSON."""
    weights: str
    """Path of a state dictionary, or of a TorchScript program (``.ts``)."""
    image: str
    """Key of the image in the bundle's transforms."""
    pred: str
    """Key of the result in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NnunetNetwork:
    """Kind `nnunet`: a trained folder of nnU-Net v2, with `plans.json` and `dataset.json`."""

    folds: tuple[str, ...]
    """Whose networks are averaged: ``0``, ``1`` … or ``all``."""
    checkpoint: str
    mirroring: bool
    """Whether each patch is seen mirrored as well, along the axes that training allowed."""
    step: float
    """Of the sliding window, as a share of the patch."""
    back: Back


Network = TorchScriptNetwork | BundleNetwork | NnunetNetwork


def read_network(kind: str, card: TomlTable, needs: TomlTable) -> Network | None:
    """Read the tables `network` and `input` of a card.

    Raises
    ------
    CardError
        Naming the line that is missing or wrong.
    """
    if kind == "builtin":
        return None
    table = card.table("network")
    if kind == "torchscript":
        return _torchscript(table, needs)
    if kind == "monai-bundle":
        table.only("config", "weights", "image", "pred")
        return BundleNetwork(
            config=_path(table, "config", "configs/inference.json"),
            weights=_path(table, "weights", "models/model.pt"),
            image=table.text("image", "image"),
            pred=table.text("pred", "pred"),
        )
    table.only("folds", "checkpoint", "mirroring", "step", "back")
    folds = tuple(table.texts("folds"))
    if not all(fold == "all" or fold.isdigit() for fold in folds):
        raise CardError(f"{table.where}: folds is {list(folds)}; '0' to '4' say, or 'all'.")
    return NnunetNetwork(
        folds=folds,
        checkpoint=_path(table, "checkpoint", "checkpoint_final.pth"),
        mirroring=table.flag("mirroring", True),
        step=_share(table, "step", 0.5),
        back=table.one_of("back", ("linear", "nearest"), "linear"),
    )


def _torchscript(table: TomlTable, needs: TomlTable) -> TorchScriptNetwork:
    table.only("weights", "patch", "overlap", "blend", "activation", "threshold", "back")
    patch = table.wholes("patch", 3, 1)
    spacing = needs.numbers("spacing_mm", 3)
    if min(spacing) <= 0:
        raise CardError(f"{needs.where}: spacing_mm is {spacing}; it must be more than 0.")
    overlap = table.number("overlap", 0.25)
    if not 0 <= overlap < 1:
        raise CardError(f"{table.where}: overlap is {overlap}; it must be 0 or more, below 1.")
    return TorchScriptNetwork(
        weights=_path(table, "weights", "model.ts"),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        intensity=_intensity(needs.table("intensity")),
        patch=(patch[0], patch[1], patch[2]),
        overlap=overlap,
        blend=table.one_of("blend", ("gaussian", "constant"), "gaussian"),
        activation=table.one_of("activation", ("softmax", "sigmoid", "none")),
        threshold=_share(table, "threshold", 0.5),
        back=table.one_of("back", ("linear", "nearest"), "linear"),
    )


def _intensity(table: TomlTable) -> Intensity:
    table.only("clip", "scale", "mean", "std", "per_image")
    clip = table.numbers("clip", 2) if "clip" in table.data else None
    scale = table.numbers("scale", 2) if "scale" in table.data else None
    per_image = table.flag("per_image", False)
    if clip is not None and clip[0] >= clip[1]:
        raise CardError(f"{table.where}: clip is {clip}; the first must be the lower one.")
    if (scale is not None) + ("mean" in table.data or "std" in table.data) + per_image != 1:
        raise CardError(f"{table.where} needs one of: scale (with clip), mean and std, per_image.")
    if scale is not None and clip is None:
        raise CardError(f"{table.where} has scale without clip; scale maps the ends of clip.")
    by_figures = scale is None and not per_image
    return Intensity(
        clip=(clip[0], clip[1]) if clip else None,
        scale=(scale[0], scale[1]) if scale else None,
        mean=table.number("mean") if by_figures else 0.0,
        std=table.positive("std") if by_figures else 1.0,
        per_image=per_image,
    )


def _share(table: TomlTable, key: str, usual: float) -> float:
    share = table.number(key, usual)
    if not 0 < share <= 1:
        raise CardError(f"{table.where}: {key} is {share}; it must be more than 0, at most 1.")
    return share


def _path(table: TomlTable, key: str, usual: str) -> str:
    """Return a path that cannot leave the model's folder."""
    path = PurePosixPath(table.text(key, usual))
    if path.is_absolute() or ".." in path.parts:
        raise CardError(f"{table.where}: {key} is '{path}', which is outside the model's folder.")
    return str(path)
