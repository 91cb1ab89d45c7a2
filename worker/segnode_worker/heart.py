"""The beat of a job at hand: its lease is kept, and a stage that takes too long ends it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from segnode_contract.errors import ArchiveUnavailable, SegnodeError, StageTimeLimit
from segnode_contract.job import Claim, Stage
from segnode_contract.ledger import WorkLedger
from segnode_contract.ledger.work import LeaseLost
from segnode_contract.settings import Limits

log = logging.getLogger(__name__)

_GRACE_S = 3.0
"""A job that is not ours any more ends by itself within this time, its model too."""
_WITH_ARCHIVE = (Stage.QUEUED, Stage.FETCH, Stage.STORE, Stage.CONFIRM)


@contextmanager
def beating(
    work: WorkLedger, claim: Claim, limits: Limits, failed: Callable[[SegnodeError], None]
) -> Iterator[None]:
    """Keep the lease of `claim` inside the ``with``.

    A stage past its limit cannot be broken off from outside, so that the job is given to `failed`
    and this process ended; its parent forks another. So it ends when the job is no longer its own.
    """
    over = threading.Event()

    def beat() -> None:
        beaten = time.monotonic()
        while not over.wait(min(1.0, limits.lease_s / 3)):
            try:
                late = _too_long(work, limits)
                if late is not None:
                    failed(late)
                    os._exit(1)
                if time.monotonic() - beaten >= limits.lease_s / 3:
                    work.heartbeat(claim)
                    beaten = time.monotonic()
                else:
                    work.check(claim)
            except LeaseLost as error:
                if not over.wait(_GRACE_S):
                    log.warning(error.sentence)
                    os._exit(1)
            except SegnodeError as error:
                log.warning(error.sentence)
            except Exception as error:  # no fault may end the beat before the job
                log.warning("no heartbeat", extra={"error": type(error).__name__})

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _too_long(work: WorkLedger, limits: Limits) -> SegnodeError | None:
    stage, since = work.at_hand
    if stage in (Stage.TURN, Stage.INFER) or time.monotonic() - since < limits.stage_s:
        return None
    said = (
        f"The stage {stage} took longer than the {limits.stage_s:g} s of stage_s in [limits] and "
    )
    if stage in _WITH_ARCHIVE:
        return ArchiveUnavailable(f"{said}was ended; see whether the archive is unusually slow.")
    return StageTimeLimit(f"{said}was ended; see whether the series is unusually large.")
