"""What a draft card needs of a model's files, and how they are read.

They come from elsewhere: every text is made plain, every number is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segnode_cli.models.inspect import plain
from segnode_contract.card import Kind
from segnode_contract.errors import SetupError

Setting = str | bool | list[str]

_LARGEST_JSON = 32 << 20
MOST_SEGMENTS = 255
_MODALITIES = {
    **dict.fromkeys(("ct", "cbct"), "CT"),
    **dict.fromkeys(("mr", "mri", "flair", "adc", "dwi", "swi", "t1", "t1w", "t1c"), "MR"),
    **dict.fromkeys(("t1ce", "t1gd", "t1n", "t2", "t2w", "t2f", "t2flair"), "MR"),
    **dict.fromkeys(("pet", "pt"), "PT"),
}
"""DICOM's modality for a word in the name of a channel."""
AXES = "nibabel.aff2axcodes of a training image, {order}, with H for S and F for I"


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


def channels_of(names: Sequence[str], modality: str) -> list[Channel]:
    """Return the channels, with roles where there are several."""
    if len(names) == 1:
        return [Channel(role="", modality=modality or modality_of(names[0]))]
    channels: list[Channel] = []
    for name in names:
        role = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        role = role if role[:1].isalpha() else f"image_{role}".strip("_")
        taken = {channel.role for channel in channels}
        role = role if role not in taken else f"{role}_{len(channels)}"
        channels.append(Channel(role=role, modality=modality or modality_of(name)))
    return channels


def modality_of(name: str) -> str:
    """Return DICOM's modality for the name of a channel, empty where it does not tell."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((_MODALITIES[word] for word in words if word in _MODALITIES), "")


def segments_of(title: str, names: Mapping[int, str], *, apart: bool) -> list[NamedSegment]:
    """Return the segments: each in a plane of its own where they may overlap."""
    wanted = {n: name for n, name in sorted(names.items()) if apart or not _is_background(n, name)}
    if not wanted:
        raise SetupError(f"{title} names nothing that it finds.")
    if max(wanted) > MOST_SEGMENTS:
        raise SetupError(
            f"{title} has the label {max(wanted)}; labels go up to {MOST_SEGMENTS} here."
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


def has_background(names: Mapping[int, str]) -> bool:
    """Return whether the first of what a network tells apart is nothing."""
    return _is_background(0, names.get(0, ""))


def _is_background(number: int, name: str) -> bool:
    return number == 0 and name.strip().lower() in ("background", "bg", "back ground")


def licence_of(folder: Path) -> str:
    """Return the first line of the file that states the licence."""
    for path in sorted(folder.glob("*")):
        if path.name.upper().split(".")[0] in ("LICENSE", "LICENCE", "COPYING") and path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                lines = (plain(line, 100) for line in file.read(10_000).splitlines())
                return next((line for line in lines if line), "")
    return ""


def json_of(folder: Path, path: str) -> Mapping[str, Any]:
    """Return what a JSON file holds; `SetupError` where that is no object, or too large."""
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


def table_of(told: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object by its key, an empty one where there is none."""
    value = told.get(key)
    return value if isinstance(value, dict) else {}


def by_number(told: Any) -> dict[int, str]:
    """Return texts by their number, from an object with numbers for keys."""
    if not isinstance(told, dict):
        return {}
    return {
        int(key): plain(value, 100)
        for key, value in told.items()
        if key.isascii() and key.isdecimal() and len(key) < 6 and isinstance(value, str)
    }


def text_of(told: Mapping[str, Any], key: str) -> str:
    """Return a text by its key as one plain line, an empty one where there is none."""
    value = told.get(key)
    return plain(value) if isinstance(value, str) else ""
