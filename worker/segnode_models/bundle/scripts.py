"""The Python modules that a bundle brings: importable while it is at work, and for it alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


class BundleScripts:
    """Modules below a bundle's folder.

    Every bundle calls its package `scripts`, and several bundles stand loaded in one process; so
    each has its modules for as long as it is at work, and takes them along afterwards.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        parts = (path.relative_to(folder).parts[0] for path in folder.rglob("*.py"))
        self._names = {part.removesuffix(".py") for part in parts}
        self._modules: dict[str, ModuleType] = {}

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Have the modules, and only these under their names, inside the ``with``."""
        path, writes = sys.path.copy(), sys.dont_write_bytecode
        hidden = self._taken()
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self._folder))
        sys.dont_write_bytecode = True  # a new file in the folder would break its pins
        try:
            yield
        finally:
            self._modules = self._taken()
            sys.modules.update(hidden)
            sys.path[:], sys.dont_write_bytecode = path, writes

    def _taken(self) -> dict[str, ModuleType]:
        """Take the modules of these names out of `sys.modules`."""
        names = [name for name in sys.modules if name.partition(".")[0] in self._names]
        return {name: sys.modules.pop(name) for name in names}
