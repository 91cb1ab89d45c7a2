"""Fetch the built OHIF viewer, once, and patch it to live at /ohif/.

    python setup/ohif.py [TARGET]

The npm package is checked against the digest below. Run again, it does nothing.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath

from package import CACHE, Package, fetch, files, point_to, put_in_place

from segnode_contract.errors import SetupError

VIEWER = Package(
    name="@ohif/app",
    version="3.13.2",
    sha512=(
        "5997719a9986eeba85816f5924b71b82bdd70ad2e2d4a0cd3e831a798e4f3dee"
        "a3e06e1f8c48e393271933a0ba664d85f3b04ac457e9abe8dde715d907d13c10"
    ),
)
PATCH = 2
"""Raised with every change of `patched` or `wanted`, so that an older copy is not used again."""
CURRENT = CACHE / "ohif"
TARGET = CURRENT.with_name(f"ohif-{VIEWER.version}-{PATCH}")

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
            put_in_place(target, lambda folder: unpack(fetch(VIEWER), folder))
        if not arguments:
            point_to(CURRENT, target)
    except SetupError as error:
        print(f"segnode: {error.sentence}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"segnode: {target} cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


def unpack(package: bytes, folder: Path) -> None:
    """Write the patched files of the package's `dist` into `folder`."""
    for path, content in files(package):
        if path.parts[:1] != ("dist",):
            continue
        name = PurePosixPath(*path.parts[1:])
        if wanted(name):
            destination = folder / name
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_bytes(patched(name, content))


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
        # a browser keeps a script for good by its name, which our changes do not alter
        content = re.sub(rb'(src="/ohif/[^"]+\.js)"', rb'\1?%d"' % PATCH, content)
        external = _EXTERNAL.search(content)
        if external:
            raise SetupError(
                f"{name} of @ohif/app {VIEWER.version} refers to another host: {external[0]!r}; "
                "remove the reference in setup/ohif.py."
            )
    elif name.suffix == ".js":
        content = content.replace(
            b'__webpack_require__.p = "/"', b'__webpack_require__.p = "/ohif/"'
        )
        # the eye beside a segmentation switched the active one, whichever it stood at
        content = content.replace(b"if (expandedContext.isActive) {", b"if (expandedContext) {")
        content = re.sub(rb"//# sourceMappingURL=\S+\s*$", b"", content)
    elif name.suffix == ".css":
        content = content.replace(b"url(/", b"url(/ohif/")
    return content


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
