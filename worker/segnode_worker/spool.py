"""Finished results on disk until the archive has confirmed them, so that no retry infers again."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

from segnode_contract.errors import SpoolFull

_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_SETTLED_S = 600.0
"""A file that the ledger does not name yet may be this old at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A finished file."""

    digest: str
    """SHA-256 of its bytes."""
    data: bytes | mmap


def in_memory(parts: Iterable[bytes]) -> Kept:
    """Keep a file where there is no spool."""
    data = b"".join(parts)
    return Kept(digest=hashlib.sha256(data).hexdigest(), data=data)


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

    def put(self, parts: Iterable[bytes]) -> Kept:
        """Write a file piece by piece, so that it is there whole or not at all.

        Raises
        ------
        SpoolFull
            If the disk does not take it.
        """
        digest, size = hashlib.sha256(), 0
        new = self._folder / f"{os.getpid()}-{secrets.token_hex(8)}.new"
        try:
            with os.fdopen(os.open(new, _NEW, 0o600), "wb") as file:
                for part in parts:
                    digest.update(part)
                    file.write(part)
                    size += len(part)
                file.flush()
                os.fsync(file.fileno())
            path = self._path(digest.hexdigest())
            new.replace(path)
            _sync_folder(self._folder)
            return Kept(digest=digest.hexdigest(), data=_mapped(path))
        except OSError as error:
            raise SpoolFull(
                f"The spool {self._folder} does not take {size >> 10} kB "
                f"({error.strerror}); make room on its disk."
            ) from error
        finally:
            new.unlink(missing_ok=True)

    def take(self, digest: str) -> mmap | None:
        """Return the file of that digest, None where it is not there, not whole or not readable."""
        try:
            data = _mapped(self._path(digest))
        except (OSError, ValueError):  # of an empty file, too
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


def _mapped(path: Path) -> mmap:
    with path.open("rb") as file:
        return mmap(file.fileno(), 0, access=ACCESS_READ)


def _sync_folder(folder: Path) -> None:
    # a rename is safe when its folder is
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
