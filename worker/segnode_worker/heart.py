"""The beat of a job at hand: its lease is kept, and a stage that takes too long ends it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from segnode_contract.errors import SegnodeError, StageTimeLimit
from segnode_contract.job import Claim, Stage
from segnode_contract.ledger import WorkLedger
from segnode_contract.ledger.work import LeaseLost
from segnode_contract.settings import Limits

log = logging.getLogger(__name__)


@contextmanager
def beating(
    work: WorkLedger, claim: Claim, limits: Limits, failed: Callable[[SegnodeError], None]
) -> Iterator[None]:
    """Keep the lease of `claim` inside the ``with``.

    A stage past its limit cannot be broken off from outside, so that the job is given to `failed`
    and this process ended; its parent forks another.
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
            except LeaseLost:
                return
            except SegnodeError as error:
                log.warning(error.sentence)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _too_long(work: WorkLedger, limits: Limits) -> StageTimeLimit | None:
    stage, since = work.at_hand
    if stage is None or stage == Stage.INFER or time.monotonic() - since < limits.stage_s:
        return None
    return StageTimeLimit(
        f"The stage {stage} took longer than the {limits.stage_s:g} s of stage_s in [limits] and "
        "was ended; see whether the series is unusually large or the archive unusually slow."
    )
