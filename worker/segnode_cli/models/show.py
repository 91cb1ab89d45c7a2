"""`segnode models list`, `show` and `remove`; `add.py` has `add`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from highdicom.color import CIELabColor
from rich import box
from rich.table import Table
from rich.text import Text

from segnode_cli.models.inspect import ModelFile, inspect_file, plain
from segnode_cli.models.store import ModelStore
from segnode_cli.show import console, say
from segnode_contract.card import Card, Code, Segment
from segnode_contract.errors import SetupError, UnknownModel
from segnode_contract.settings import MODELS
from segnode_models.registry import ListedModel, builtin_models, offer_of
from segnode_models.trust import Pins, pinned_models, pins_path, read_pins

_NAMED_SEGMENTS = 3


def print_models(data: Path, as_json: bool) -> None:
    """Print which models there are, and why others that were added are refused."""
    offer = offer_of(data / MODELS)
    if as_json:
        refused = [
            {"name": name, "refused": error.sentence, "code": error.code}
            for name, error in offer.refused.items()
        ]
        print(json.dumps([*map(_entry, offer.models.values()), *refused]))
        return
    for one in offer.models.values():  # no table: it would cut names, which routes need in full
        card = one.card
        rest = f" {plain(card.version)}, {card.kind}, {one.digest[:12]}"
        console.print(Text.assemble((plain(card.name), "bold"), rest), soft_wrap=True)
        say(f"    takes {plain(_images(card))}; finds {plain(_finds(card))}")
    for name, error in offer.refused.items():
        say(f"{plain(name)} is refused: {plain(error.sentence, 1000)}")


def show_model(data: Path, name: str, as_json: bool) -> None:
    """Print the whole card of a model, its digest and its files.

    Raises
    ------
    UnknownModel
        If there is no such model.
    SegnodeError
        If it is refused; why.
    """
    one = offer_of(data / MODELS).named(name)
    files = _files(data / MODELS, name)
    if as_json:
        print(json.dumps(_entry(one) | {"files": [asdict(file) for file in files]}))
        return
    card = one.card
    facts = {
        "kind": "built in" if card.kind == "builtin" else card.kind,
        "images": f"{_images(card)}, from {card.min_slices} slices, turned to {card.orientation}",
        "network": ", ".join(f"{key} {value}" for key, value in _network(card).items()),
        "builds on": card.builds_on,
        "memory": f"{size_of(card.memory_bytes)} at first guess",
        "time limit": f"{card.time_limit_s:.0f} s",
        "without a GPU": "yes" if card.cpu else "no",
        "half precision": card.half_precision_checked or "not checked, so not used",
        "digest": one.digest,
        "of its files": Pins(files={file.path: file.sha256 for file in files}).digest * bool(files),
    }
    console.print(Text(f"\n{plain(card.name)} {plain(card.version)}", style="bold"))
    console.print(lines_of(purpose(card) | facts))
    console.print(_segment_table(card))
    if files:
        console.print(file_table(files))


def remove_model(data: Path, name: str, *, yes: bool) -> bool:
    """Remove an added model, and return whether that was agreed to.

    Raises
    ------
    UnknownModel
        If no such model was added.
    SetupError
        If it is built in, or nobody can be asked.
    """
    models = data / MODELS
    if name in {one.card.name for one in builtin_models()}:
        raise SetupError(f"{name} is built in; a route decides whether it runs.")
    if name not in pinned_models(models):
        raise UnknownModel(f"No model '{name}' was added{_others(pinned_models(models))}.")
    if not (yes or agreed(f"Remove {name}? Jobs that want it will wait")):
        say("Nothing was removed.")
        return False
    with ModelStore.held(models) as store:
        store.take_out(name)
    say(f"{name} is removed.")
    return True


def agreed(question: str) -> bool:
    """Ask one question.

    Raises
    ------
    SetupError
        If there is no terminal to ask at.
    """
    if not sys.stdin.isatty():
        raise SetupError("There is no terminal to ask at; read what is shown, then say --yes.")
    return typer.confirm(question, default=False, err=True)


def purpose(card: Card) -> dict[str, str]:
    """Return what a model may be used for and what it cannot do, for `lines_of`."""
    return {
        "intended use": plain(card.intended_use, 1000),
        "limitations": "\n".join(f"- {plain(line, 1000)}" for line in card.limitations),
        "licence": plain(card.licence),
    }


def lines_of(facts: dict[str, str]) -> Table:
    """Return names and values as lines; those without a value are left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            grid.add_row(name, Text("\n".join(plain(part, 1000) for part in value.split("\n"))))
    return grid


def file_table(files: Iterable[ModelFile]) -> Table:
    """Return files with what they are."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("file", overflow="fold", ratio=4)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("SHA-256", no_wrap=True)
    table.add_column("what it is", overflow="fold", ratio=6)
    for file in files:
        style = "yellow" if file.executes else ""
        what = Text(plain(file.what, 10_000), style=style)
        table.add_row(cell(file.path), size_of(file.size), file.sha256[:12], what)
    return table


def cell(text: str) -> Text:
    """Return text from elsewhere for a table, without markup."""
    return Text(plain(text))


def size_of(count: int) -> str:
    """Return a number of bytes for people."""
    if count < 1000:
        return f"{count} B"
    if count < 1_000_000:
        return f"{count / 1000:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1_000_000_000 else f"{count / 1e9:.1f} GB"


def _others(names: list[str]) -> str:
    return f"; there are {', '.join(names)}" if names else "; there is none"


def _files(models: Path, name: str) -> list[ModelFile]:
    """Return the files of an added model, whose pins were checked; none for a built-in."""
    if not pins_path(models, name).exists():
        return []
    pinned = read_pins(models, name).files
    return [inspect_file(models / name, path, digest) for path, digest in sorted(pinned.items())]


def _entry(one: ListedModel) -> dict[str, Any]:
    return {"digest": one.digest, **asdict(one.card)}


def _network(card: Card) -> dict[str, Any]:
    told = asdict(card.network) if card.network else {}
    return {key: value for key, value in told.items() if not isinstance(value, dict)}


def _images(card: Card) -> str:
    if not card.inputs:
        return card.modality
    roles = (f"{one.role}{' (optional)' * one.optional}" for one in card.inputs)
    return f"{card.modality}: {', '.join(roles)}"


def _finds(card: Card) -> str:
    labels = [segment.label for segment in card.segments]
    if len(labels) <= _NAMED_SEGMENTS + 1:
        return ", ".join(labels)
    return f"{', '.join(labels[:_NAMED_SEGMENTS])} and {len(labels) - _NAMED_SEGMENTS} more"


def _segment_table(card: Card) -> Table:
    table = Table("", "", "segment", "code", "plane", "value", "plausible", box=box.SIMPLE_HEAD)
    for segment in card.segments:
        red, green, blue = CIELabColor.from_dicom_value(segment.colour).to_rgb()
        table.add_row(
            str(segment.number),
            Text("██", style=f"rgb({red},{green},{blue})"),
            cell(segment.label),
            cell(_codes(segment)),
            str(segment.plane),
            str(segment.value),
            _plausible(segment),
        )
    return table


def _codes(segment: Segment) -> str:
    def said(code: Code) -> str:
        return f"{code.meaning} ({code.value} {code.scheme})"

    return ", ".join(map(said, (segment.type, *segment.modifiers)))


def _plausible(segment: Segment) -> str:
    if segment.plausible_ml is None:
        return ""
    least, most = segment.plausible_ml
    return f"{least:g} to {most:g} ml"
