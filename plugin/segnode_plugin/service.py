"""The threads in which intake and dispatch run, beside Orthanc's own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from segnode_contract.errors import SegnodeError

log = logging.getLogger(__name__)

_TICK_S = 0.5


class Service:
    """Calls every step each half second, each in its own thread: a slow one delays no other."""

    def __init__(self, steps: Sequence[Callable[[], None]]) -> None:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(step,), name="segnode", daemon=True)
            for step in steps
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads after the steps at hand."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10)

    def _run(self, step: Callable[[], None]) -> None:
        before = ""
        while not self._stop.is_set():
            trouble = _trouble_of(step)
            if trouble != before:
                log.warning(trouble or "working again")
            before = trouble
            self._stop.wait(_TICK_S)


def _trouble_of(step: Callable[[], None]) -> str:
    try:
        step()
    except SegnodeError as error:
        return f"{error.code}: {error.sentence}"
    except Exception as error:  # the loop must outlive any fault; the next tick tries again
        # its text may quote a DICOM file
        return f"internal: {type(error).__name__}"
    return ""
