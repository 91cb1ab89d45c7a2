"""What the files of a model are, and what they may execute, in plain words.

All of it comes from elsewhere, names as well. Nothing is imported or loaded: names, first bytes and
configurations are read as data.
"""

from __future__ import annotations

import builtins
import importlib
import json
import sys
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from segnode_models.trust import is_program

CARD = "card.toml"
TORCHSCRIPT = "TorchScript program"
_PROGRAMS = (TORCHSCRIPT, "Python code", "compiled program", "configuration", "damaged archive")
_HARMLESS = "configuration: runs nothing"
_PICKLE = "pickle: loads as weights only"
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_LARGEST_CONFIGURATION = 32 << 20
_CONFIGURATIONS = (".json", ".yaml", ".yml")
_COMPILED = (b"\x7fELF", b"MZ", b"\xfe\xed\xfa", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe")
_OURS = ("monai", "torch", "nnunetv2", "dynamic_network_architectures")
"""Packages that are installed here, whose classes a model may name without more ado."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """What a configuration executes when it is used."""

    expressions: int
    """Strings that begin with ``$``, which MONAI evaluates."""
    classes: int
    """Classes and functions that it names to be called."""
    foreign: tuple[str, ...]
    """Those of them that are not of MONAI, torch or nnU-Net."""
    imports: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of a model."""

    path: str
    """In the model's folder."""
    size: int
    sha256: str
    what: str
    """What it is, in plain words."""

    @property
    def executes(self) -> bool:
        """Whether it is, or names, code that runs when the model is used."""
        return self.what.startswith(_PROGRAMS) and self.what != _HARMLESS


def plain(text: str, most: int = 300) -> str:
    """Return text from elsewhere as one line that a terminal and a TOML file can take.

    Signs that control a terminal, change the direction of writing or are no characters become a
    space; what is longer than `most` is cut.
    """
    kept = (sign if unicodedata.category(sign)[0] not in "CZ" else " " for sign in text[: 4 * most])
    line = " ".join("".join(kept).split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def inspect_file(folder: Path, path: str, sha256: str) -> ModelFile:
    """Say what the file `path` in `folder` is."""
    whole = folder / path
    size = whole.stat().st_size
    return ModelFile(path=path, size=size, sha256=sha256, what=what_it_is(whole, path))


def what_it_is(file: Path, path: str) -> str:
    """Return what a file is by its content, and by its name where content does not tell."""
    suffix = PurePosixPath(path).suffix.lower()
    with file.open("rb") as opened:
        start = opened.read(1 << 16)
    what = "text" if _is_text(start) else "data"
    if path == CARD:
        what = "the model card"
    elif start.startswith(_COMPILED) or suffix == ".pyc":
        what = "compiled program"
    elif suffix == ".py":
        what = "Python code"
    elif zipfile.is_zipfile(file) or start.startswith(b"PK\x03\x04"):
        what = _what_zip(file)
    elif start.startswith(_PICKLES):
        what = _PICKLE
    elif suffix in _CONFIGURATIONS:
        what = _what_configuration(file)
    elif suffix == ".safetensors":
        what = "weights, tensors only"
    return what


def _what_zip(file: Path) -> str:
    """Tell TorchScript from weights: it brings its code."""
    try:
        with zipfile.ZipFile(file) as opened:
            names = opened.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return "damaged archive"
    if is_program(file):
        return TORCHSCRIPT
    if any(name.endswith("data.pkl") for name in names):
        return _PICKLE
    return "archive"


def _what_configuration(file: Path) -> str:
    try:
        runs = runs_of(document_of(file))
    except ValueError:
        return "configuration that cannot be read here: may run anything"
    if not (runs.expressions or runs.classes):
        return _HARMLESS
    counts = ((runs.expressions, "expression"), (runs.classes, "class"))
    said = f"configuration: runs {' and '.join(_count(n, one) for n, one in counts if n)}"
    if runs.foreign:
        said += f", of which outside MONAI, torch and nnU-Net: {', '.join(runs.foreign)}"
    if runs.imports:
        said += f"; imports {', '.join(runs.imports)}"
    return said


def _count(number: int, one: str) -> str:
    many = f"{one}es" if one.endswith("s") else f"{one}s"
    return f"{number} {one if number == 1 else many}"


def document_of(file: Path) -> Any:
    """Return what a JSON or YAML file holds; raises `ValueError` where it cannot be read."""
    if file.stat().st_size > _LARGEST_CONFIGURATION:
        raise ValueError("too large")
    text = file.read_text(encoding="utf-8")
    try:
        return json.loads(text) if file.suffix.lower() == ".json" else _yaml(text)
    except RecursionError as error:
        raise ValueError("too deep") from error


def _yaml(text: str) -> Any:
    """Read YAML; raises `ValueError` where it is none, or no PyYAML is installed."""
    if find_spec("yaml") is None:
        raise ValueError("no PyYAML")
    yaml: Any = importlib.import_module("yaml")  # it comes with MONAI
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError("no YAML") from error


def runs_of(document: Any) -> Runs:
    """Count what a configuration runs, by MONAI's rules and by those of nnU-Net's plans."""
    expressions, imports, classes = 0, [], []
    for holder in holders_of(document):
        for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
            if isinstance(value, str) and value.startswith("$"):
                expressions += 1
                if value.startswith(("$import ", "$from ")):
                    imports.append(value.removeprefix("$import ").removeprefix("$").strip())
            if isinstance(value, str) and _names_class(key):
                classes.append(value)
        if isinstance(holder, dict):
            classes += _located(holder)
    return Runs(
        expressions=expressions,
        classes=len(classes),
        foreign=tuple(sorted({name for name in classes if _is_foreign(name)})),
        imports=tuple(sorted(set(imports))),
    )


def holders_of(document: Any) -> Iterator[dict[Any, Any] | list[Any]]:
    """Yield every object and list in a document once, without recursion: it may be deep."""
    waiting: list[Any] = [[document]]
    seen = set[int]()
    while waiting:
        holder = waiting.pop()
        if id(holder) in seen:  # YAML names one part in many places
            continue
        seen.add(id(holder))
        yield holder
        inside = holder.values() if isinstance(holder, dict) else holder
        waiting += [value for value in inside if isinstance(value, dict | list)]


def _names_class(key: object) -> bool:
    """Return whether a line names what is called: ``a::_target_`` sets ``_target_`` in ``a``."""
    if not isinstance(key, str):
        return False
    last = key.replace("#", "::").rpartition("::")[2].lstrip("+")
    return last in ("_target_", "network_class_name")


def _located(holder: dict[Any, Any]) -> list[str]:
    """Return the classes that nnU-Net looks up as arguments of a network."""
    wanted, arguments = holder.get("_kw_requires_import"), holder.get("arch_kwargs")
    if not (isinstance(wanted, list) and isinstance(arguments, dict)):
        return []
    named = [arguments.get(name) for name in wanted if isinstance(name, str)]
    return [name for name in named if isinstance(name, str)]


def _is_foreign(name: str) -> bool:
    """Return whether a class is not one of the packages that run models here.

    MONAI finds its own by their bare names, and takes what it does not know for Python's.
    """
    first, dot, _ = name.partition(".")
    if dot:
        return first not in _OURS
    return not name.isidentifier() or name in dir(builtins) or name in sys.stdlib_module_names


def _is_text(start: bytes) -> bool:
    if b"\0" in start:
        return False
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"  # cut in the middle of a sign
    return True
