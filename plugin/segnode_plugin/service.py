"""The thread in which intake and dispatch run, beside Orthanc's own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from segnode_contract.errors import SegnodeError

log = logging.getLogger(__name__)

_TICK_S = 0.5


class Service:
    """Calls every step each half second."""

    def __init__(self, steps: Sequence[Callable[[], None]]) -> None:
        self._steps = steps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="segnode", daemon=True)
        self._trouble: dict[int, str] = {}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step at hand."""
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.is_set():
            for number, step in enumerate(self._steps):
                self._call(number, step)
            self._stop.wait(_TICK_S)

    def _call(self, number: int, step: Callable[[], None]) -> None:
        try:
            step()
            trouble = ""
        except SegnodeError as error:
            trouble = f"{error.code}: {error.sentence}"
        except Exception as error:  # the loop must outlive any fault; the next tick tries again
            # its text may quote a DICOM file
            trouble = f"internal: {type(error).__name__}"
        if trouble != self._trouble.get(number, ""):
            log.warning(trouble or "working again")
            self._trouble[number] = trouble
