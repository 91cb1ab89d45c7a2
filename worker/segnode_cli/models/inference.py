"""What the inference configuration of a MONAI bundle says of its steps, read as data.

References (``@name``) are followed. What an expression (``$…``) makes is unknown, unless it only
strings references together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
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
_COMMON_KEY = re.compile(r"\$monai\.(?:\w+\.)*CommonKeys\.([A-Z]+)(?:\.value)?")
_LONGEST_TEXT = 2000
"""Signs of a path or an expression that are read; of what is longer, the rest is unknown."""
_MOST_NAMES = 100
"""Of keys of one step, and of files of weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """What a configuration says."""

    config: str
    """Its path in the bundle's folder."""
    loads: Sequence[str]
    """Keys of the images."""
    turns: bool
    """Whether the image is brought to one orientation, for certain."""
    resamples: bool
    """Whether it is brought to one spacing, for certain."""
    changes: Sequence[str]
    """Steps after the network that may change what a label means."""
    evaluator: str
    """Its class."""
    weights: Sequence[str]
    """Files that its loaders may load."""


def read_inference(folder: Path, title: str, image: str, pred: str) -> Inference:
    """Read how the bundle in `folder` is used, whose network makes `pred` of `image`: two keys.

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
        inference = _inference(document_of(folder / config), config, image, pred)
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


def _inference(told: Any, config: str, image: str, pred: str) -> Inference:
    before = list(_steps(told, "preprocessing", "dataset#transform"))
    after = _steps(told, "postprocessing", "evaluator#postprocessing")
    certain = {_class(step) for step, sure in before if sure and image in _keys(told, step)}
    loaders = (step for step, _ in before if _class(step) == "LoadImage")
    loads = dict.fromkeys(key for step in loaders for key in _keys(told, step))
    evaluator = _value(told, "@evaluator")
    evaluator = evaluator.get("_target_") if isinstance(evaluator, dict) else None
    return Inference(
        config=config,
        loads=[key for key in loads if key is not None],
        turns="Orientation" in certain,
        resamples="Spacing" in certain,
        changes=[
            plain(name, 60) if isinstance(name := step.get("_target_"), str) else "a step"
            for step, _ in after
            if _class(step) not in _KEEP_MEANING and not {pred, None}.isdisjoint(_keys(told, step))
        ],
        evaluator=plain(evaluator, 100) if isinstance(evaluator, str) else "",
        weights=list(dict.fromkeys(islice(_weights(told), _MOST_NAMES))),
    )


def _steps(told: Any, *names: str) -> Iterator[tuple[Mapping[Any, Any], bool]]:
    """Yield each step of a chain that stands by the first of `names`, and whether it surely runs.

    Of an expression, that is itself; what it refers to may run.
    """
    first = next((part for name in names if (part := _at(told, name)) is not None), None)
    waiting: list[tuple[Any, bool]] = [(first, True)]
    seen = set[tuple[str | int, bool]]()
    while waiting:
        part, sure = waiting.pop()
        mark = part if isinstance(part, str) else id(part), sure
        if mark in seen:
            continue
        seen.add(mark)
        if isinstance(part, str):
            text = part[:_LONGEST_TEXT]
            known = text == part and _ONLY_REFERENCES.fullmatch(text) is not None
            inside = (_at(told, name) for name in reversed(_REFERENCE.findall(text)))
            waiting += [(one, sure and known) for one in inside]
            if not known:
                yield {"_target_": text}, False
        elif isinstance(part, list):
            waiting += [(one, sure) for one in reversed(part)]
        elif isinstance(part, dict) and not _disabled(part):
            sure = sure and not part.get("_disabled_")
            if _class(part) == "Compose":
                waiting.append((part.get("transforms"), sure))
            else:
                yield part, sure


def _disabled(step: Mapping[Any, Any]) -> bool:
    """Return whether a step is left out for certain."""
    said = step.get("_disabled_")
    if isinstance(said, str):
        return len(said) <= _LONGEST_TEXT and said.strip().lower() == "true"
    return said is True


def _class(step: Mapping[Any, Any]) -> str:
    """Return the name of a class of MONAI without the ending of dictionary forms; or else empty."""
    target = step.get("_target_")
    if not isinstance(target, str) or len(target) > _LONGEST_TEXT:
        return ""
    first, *more = target.split(".")
    if more and first != "monai":
        return ""
    return re.sub(r"(d|D|Dict)$", "", [first, *more][-1])


def _keys(told: Any, step: Mapping[Any, Any]) -> list[str | None]:
    """Return what a step works on; None stands for what is not known."""
    keys = _value(told, step.get("keys"))
    if not (isinstance(keys, list) and 0 < len(keys) <= _MOST_NAMES):
        keys = [keys]
    return [_key(_value(told, key)) for key in keys]


def _key(key: Any) -> str | None:
    if not isinstance(key, str):
        return None
    if common := _COMMON_KEY.fullmatch(key):
        return common[1].lower()
    return None if key.startswith(("$", "%", "@")) else plain(key, 40)


def _value(told: Any, value: Any) -> Any:
    """Return what a reference refers to, and anything else as it is."""
    for _ in range(10):
        if isinstance(value, str) and len(value) > _LONGEST_TEXT:
            return None
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
            parts = _REFERENCE.split(path[:_LONGEST_TEXT])
            parts[1::2] = [
                found[:_LONGEST_TEXT] if isinstance(found := _at(told, name), str) else ""
                for name in parts[1::2]
            ]
            path = "".join(parts)
        for name in _WEIGHTS.findall(path[:_LONGEST_TEXT]):
            yield PurePosixPath(name).as_posix()
