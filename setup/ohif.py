"""Fetch the built OHIF viewer, once, and patch it to live at /ohif/.

    python setup/ohif.py [TARGET]

The npm package is checked against the digest below. Run again, it does nothing.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from segnode_contract.errors import SetupError

VERSION = "3.13.2"
PATCH = 1
"""Raised with every change of `patched` or `wanted`, so that an older copy is not used again."""
SHA512 = (
    "5997719a9986eeba85816f5924b71b82bdd70ad2e2d4a0cd3e831a798e4f3dee"
    "a3e06e1f8c48e393271933a0ba664d85f3b04ac457e9abe8dde715d907d13c10"
)
CURRENT = Path(__file__).parents[1] / ".cache" / "ohif"
TARGET = CURRENT.with_name(f"ohif-{VERSION}-{PATCH}")

# what names other hosts, is served by us instead, or runs a model from another host (ort, 99 MB)
_UNWANTED = ("sw.js", "google.js", "silent-refresh.html", "app-config.js", "_headers", "_redirects")
_UNWANTED_FOLDERS = ("customizations", "ort")
_EXTERNAL = re.compile(rb"""(?:src|href|url\()\s*=?\s*["']?(?:https?:)?//[^"'\s>]+""")


def main(arguments: list[str]) -> int:
    """Put the viewer into the folder named, or into `TARGET`."""
    if len(arguments) > 1:
        print(__doc__, file=sys.stderr)
        return 2
    target = Path(arguments[0]) if arguments else TARGET
    try:
        if not target.is_dir():
            install(target)
        if not arguments:
            point_to(target)
    except SetupError as error:
        print(f"segnode: {error.sentence}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"segnode: {target} cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


def install(target: Path) -> None:
    """Fetch, check, patch, and put the whole into place by one rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ohif-", dir=target.parent) as temporary:
        package = fetch(Path(temporary))
        check_digest(package)
        unpacked = Path(temporary) / "dist"
        unpack(package, unpacked)
        unpacked.rename(target)


def point_to(target: Path) -> None:
    """Let the name without a version, by which the node knows the viewer, mean this one."""
    new = CURRENT.with_name(f".{CURRENT.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target.name)
    new.replace(CURRENT)


def fetch(folder: Path) -> bytes:
    """Return the npm package as it was published."""
    beside = Path(sys.executable).with_name("npm")
    npm = str(beside) if beside.exists() else shutil.which("npm")
    if npm is None:
        raise SetupError("npm is not here; install the extra: pip install 'segnode[viewer]'.")
    command = [
        npm,
        "pack",
        f"@ohif/app@{VERSION}",
        "--loglevel=error",
        "--pack-destination",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    packages = list(folder.glob("*.tgz"))
    if done.returncode != 0 or not packages:
        # npm prints a stack of lines; its first word of any use is the error's code
        code = re.search(r"code (E\w+)", done.stderr)
        reason = code[1] if code else f"exit code {done.returncode}"
        raise SetupError(
            f"npm could not fetch @ohif/app {VERSION} ({reason}); check the network or npm's "
            "proxy and registry settings, and run this again."
        )
    return packages[0].read_bytes()


def check_digest(package: bytes, expected: str = SHA512) -> None:
    """Refuse a package that is not the one this file was written for."""
    found = hashlib.sha512(package).hexdigest()
    if found != expected:
        raise SetupError(
            f"@ohif/app {VERSION} has the SHA-512 {found[:16]}…, not {expected[:16]}…; it is not "
            "the package that segnode was tested with, so nothing was installed."
        )


def unpack(package: bytes, folder: Path) -> None:
    """Write the patched files of the package's `dist` into `folder`.

    Only plain files are taken and only from below `dist`, so that no link and no `..` of the
    archive reaches the disk.
    """
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if not member.isfile() or path.parts[:2] != ("package", "dist") or ".." in path.parts:
                continue
            name = PurePosixPath(*path.parts[2:])
            content = archive.extractfile(member)
            if content is None or not wanted(name):
                continue
            destination = folder / name
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_bytes(patched(name, content.read()))


def wanted(name: PurePosixPath) -> bool:
    """Return whether the viewer at /ohif/ needs the file."""
    return (
        str(name) not in _UNWANTED
        and name.parts[0] not in _UNWANTED_FOLDERS
        and name.suffix != ".map"
    )


def patched(name: PurePosixPath, content: bytes) -> bytes:
    """Return the file for the address /ohif/; the build is made for the address /.

    Every worker carries its own public path, so all scripts are patched.
    """
    if name.suffix in (".html", ".json"):
        content = content.replace(b'"/', b'"/ohif/')
        external = _EXTERNAL.search(content)
        if external:
            raise SetupError(
                f"{name} of @ohif/app {VERSION} refers to another host: {external[0]!r}; "
                "remove the reference in setup/ohif.py."
            )
    elif name.suffix == ".js":
        content = content.replace(
            b'__webpack_require__.p = "/"', b'__webpack_require__.p = "/ohif/"'
        )
        content = re.sub(rb"//# sourceMappingURL=\S+\s*$", b"", content)
    elif name.suffix == ".css":
        content = content.replace(b"url(/", b"url(/ohif/")
    return content


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
