"""The model card: what a model needs, makes, and must not be used for."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import Literal

from segnode_contract.card_network import Network, TorchScriptNetwork, read_network
from segnode_contract.card_table import TomlTable
from segnode_contract.errors import CardError

Kind = Literal["builtin", "monai-bundle", "torchscript", "nnunet"]
KINDS: tuple[Kind, ...] = ("builtin", "monai-bundle", "torchscript", "nnunet")

_AXIS = {"H": 0, "F": 0, "A": 1, "P": 1, "L": 2, "R": 2}
_LINES = (
    *("name", "version", "kind", "intended_use", "limitations", "licence", "memory_bytes"),
    *("time_limit_s", "cpu", "half_precision_checked", "implausible", "input", "network"),
    "segments",
)
_INPUT_LINES = (
    *("modality", "orientation", "min_slices", "largest_gap_mm", "spacing_mm", "intensity"),
    *("builds_on", "series"),
)
_SEGMENT_LINES = (
    *("number", "label", "plane", "value", "channel", "category", "type", "modifiers", "colour"),
    "plausible_ml",
)
_LONGEST_CODE = 16
"""Signs of a Code Value and of a Coding Scheme Designator (SH, PS3.5 6.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A coded concept (PS3.3 8.8)."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One segment: where it stands in the labels, and what it is called.

    A network's `channel` is written as `value` into label plane `plane`; the SEG calls it `number`.
    """

    number: int
    """Segment Number in the SEG, from 1; stable per model whatever is present in a patient."""
    label: str
    plane: int
    """Index of the label plane that holds it; segments of different planes may overlap."""
    value: int
    """Its label value in that plane, 1 to 255."""
    channel: int
    """Of the network's output that tells of it, or its value in the network's label map."""
    category: Code
    type: Code
    modifiers: tuple[Code, ...]
    colour: tuple[int, int, int]
    """Recommended Display CIELab Value as DICOM encodes it (PS3.3 C.10.7.1.1), 0 to 65535 each."""
    plausible_ml: tuple[float, float] | None
    """Volumes that can be true; one outside is withheld or marked (`Card.implausible`)."""


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
    kind: Kind
    intended_use: str
    limitations: tuple[str, ...]
    licence: str
    modality: str
    orientation: str
    """Anatomical direction in which each index grows, slices first: ``HPL`` is towards head,
    posterior, left."""
    min_slices: int
    largest_gap_mm: float | None
    """The widest distance of two slices between which the model may be given interpolated voxels;
    None for none where one slice seems to be missing, and any where all are evenly spaced."""
    inputs: tuple[InputSeries, ...]
    """Empty for a model that takes one series."""
    builds_on: str
    """Model whose result on the same series it needs, empty for none."""
    memory_bytes: int
    """Need at a first guess; what a model really takes is measured."""
    time_limit_s: float
    cpu: bool
    """Whether it may run where there is no GPU, or not enough memory on it; said of a network, or
    it may not."""
    half_precision_checked: str
    """Who compared the results in half precision, and how they differed; empty for not checked,
    and then it runs in single precision."""
    implausible: Literal["withhold", "mark"]
    """What becomes of a segment whose volume cannot be true."""
    network: Network | None
    """None for a built-in model."""
    planes: int
    segments: tuple[Segment, ...]
    source: str
    """The TOML text itself: how a card travels from a model process to the ledger and back."""

    @property
    def content_label(self) -> str:
        """Content Label of the SEG (PS3.3 C.8.20.2): a code string of at most 16 characters.

        It begins with a letter, as keywords do, and ends with no underscore.
        """
        label = re.sub(r"[^A-Z0-9]+", "_", self.name.upper()).strip("_")
        if not label[:1].isalpha():
            label = f"M_{label}"
        return label[:16].strip("_")


def parse_card(text: str, *, where: str) -> Card:
    """Read a card from TOML.

    Raises
    ------
    CardError
        Naming `where` and the line that is missing or wrong.
    """
    try:
        data = tomllib.loads(text.removeprefix("\ufeff"))  # editors on Windows write it
    except tomllib.TOMLDecodeError as error:
        raise CardError(f"{where} is not TOML: {error}.") from error
    table = TomlTable(data, where)
    table.only(*_LINES)
    kind = table.one_of("kind", KINDS)
    needs = table.table("input")
    needs.only(*_INPUT_LINES)
    orientation = needs.text("orientation")
    if len(orientation) != 3 or {_AXIS.get(letter) for letter in orientation} != {0, 1, 2}:
        raise CardError(
            f"{where}: input.orientation is '{orientation}'; three letters are needed, one each "
            "of H/F, A/P and L/R."
        )
    segments = tuple(_segment(item) for item in table.tables("segments"))
    planes = sorted({segment.plane for segment in segments})
    if planes != list(range(len(planes))):
        raise CardError(
            f"{where}: the segments' planes are {planes}; they must run 0, 1, 2 … without a gap."
        )
    if [segment.number for segment in segments] != list(range(1, len(segments) + 1)):
        raise CardError(f"{where}: the segments' numbers must run 1, 2, 3 … in order.")
    places = [(segment.plane, segment.value) for segment in segments]
    if len(set(places)) != len(places):
        raise CardError(f"{where}: two segments share one plane and value.")
    network = read_network(kind, table, needs)
    if network is not None:
        _check_channels(segments, table, network)
    limitations = tuple(table.texts("limitations"))
    name = table.plain_text("name")
    builds_on = needs.text("builds_on") if "builds_on" in needs.data else ""
    if builds_on == name:
        raise CardError(
            f"{where}: input.builds_on is '{name}', the model itself; name the model whose result "
            "it needs."
        )
    return Card(
        name=name,
        version=table.plain_text("version"),
        kind=kind,
        intended_use=table.text("intended_use"),
        limitations=limitations,
        licence=table.text("licence"),
        modality=needs.text("modality"),
        orientation=orientation,
        min_slices=needs.whole("min_slices", 1),
        largest_gap_mm=(
            needs.positive("largest_gap_mm") if "largest_gap_mm" in needs.data else None
        ),
        inputs=_inputs(needs),
        builds_on=builds_on,
        memory_bytes=table.whole("memory_bytes", 1),
        time_limit_s=table.positive("time_limit_s"),
        cpu=table.flag("cpu", kind == "builtin"),
        half_precision_checked=(
            table.text("half_precision_checked") if "half_precision_checked" in data else ""
        ),
        implausible=table.one_of("implausible", ("withhold", "mark"), "withhold"),
        network=network,
        planes=len(planes),
        segments=segments,
        source=text,
    )


def _check_channels(segments: tuple[Segment, ...], card: TomlTable, network: Network) -> None:
    """Check that no segment can be taken for another: one channel is one segment."""
    channels = [segment.channel for segment in segments]
    for segment in segments:
        if channels.count(segment.channel) > 1:
            raise CardError(
                f"{card.where}: two segments have channel {segment.channel} of the network, "
                f"'{segment.label}' is one; say 'channel' in each (where it is not said it is "
                "the segment's value)."
            )
    if not isinstance(network, TorchScriptNetwork):
        return
    if network.activation == "softmax" and 0 in channels:
        raise CardError(
            f"{card.where}: segment {1 + channels.index(0)} has channel 0, which is the background "
            "of a softmax; the first thing that such a network finds is in channel 1."
        )
    if network.activation != "softmax":
        for table in card.tables("segments"):
            table.number("channel")  # the value says nothing of the channel here


def _inputs(needs: TomlTable) -> tuple[InputSeries, ...]:
    tables = needs.tables("series", empty=True)
    for table in tables:
        table.only("role", "modality", "optional")
    modality = needs.text("modality")
    inputs = tuple(
        InputSeries(
            role=table.text("role"),
            modality=table.text("modality") if "modality" in table.data else modality,
            optional=table.flag("optional", False),
        )
        for table in tables
    )
    roles = [one.role for one in inputs]
    for number, role in enumerate(roles):
        if not role.isidentifier() or role in roles[:number]:
            raise CardError(
                f"{tables[number].where}: role is '{role}'; each series needs one word of its own."
            )
    if inputs and inputs[0].optional:
        raise CardError(f"{needs.where}.series 1 is optional; the labels lie on it.")
    return inputs


def _segment(table: TomlTable) -> Segment:
    table.only(*_SEGMENT_LINES)
    lightness, a, b = table.wholes("colour", 3, 0, 65535)
    value = table.whole("value", 1, 255)
    plausible = table.numbers("plausible_ml", 2) if "plausible_ml" in table.data else None
    if plausible and not 0 <= plausible[0] < plausible[1]:
        raise CardError(
            f"{table.where}: plausible_ml is {plausible}; the first is the least volume that can "
            "be true, 0 or more, and the second the most."
        )
    return Segment(
        number=table.whole("number", 1),
        label=table.plain_text("label"),
        plane=table.whole("plane", 0),
        value=value,
        channel=table.whole("channel", 0, usual=value),
        category=_code(table.table("category")),
        type=_code(table.table("type")),
        modifiers=tuple(_code(item) for item in table.tables("modifiers", empty=True)),
        colour=(lightness, a, b),
        plausible_ml=(plausible[0], plausible[1]) if plausible else None,
    )


def _code(table: TomlTable) -> Code:
    return Code(
        value=_short(table, "value"),
        scheme=_short(table, "scheme"),
        meaning=table.plain_text("meaning"),
    )


def _short(table: TomlTable, key: str) -> str:
    text = table.plain_text(key).strip()  # spaces at its ends mean nothing (PS3.5 6.2)
    if len(text) > _LONGEST_CODE:
        raise CardError(
            f"{table.where}: {key} is '{text}', {len(text)} signs long; results hold "
            f"{_LONGEST_CODE}. Take the code of a wider term, or one of your own in a scheme that "
            'begins with 99 (scheme = "99LOCAL", value = "LOBE-4" say); its meaning, and the '
            "segment's label, may say what it is in full."
        )
    return text
