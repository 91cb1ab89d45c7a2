"""Which models this installation has.

A model is a folder with a `card.toml`. Cards and digests are read without torch, so that listing
models is quick; `load_builtin` imports it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segnode_contract.card import Card, parse_card
from segnode_contract.errors import CardError
from segnode_models.model import Model

if TYPE_CHECKING:
    import torch

BUILTIN = Path(__file__).parent / "builtin"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredModel:
    """A model ready to run; `digest` changes with its code, its card and its weights."""

    card: Card
    digest: str
    model: Model
    smaller: Model | None = None
    """The same model where it needs less memory, and more time: on the CPU."""


def builtin_cards() -> list[tuple[Card, str]]:
    """Return card and digest of every built-in model, by name, without importing torch."""
    return [(read_card(folder), digest(folder)) for folder in _builtin_folders()]


def load_builtin(device: str) -> list[RegisteredModel]:
    """Load the built-in models.

    Parameters
    ----------
    device
        A torch device, ``cpu`` or ``cuda:0`` say, or ``auto``: the first GPU where there is one.
    """
    return list(available(_builtin_folders(), device).values())


def available(folders: Iterable[Path], device: str) -> Mapping[str, RegisteredModel]:
    """Load the models in `folders`, by name.

    Raises
    ------
    CardError
        If a card lacks something, two have one name, or nothing here can run its kind.
    """
    found: dict[str, RegisteredModel] = {}
    for folder in folders:
        card = read_card(folder)
        if card.name in found:
            raise CardError(f"{folder}: another model is named '{card.name}' too; rename one.")
        make, where = _loader(card, folder), _device(device)
        found[card.name] = RegisteredModel(
            card=card,
            digest=digest(folder),
            model=make(card, where),
            smaller=None if where.type == "cpu" else make(card, _device("cpu")),
        )
    return found


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
    return parse_card(text, where=where)


def digest(folder: Path) -> str:
    """Return the SHA-256 over names and bytes of the model's files and of the modules it shares."""
    own = [path for path in folder.rglob("*") if path.suffix in {".py", ".toml"}]
    shared = BUILTIN.glob("*.py") if folder.parent == BUILTIN else ()
    summed = hashlib.sha256()
    for name, path in sorted((p.relative_to(folder.parent).as_posix(), p) for p in [*own, *shared]):
        content = path.read_bytes()
        summed.update(f"{name}\n{len(content)}\n".encode())
        summed.update(content)
    return summed.hexdigest()


def _builtin_folders() -> list[Path]:
    return sorted(card.parent for card in BUILTIN.glob("*/card.toml"))


def _loader(card: Card, folder: Path) -> Callable[[Card, torch.device], Model]:
    # here and not above: torch takes more than a second, which reading cards must not cost
    from segnode_models.builtin.ct_lung_density.model import CtLungDensity  # noqa: PLC0415
    from segnode_models.builtin.ct_tissue.model import CtTissue  # noqa: PLC0415

    classes: dict[tuple[str, str], Callable[[Card, torch.device], Model]] = {
        ("builtin", "ct-tissue"): CtTissue,
        ("builtin", "ct-lung-density"): CtLungDensity,
    }
    try:
        return classes[card.kind, card.name]
    except KeyError as error:
        raise CardError(
            f"{folder.name}/card.toml: no {card.kind} model named '{card.name}' can be run here; "
            f"known are {', '.join(name for _, name in classes)}."
        ) from error


def _device(name: str) -> torch.device:
    import torch  # noqa: PLC0415 - as above

    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
