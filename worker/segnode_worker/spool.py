"""Finished results on disk until the archive has confirmed them, so that no retry infers again."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from segnode_contract.errors import SpoolFull

_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_SETTLED_S = 600.0
"""A file that the ledger does not name yet may be this old at most."""


class Spool:
    """A folder of Part 10 files, each named by the SHA-256 of its bytes.

    They hold a patient's name, so that the folder is its owner's alone, and a file goes when its
    job has ended.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Make the folder."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def put(self, data: bytes) -> None:
        """Write a file so that it is there whole, or not at all.

        Raises
        ------
        SpoolFull
            If the disk does not take it.
        """
        path = self._path(hashlib.sha256(data).hexdigest())
        new = path.with_suffix(f".{os.getpid()}.new")
        try:
            with os.fdopen(os.open(new, _NEW, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
            _sync_folder(self._folder)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise SpoolFull(
                f"The spool {self._folder} does not take {len(data) >> 10} kB "
                f"({error.strerror}); make room on its disk."
            ) from error

    def take(self, digest: str) -> bytes | None:
        """Return the file of that digest, None where it is not there, not whole or not readable."""
        try:
            data = self._path(digest).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def drop(self, digests: Iterable[str]) -> None:
        """Delete files; what cannot be deleted now is left to `tidy`."""
        for digest in digests:
            with suppress(OSError):
                self._path(digest).unlink()

    def tidy(self, needed: Collection[str]) -> None:
        """Delete what no job needs any more."""
        for path in self._folder.iterdir():
            try:
                old = path.stat().st_mtime < time.time() - _SETTLED_S
            except FileNotFoundError:  # another child was quicker
                continue
            if old and path.stem not in needed:
                path.unlink(missing_ok=True)

    def free_mb(self) -> int:
        """Return the free space of its disk in MB."""
        return shutil.disk_usage(self._folder).free >> 20

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.dcm"


def _sync_folder(folder: Path) -> None:
    # a rename is safe when its folder is
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
