"""Which files an administrator has agreed to: the digest of each, pinned beside the model.

A model from elsewhere is software. Its folder stands in the node's folder of models, and beside it
`NAME.pins.json`, written when it was added. Nothing of it is imported, parsed or loaded before
every file has the digest that is pinned there.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from segnode_contract.errors import ModelUntrusted

_SUFFIX = ".pins.json"
_AGAIN = "; look at what changed, then add it again with `segnode models add`."


def is_program(file: Path) -> bool:
    """Return whether a file is a TorchScript program, by its content: weights bring no code.

    What a person is shown and what is loaded go by this one rule.
    """
    try:
        with ZipFile(file) as archive:
            names = archive.namelist()
    except (BadZipFile, ValueError, NotImplementedError, OSError):
        return False
    return any("/code/" in f"/{name}" or name.endswith("constants.pkl") for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """The files of a model, by their path in its folder, with SHA-256."""

    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 over all paths and digests."""
        lines = (f"{digest}  {path}\n" for path, digest in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def pins_of(folder: Path) -> Pins:
    """Read every file below `folder`.

    Raises
    ------
    ModelUntrusted
        If anything there is neither a plain file nor a folder.
    """
    return Pins(files={path: _sha256(folder / path) for path in files_of(folder)})


def files_of(folder: Path) -> list[str]:
    """Return the paths of all files below `folder`, in it; raises as `pins_of`."""
    found = []
    for path in sorted(folder.rglob("*")):
        kind = path.lstat().st_mode
        if stat.S_ISREG(kind):
            found.append(path.relative_to(folder).as_posix())
        elif not stat.S_ISDIR(kind):
            raise ModelUntrusted(
                f"{path.relative_to(folder.parent)} is a link or no plain file; a model's folder "
                "must hold its files themselves."
            )
    return found


def pinned_models(models: Path) -> list[str]:
    """Return the names of the models that were added to the folder `models`."""
    return sorted(path.name.removesuffix(_SUFFIX) for path in models.glob(f"*{_SUFFIX}"))


def write_pins(models: Path, name: str, pins: Pins) -> None:
    """Pin the files of the model `name`, in one step; pins of before are replaced."""
    path = pins_path(models, name)
    new = path.with_suffix(".new")
    try:
        new.write_text(json.dumps({"files": dict(pins.files)}, indent=2) + "\n", encoding="utf-8")
        new.chmod(0o644)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def pins_path(models: Path, name: str) -> Path:
    """Return where the pins of the model `name` stand."""
    return models / f"{name}{_SUFFIX}"


def read_pins(models: Path, name: str) -> Pins:
    """Return what was pinned.

    Raises
    ------
    ModelUntrusted
        If it cannot be read.
    """
    try:
        files = json.loads(pins_path(models, name).read_text(encoding="utf-8"))["files"]
        return Pins(files={str(path): str(digest) for path, digest in files.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUntrusted(f"The pins of the model {name} cannot be read{_AGAIN}") from error


def check_pins(models: Path, name: str) -> Pins:
    """Compare a model's folder with its pins.

    Raises
    ------
    ModelUntrusted
        Naming the first file that is missing, new or changed, or that cannot be read.
    """
    pins, folder = read_pins(models, name), models / name
    if folder.is_symlink() or not folder.is_dir():
        raise ModelUntrusted(f"The folder of the model {name} is gone{_AGAIN}")
    try:
        _compare(pins, folder)
    except OSError as error:  # it is being replaced, say
        raise ModelUntrusted(
            f"The files of the model {name} cannot be read ({error.strerror}){_AGAIN}"
        ) from error
    return pins


def _compare(pins: Pins, folder: Path) -> None:
    found = files_of(folder)
    for path in sorted({*found, *pins.files}):
        if path not in pins.files:
            raise ModelUntrusted(
                f"{folder.name}/{path} was not there when the model was added{_AGAIN}"
            )
        if path not in found:
            raise ModelUntrusted(f"{folder.name}/{path} is missing{_AGAIN}")
    # all names first, since reading the weights takes long
    for path, digest in pins.files.items():
        if _sha256(folder / path) != digest:
            raise ModelUntrusted(f"{folder.name}/{path} is not the file that was added{_AGAIN}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
