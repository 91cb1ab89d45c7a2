"""The routes of `segnode.toml`, which may change while Orthanc runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from segnode_contract.condition import clauses
from segnode_contract.errors import SettingsError
from segnode_contract.route import Route
from segnode_contract.settings import Settings, load_settings

log = logging.getLogger(__name__)


class RouteFile:
    """Routes as the file says them now; a broken file changes nothing and is told of.

    Parameters
    ----------
    path
        `segnode.toml`. What else stands in it counts from the next start on.
    knows
        Whether the archive has a keyword in its dictionary.

    Raises
    ------
    SettingsError
        If the file is broken from the first.
    """

    def __init__(self, path: Path, knows: Callable[[str], bool]) -> None:
        self._path = path
        self._knows = knows
        self._seen = self._state()
        self.settings = self._read()
        self._routes = self.settings.routes
        self._since = time.strftime("%Y-%m-%d %H:%M:%S")
        self.trouble = ""
        """Why the file as it is now is not followed; empty when it is."""

    def __call__(self) -> tuple[Route, ...]:
        """Return the routes, read again if the file changed."""
        state = self._state()
        if state != self._seen:
            self._seen = state
            self._change()
        return self._routes

    def _change(self) -> None:
        try:
            self._routes = self._read().routes
        except Exception as error:  # whatever is wrong with it, it must be told of
            said = f"{self._path} cannot be read: {type(error).__name__}."
            self.trouble = (
                f"{error.sentence if isinstance(error, SettingsError) else said} The routes of "
                f"{self._since} are followed until the file is mended; `segnode routes check "
                f"--config {self._path}` says more."
            )
            log.error(self.trouble)
            return
        self._since = time.strftime("%Y-%m-%d %H:%M:%S")
        self.trouble = ""
        log.info("routes read", extra={"routes": len(self._routes)})

    def _read(self) -> Settings:
        settings = load_settings(self._path)
        for number, route in enumerate(settings.routes, 1):
            for clause in clauses(route.where) if route.where else ():
                words = () if clause.is_fact else clause.subject.split(".")
                unknown = [word for word in words if not self._knows(word)]
                if unknown:
                    raise SettingsError(
                        f"{self._path}: [[routes]] {number} where asks for '{unknown[0]}', which "
                        "DICOM does not know."
                    )
        return settings

    def _state(self) -> tuple[int, int, int]:
        try:
            stat = self._path.stat()
        except OSError:  # an editor may put the new file in the old one's place
            return 0, 0, 0
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
