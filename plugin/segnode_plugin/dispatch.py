"""Rings the lanes that have work, and queues again what silent workers held."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from segnode_contract.errors import BrokerUnavailable, LedgerUnavailable
from segnode_contract.ledger import LeaseLedger, OutboxLedger
from segnode_contract.ledger.outbox import Ring
from segnode_contract.ring import TASK, celery_settings

log = logging.getLogger(__name__)


_TIDY_S = 10.0


class Bell(Protocol):
    """Where rings are sent. `CeleryBell` in service."""

    def ring(self, lane: str) -> None: ...
    def waiting(self, lane: str) -> int: ...


class Dispatch:
    """The outbox's publisher and the reaper.

    Two of them side by side do no harm: a ring too many finds no job, and a lease is taken back
    under a row lock.
    """

    def __init__(
        self, outbox: OutboxLedger, leases: LeaseLedger, bell: Bell, lease_s: float
    ) -> None:
        self._outbox = outbox
        self._leases = leases
        self._bell = bell
        self._lease_s = lease_s
        self._tidied = self._reaps_from = time.monotonic()

    def tick(self) -> None:
        """Send what is due.

        Raises
        ------
        BrokerUnavailable
            If the broker does not take a ring; it stays due.
        """
        self._reap()
        lanes: dict[str, list[Ring]] = defaultdict(list)
        for ring in self._outbox.due():
            lanes[ring.lane].append(ring)
        for lane, rings in lanes.items():
            again = sum(ring.again for ring in rings)
            if again:  # what Redis still holds, while no worker comes, is not sent twice
                again = max(again - self._bell.waiting(lane), 0)
            for _ in range(sum(not ring.again for ring in rings) + again):
                self._bell.ring(lane)
            self._outbox.published(rings)
        if time.monotonic() - self._tidied > _TIDY_S:
            self._outbox.tidy()
            self._tidied = time.monotonic()

    def _reap(self) -> None:
        if time.monotonic() < self._reaps_from:
            return
        try:
            expired = self._leases.expired()
        except LedgerUnavailable:
            # no heartbeat came through either; workers get time for one
            self._reaps_from = time.monotonic() + self._lease_s / 3
            raise
        for key in self._leases.take_back(expired, "reaper", expired=True) if expired else ():
            log.warning("worker lost", extra={"job_key": key})


class CeleryBell:
    """Rings lanes through Celery."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("segnode", set_as_current=False)
        self._app.conf.update(celery_settings(broker_url))

    def ring(self, lane: str) -> None:
        """Send one ring.

        Raises
        ------
        BrokerUnavailable
            If Redis does not take it.
        """
        with _translated():
            self._app.send_task(TASK, args=[lane], queue=lane, retry=False)

    def waiting(self, lane: str) -> int:
        """Return how many rings of a lane no worker has taken yet; raises as `ring`."""
        with _translated(), self._app.pool.acquire(block=True) as connection:
            queue = connection.default_channel.queue_declare(lane)
            return int(queue.message_count)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OperationalError, RedisError, OSError) as error:
        raise BrokerUnavailable(
            "Redis does not take messages; jobs wait in the ledger until it does. Check that "
            "it runs and that SEGNODE_BROKER_URL has its address and password."
        ) from error
