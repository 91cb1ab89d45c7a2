"""What a worker's parent does beside Celery: frees dead children's jobs, and says how it is."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from segnode_contract.errors import SegnodeError
from segnode_contract.ledger import LeaseLedger, WorkerLedger
from segnode_contract.settings import Limits
from segnode_worker.model_client import Known, ModelProcess, kernel_kills
from segnode_worker.model_service import ModelService
from segnode_worker.owner import host, lives, parent_of, process_of
from segnode_worker.spool import Spool

log = logging.getLogger(__name__)

_TICK_S = 1.0
_SPEAK_S = 2.0
"""What pages show of a worker is this old at most; speaking takes 2 ms, and one write."""
_ANNOUNCE_S = 20.0
_MODELS_S = 5.0
_HUNG_S = 300.0
"""A model process that answers nobody for this long is ended; loading may take minutes."""
_TIDY_S = 60.0
_END_S = 10.0
"""The last steps, after the jobs at hand, may take this long."""
_NO_MEMORY = (
    "The kernel ended a process for want of memory at that time: give the machine more of it, or "
    "the worker fewer children."
)


class Watch:
    """A thread of the parent.

    Parameters
    ----------
    children
        Gives the number of worker children.
    """

    def __init__(
        self,
        *,
        worker: WorkerLedger,
        leases: LeaseLedger,
        spool: Spool,
        service: ModelService,
        limits: Limits,
        children: Callable[[], int],
    ) -> None:
        self._worker = worker
        self._leases = leases
        self._spool = spool
        self._service = service
        self._models = ModelProcess(service)
        self._limits = limits
        self._children = children
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._spoke = self._announced = self._tidied = self._looked = float("-inf")
        self._digests: set[str] = set()
        self._answered = time.monotonic()
        self._room = True
        self._trouble = self._silence = ""
        self._killed = deque([kernel_kills()], maxlen=5)
        self._ghosts: set[tuple[str, int]] = set()

    def start(self) -> None:
        """Say that the worker is there, then watch."""
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
            except Exception as error:  # no fault may end the watch before the worker
                trouble = f"internal: {type(error).__name__}"
            if trouble != self._trouble:
                log.warning(trouble or "working again")
                self._trouble = trouble

    def _tick(self) -> None:
        self._free_dead()
        free_mb = self._spool.free_mb()
        room = free_mb >= self._limits.free_mb
        # each question to a process that is silent holds this thread up for seconds
        often_s = min(_ANNOUNCE_S if self._silence else _SPEAK_S, self._limits.lease_s / 3)
        if room != self._room or time.monotonic() - self._spoke > often_s:
            known = self._ask()
            self._announce(known)
            state, detail = "no-model", self._silence
            if known is not None:
                state, detail = "ready", " ".join(known.refused.values())
            if not room:
                state = "no-space"
                wanted = self._limits.free_mb
                detail = f"{free_mb} MB are free for results, {wanted} are needed; make room."
            self._worker.seen(state, detail, report_of(known, free_mb, self._children()))
            self._room, self._spoke = room, time.monotonic()
        if time.monotonic() - self._tidied > _TIDY_S:
            self._spool.tidy(self._worker.needed())
            self._tidied = time.monotonic()
        if time.monotonic() - self._looked > self._limits.lease_s:
            self._end_ghosts()
            self._looked = time.monotonic()

    def _free_dead(self) -> None:
        # the kernel counts before it kills, and a dead child may be seen some beats later
        self._killed.append(kernel_kills())
        why = _NO_MEMORY if self._killed[-1] > self._killed[0] else ""
        free_dead(self._leases, self._worker.worker, why)

    def _end_ghosts(self) -> None:
        """End children that still hold on to a job a lease after it was taken from them."""
        ghosts = {g for g in self._leases.ghosts(self._worker.worker) if lives(g[0])}
        for name, _ in ghosts & self._ghosts:
            log.warning("worker child hangs, and is ended", extra={"worker": name})
            with suppress(ProcessLookupError):
                os.kill(process_of(name), signal.SIGKILL)
        self._ghosts = ghosts

    def _ask(self) -> Known | None:
        """Return what the model process says, None where it says nothing."""
        try:
            known = self._models.models(_MODELS_S)
        except SegnodeError as error:
            if error.sentence != self._silence:
                log.warning(error.sentence)
            self._silence = error.sentence
            if time.monotonic() - self._answered > _HUNG_S:
                self._service.restart()
                self._answered = time.monotonic()
            return None
        self._silence, self._answered = "", time.monotonic()
        return known

    def _announce(self, known: Known | None) -> None:
        """Announce the models, others at once and the same again from time to time."""
        if known is None:
            return
        digests = {model.digest for model in known.models}
        if digests == self._digests and time.monotonic() - self._announced < _ANNOUNCE_S:
            return
        for model in known.models:
            card = model.card
            self._worker.announce(card.name, card.version, model.digest, card.source)
        self._digests, self._announced = digests, time.monotonic()

    def _give_up(self) -> None:
        if self._over.wait(self._limits.stop_s):
            time.sleep(_END_S)  # an end that hangs is made short, too
            os._exit(0)
        threading.Timer(_END_S, os._exit, (0,)).start()
        try:
            self._hand_back()
            self._worker.gone()
            self._service.stop()
        except Exception as error:  # whatever fails, the end has come: leases run out by themselves
            log.warning("jobs not handed back", extra={"error": type(error).__name__})
        finally:
            os._exit(0)

    def _hand_back(self) -> None:
        held = self._leases.held(host())
        mine = [lease for lease in held if parent_of(lease.owner) == os.getpid()]
        for lease in mine:
            with suppress(ProcessLookupError):
                os.kill(process_of(lease.owner), signal.SIGKILL)
        for key in self._leases.hand_back(mine, self._worker.worker):
            log.warning("job handed back", extra={"job_key": key})


def report_of(known: Known | None, free_mb: int, children: int) -> dict[str, Any]:
    """Return what pages show of a worker, as of `WorkerLedger.seen`.

    Parameters
    ----------
    known
        What its model process says, None where it says nothing.
    free_mb
        What its disk has for results.
    """
    report: dict[str, Any] = {"free_mb": free_mb, "children": children}
    if known is None:
        return report
    loaded = [asdict(one) | {"digest": one.digest[:12]} for one in known.loaded]
    return report | {
        "device": known.device,
        "memory_mb": known.budget_mb,
        "used_mb": sum(one.mb for one in known.loaded),
        "loaded": loaded,
    }


def free_dead(leases: LeaseLedger, worker: str, why: str = "") -> None:
    """Queue the jobs again whose worker child on this machine is no more, and say why if known."""
    dead = [lease for lease in leases.held(host()) if not lives(lease.owner)]
    for key in leases.take_back(dead, worker, why=why) if dead else ():
        log.warning("worker child lost", extra={"job_key": key})
