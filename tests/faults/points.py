"""Points at which a fault strikes inside a process: a file in a folder names one, and is used up.

A test *arms* a point; the first process that passes it takes the file away and does what it says.
Standard library only: the worker, the model process and Orthanc's Python import it.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

FOLDER = "SEGNODE_FAULTS"
"""Names the variable that holds the folder."""

_HELD_S = 120.0


class Points:
    """The points whose files lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of_environment(cls) -> Points:
        """Return those that the environment names."""
        return cls(Path(os.environ[FOLDER]))

    def arm(self, point: str, action: str) -> None:
        """Have the next process that passes `point` suffer `action`.

        Parameters
        ----------
        action
            ``kill``, ``stop``, ``hold`` (until `release`), ``sleep 3``, ``enospc``, ``memory`` or
            ``raise``.
        """
        for ending in (".hit", ".free"):
            (self._folder / f"{point}{ending}").unlink(missing_ok=True)
        new = self._folder / f"{point}.new"
        new.write_text(action)
        new.rename(self._folder / f"{point}.armed")

    def release(self, point: str) -> None:
        """Let a process go that is held at `point`."""
        (self._folder / f"{point}.free").touch()

    def hit(self, point: str) -> int | None:
        """Return the id of the process that was struck at `point`, None as long as none was."""
        try:
            return int((self._folder / f"{point}.hit").read_text())
        except FileNotFoundError:
            return None

    def clear(self) -> None:
        """Disarm every point, and let go who is held."""
        for armed in self._folder.glob("*.armed"):
            armed.unlink(missing_ok=True)
        for hit in self._folder.glob("*.hit"):
            self.release(hit.name.removesuffix(".hit"))

    def pass_by(self, point: str) -> None:
        """Suffer what `point` is armed with, once; nothing where it is not armed."""
        armed, taken = self._folder / f"{point}.armed", self._folder / f"{point}.{os.getpid()}"
        try:
            armed.rename(taken)
        except FileNotFoundError:
            return
        action, _, number = taken.read_text().partition(" ")
        taken.write_text(str(os.getpid()))
        taken.rename(self._folder / f"{point}.hit")
        self._suffer(point, action, number)

    def around(self, owner: Any, name: str, point: str) -> None:
        """Make ``owner.name`` pass the points ``point.before`` and ``point.after``."""
        real: Callable[..., Any] = getattr(owner, name)

        @wraps(real)
        def faulty(*args: Any, **kwargs: Any) -> Any:
            self.pass_by(f"{point}.before")
            made = real(*args, **kwargs)
            self.pass_by(f"{point}.after")
            return made

        setattr(owner, name, faulty)

    def _suffer(self, point: str, action: str, number: str) -> None:
        match action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(_HELD_S)  # the signal may take a moment, in which nothing must happen
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "sleep":
                time.sleep(float(number))
            case "hold":
                self._hold(point)
            case "enospc":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case "memory":
                raise MemoryError
            case "raise":
                raise RuntimeError(f"a fault at {point}")
            case _:
                raise ValueError(action)

    def _hold(self, point: str) -> None:
        free = self._folder / f"{point}.free"
        deadline = time.monotonic() + _HELD_S
        while not free.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
