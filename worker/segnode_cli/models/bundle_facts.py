"""What the files of a MONAI bundle say about the model, for a draft card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segnode_cli.models.facts import (
    AXES,
    MOST_SEGMENTS,
    Channel,
    ModelFacts,
    by_number,
    channels_of,
    has_background,
    json_of,
    licence_of,
    modality_of,
    segments_of,
    table_of,
    text_of,
)
from segnode_cli.models.inference import Inference, read_inference
from segnode_cli.models.inspect import plain
from segnode_cli.models.weights import find_weights
from segnode_contract.errors import SetupError

_NOT_RESAMPLED = (
    "The model does not bring images to the spacing that it was trained on: on images of another "
    "spacing or preparation its result may be wrong."
)
_ONE_MASK = "its one channel is read as a label map: 1 is the segment, 0 is background"


def bundle_facts(folder: Path, title: str) -> ModelFacts:
    """Read a bundle; `SetupError` where no volume can be segmented with it."""
    told = json_of(folder, "configs/metadata.json")
    network = table_of(told, "network_data_format")
    image_key, image = _part(network, "inputs", "image")
    pred_key, pred = _part(network, "outputs", "pred")
    _check_volume(title, image, pred)
    inference = read_inference(folder, title, image_key, pred_key)
    config = inference.config
    weights = find_weights(folder, title, config, inference.weights)
    names, named = _outputs(pred)
    mask = [*names] == [0] and pred.get("num_channels", 1) == 1 and not has_background(names)
    names = {1: names[0]} if mask else names
    return ModelFacts(
        kind="monai-bundle",
        source="configs/metadata.json",
        name=text_of(told, "name") or title,
        version=text_of(told, "version"),
        intended_use=_sentences(text_of(told, "description"), text_of(told, "intended_use")),
        licence=licence_of(folder) or text_of(told, "license"),
        channels=_channels(title, image),
        # where the bundle turns its images, any will do
        orientation="HAR" if inference.turns else "",
        orientation_hint=f"{AXES.format(order='in that order')}: (R, A, S) is RAH",
        network={"config": config, "weights": weights.path, "image": image_key, "pred": pred_key},
        notes={"pred": _ONE_MASK} if mask else {},
        doubts={"weights": weights.doubt} if weights.doubt else {},
        input_doubts=_input_doubts(image, inference),
        label_doubt=_label_doubt(inference),
        limitations=() if inference.resamples else (_NOT_RESAMPLED,),
        segments=segments_of(title, names, apart=not has_background(names)),
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
    if image.get("num_channels", 1) != 1 and len(by_number(image.get("channel_def"))) == 1:
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
    if not text_of(pred, "format"):
        raise SetupError(
            f"{title}: its configs/metadata.json does not say what the model gives (the format "
            "of pred, in network_data_format); only segmentations can be added."
        )
    if pred.get("format") not in ("segmentation", "labels"):
        raise SetupError(
            f"{title} gives no segmentation: by its configs/metadata.json the format of what it "
            f"gives is '{text_of(pred, 'format')}'."
        )


def _outputs(pred: Mapping[str, Any]) -> tuple[dict[int, str], bool]:
    """Return the name of each output channel, and whether the bundle names them."""
    names = by_number(pred.get("channel_def")) or by_number(pred.get("label_def"))
    if names:
        return names, True
    count = pred.get("num_channels")
    count = count if isinstance(count, int) and 2 <= count <= MOST_SEGMENTS else 2
    return {0: "background"} | {number: f"Label {number}" for number in range(1, count)}, False


def _channels(title: str, image: Mapping[str, Any]) -> list[Channel]:
    modality = modality_of(text_of(image, "modality"))
    count = image.get("num_channels", 1)
    names = by_number(image.get("channel_def"))
    if count == 1 or len(names) == 1:
        return [Channel(role="", modality=modality)]
    if sorted(names) != list(range(len(names))) or len(names) != count:
        raise SetupError(
            f"{title} needs one image of {count!r} channels, of which its configs/metadata.json "
            f"names {len(names)}; each must have a name there, for the series that becomes it."
        )
    return channels_of([names[number] for number in sorted(names)], modality)


def _part(network: Mapping[str, Any], key: str, usual: str) -> tuple[str, Mapping[str, Any]]:
    """Return the part named `usual` of the inputs or outputs, or else the first."""
    parts = table_of(network, key)
    name = usual if usual in parts else next(iter(parts), usual)
    return plain(name, 40), table_of(parts, name)


def _sentences(*texts: str) -> str:
    return " ".join(text if text[-1] in ".!?" else f"{text}." for text in texts if text)
