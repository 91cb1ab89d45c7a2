"""Fetch the scripts of others that our pages load, once: htmx and uPlot.

    python setup/front.py pages [TARGET]
    python setup/front.py tests           axe-core, which the tests of pages load

Each npm package is checked against the digest below. Run again, it does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from package import CACHE, Package, fetch, files, point_to, put_in_place

from segnode_contract.errors import SetupError

HTMX = Package(
    name="htmx.org",
    version="2.0.11",
    sha512=(
        "4e1c7f5ada5e390a92aea042c3f0357301891a0e14ad56b7fac5b41a6accde9e"
        "202603bcf5e707e2ab5b9f2cc30d616f053aa39c83028042d336deb7e9db5a98"
    ),
)
UPLOT = Package(
    name="uplot",
    version="1.6.32",
    sha512=(
        "2883159c6ebccefbb95d751b0b82d010f9e1c0ec41b8bc96d401eda66e882935"
        "c89a46cb824332fa369b8cb8122cc6ac36e186cd09bf7a9ded3a4c93c6989023"
    ),
)
AXE = Package(
    name="axe-core",
    version="4.14.1",
    sha512=(
        "1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b73"
        "4f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5"
    ),
)

Wanted = Mapping[Package, Mapping[str, str]]
"""Of each package the files to take, and what they are called here."""

PAGES: Wanted = {
    HTMX: {"dist/htmx.min.js": "htmx.min.js", "LICENSE": "htmx.LICENSE"},
    UPLOT: {
        "dist/uPlot.iife.min.js": "uPlot.iife.min.js",
        "dist/uPlot.min.css": "uPlot.min.css",
        "LICENSE": "uPlot.LICENSE",
    },
}
TESTS: Wanted = {
    AXE: {
        "axe.min.js": "axe.min.js",
        "LICENSE": "axe.LICENSE",
        "LICENSE-3RD-PARTY.txt": "axe.LICENSE-3RD-PARTY.txt",
    },
}
_FOLDERS = {"pages": ("front", PAGES), "tests": ("front-tests", TESTS)}


def main(arguments: list[str]) -> int:
    """Put the files into the folder named, or into one of `.cache` named for their versions."""
    if not arguments or arguments[0] not in _FOLDERS or len(arguments) > 2:
        print(__doc__, file=sys.stderr)
        return 2
    name, wanted = _FOLDERS[arguments[0]]
    versions = "-".join(package.version for package in wanted)
    target = Path(arguments[1]) if len(arguments) > 1 else CACHE / f"{name}-{versions}"
    try:
        if not target.is_dir():
            put_in_place(target, lambda folder: install(folder, wanted))
        if len(arguments) == 1:
            point_to(CACHE / name, target)
    except SetupError as error:
        print(f"segnode: {error.sentence}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"segnode: {target} cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


def install(folder: Path, wanted: Wanted) -> None:
    """Fetch and check the packages, and write what is wanted of them."""
    for package, names in wanted.items():
        take(package, fetch(package), names, folder)


def take(package: Package, content: bytes, names: Mapping[str, str], folder: Path) -> None:
    """Write the files of a package that have names here."""
    found = {names[str(path)]: file for path, file in files(content) if str(path) in names}
    missing = sorted(set(names.values()) - set(found))
    if missing:
        raise SetupError(f"{package.name} {package.version} has no {', '.join(missing)}.")
    for name, file in found.items():
        (folder / name).write_bytes(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
