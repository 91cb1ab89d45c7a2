"""What the files of a MONAI bundle or of a trained nnU-Net say about the model, for a draft card.

They come from elsewhere: every text is made plain, every number is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segnode_cli.models.inference import Inference, read_inference
from segnode_cli.models.inspect import plain
from segnode_cli.models.weights import find_weights
from segnode_contract.card import Kind
from segnode_contract.errors import SetupError
from segnode_models.nnunet.reader import turns_to_ras

Setting = str | bool | list[str]

_LARGEST_JSON = 32 << 20
_MOST_SEGMENTS = 255
_MODALITIES = {
    **dict.fromkeys(("ct", "cbct"), "CT"),
    **dict.fromkeys(("mr", "mri", "flair", "adc", "dwi", "swi", "t1", "t1w", "t1c"), "MR"),
    **dict.fromkeys(("t1ce", "t1gd", "t1n", "t2", "t2w", "t2f", "t2flair"), "MR"),
    **dict.fromkeys(("pet", "pt"), "PT"),
}
"""DICOM's modality for a word in the name of a channel."""
_NOT_RESAMPLED = (
    "The model does not bring images to the spacing that it was trained on: on images of another "
    "spacing or preparation its result may be wrong."
)
_ONE_MASK = "its one channel is read as a label map: 1 is the segment, 0 is background"
_AXES = "nibabel.aff2axcodes of a training image, {order}, with H for S and F for I"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSegment:
    """What a network finds, and where its labels are to stand."""

    name: str
    plane: int
    value: int
    channel: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One of the images that a network takes."""

    role: str
    modality: str
    """Empty for unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a card needs; a text is empty where the files do not tell it."""

    kind: Kind
    source: str
    """Of the facts, for people."""
    name: str
    version: str
    intended_use: str
    licence: str
    channels: Sequence[Channel]
    orientation: str
    orientation_hint: str
    """How to find out the orientation."""
    network: Mapping[str, Setting]
    """Lines of the card's table `network`."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Remarks for people, by line of that table."""
    doubts: Mapping[str, str] = field(default_factory=dict)
    """What a person must decide, by line of that table."""
    input_doubts: Sequence[str] = ()
    """And of the images."""
    label_doubt: str = ""
    """And of each label."""
    limitations: Sequence[str] = ()
    segments: Sequence[NamedSegment]
    named: bool
    """Whether the files name the segments."""
    weights_bytes: int
    """Of the largest file of weights."""


def read_facts(folder: Path, title: str) -> ModelFacts:
    """Read what is known about the model in `folder`, which people call `title`.

    Raises
    ------
    SetupError
        If it is no bundle and no trained nnU-Net, or one that no volume can be segmented with.
    """
    if (folder / "configs/metadata.json").is_file():
        return _bundle_facts(folder, title)
    if (folder / "dataset.json").is_file() and (folder / "plans.json").is_file():
        return _nnunet_facts(folder, title)
    inner = [*folder.glob("*/plans.json"), *folder.glob("*/configs/metadata.json")]
    names = sorted(plain(path.relative_to(folder).parts[0]) for path in inner)
    raise SetupError(
        f"{title} holds {len(names)} models, {', '.join(names[:5])} …; add one of them."
        if names
        else f"{title} has no card.toml, and none can be drafted: it is neither a MONAI bundle "
        "(with configs/metadata.json) nor a trained nnU-Net v2 folder (with dataset.json and "
        "plans.json). Write the card, as the README says, and name it with --card."
    )


def _bundle_facts(folder: Path, title: str) -> ModelFacts:
    told = _json(folder, "configs/metadata.json")
    network = _table(told, "network_data_format")
    image_key, image = _part(network, "inputs", "image")
    pred_key, pred = _part(network, "outputs", "pred")
    _check_volume(title, image, pred)
    inference = read_inference(folder, title, image_key, pred_key)
    config = inference.config
    weights = find_weights(folder, title, config, inference.weights)
    names, named = _bundle_outputs(pred)
    mask = [*names] == [0] and pred.get("num_channels", 1) == 1 and not _has_background(names)
    names = {1: names[0]} if mask else names
    return ModelFacts(
        kind="monai-bundle",
        source="configs/metadata.json",
        name=_text(told, "name") or title,
        version=_text(told, "version"),
        intended_use=_sentences(_text(told, "description"), _text(told, "intended_use")),
        licence=_licence(folder) or _text(told, "license"),
        channels=_bundle_channels(title, image),
        # where the bundle turns its images, any will do
        orientation="HAR" if inference.turns else "",
        orientation_hint=f"{_AXES.format(order='in that order')}: (R, A, S) is RAH",
        network={"config": config, "weights": weights.path, "image": image_key, "pred": pred_key},
        notes={"pred": _ONE_MASK} if mask else {},
        doubts={"weights": weights.doubt} if weights.doubt else {},
        input_doubts=_input_doubts(image, inference),
        label_doubt=_label_doubt(inference),
        limitations=() if inference.resamples else (_NOT_RESAMPLED,),
        segments=_segments(title, names, apart=not _has_background(names)),
        named=named,
        weights_bytes=weights.size,
    )


