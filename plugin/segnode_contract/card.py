"""The model card: what a model needs, makes, and must not be used for."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segnode_contract.errors import CardError

KINDS = ("builtin", "monai-bundle", "torchscript", "nnunet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A coded concept (PS3.3 8.8)."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One segment: where it stands in the labels, and what it is called."""

    number: int
    """Segment Number in the SEG, from 1; stable per model whatever is present in a patient."""
    label: str
    plane: int
    """Index of the label plane that holds it; segments of different planes may overlap."""
    value: int
    """Its label value in that plane, 1 to 255."""
    category: Code
    type: Code
    modifiers: tuple[Code, ...]
    colour: tuple[int, int, int]
    """Recommended Display CIELab Value as DICOM encodes it (PS3.3 C.10.7.1.1), 0 to 65535 each."""
    plausible_ml: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSeries:
    """One of several series that a model takes together; labels lie on the first."""

    role: str
    modality: str
    optional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A model card, read from `card.toml` beside the weights."""

    name: str
    version: str
    kind: str
    intended_use: str
    limitations: tuple[str, ...]
    licence: str
    modality: str
    orientation: str
    """Anatomical direction in which each index grows, slices first: ``HPL`` is towards head,
    posterior, left."""
    min_slices: int
    inputs: tuple[InputSeries, ...]
    """Empty for a model that takes one series."""
    builds_on: str
    """Model whose result on the same series it needs, empty for none."""
    memory_bytes: int
    time_limit_s: float
    planes: int
    segments: tuple[Segment, ...]
    source: str
    """The TOML text itself: how a card travels from a model process to the ledger and back."""

    @property
    def content_label(self) -> str:
        """Content Label of the SEG: a code string of at most 16 characters."""
        return self.name.upper().replace("-", "_")[:16]


def parse_card(text: str, *, where: str) -> Card:
    """Read a card from TOML.

    Raises
    ------
    CardError
        Naming `where` and the line that is missing or wrong.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CardError(f"{where} is not TOML: {error}.") from error
    table = _Table(data, where)
    kind = table.text("kind")
    if kind not in KINDS:
        raise CardError(f"{where}: kind is '{kind}'; it must be one of {', '.join(KINDS)}.")
    needs = table.table("input")
    orientation = needs.text("orientation")
    if len(orientation) != 3 or {_AXIS.get(letter) for letter in orientation} != {0, 1, 2}:
        raise CardError(
            f"{where}: input.orientation is '{orientation}'; three letters are needed, one each "
            "of H/F, A/P and L/R."
        )
    segments = tuple(_segment(item) for item in table.tables("segments"))
    planes = 1 + max(segment.plane for segment in segments)
    if [segment.number for segment in segments] != list(range(1, len(segments) + 1)):
        raise CardError(f"{where}: the segments' numbers must run 1, 2, 3 … in order.")
    places = [(segment.plane, segment.value) for segment in segments]
    if len(set(places)) != len(places):
        raise CardError(f"{where}: two segments share one plane and value.")
    limitations = tuple(table.texts("limitations"))
    return Card(
        name=table.text("name"),
        version=table.text("version"),
        kind=kind,
        intended_use=table.text("intended_use"),
        limitations=limitations,
        licence=table.text("licence"),
        modality=needs.text("modality"),
        orientation=orientation,
        min_slices=int(needs.number("min_slices")),
        inputs=_inputs(needs),
        builds_on=needs.text("builds_on") if "builds_on" in needs.data else "",
        memory_bytes=int(table.number("memory_bytes")),
        time_limit_s=table.number("time_limit_s"),
        planes=planes,
        segments=segments,
        source=text,
    )


def _inputs(needs: _Table) -> tuple[InputSeries, ...]:
    tables = needs.tables("series", empty=True)
    modality = needs.text("modality")
    inputs = tuple(
        InputSeries(
            role=table.text("role"),
            modality=table.text("modality") if "modality" in table.data else modality,
            optional=table.data.get("optional", False) is True,
        )
        for table in tables
    )
    if inputs and inputs[0].optional:
        raise CardError(f"{needs.where}.series 1 is optional; the labels lie on it.")
    return inputs


_AXIS = {"H": 0, "F": 0, "A": 1, "P": 1, "L": 2, "R": 2}


def _segment(table: _Table) -> Segment:
    colour = table.numbers("colour", 3)
    if not all(0 <= part <= 65535 for part in colour):
        raise CardError(f"{table.where}: colour is {colour}; each part is 0 to 65535.")
    value, plane = int(table.number("value")), int(table.number("plane"))
    if not 1 <= value <= 255 or plane < 0:
        raise CardError(f"{table.where}: value is {value} and plane {plane}; 1 to 255, and 0 up.")
    plausible = table.numbers("plausible_ml", 2) if "plausible_ml" in table.data else None
    return Segment(
        number=int(table.number("number")),
        label=table.text("label"),
        plane=plane,
        value=value,
        category=_code(table.table("category")),
        type=_code(table.table("type")),
        modifiers=tuple(_code(item) for item in table.tables("modifiers", empty=True)),
        colour=(int(colour[0]), int(colour[1]), int(colour[2])),
        plausible_ml=(plausible[0], plausible[1]) if plausible else None,
    )


def _code(table: _Table) -> Code:
    return Code(
        value=table.text("value"), scheme=table.text("scheme"), meaning=table.text("meaning")
    )


class _Table:
    """A TOML table that knows its place, so that a missing line can be named."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def _get(self, key: str) -> Any:
        if key not in self.data:
            raise CardError(f"{self.where} has no line '{key}'; add it.")
        return self.data[key]

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str) or not value.strip():
            raise CardError(f"{self.where}: {key} is {value!r}; a text is needed.")
        return value

    def texts(self, key: str) -> list[str]:
        value = self._get(key)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise CardError(f"{self.where}: {key} needs a list with at least one sentence.")
        return value

    def number(self, key: str) -> float:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CardError(f"{self.where}: {key} is {value!r}; a number is needed.")
        return value

    def numbers(self, key: str, count: int) -> list[float]:
        value = self._get(key)
        if not isinstance(value, list) or len(value) != count:
            raise CardError(f"{self.where}: {key} is {value!r}; {count} numbers are needed.")
        return [float(item) for item in value]

    def table(self, key: str) -> _Table:
        value = self._get(key)
        if not isinstance(value, dict):
            raise CardError(f"{self.where}: {key} is {value!r}; a table is needed.")
        return _Table(value, f"{self.where}: {key}")

    def tables(self, key: str, *, empty: bool = False) -> list[_Table]:
        value = self.data.get(key, []) if empty else self._get(key)
        if not isinstance(value, list) or not (value or empty):
            raise CardError(f"{self.where}: {key} needs at least one table.")
        return [_Table(item, f"{self.where}: {key}[{i}]") for i, item in enumerate(value, 1)]
