"""Draft the card of a model that has none, so that a person only mends what no file tells."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segnode_cli.models.bundle_facts import bundle_facts
from segnode_cli.models.codes import coded, colour, private_code
from segnode_cli.models.facts import ModelFacts, NamedSegment, Setting
from segnode_cli.models.inspect import plain
from segnode_cli.models.nnunet_facts import nnunet_facts
from segnode_contract.card import Code, parse_card
from segnode_contract.errors import SetupError
from segnode_contract.plain_text import beyond_ascii

LOOK = "# look at this"
"""Marks a line that a person must decide."""
MOST_NAME = 48
_CUT = 6
"""Signs that tell a name which was cut from others."""
_LONGEST_LABEL = 64
"""Signs of a Segment Label (LO)."""
_UNKNOWN = "unknown"
_TIME_LIMIT_S = 1800
_BASE_BYTES = 2_000_000_000
_ROUND_BYTES = 100_000_000
_UNCHECKED = (
    "Not a diagnosis: a program drafted this card from the model's own files, and nobody has "
    "checked the model on images of this node."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A card that was drafted."""

    name: str
    text: str

    def doubts(self) -> list[tuple[int, str]]:
        """Return the lines to look at, with their numbers."""
        lines = enumerate(self.text.splitlines(), 1)
        return [(number, line.strip()) for number, line in lines if LOOK in line]


def draft_card(folder: Path, title: str) -> Draft:
    """Draft the card of the bundle or nnU-Net in `folder`, which people call `title`.

    Returns
    -------
    Draft
        Whose text `parse_card` takes, once the orientation is known.

    Raises
    ------
    SetupError
        If the files do not tell enough; with what is missing.
    """
    facts = read_facts(folder, title)
    name = card_name(facts.name)
    known = replace(facts, orientation=facts.orientation or "HPL")
    parse_card(_text(known, name), where=f"the draft for {title}")
    return Draft(name=name, text=_text(facts, name))


def read_facts(folder: Path, title: str) -> ModelFacts:
    """Read what is known about the model in `folder`, which people call `title`.

    Raises
    ------
    SetupError
        If it is no bundle and no trained nnU-Net, or one that no volume can be segmented with.
    """
    if (folder / "configs/metadata.json").is_file():
        return bundle_facts(folder, title)
    if (folder / "dataset.json").is_file() and (folder / "plans.json").is_file():
        return nnunet_facts(folder, title)
    inner = [*folder.glob("*/plans.json"), *folder.glob("*/configs/metadata.json")]
    names = sorted(plain(path.relative_to(folder).parts[0]) for path in inner)
    raise SetupError(
        f"{title} holds {len(names)} models, {', '.join(names[:5])} …; add one of them."
        if names
        else f"{title} has no card.toml, and none can be drafted: it is neither a MONAI bundle "
        "(with configs/metadata.json) nor a trained nnU-Net v2 folder (with dataset.json and "
        "plans.json). Write the card, as the README says, and name it with --card."
    )


def _text(facts: ModelFacts, name: str) -> str:
    lines = [*_head(facts, name), *_input(facts), *_network(facts), *_segments(facts)]
    return "\n".join(lines) + "\n"


def card_name(title: str) -> str:
    """Return a title as a model's name: small letters, digits and hyphens, 48 at most."""
    ascii_only = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-") or "model"
    if len(name) > MOST_NAME:  # what is cut off may be all that tells it from another
        digest = hashlib.sha256(name.encode()).hexdigest()[:_CUT]
        name = f"{name[: MOST_NAME - _CUT - 1].strip('-')}-{digest}"
    return name