def _label_doubt(inference: Inference) -> str:
    if not inference.changes:
        return ""
    where = f"{inference.changes[0]} in {inference.config}"
    return f"{where} changes labels after the network; what they mean stands there"


def _input_doubts(image: Mapping[str, Any], inference: Inference) -> list[str]:
    doubts = []
    if image.get("num_channels", 1) != 1 and len(_by_number(image.get("channel_def"))) == 1:
        doubts.append(f"the bundle must make {image['num_channels']!r} channels of one image")
    if not inference.resamples:
        doubts.append(
            "the bundle does not bring images to one spacing: let the route take only those with "
            "the spacing, and the preparation, that it was trained on"
        )
    return doubts


def _check_volume(title: str, image: Mapping[str, Any], pred: Mapping[str, Any]) -> None:
    shape = image.get("spatial_shape")
    if isinstance(shape, list) and shape and len(shape) != 3:
        raise SetupError(f"{title} takes {len(shape)}-dimensional images, no volumes.")
    if not _text(pred, "format"):
        raise SetupError(
            f"{title}: its configs/metadata.json does not say what the model gives (the format "
            "of pred, in network_data_format); only segmentations can be added."
        )
    if pred.get("format") not in ("segmentation", "labels"):
        raise SetupError(
            f"{title} gives no segmentation: by its configs/metadata.json the format of what it "
            f"gives is '{_text(pred, 'format')}'."
        )


def _bundle_outputs(pred: Mapping[str, Any]) -> tuple[dict[int, str], bool]:
    """Return the name of each output channel, and whether the bundle names them."""
    names = _by_number(pred.get("channel_def")) or _by_number(pred.get("label_def"))
    if names:
        return names, True
    count = pred.get("num_channels")
    count = count if isinstance(count, int) and 2 <= count <= _MOST_SEGMENTS else 2
    return {0: "background"} | {number: f"Label {number}" for number in range(1, count)}, False


def _bundle_channels(title: str, image: Mapping[str, Any]) -> list[Channel]:
    modality = _modality(_text(image, "modality"))
    count = image.get("num_channels", 1)
    names = _by_number(image.get("channel_def"))
    if count == 1 or len(names) == 1:
        return [Channel(role="", modality=modality)]
    if sorted(names) != list(range(len(names))) or len(names) != count:
        raise SetupError(
            f"{title} needs one image of {count!r} channels, of which its configs/metadata.json "
            f"names {len(names)}; each must have a name there, for the series that becomes it."
        )
    return _channels([names[number] for number in sorted(names)], modality)


def _nnunet_facts(folder: Path, title: str) -> ModelFacts:
    dataset, plans = _json(folder, "dataset.json"), _json(folder, "plans.json")
    trainer, planner, configuration = _trained(folder, title, plans)
    names = _by_number(dataset.get("channel_names") or dataset.get("modality"))
    if not names:
        raise SetupError(f"{title}/dataset.json names no channels; it is not one of nnU-Net v2.")
    labels, apart = _nnunet_labels(title, dataset)
    folds, checkpoint = _folds(folder, title)
    many = f"each takes its time: {len(folds)} take {len(folds)} times that of one"
    return ModelFacts(
        kind="nnunet",
        source="dataset.json and plans.json",
        name=" ".join((_nnunet_name(folder, title, dataset), configuration, planner, trainer)),
        version="",
        intended_use=_text(dataset, "description"),
        licence=_licence(folder) or _text(dataset, "licence") or _text(dataset, "license"),
        channels=_channels([names[number] for number in sorted(names)], ""),
        # reoriented to RAS, then axes reversed: indices grow towards head, anterior, right
        orientation="HAR" if turns_to_ras(plans) else "",
        orientation_hint=f"{_AXES.format(order='from the last to the first')}: (L, P, S) is HPL",
        network={"folds": folds, "checkpoint": checkpoint, "mirroring": True},
        notes={
            "mirroring": "as nnU-Net does; false is up to 8 times faster",
            **({"folds": many} if len(folds) > 1 else {}),
        },
        segments=_segments(title, labels, apart=apart),
        named=True,
        weights_bytes=max((folder / f"fold_{fold}" / checkpoint).stat().st_size for fold in folds),
    )


