"""Which models this installation has: those that are built in, and those that were added.

A model is a folder with a `card.toml`. Cards and digests are read without torch, so that listing
models is quick; `ListedModel.load` imports it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segnode_contract.card import Card, parse_card
from segnode_contract.errors import CardError, ModelUntrusted, SegnodeError, UnknownModel
from segnode_models.kinds import load_builtin, load_network
from segnode_models.model import Model
from segnode_models.trust import check_pins, pinned_models, pins_path

BUILTIN = Path(__file__).parent / "builtin"
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """A model that may be loaded; `digest` changes with its code, its card and its weights."""

    card: Card
    digest: str
    load: Callable[[str], Model]
    """Takes a torch device, ``cpu`` or ``cuda:0``. Raises `ModelFailed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What can run here, by digest, and why the rest cannot, by name."""

    models: dict[str, ListedModel]
    refused: dict[str, SegnodeError]

    def named(self, name: str) -> ListedModel:
        """Return the model of a name.

        Raises
        ------
        UnknownModel
            If there is none.
        SegnodeError
            If it is refused; why.
        """
        for one in self.models.values():
            if one.card.name == name:
                return one
        if name in self.refused:
            raise self.refused[name]
        known = ", ".join(sorted(one.card.name for one in self.models.values()))
        raise UnknownModel(f"There is no model '{name}'; there are {known}.")


def builtin_models() -> list[ListedModel]:
    """Return the built-in models, by name."""
    listed = []
    for folder in sorted(card.parent for card in BUILTIN.glob("*/card.toml")):
        card = read_card(folder)
        listed.append(
            ListedModel(card=card, digest=_builtin_digest(folder), load=partial(load_builtin, card))
        )
    return listed


def cards_of(models: Path) -> dict[str, Card]:
    """Return the cards of all models by name, without looking at their weights.

    What is there may be refused for all that; see `offer_of`.
    """
    cards = {listed.card.name: listed.card for listed in builtin_models()}
    for name in pinned_models(models):
        with suppress(SegnodeError):
            cards[name] = read_card(models / name)
    return cards


def offer_of(models: Path | None, *, trusted: bool = True) -> Offer:
    """Read the built-in models and those in the folder `models`, whose pins are checked.

    Parameters
    ----------
    trusted
        False where nothing here holds programs from elsewhere: what was added is refused then.
    """
    return Catalogue(models, trusted=trusted).offer()


class Catalogue:
    """The offer as the folder of models is now; a model is read again when anything of it changed.

    Parameters
    ----------
    models, trusted
        As of `offer_of`.
    """

    def __init__(self, models: Path | None, *, trusted: bool = True) -> None:
        self._models = models
        self._trusted = trusted
        self._lock = threading.Lock()
        self._builtin = builtin_models()
        self._known: dict[str, tuple[object, ListedModel | SegnodeError]] = {}

    def offer(self) -> Offer:
        """Return what can run now."""
        with self._lock:
            if self._models:
                self._look(self._models)
            added = {name: one for name, (_, one) in self._known.items()}
        listed = [*self._builtin, *(one for one in added.values() if isinstance(one, ListedModel))]
        return Offer(
            models={one.digest: one for one in listed},
            refused={name: one for name, one in added.items() if isinstance(one, SegnodeError)},
        )

    def _look(self, models: Path) -> None:
        names = pinned_models(models)
        self._known = {name: self._known[name] for name in names if name in self._known}
        for name in names:
            looks = _looks(models, name)  # first, so that a change meanwhile is seen next time
            if name not in self._known or self._known[name][0] != looks:
                self._known[name] = (looks, self._read(models / name))

    def _read(self, folder: Path) -> ListedModel | SegnodeError:
        try:
            return _added(folder, {one.card.name for one in self._builtin}, self._trusted)
        except SegnodeError as error:
            return error


def _looks(models: Path, name: str) -> tuple[object, ...]:
    """Return what changes with any file of a model; reading the files each time would be slow."""
    looks = []
    for path in [pins_path(models, name), *sorted((models / name).rglob("*"))]:
        try:
            stat = path.lstat()
        except FileNotFoundError:  # it is being replaced: the next look tells
            continue
        looks.append((str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(looks)


def _added(folder: Path, builtin: set[str], trusted: bool) -> ListedModel:
    if not trusted:
        raise ModelUntrusted(
            f"The model {folder.name} is a program from elsewhere, and nothing here can hold it: "
            "bubblewrap cannot make a sandbox. Install it (as root: apt-get install bubblewrap) "
            "and allow user namespaces (compose.cell.yaml does so for containers), or accept the "
            "risk with sandbox = false in [models]."
        )
    pins = check_pins(folder.parent, folder.name)
    card = read_card(folder)
    if card.name != folder.name or card.name in builtin or card.kind == "builtin":
        raise CardError(
            f"{folder.name}/card.toml: the name is '{card.name}' and the kind {card.kind}; it must "
            "be the folder's name, no built-in model's, and of another kind."
        )
    code = sorted(path for path in _HERE.rglob("*.py") if not path.is_relative_to(BUILTIN))
    digest = _digest([pins.digest.encode(), *(path.read_bytes() for path in code)])
    return ListedModel(card=card, digest=digest, load=partial(load_network, card, folder))


def read_card(folder: Path) -> Card:
    """Read the card of the model in `folder`.

    Raises
    ------
    CardError
        If there is none, or it lacks something.
    """
    path = folder / "card.toml"
    where = f"{folder.name}/card.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CardError(f"{where} is missing; a model folder needs its card.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{where} cannot be read as text.") from error
    return parse_card(text, where=where)


def _builtin_digest(folder: Path) -> str:
    """Return the SHA-256 over the model's files and the modules that it shares."""
    own = [path for path in folder.rglob("*") if path.suffix in {".py", ".toml"}]
    shared = BUILTIN.glob("*.py")
    named = sorted((p.relative_to(folder.parent).as_posix(), p) for p in [*own, *shared])
    return _digest(_named(named))


def _named(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    for name, path in files:
        content = path.read_bytes()
        yield f"{name}\n{len(content)}\n".encode()
        yield content


def _digest(parts: Iterable[bytes]) -> str:
    summed = hashlib.sha256()
    for part in parts:
        summed.update(part)
    return summed.hexdigest()
