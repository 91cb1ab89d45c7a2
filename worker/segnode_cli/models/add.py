"""`segnode models add`: look at a model from elsewhere, agree to it, pin its files."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.table import Table
from rich.text import Text

from segnode_cli.models.archive import archive_stem, unpack
from segnode_cli.models.draft import MOST_NAME, Draft, draft_card
from segnode_cli.models.inspect import CARD, TORCHSCRIPT, ModelFile, inspect_file, plain
from segnode_cli.models.show import agreed, file_table, lines_of, purpose, size_of
from segnode_cli.models.store import ModelStore, copy_files
from segnode_cli.models.trial import try_model
from segnode_cli.node import read_environment
from segnode_cli.show import console, say
from segnode_contract.card import Card, parse_card
from segnode_contract.card_network import BundleNetwork, NnunetNetwork, TorchScriptNetwork
from segnode_contract.errors import CardError, SegnodeError, SetupError
from segnode_contract.settings import MODELS
from segnode_models.registry import builtin_models
from segnode_models.trust import Pins, check_pins, read_pins

_NAME = re.compile(rf"[a-z0-9][a-z0-9-]{{0,{MOST_NAME - 1}}}")
_MODALITY = re.compile(r"[A-Z][A-Z0-9_]{1,15}")
_EXTRAS = {"monai-bundle": ("monai", "monai"), "nnunet": ("nnunetv2", "nnunet")}
"""Package and extra of segnode that a kind needs."""
_PAPERS = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "README", "CITATION")
_MOST_DOUBTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """What the user brought."""

    folder: Path
    title: str
    """Its name, for people."""
    packed: bool


def add_model(
    path: Path, data: Path, *, card_file: Path | None, yes: bool, trial: bool = True
) -> bool:
    """Add the model in a folder or archive, and return whether it is there now.

    Without a card, one is drafted and nothing added. Otherwise the files are copied, shown with
    what they may execute, and, once that is agreed to and the model ran in its trial, take their
    place in one step.

    Raises
    ------
    SetupError
        If there is no such model, a file is a link, a library is missing, nobody can be asked, or
        the model fails in its trial.
    CardError
        If the card lacks something, or names what is not there.
    """
    with ModelStore.held(data / MODELS) as store:
        brought = _brought(path, store)
        text = _card_text(brought, card_file)
        if text is None:
            _tell_of_draft(brought, draft_card(brought.folder, brought.title))
            return False
        where = str(card_file) if card_file else f"{brought.title}/{CARD}"
        card = _checked_card(text, where)
        paths, left_out = _chosen(brought, card, where)
        new = store.workplace()
        with console.status("copying …"):
            digests = copy_files(brought.folder, paths, new)
        (new / CARD).write_bytes(text.encode())
        digests[CARD] = hashlib.sha256(text.encode()).hexdigest()
        files = [inspect_file(new, name, digests[name]) for name in sorted(digests)]
        _check_weights(card, files, where)
        pins = Pins(files=digests)
        _show(card, files, pins, left_out)
        before = _digest_of(data / MODELS, card.name)
        place = (data / MODELS / card.name).resolve()
        if before == pins.digest and _is_whole(data / MODELS, card.name):
            say(f"{card.name} is there already, with the same files, in {place}; nothing changed.")
            _tell_if_nobodys(data)
            return True
        if before:
            say(f"{card.name} is there already, SHA-256 {before[:12]} …; this one replaces it.")
        _tell_of_marks(Draft(name=card.name, text=text).doubts(), where)
        if not (yes or agreed("Add it, and let it run in the sandbox?")):
            say("Nothing was added.")
            return False
        untried = "--no-trial was said."
        if trial:
            with store.apart(new, card.name, pins) as models:
                untried = try_model(models, card.name)
        store.put(new, card.name, pins)
    say(f"{card.name} {plain(card.version)} is added, SHA-256 {pins.digest[:12]} …, in {place}")
    if untried:
        say(f"It was not tried: {untried}")
    say(f'A route runs it: model = "{card.name}" in segnode.toml{_roles(card)}.')
    _tell_if_nobodys(data)
    return True


def _tell_of_marks(marks: Sequence[tuple[int, str]], where: str) -> None:
    if marks:
        first = f"the first is line {marks[0][0]}"
        say(f"Lines of {where} still marked with 'look at this': {len(marks)}; {first}.")


def _roles(card: Card) -> str:
    """Return what else a route needs for a model of several series."""
    if not card.inputs:
        return ""
    named = [f"{one.role} (may be missing)" if one.optional else one.role for one in card.inputs]
    return f", with trigger = \"study\" and a line in 'series' for each role: {', '.join(named)}"


def _tell_if_nobodys(data: Path) -> None:
    """Say so where no node and no worker has its data in `data`, which so would miss the model."""
    if read_environment(data) or (data / "spool").is_dir():  # a worker's first act
        return
    say(
        f"No node has its data in {data.resolve()} yet, so none has the model: name the folder of "
        "yours with --data or SEGNODE_DATA, or start a node there."
    )


def _brought(path: Path, store: ModelStore) -> Brought:
    if path.is_dir():
        folder = _innermost(path.resolve())  # nnU-Net's names of folders tell of the model
        return Brought(folder=folder, title=plain(folder.name), packed=False)
    if not path.exists():
        raise SetupError(f"{path} does not exist.")
    stem = archive_stem(path)
    if stem is None:
        raise SetupError(
            f"{path} is one file; a model is a folder, or a .zip, .tar or .tar.gz of one."
        )
    place = store.workplace()
    with console.status("unpacking …"):
        unpack(path, place)
    folder = _innermost(place)
    title = stem if folder == place else folder.name
    return Brought(folder=folder, title=plain(title), packed=True)


def _innermost(folder: Path) -> Path:
    """Return the folder that holds more than one folder, and so the model."""
    while True:
        inside = [path for path in folder.iterdir() if not _left_behind(path.name)]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].is_symlink():
            return folder
        folder = inside[0]


def _card_text(brought: Brought, card_file: Path | None) -> str | None:
    """Return the text of the card, None where there is none."""
    file = card_file or brought.folder / CARD
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if card_file is not None:
            raise SetupError(f"{card_file} does not exist.") from error
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{file} cannot be read as text.") from error


def _tell_of_draft(brought: Brought, draft: Draft) -> None:
    """Write a drafted card and say where, what to look at, and how to go on."""
    beside = not brought.packed and os.access(brought.folder, os.W_OK)
    file = brought.folder / CARD if beside else Path(f"{draft.name}.{CARD}")
    again = "say the same command again" + (f" with --card {file}" if not beside else "")
    try:
        with file.open("x", encoding="utf-8") as written:
            written.write(draft.text)
    except FileExistsError as error:
        raise SetupError(
            f"{brought.title} has no {CARD}, and {file}, where a draft would go, is there already: "
            f"look at it and {again}, or remove it."
        ) from error
    say(f"{brought.title} has no {CARD}, so one was drafted from its files: {file}")
    say("Nothing was added yet. Look at these lines of it, mend what is wrong,")
    say(f"and {again}.\n")
    doubts = draft.doubts()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for number, line in doubts[:_MOST_DOUBTS]:
        grid.add_row(str(number), Text(line))
    console.print(grid)
    if len(doubts) > _MOST_DOUBTS:
        say(f"… and {len(doubts) - _MOST_DOUBTS} more, each marked with 'look at this'.")


def _checked_card(text: str, where: str) -> Card:
    try:
        card = parse_card(text, where=where)
    except CardError as error:  # which quotes the card
        raise CardError(plain(error.sentence, 1000)) from error
    builtin = {one.card.name for one in builtin_models()}
    if not _NAME.fullmatch(card.name) or card.name in builtin:
        raise CardError(
            f"{where}: the name is {card.name[:80]!a}; small letters, digits and hyphens make one, "
            f"{MOST_NAME} at most, and those of built-in models are taken."
        )
    if not _MODALITY.fullmatch(card.modality):
        raise CardError(
            f"{where}: input.modality is {card.modality[:40]!a}; it must be DICOM's word, CT say."
        )
    if card.network is None:
        raise CardError(f"{where}: the kind is {card.kind}, which cannot be added.")
    package, extra = _EXTRAS.get(card.kind, ("torch", "worker"))
    if find_spec(package) is None:
        raise SetupError(
            f"Models of kind {card.kind} need {package}, which is not installed; "
            f"`setup/venv.sh {extra}` in segnode's checkout installs it.",
            code="extra-missing",
        )
    return card


def _chosen(brought: Brought, card: Card, where: str) -> tuple[list[str], list[str]]:
    """Return the files to copy, and those that the card does not need.

    Raises
    ------
    CardError
        If the card names a file that is not there.
    """
    needed = _needed(card)
    for path in needed:
        if not (brought.folder / path).exists():
            raise CardError(f"{where} needs {plain(path)!a}, which is not in {brought.title}.")
    found = list(_files(brought.folder))
    if isinstance(card.network, BundleNetwork):  # its configuration may name any of them
        chosen = found
    else:
        papers = {path for path in found if path.split(".")[0].upper() in _PAPERS}
        chosen = [path for path in found if path in papers or path in needed]
    for path in {*chosen, *needed}:
        _check_file(brought, path)
    return [path for path in chosen if path != CARD], sorted({*found} - {*chosen, CARD})


def _needed(card: Card) -> list[str]:
    match card.network:
        case TorchScriptNetwork(weights=weights):
            return [weights]
        case BundleNetwork(config=config, weights=weights):
            return [config, weights]
        case NnunetNetwork(folds=folds, checkpoint=checkpoint):
            weights_of = [f"fold_{fold}/{checkpoint}" for fold in folds]
            return ["dataset.json", "plans.json", *weights_of]
    return []


def _files(folder: Path) -> Iterable[str]:
    """Yield the paths of everything below a folder but folders, and what systems leave behind."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not any(map(_left_behind, inside.parts)) and (path.is_symlink() or not path.is_dir()):
            yield inside.as_posix()


