"""The parts of a MONAI bundle that make labels of an image, built from its configuration.

A bundle's `inference.json` also tells of data sets, handlers and files to write; none of that is
built here. Its `LoadImaged` reads from memory, and its `SaveImaged` is left out.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pydoc import ErrorDuringImport
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle.config_parser import ConfigParser
from monai.data.image_reader import ImageReader
from monai.inferers.inferer import SliceInferer
from monai.transforms.compose import Compose
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.spatial.dictionary import Orientationd
from monai.transforms.transform import MapTransform
from numpy.typing import NDArray
from torch.nn import Module

from segnode_contract.card_network import BundleNetwork
from segnode_contract.errors import ModelFailed
from segnode_models.bundle.inversion import (
    ChannelwiseInversion,
    Step,
    with_channelwise_inversion,
)
from segnode_models.bundle.weights import load_state
from segnode_models.program import load_program
from segnode_models.trust import is_program

_METADATA = "configs/metadata.json"
_IDS = {
    "preprocessing": ("preprocessing", "dataset#transform"),
    "postprocessing": ("postprocessing", "evaluator#postprocessing"),
    "inferer": ("inferer", "evaluator#inferer"),
    "network": ("network_def", "network", "evaluator#network"),
}
"""Where a part may stand: by its usual name, or only where the rest of the bundle takes it from."""
_PROGRAM = "models/model.ts"
"""Network and weights in one, as the Model Zoo names it; needs no configuration to be built."""
_LOADERS = {"LoadImaged", "LoadImageD", "LoadImageDict"}
_SAVERS = {"SaveImaged", "SaveImageD", "SaveImageDict"}


class MemoryReader(ImageReader):
    """What a bundle's `LoadImaged` reads: an image in memory instead of a file."""

    def __init__(self) -> None:
        self._image: tuple[NDArray[np.float32], dict[str, Any]] | None = None

    @contextmanager
    def holding(
        self, images: Sequence[NDArray[np.generic]], affine: NDArray[np.float64]
    ) -> Iterator[None]:
        """Hold one image of one or several channels inside the ``with``.

        Parameters
        ----------
        images
            Of one shape, one per channel.
        affine
            From voxel indices to RAS millimetres.
        """
        several = len(images) > 1
        array = np.array(images if several else images[0], dtype=np.float32)
        meta = {
            "affine": affine,
            "original_affine": affine.copy(),
            "spatial_shape": np.array(images[0].shape),
            "original_channel_dim": 0 if several else "no_channel",
            "space": "RAS",
        }
        self._image = (array, meta)
        del array
        try:
            yield
        finally:
            self._image = None

    def verify_suffix(self, filename: object) -> bool:
        return True

    def read(self, data: object, **kwargs: object) -> object:
        return self._image

    def get_data(self, img: Any) -> tuple[NDArray[np.float32], dict[str, Any]]:
        array, meta = img
        return array, dict(meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleParts:
    """What a bundle needs to make labels of an image."""

    preprocessing: tuple[Step, ...]
    """Takes the image's key with any text; the image itself comes out of `reader`."""
    reader: MemoryReader
    inferer: Callable[..., Any]
    network: Module
    """On the device, ready to infer."""
    postprocessing: tuple[Step | ChannelwiseInversion, ...]
    channels: int | None
    """That the network takes, where the metadata says so."""


def read_bundle(folder: Path, card: BundleNetwork, device: torch.device) -> BundleParts:
    """Build a bundle's parts and load its weights.

    Raises
    ------
    ModelFailed
        ``model-mismatch``, if a part is missing, cannot be built or does not fit the others;
        ``model-weights``, if the weights cannot be read.
    """
    parser = _parser(folder, card, device)
    reader = MemoryReader()
    _redirect(parser.config, reader)
    before, after = (_part(parser, part, card) for part in ("preprocessing", "postprocessing"))
    loaders = [one for one in _transforms(before) if isinstance(one, LoadImaged)]
    _check_keys(loaders, _transforms(after), card)
    inferer = _inferer(parser, card, device)
    _check_slices(inferer, _transforms(before), card)
    # an instance is a documented argument of LoadImaged, though not in its types
    load = () if loaders else (LoadImaged(card.image, reader=reader),)  # type: ignore[arg-type]
    return BundleParts(
        preprocessing=(*load, *_steps(before)),
        reader=reader,
        inferer=inferer,
        network=_network(parser, card, folder / card.weights, device),
        postprocessing=with_channelwise_inversion(_steps(after), card.pred),
        channels=_channels(parser, card),
    )


def _inferer(parser: ConfigParser, card: BundleNetwork, device: torch.device) -> Any:
    inferer = _part(parser, "inferer", card)
    _check_call(inferer, card)
    for where in ("device", "sw_device"):  # some bundles name a GPU here, whichever they run on
        if str(getattr(inferer, where, None)) not in {"None", "cpu"}:
            setattr(inferer, where, device)
    return inferer


def _network(
    parser: ConfigParser, card: BundleNetwork, weights: Path, device: torch.device
) -> Module:
    if weights.suffix == ".ts" or is_program(weights):
        return load_program(weights, device)
    network = _part(parser, "network", card)
    if not isinstance(network, Module):
        raise _mismatch(f"The network in {card.config} is no torch module.")
    load_state(network, weights)
    return network.to(device).eval()


def _parser(folder: Path, card: BundleNetwork, device: torch.device) -> ConfigParser:
    config, metadata = (_read(folder, path) for path in (card.config, _METADATA))
    parser = ConfigParser()
    parser.read_config(config)
    parser.read_meta(metadata)
    parser["bundle_root"] = str(folder)
    parser["device"] = f"$torch.device('{device}')"
    return parser


def _read(folder: Path, path: str) -> dict[str, Any]:
    try:
        content = ConfigParser.load_config_file(folder / path)
    except FileNotFoundError as error:
        raise _mismatch(f"The bundle has no {path}.") from error
    except (OSError, ValueError) as error:
        raise _mismatch(f"The bundle's {path} cannot be read as JSON.") from error
    if not isinstance(content, dict):
        raise _mismatch(f"The bundle's {path} holds no table of names.")
    return content


def _redirect(config: Any, reader: MemoryReader) -> None:
    """Have every loader take its image from `reader`, and leave savers out."""
    if isinstance(config, dict) and isinstance(config.get("_target_"), str):
        target = config["_target_"].rpartition(".")[2]
        if target in _LOADERS:
            config["reader"] = reader
        elif target in _SAVERS:
            config["_disabled_"] = True
    if isinstance(config, dict | list):
        for item in config.values() if isinstance(config, dict) else config:
            _redirect(item, reader)


def _part(parser: ConfigParser, part: str, card: BundleNetwork) -> Any:
    known = [name for name in _IDS[part] if name in parser]
    if not known:
        raise _mismatch(f"{card.config} has no '{_IDS[part][0]}'; a bundle cannot run without.")
    try:
        built = parser.get_parsed_content(known[0])
    except (RuntimeError, ImportError, ValueError, KeyError, ErrorDuringImport) as error:
        reason = _reason(error).replace(f"{parser['bundle_root']}/", "")
        made_for = parser.get("_meta_#monai_version", "an unknown version")
        raise _mismatch(
            f"The '{known[0]}' of {card.config} cannot be built with MONAI {monai.__version__}; "
            f"it was made for {made_for}. {reason}{_way_out(parser, part)}"
        ) from error
    if not callable(built):
        raise _mismatch(f"The '{known[0]}' of {card.config} cannot be called; it is {built!r}.")
    return built


def _reason(error: BaseException) -> str:
    """Return what stopped the building, in one sentence without signs that steer a terminal.

    No image is near at that time, so it quotes none.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ErrorDuringImport) and error.value is not None:
        error = error.value
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error))
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return f"{type(error).__name__}: {re.split(r'(?<=[.!?]) (?=[A-Z])', text)[0][:200]}"


def _way_out(parser: ConfigParser, part: str) -> str:
    if part != "network" or not (Path(parser["bundle_root"]) / _PROGRAM).is_file():
        return ""
    return (
        f' The bundle\'s {_PROGRAM} needs no building: set weights = "{_PROGRAM}" below [network] '
        "on the card, and add the model again."
    )


def _steps(transform: Any) -> tuple[Step, ...]:
    """Return what a plain `Compose` does, so that it can be stopped between its steps."""
    plain = type(transform) is Compose and transform.lazy is False
    steps = transform.transforms if plain else ()
    if not plain or any(getattr(step, "lazy", False) for step in steps):
        return (transform,)
    return tuple(steps)


def _transforms(transform: Any) -> Sequence[Any]:
    """Return all that a transform is composed of."""
    found: Sequence[Any] = Compose([transform]).flatten().transforms  # type: ignore[no-untyped-call]
    return found


def _check_call(inferer: Any, card: BundleNetwork) -> None:
    try:
        signature = inspect.signature(inferer)
    except (TypeError, ValueError):  # some callables tell none
        return
    try:
        signature.bind("image", "network")
    except TypeError as error:
        needed = [
            name
            for name, one in signature.parameters.items()
            if one.default is one.empty and one.kind not in {one.VAR_POSITIONAL, one.VAR_KEYWORD}
        ]
        raise _mismatch(
            f"The inferer of {card.config} needs {_quoted(needed) or 'nothing'}; segnode gives an "
            "image and a network and no prompts, so it cannot run this bundle."
        ) from error


def _check_slices(inferer: Any, before: Sequence[Any], card: BundleNetwork) -> None:
    turned = any(isinstance(step, Orientationd) for step in before)
    if isinstance(inferer, SliceInferer) and not turned:
        raise _mismatch(
            "The bundle's network sees slice by slice (SliceInferer), and its preprocessing has no "
            "Orientationd that says which slices; those that a series was acquired in, short-axis "
            "ones say, cannot be asked for. If they are axial, sagittal or coronal, add "
            f"Orientationd to the preprocessing in {card.config}, and add the model again."
        )


def _check_keys(loaders: Sequence[LoadImaged], after: Sequence[Any], card: BundleNetwork) -> None:
    for loader in loaders:
        if set(loader.keys) != {card.image}:
            raise _mismatch(
                f"The bundle's preprocessing loads {_quoted(loader.keys)}, and the card has "
                f"'{card.image}' as network.image; only one image, of one or several channels, "
                "can be given."
            )
    keys = [key for step in after if isinstance(step, MapTransform) for key in step.keys]
    if keys and card.pred not in keys:
        raise _mismatch(
            f"The bundle's postprocessing works on {_quoted(dict.fromkeys(keys))}, and the card "
            f"has '{card.pred}' as network.pred; mend the card and add the model again."
        )


def _quoted(keys: Any) -> str:
    return ", ".join(f"'{key}'" for key in keys)


def _channels(parser: ConfigParser, card: BundleNetwork) -> int | None:
    said = parser.get(f"_meta_#network_data_format#inputs#{card.image}#num_channels")
    return said if isinstance(said, int) else None


def _mismatch(sentence: str) -> ModelFailed:
    return ModelFailed(sentence, code="model-mismatch")