def _trained(folder: Path, title: str, plans: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what the folder's name says of trainer, plans and configuration.

    Empty where it was renamed; of trainer and plans also where they are nnU-Net's usual ones.
    """
    *before, name = folder.name.split("__")
    configurations = _table(plans, "configurations")
    if not before or name not in configurations:
        return "", "", ""
    trainer, planner = before if len(before) == 2 else ("", "")
    if "previous_stage" in _table(configurations, name):
        raise SetupError(
            f"{title} is the second stage of a cascade, which needs the result of the first; add "
            "a 3d_fullres or 3d_lowres model."
        )
    return (
        plain(trainer.removeprefix("nnUNetTrainer")),
        plain(planner.removeprefix("nnUNet").removesuffix("Plans")),
        plain(name),
    )


def _nnunet_name(folder: Path, title: str, dataset: Mapping[str, Any]) -> str:
    """Return the name of the data set; that in dataset.json is one for TotalSegmentator's parts."""
    named = re.fullmatch(r"Dataset\d+_(.+)", folder.parent.name)
    if named and "__" in folder.name:
        return named[1]
    return _text(dataset, "name") or title


def _nnunet_labels(title: str, dataset: Mapping[str, Any]) -> tuple[dict[int, str], bool]:
    """Return the name by label, or by output channel where regions may overlap."""
    labels = _table(dataset, "labels")
    regions = [label for label in labels.values() if isinstance(label, list) and len(label) > 1]
    found: dict[int, str] = {}
    for name, label in labels.items():
        values = label if isinstance(label, list) else [label]
        if not all(isinstance(value, int) and value >= 0 for value in values) or not values:
            raise SetupError(
                f"{title}/dataset.json: the label of {plain(name, 40)!r} is no number."
            )
        if set(values) == {0} or name == "ignore":
            continue
        found[len(found) if regions else values[0]] = plain(name, 100)
    if regions and len(found) != len(dataset.get("regions_class_order") or ()):
        raise SetupError(
            f"{title}/dataset.json has {len(found)} regions, and another number of them in "
            "regions_class_order."
        )
    return found, bool(regions)


def _folds(folder: Path, title: str) -> tuple[list[str], str]:
    """Return the folds that are trained, and the file of weights that each has."""
    for checkpoint in ("checkpoint_final.pth", "checkpoint_best.pth"):
        found = sorted(
            path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}")
        )
        numbers = [fold for fold in found if fold.isdecimal() and fold.isascii()]
        if numbers or "all" in found:
            return numbers or ["all"], checkpoint
    raise SetupError(f"{title} has no trained fold: no fold_0/checkpoint_final.pth or its like.")


def _channels(names: Sequence[str], modality: str) -> list[Channel]:
    """Return the channels, with roles where there are several."""
    if len(names) == 1:
        return [Channel(role="", modality=modality or _modality(names[0]))]
    channels: list[Channel] = []
    for name in names:
        role = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        role = role if role[:1].isalpha() else f"image_{role}".strip("_")
        taken = {channel.role for channel in channels}
        role = role if role not in taken else f"{role}_{len(channels)}"
        channels.append(Channel(role=role, modality=modality or _modality(name)))
    return channels


def _modality(name: str) -> str:
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((_MODALITIES[word] for word in words if word in _MODALITIES), "")


def _segments(title: str, names: Mapping[int, str], *, apart: bool) -> list[NamedSegment]:
    """Return the segments: each in a plane of its own where they may overlap."""
    wanted = {n: name for n, name in sorted(names.items()) if apart or not _is_background(n, name)}
    if not wanted:
        raise SetupError(f"{title} names nothing that it finds.")
    if max(wanted) > _MOST_SEGMENTS:
        raise SetupError(
            f"{title} has the label {max(wanted)}; labels go up to {_MOST_SEGMENTS} here."
        )
    return [
        NamedSegment(
            name=name,
            plane=index if apart else 0,
            value=1 if apart else number,
            channel=number,
        )
        for index, (number, name) in enumerate(wanted.items())
    ]


def _has_background(names: Mapping[int, str]) -> bool:
    return _is_background(0, names.get(0, ""))


def _is_background(number: int, name: str) -> bool:
    return number == 0 and name.strip().lower() in ("background", "bg", "back ground")


def _licence(folder: Path) -> str:
    """Return the first line of the file that states the licence."""
    for path in sorted(folder.glob("*")):
        if path.name.upper().split(".")[0] in ("LICENSE", "LICENCE", "COPYING") and path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                lines = (plain(line, 100) for line in file.read(10_000).splitlines())
                return next((line for line in lines if line), "")
    return ""


def _json(folder: Path, path: str) -> Mapping[str, Any]:
    file = folder / path
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise ValueError("too large")
        told = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(told, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{path} is not JSON of a model, or over 32 MB.") from error
    return told


def _table(told: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = told.get(key)
    return value if isinstance(value, dict) else {}


def _part(network: Mapping[str, Any], key: str, usual: str) -> tuple[str, Mapping[str, Any]]:
    """Return the part named `usual` of the inputs or outputs, or else the first."""
    parts = _table(network, key)
    name = usual if usual in parts else next(iter(parts), usual)
    return plain(name, 40), _table(parts, name)


def _by_number(told: Any) -> dict[int, str]:
    """Return texts by their number, from an object with numbers for keys."""
    if not isinstance(told, dict):
        return {}
    return {
        int(key): plain(value, 100)
        for key, value in told.items()
        if key.isascii() and key.isdecimal() and len(key) < 6 and isinstance(value, str)
    }


def _text(told: Mapping[str, Any], key: str) -> str:
    value = told.get(key)
    return plain(value) if isinstance(value, str) else ""


def _sentences(*texts: str) -> str:
    return " ".join(text if text[-1] in ".!?" else f"{text}." for text in texts if text)