def _left_behind(name: str) -> bool:
    return name.startswith(".") or name in ("__pycache__", "__MACOSX")


def _check_file(brought: Brought, path: str) -> None:
    file = brought.folder / path
    if file.resolve() != brought.folder.resolve() / path or not file.is_file():
        raise SetupError(
            f"{path!a} in {brought.title} is a link or no plain file; make a copy that holds the "
            "files themselves (cp -rL), and add that."
        )
    if any(unicodedata.category(sign)[0] == "C" for sign in path):
        raise SetupError(f"{path!a} in {brought.title} is no name for a file; rename it.")


def _check_weights(card: Card, files: Sequence[ModelFile], where: str) -> None:
    what = {file.path: file.what for file in files}
    if isinstance(card.network, TorchScriptNetwork):
        weights = card.network.weights
        if what[weights] != TORCHSCRIPT:
            raise CardError(
                f"{where}: {plain(weights)!a} is no {TORCHSCRIPT}, but {what[weights]}; save the "
                "network by torch.jit.script or torch.jit.trace."
            )


def _show(card: Card, files: Sequence[ModelFile], pins: Pins, left_out: Sequence[str]) -> None:
    console.print(Text(f"\n{card.name} {plain(card.version)}, {card.kind}", style="bold"))
    console.print(file_table(files))
    total = size_of(sum(file.size for file in files))
    sums = {
        "all": f"{len(files)} files, {total}",
        "SHA-256": pins.digest,
        "left out": f"{len(left_out)} files that the card does not need" * bool(left_out),
        "programs": _programs([file for file in files if file.executes]),
    }
    console.print(lines_of(sums | purpose(card)))
    console.print()


def _programs(programs: Sequence[ModelFile]) -> str:
    if not programs:
        return "none: nothing of it runs"
    many = "1 file" if len(programs) == 1 else f"{len(programs)} files"
    return f"{many} (yellow) may run code of the model's makers"


def _digest_of(models: Path, name: str) -> str:
    """Return the digest of the files of a model that was added before; empty where none was."""
    try:
        return read_pins(models, name).digest
    except SegnodeError:
        return ""


def _is_whole(models: Path, name: str) -> bool:
    """Return whether the files of a model are still those that were added."""
    try:
        check_pins(models, name)
    except SegnodeError:
        return False
    return True
