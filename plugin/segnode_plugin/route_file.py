"""The routes of `segnode.toml`, which may change while Orthanc runs."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from segnode_contract.errors import SettingsError
from segnode_contract.form import AUTO
from segnode_contract.route import PriorityRule, Route
from segnode_contract.settings import Settings, load_settings
from segnode_plugin.route_check import Dictionary, about_keywords

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What decides: routes, and what gives their jobs a priority and their results a form."""

    routes: tuple[Route, ...]
    priorities: tuple[PriorityRule, ...] = ()
    form: str = AUTO


def rules_of(settings: Settings) -> Rules:
    """Return the rules in the settings."""
    return Rules(routes=settings.routes, priorities=settings.priorities, form=settings.results.form)


class RouteFile:
    """Routes as the file says them now; a broken file changes nothing and is told of.

    Parameters
    ----------
    path
        `segnode.toml`. What else stands in it counts from the next start on.
    dictionary
        What the conditions' keywords are looked up in.

    Raises
    ------
    SettingsError
        If the file is broken from the first.
    """

    def __init__(self, path: Path, dictionary: Dictionary) -> None:
        self.path = path
        self._dictionary = dictionary
        self._seen = self._state()
        self.settings = self._read()
        self._rules = rules_of(self.settings)
        self.since = time.time()
        """When they were read, in seconds since 1970."""
        self.trouble = ""
        """Why the file as it is now is not followed; empty when it is."""

    def __call__(self) -> Rules:
        """Return the rules, read again if the file changed."""
        state = self._state()
        if state != self._seen:
            self._seen = state
            self._change()
        return self._rules

    def _change(self) -> None:
        try:
            self._rules = rules_of(self._read())
        except Exception as error:  # whatever is wrong with it, it must be told of
            said = f"{self.path} cannot be read: {type(error).__name__}."
            since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            self.trouble = (
                f"{error.sentence if isinstance(error, SettingsError) else said} The routes of "
                f"{since} are followed until the file is mended; `segnode routes check "
                f"--config {self.path}` says more."
            )
            log.error(self.trouble)
            return
        self.since = time.time()
        self.trouble = ""
        log.info("routes read", extra={"routes": len(self._rules.routes)})

    def _read(self) -> Settings:
        settings = load_settings(self.path)
        for sentence in about_keywords(settings, self._dictionary):
            raise SettingsError(f"{self.path}: {sentence}")
        return settings

    def _state(self) -> tuple[int, int, int]:
        try:
            stat = self.path.stat()
        except OSError:  # an editor may put the new file in the old one's place
            return 0, 0, 0
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
