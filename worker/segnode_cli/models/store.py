"""Where added models stand: put in whole or not at all, and taken out."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from segnode_contract.errors import SetupError
from segnode_models.trust import Pins, pins_path, write_pins

_WORK = ".work-"
"""Begins the names of folders that are on their way in or out."""
_CHUNK = 1 << 22


class ModelStore:
    """The folder of added models, held against others that would change it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    @contextmanager
    def held(cls, folder: Path) -> Iterator[ModelStore]:
        """Make the folder where it is missing, and hold it.

        Raises
        ------
        SetupError
            If another command holds it.
        """
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)  # the model process, which has a user id of its own, looks into it
        with (folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SetupError(
                    f"Another `segnode models` command is at work in {folder}; wait for its end."
                ) from error
            store = cls(folder)
            store._sweep()
            try:
                yield store
            finally:
                store._sweep()

    def workplace(self) -> Path:
        """Return an empty folder on the same disk, which is gone after `held`."""
        return Path(tempfile.mkdtemp(prefix=_WORK, dir=self._folder))

    @contextmanager
    def apart(self, new: Path, name: str, pins: Pins) -> Iterator[Path]:
        """Give a folder of models with `new`, a workplace, as the only one; after, it is back."""
        _protect(new)
        models = self.workplace()
        models.chmod(0o755)
        new.rename(models / name)
        try:
            write_pins(models, name, pins)
            yield models
        finally:
            (models / name).rename(new)

    def put(self, new: Path, name: str, pins: Pins) -> None:
        """Make `new`, a workplace, the model `name`; an older one goes.

        Whatever ends this half-way, what then stands there is the older model, the new one, or one
        that is refused since its files are not those that are pinned.
        """
        _protect(new)
        place, old = self._folder / name, self.workplace()
        with _uninterrupted():
            if place.exists():
                place.rename(old)
            try:
                new.rename(place)
                place.chmod(0o555)
                write_pins(self._folder, name, pins)
            except OSError:
                if place.exists():
                    place.rename(self.workplace())
                if any(old.iterdir()):
                    old.rename(place)
                raise

    def take_out(self, name: str) -> None:
        """Remove the model `name`."""
        with _uninterrupted():
            pins_path(self._folder, name).unlink(missing_ok=True)
            if (self._folder / name).exists():
                (self._folder / name).rename(self.workplace())

    def _sweep(self) -> None:
        """Remove what this or an earlier command left on the way; nobody else is at work."""
        for left in self._folder.glob(f"{_WORK}*"):
            _remove(left)


def copy_files(source: Path, paths: Iterable[str], target: Path) -> dict[str, str]:
    """Copy files below `source` into `target`, byte by byte, and return SHA-256 of what was copied.

    Modes, owners and attributes stay behind.
    """
    digests = {}
    for path in paths:
        copy = target / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        summed = hashlib.sha256()
        with (source / path).open("rb") as read, copy.open("xb") as written:
            while chunk := read.read(_CHUNK):
                summed.update(chunk)
                written.write(chunk)
        digests[path] = summed.hexdigest()
    return digests


def _protect(folder: Path) -> None:
    """Let everybody read and nobody write what is in a folder, which can itself be moved."""
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o755)


def _remove(folder: Path) -> None:
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o700)
    shutil.rmtree(folder)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