def _head(facts: ModelFacts, name: str) -> Iterator[str]:
    yield f"# Drafted by `segnode models add` from {facts.source}; nobody has checked it."
    yield f'# Lines with "{LOOK.removeprefix("# ")}" need a person.'
    yield f"name = {_quoted(name)}"
    if facts.version and not beyond_ascii(plain(facts.version)):
        yield f"version = {_quoted(facts.version)}"
    else:
        yield _line("version", "1", "the model does not say; another one makes new results")
    yield f'kind = "{facts.kind}"'
    if facts.intended_use:
        yield f"intended_use = {_quoted(facts.intended_use)}"
    else:
        yield _line(
            "intended_use", f"Research: {_found(facts.segments)}.", "the model does not say"
        )
    if facts.licence:
        yield f"licence = {_quoted(facts.licence)}"
    else:
        yield _line("licence", _UNKNOWN, "whether you may use the model")
    yield "limitations = ["
    yield f"    {LOOK}: what is known of its faults is in its papers, not in its files"
    for limitation in (_UNCHECKED, *facts.limitations):
        yield f"    {_quoted(limitation)},"
    yield "]"
    need = _BASE_BYTES + 3 * facts.weights_bytes
    need = -(-need // _ROUND_BYTES) * _ROUND_BYTES
    yield f"memory_bytes = {need:_}  # a guess from the size of the weights; later it is measured"
    yield f"time_limit_s = {_TIME_LIMIT_S}  {LOOK}: on a CPU large models take longer"
    yield "cpu = true  # whether it may run without a GPU"


def _input(facts: ModelFacts) -> Iterator[str]:
    modality = facts.channels[0].modality
    yield "\n[input]"
    if modality:
        yield f"modality = {_quoted(modality)}"
    else:
        yield _line("modality", _UNKNOWN, "DICOM's word for it: CT, MR, PT")
    if facts.orientation:
        yield f"orientation = {_quoted(facts.orientation)}"
    else:
        yield "# Where its axes point; a wrong one mixes up left and right, or head and foot."
        yield _line("orientation", _UNKNOWN, facts.orientation_hint)
    yield "min_slices = 3"
    for doubt in facts.input_doubts:
        yield f"{LOOK}: {doubt}"
    if len(facts.channels) == 1:
        return
    yield f"\n{LOOK}: a route names these roles; the labels lie on the images of the first"
    for channel in facts.channels:
        yield "[[input.series]]"
        yield f"role = {_quoted(channel.role)}"
        if channel.modality not in ("", modality):
            yield f"modality = {_quoted(channel.modality)}"


def _network(facts: ModelFacts) -> Iterator[str]:
    yield "\n[network]"
    for key, value in facts.network.items():
        note = f"  # {facts.notes[key]}" if key in facts.notes else ""
        note = f"  {LOOK}: {plain(facts.doubts[key])}" if key in facts.doubts else note
        yield f"{key} = {_setting(value)}{note}"


def _segments(facts: ModelFacts) -> Iterator[str]:
    yield "\n# To a segment whose volumes are known, add plausible_ml = [least, most]."
    for number, segment in enumerate(facts.segments, 1):
        label, unclear = _label(segment.name), facts.label_doubt
        if not facts.named:
            unclear = unclear or "the model does not name what it finds"
        elif beyond_ascii(label):
            unclear = "; ".join(
                filter(None, (unclear, f"the model says {label}; results need ASCII"))
            )
            label = f"Segment {number}"
        known = coded(segment.name) if facts.named else None
        what = known or private_code(segment.name, label)
        yield f"\n[[segments]]\nnumber = {number}"
        yield _line("label", label, unclear) if unclear else f"label = {_quoted(label)}"
        yield f"plane = {segment.plane}\nvalue = {segment.value}"
        if segment.channel != segment.value:
            yield f"channel = {segment.channel}"
        yield f"category = {_code(what.category)}"
        doubt = "" if known else f"  {LOOK}: no code is known for this name"
        yield f"type = {_code(what.type)}{doubt}"
        if what.modifiers:
            yield f"modifiers = [{', '.join(map(_code, what.modifiers))}]"
        yield f"colour = {list(colour(number))}"


def _label(name: str) -> str:
    """Return a name as a Segment Label, of which a backslash would make two (PS3.5 6.2)."""
    words = plain(re.sub(r"[_\\\\]+", " ", name), _LONGEST_LABEL)
    return words[:1].upper() + words[1:] or "Unnamed"


def _found(segments: Sequence[NamedSegment]) -> str:
    names = [_label(segment.name) for segment in segments]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"segmentation of {', '.join(names[:3])}{more}"


def _line(key: str, value: str, doubt: str) -> str:
    return f"{key} = {_quoted(value)}  {LOOK}: {doubt}"


def _setting(value: Setting) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else f"[{', '.join(map(_quoted, value))}]"


def _code(code: Code) -> str:
    parts = (("value", code.value), ("scheme", code.scheme), ("meaning", code.meaning))
    return "{ " + ", ".join(f"{key} = {_quoted(text)}" for key, text in parts) + " }"


def _quoted(text: str) -> str:
    """Return a text as TOML writes it; for a plain text, JSON's way is TOML's (toml.io, String)."""
    return json.dumps(plain(text, 1000), ensure_ascii=False)
