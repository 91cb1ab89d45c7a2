"""What the inference configuration of a MONAI bundle says of its steps, read as data.

References (``@name``) are followed. What an expression (``$…``) makes is unknown, unless it only
strings references together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from segnode_cli.models.inspect import document_of, holders_of, plain
from segnode_contract.errors import SetupError

_REFERENCE = re.compile(r"@([\w:#]+)")
_ONLY_REFERENCES = re.compile(r"\$?\s*@[\w:#]+(\s*\+\s*@[\w:#]+)*\s*")
_WEIGHTS = re.compile(r"[\w.=+-]+(?:/[\w.=+-]+)*\.(?:pt|pth|ts|safetensors)\b")
_KEEP_MEANING = {
    *("Activations", "AsDiscrete", "Invert", "KeepLargestConnectedComponent", "RemoveSmallObjects"),
    *("FillHoles", "EnsureType", "CastToType", "ToDevice", "SaveImage"),
}
"""Steps of MONAI, without the d of their dictionary forms, after which a label means the same."""
_LONGEST_PATH = 2000
"""Signs of an expression that makes a path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """What a configuration says."""

    config: str
    """Its path in the bundle's folder."""
    loads: Sequence[str]
    """Keys of the images."""
    turns: bool
    """Whether images are brought to one orientation."""
    resamples: bool
    """Whether they are brought to one spacing."""
    changes: Sequence[str]
    """Steps after the network that may change what a label means."""
    evaluator: str
    """Its class."""
    weights: Sequence[str]
    """Files that its loaders may load."""


def read_inference(folder: Path, title: str, pred: str) -> Inference:
    """Read how the bundle in `folder` is used, whose network's result has the key `pred`.

    Raises
    ------
    SetupError
        If there is no configuration, or one that is not run here.
    """
    paths = [f"configs/inference.{end}" for end in ("json", "yaml", "yml")]
    config = next((path for path in paths if (folder / path).is_file()), None)
    if config is None:
        raise SetupError(f"{title} has no inference configuration: no {' or '.join(paths)}.")
    try:
        inference = _inference(document_of(folder / config), config, pred)
    except ValueError as error:
        raise SetupError(
            f"{title}/{config} cannot be read. For YAML, `setup/venv.sh monai` in segnode's "
            "checkout installs what is needed."
        ) from error
    if len(inference.loads) > 1:
        raise SetupError(
            f"{title} loads several images, by the keys {', '.join(inference.loads[:10])}; only "
            "bundles that load one image, of one or several channels, are run."
        )
    first, dot, _ = inference.evaluator.partition(".")
    if dot and first != "monai":
        raise SetupError(
            f"{title} runs by its own evaluator, {inference.evaluator}, which segnode does not "
            "run. If the model needs nothing of what that does, write the card, as the README "
            "says, and name it with --card."
        )
    return inference


def _inference(told: Any, config: str, pred: str) -> Inference:
    before = list(_steps(told, "preprocessing", "dataset#transform"))
    after = _steps(told, "postprocessing", "evaluator#postprocessing")
    certain = {_class(step) for step in before if not step.get("_disabled_")}
    keys = [key for step in before if _class(step) == "LoadImage" for key in _keys(told, step)]
    evaluator = _value(told, "@evaluator")
    evaluator = evaluator.get("_target_") if isinstance(evaluator, dict) else None
    return Inference(
        config=config,
        loads=list(dict.fromkeys(keys)),
        turns="Orientation" in certain,
        resamples="Spacing" in certain,
        changes=[
            plain(str(step.get("_target_")), 60)
            for step in after
            if _class(step) not in _KEEP_MEANING and pred in (_keys(told, step) or [pred])
        ],
        evaluator=plain(evaluator, 100) if isinstance(evaluator, str) else "",
        weights=list(dict.fromkeys(_weights(told))),
    )


def _steps(told: Any, *names: str) -> Iterator[Mapping[Any, Any]]:
    """Yield each step of a chain that stands by the first of `names`; of an expression, itself."""
    waiting = [next((part for name in names if (part := _at(told, name)) is not None), None)]
    seen = set[str | int]()
    while waiting:
        part = waiting.pop()
        mark = part if isinstance(part, str) else id(part)
        if mark in seen:
            continue
        seen.add(mark)
        if isinstance(part, str):
            waiting += [_at(told, name) for name in reversed(_REFERENCE.findall(part))]
            if not _ONLY_REFERENCES.fullmatch(part):
                yield {"_target_": part}
        elif isinstance(part, list):
            waiting += reversed(part)
        elif isinstance(part, dict) and str(part.get("_disabled_")).strip().lower() != "true":
            if _class(part) == "Compose":
                waiting.append(part.get("transforms"))
            else:
                yield part


def _class(step: Mapping[Any, Any]) -> str:
    """Return the name of a class of MONAI without the ending of dictionary forms; or else empty."""
    first, *more = str(step.get("_target_")).split(".")
    if more and first != "monai":
        return ""
    return re.sub(r"(d|D|Dict)$", "", [first, *more][-1])


def _keys(told: Any, step: Mapping[Any, Any]) -> list[str]:
    """Return what a step works on, as far as it says."""
    keys = _value(told, step.get("keys"))
    keys = [_value(told, key) for key in keys] if isinstance(keys, list) else [keys]
    named = [plain(key, 40) for key in keys if isinstance(key, str)]
    return [key.rpartition(".")[2].lower() if "CommonKeys." in key else key for key in named]


def _value(told: Any, value: Any) -> Any:
    """Return what a reference refers to, and anything else as it is."""
    for _ in range(10):
        if not (isinstance(value, str) and _ONLY_REFERENCES.fullmatch(value)) or "+" in value:
            break
        value = _at(told, value.strip("$@ "))
    return value


def _at(told: Any, name: str) -> Any:
    """Return the part by a name of MONAI's: ``a#b`` and ``a::0`` lie inside ``a``."""
    part = told
    for key in re.split("::|#", name):
        if isinstance(part, list) and key.isdecimal() and len(key) < 6 and int(key) < len(part):
            part = part[int(key)]
        else:
            part = part.get(key) if isinstance(part, dict) else None
    return part


def _weights(told: Any) -> Iterator[str]:
    """Yield the names of files that stand in the paths of its loaders of weights."""
    for holder in holders_of(told):
        path = holder.get("load_path") if isinstance(holder, dict) else None
        if not isinstance(path, str):
            continue
        for _ in range(5):
            parts = _REFERENCE.split(path)
            parts[1::2] = [
                found if isinstance(found := _at(told, name), str) else "" for name in parts[1::2]
            ]
            path = "".join(parts)[:_LONGEST_PATH]
        for name in _WEIGHTS.findall(path):
            yield PurePosixPath(name).as_posix()
