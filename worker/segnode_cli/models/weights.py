"""Which file of a MONAI bundle holds its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segnode_contract.errors import SetupError

_USUAL = [f"models/model.{end}" for end in ("pt", "ts", "safetensors")]
_LONGEST_NAME = 255
"""Bytes that file systems take."""
_ENDINGS = (".pt", ".pth", ".ts", ".safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A file of weights."""

    path: str
    """In the bundle's folder; ``unknown`` where a person must choose."""
    size: int
    doubt: str
    """What a person must decide about it; empty for nothing."""


def find_weights(folder: Path, title: str, config: str, told: Sequence[str]) -> Weights:
    """Find the weights of the bundle in `folder`, whose configuration `config` may load `told`.

    Raises
    ------
    SetupError
        If there are none.
    """
    usable = [name for name in told if ".." not in name and len(name.encode()) <= _LONGEST_NAME]
    named = [path for name in usable for path in (name, f"models/{name}")]
    found = [path for path in (*named, *_USUAL) if (folder / path).is_file()][:1]
    doubt = ""
    if len(told) > 1:
        doubt = f"{config} loads {' or '.join(told)}, by a switch that must be set for this one"
    elif told and {*named}.isdisjoint((*found, *_USUAL)):  # model.ts is another form of model.pt
        doubt = f"{config} loads {told[0]}, which is not there"
    if not found:
        files = [file for file in sorted((folder / "models").rglob("*")) if file.is_file()]
        found = [file.relative_to(folder).as_posix() for file in files if file.suffix in _ENDINGS]
        doubt = doubt or f"{config} does not name it"
    if not found:
        lists = [
            name for name in ("large_files.yml", "large_files.yaml") if (folder / name).exists()
        ]
        elsewhere = f" ({lists[0]} says where they are kept)" if lists else ""
        missing = " or ".join(named[:1] or _USUAL)
        raise SetupError(f"{title} has no weights: no {missing}{elsewhere}.")
    size = max((folder / path).stat().st_size for path in found)
    if len(found) > 1:
        return Weights(path="unknown", size=size, doubt=f"{doubt}; one of {', '.join(found[:10])}")
    return Weights(path=found[0], size=size, doubt=doubt)
