"""Packages of npm that set-up takes: fetched as published, checked, put in place by one rename."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from segnode_contract.errors import SetupError

CACHE = Path(__file__).parents[1] / ".cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One version of a package, and the digest of what npm serves for it."""

    name: str
    version: str
    sha512: str


def put_in_place(target: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder: all of what `fill` writes, or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        unfinished = Path(temporary) / "files"
        unfinished.mkdir()
        fill(unfinished)
        unfinished.rename(target)


def point_to(current: Path, target: Path) -> None:
    """Let the name without a version, by which the node knows a folder, mean this one."""
    new = current.with_name(f".{current.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target.name)
    new.replace(current)


def fetch(package: Package) -> bytes:
    """Return the package as it was published.

    Raises
    ------
    SetupError
        If npm cannot fetch it, or what came is another package.
    """
    beside = Path(sys.executable).with_name("npm")
    npm = str(beside) if beside.exists() else shutil.which("npm")
    if npm is None:
        raise SetupError("npm is not here; setup/venv.sh viewer installs it.")
    named = f"{package.name}@{package.version}"
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", named, "--loglevel=error", "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        packages = list(Path(folder).glob("*.tgz"))
        if done.returncode != 0 or not packages:
            # npm prints a stack of lines; its first word of any use is the error's code
            code = re.search(r"code (E\w+)", done.stderr)
            reason = code[1] if code else f"exit code {done.returncode}"
            raise SetupError(
                f"npm could not fetch {package.name} {package.version} ({reason}); check the "
                "network or npm's proxy and registry settings, and run this again."
            )
        content = packages[0].read_bytes()
    check_digest(package, content)
    return content


def check_digest(package: Package, content: bytes) -> None:
    """Refuse a package that is not the one that this version of segnode was written for."""
    found, expected = hashlib.sha512(content).hexdigest(), package.sha512
    if found != expected:
        raise SetupError(
            f"{package.name} {package.version} has the SHA-512 {found[:16]}…, not "
            f"{expected[:16]}…; it is not the package that segnode was tested with, so nothing "
            "was installed."
        )


def files(content: bytes) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Give the package's plain files with their paths in it.

    No link and no ``..`` of the archive is among them, so that none reaches the disk.
    """
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if not member.isfile() or path.parts[:1] != ("package",) or ".." in path.parts:
                continue
            file = archive.extractfile(member)
            if file is not None:
                yield PurePosixPath(*path.parts[1:]), file.read()
