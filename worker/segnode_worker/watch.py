"""What a worker's parent does beside Celery: frees dead children's jobs, and says how it is."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

from segnode_contract.errors import SegnodeError
from segnode_contract.ledger import LeaseLedger, WorkerLedger
from segnode_contract.settings import Limits
from segnode_worker.model_client import ModelProcess
from segnode_worker.model_service import ModelService
from segnode_worker.owner import host, lives, parent_of, process_of
from segnode_worker.spool import Spool

log = logging.getLogger(__name__)

_TICK_S = 1.0
_MODELS_S = 5.0
_HUNG_S = 300.0
"""A model process that answers nobody for this long is ended; loading may take minutes."""
_TIDY_S = 60.0


class Watch:
    """A thread of the parent."""

    def __init__(
        self,
        *,
        worker: WorkerLedger,
        leases: LeaseLedger,
        spool: Spool,
        service: ModelService,
        limits: Limits,
    ) -> None:
        self._worker = worker
        self._leases = leases
        self._spool = spool
        self._service = service
        self._models = ModelProcess(service.address, service.kill)
        self._limits = limits
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._spoke = self._tidied = float("-inf")
        self._answered = time.monotonic()
        self._state = ""
        self._trouble = ""

    def start(self) -> None:
        """Free what an earlier worker of this machine left, then watch."""
        self._tick()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and say that the worker is gone."""
        self._over.set()
        self._thread.join()
        try:
            self._worker.gone()
        except SegnodeError as error:
            log.warning(error.sentence)

    def give_up_later(self) -> None:
        """Hand the jobs at hand back when they do not end in time; the process ends then."""
        threading.Thread(target=self._give_up, daemon=True).start()

    def _run(self) -> None:
        while not self._over.wait(_TICK_S):
            try:
                self._tick()
                trouble = ""
            except SegnodeError as error:
                trouble = error.sentence
            if trouble != self._trouble:
                log.warning(trouble or "the ledger answers again")
                self._trouble = trouble

    def _tick(self) -> None:
        dead = [lease for lease in self._leases.held(host()) if not lives(lease.owner)]
        for key in self._leases.take_back(dead, self._worker.worker) if dead else ():
            log.warning("worker child lost", extra={"job_key": key})
        free_mb = self._spool.free_mb()
        room = free_mb >= self._limits.free_mb
        state = "ready" if room else "no-space"
        if state != self._state or time.monotonic() - self._spoke > self._limits.lease_s / 3:
            self._announce()
            said = f"{free_mb} MB are free for results, {self._limits.free_mb} MB are wanted"
            self._worker.seen(state, "" if room else said)
            self._state, self._spoke = state, time.monotonic()
        if time.monotonic() - self._tidied > _TIDY_S:
            self._spool.tidy(self._worker.needed())
            self._tidied = time.monotonic()

    def _announce(self) -> None:
        try:
            models = self._models.models(_MODELS_S)
        except SegnodeError as error:
            log.warning(error.sentence)
            if time.monotonic() - self._answered > _HUNG_S:
                self._service.restart()
                self._answered = time.monotonic()
            return
        self._answered = time.monotonic()
        for model in models:
            card = model.card
            self._worker.announce(card.name, card.version, model.digest, card.source)

    def _give_up(self) -> None:
        if self._over.wait(self._limits.stop_s):
            return
        held = self._leases.held(host())
        mine = [lease for lease in held if parent_of(lease.owner) == os.getpid()]
        for key in self._leases.hand_back(mine, self._worker.worker):
            log.warning("job handed back", extra={"job_key": key})
        for lease in mine:
            os.kill(process_of(lease.owner), signal.SIGKILL)
        self._worker.gone()
        self._service.stop()
        os._exit(0)
