"""Unpack an archive from elsewhere: it stays in its folder and cannot fill the disk."""

from __future__ import annotations

import gzip
import shutil
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol

from segnode_contract.errors import SetupError

MOST_BYTES = 64 << 30
MOST_FILES = 20_000
_MOST_RATIO = 200
"""Unpacked to packed; what fills a disk from a small file has a thousand."""
_LEAST_LIMIT = 1 << 20
"""A small archive of texts may unpack to this, whatever its ratio."""
_KEEP_FREE = 1 << 30
_MOST_PATH = 1000
_MOST_NAME = 255
"""Bytes of a path and of one name in it, as Linux has them."""
_CHUNK = 1 << 20
_MOST_HEADER = 64 << 10
"""Of a tar member; `tarfile` reads a header into memory, however large it says that it is."""
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, struct.error, EOFError),
    *(NotImplementedError, RuntimeError, ValueError, IndexError, OverflowError),
)
"""What the two modules raise about archives that they cannot read."""
_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Whole(_Source, Protocol):
    def seek(self, position: int, /) -> int: ...
    def tell(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    path: PurePosixPath
    open: Callable[[], AbstractContextManager[_Source]]


def archive_stem(path: Path) -> str | None:
    """Return the name of an archive without its ending, None for what is no archive by its name."""
    for ending in _ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return None


def unpack(
    archive: Path, folder: Path, *, most_bytes: int = MOST_BYTES, most_files: int = MOST_FILES
) -> None:
    """Unpack a .zip, .tar or .tar.gz into the empty `folder`.

    All names are looked at before the first file is written. Sizes that the archive states are
    not believed: what comes out is counted.

    Raises
    ------
    SetupError
        If it cannot be read, would write outside of `folder`, holds anything but files and
        folders, or unpacks to more files or bytes than are allowed or the disk has.
    """
    try:
        opened = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
        most_bytes = min(
            most_bytes,
            max(archive.stat().st_size * _MOST_RATIO, _LEAST_LIMIT),
            max(shutil.disk_usage(folder).free - _KEEP_FREE, 0),
        )
        with opened(archive, most_bytes, most_files) as members:
            _check_clashes(archive, members)
            _write(archive, members, folder, most_bytes)
    except _DAMAGED as error:
        raise SetupError(
            f"{archive.name} cannot be unpacked: it is damaged, encrypted or no such archive "
            f"({type(error).__name__})."
        ) from error


def _write(archive: Path, members: Iterable[_Member], folder: Path, most_bytes: int) -> None:
    written = 0
    for member in members:
        path = folder / member.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, path.open("xb") as target:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > most_bytes:
                    raise _too_large(archive, most_bytes)
                target.write(chunk)


@contextmanager
def _zip_members(archive: Path, most_bytes: int, most_files: int) -> Iterator[list[_Member]]:
    with zipfile.ZipFile(archive) as opened:
        members = []
        for count, info in enumerate(opened.infolist(), 1):
            if count > most_files:
                raise _too_many(archive, most_files)
            path = _checked_path(archive, info.filename)
            # the upper half has the mode where the archive was made on Unix, else 0
            kind = (info.external_attr >> 16) & 0o170000
            if kind not in (0, 0o100000, 0o040000):
                raise _no_file(archive, info.filename)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise SetupError(
                    f"{archive.name} is packed by another method than deflate; pack it again."
                )
            if path is not None and not info.is_dir():
                members.append(_Member(path=path, open=partial(opened.open, info)))
        yield members


@contextmanager
def _tar_members(archive: Path, most_bytes: int, most_files: int) -> Iterator[list[_Member]]:
    with archive.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        whole: _Whole = gzip.GzipFile(fileobj=file) if packed else file
        headers = _Headers(archive, whole, most_bytes)
        members = []
        with tarfile.open(fileobj=headers, mode="r:") as opened:  # type: ignore[call-overload] # enough of a file
            for count, info in enumerate(opened, 1):
                if count > most_files:
                    raise _too_many(archive, most_files)
                path = _checked_path(archive, info.name)
                if not (info.isdir() or info.isreg()) or info.issparse():
                    raise _no_file(archive, info.name)
                if path is not None and info.isreg():
                    content = partial(_content, whole, info.offset_data, info.size)
                    members.append(_Member(path=path, open=content))
        yield members


class _Headers:
    """An open tar archive, of which only headers are read, each of a size that headers have."""

    def __init__(self, archive: Path, file: _Whole, most_bytes: int) -> None:
        self._archive = archive
        self._file = file
        self._most_bytes = most_bytes

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise SetupError(f"{self._archive.name} has a header of {size} bytes; it is refused.")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        if position > self._most_bytes + _MOST_HEADER:
            raise _too_large(self._archive, self._most_bytes)
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def _content(whole: _Whole, start: int, size: int) -> Iterator[_Source]:
    whole.seek(start)
    yield _Part(whole, size)


class _Part:
    """The next `left` bytes of a file."""

    def __init__(self, file: _Source, left: int) -> None:
        self._file = file
        self._left = left

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        if self._left and not data:
            raise EOFError
        self._left -= len(data)
        return data


def _checked_path(archive: Path, name: str) -> PurePosixPath | None:
    """Return a path that stays inside the folder, None for the folder itself."""
    path = PurePosixPath(name)  # drops "." and doubled slashes
    parts = path.parts
    plain = not any(unicodedata.category(sign)[0] == "C" for sign in name)
    fits = len(name.encode(errors="replace")) <= _MOST_PATH and all(
        len(part.encode(errors="replace")) <= _MOST_NAME for part in parts
    )
    drive = bool(parts) and parts[0].endswith(":")
    if path.is_absolute() or ".." in parts or "\\" in name or drive or not (plain and fits):
        raise SetupError(
            f"{archive.name} holds the name {name[:80]!a}, which leaves the folder or is no name "
            "of a file; it is refused, and nothing of it was written."
        )
    return path if parts else None


def _check_clashes(archive: Path, members: Iterable[_Member]) -> None:
    """Refuse an archive that writes one path twice, or a file where another needs a folder."""
    files: set[PurePosixPath] = set()
    for member in members:
        if member.path in files:
            raise SetupError(f"{archive.name} holds {str(member.path)!a} twice; it is refused.")
        files.add(member.path)
    if not files:
        raise SetupError(f"{archive.name} holds no files.")
    for path in files:
        for parent in path.parents:
            if parent in files:
                raise SetupError(
                    f"{archive.name} holds {str(parent)!a} as a file and as a folder; it is "
                    "refused."
                )


def _no_file(archive: Path, name: str) -> SetupError:
    return SetupError(
        f"{archive.name} holds {name[:80]!a}, which is a link or no plain file; it is refused, and "
        "nothing of it was written."
    )


def _too_large(archive: Path, most_bytes: int) -> SetupError:
    return SetupError(
        f"{archive.name} unpacks to more than {most_bytes / 1e6:.0f} MB, which is more than the "
        f"disk has, or {_MOST_RATIO} times its size, or the limit of {MOST_BYTES >> 30} GiB; "
        "unpack it yourself if you trust it, and add the folder."
    )


def _too_many(archive: Path, most_files: int) -> SetupError:
    return SetupError(f"{archive.name} holds more than {most_files} files; it is refused.")
