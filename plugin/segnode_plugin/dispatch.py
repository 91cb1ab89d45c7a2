"""Rings the lanes that have work, and queues again what silent workers held."""

from __future__ import annotations

import logging
from collections.abc import Callable

from celery import Celery
from kombu.exceptions import OperationalError

from segnode_contract.errors import BrokerUnavailable
from segnode_contract.ledger import OutboxLedger
from segnode_contract.ring import TASK, celery_settings

log = logging.getLogger(__name__)


class Dispatch:
    """The outbox's publisher and the reaper.

    Two of them side by side do no harm: a ring too many finds no job, and a lease is taken back
    under a row lock.
    """

    def __init__(self, outbox: OutboxLedger, ring: Callable[[str], None], deliveries: int) -> None:
        self._outbox = outbox
        self._ring = ring
        self._deliveries = deliveries

    def tick(self) -> None:
        """Send what is due.

        Raises
        ------
        BrokerUnavailable
            If the broker does not take a ring; it stays due.
        """
        for key in self._outbox.reap(self._deliveries):
            log.warning("worker lost", extra={"job_key": key})
        for ring in self._outbox.due():
            self._ring(ring.lane)
            self._outbox.published(ring)
        self._outbox.tidy()


def celery_bell(broker_url: str) -> Callable[[str], None]:
    """Return a function that rings a lane through Celery."""
    app = Celery("segnode", set_as_current=False)
    app.conf.update(celery_settings(broker_url))

    def ring(lane: str) -> None:
        try:
            app.send_task(TASK, args=[lane], queue=lane, retry=False)
        except (OperationalError, OSError) as error:
            raise BrokerUnavailable(
                "Redis does not take messages; jobs wait in the ledger until it does. Check that "
                "it runs and that SEGNODE_BROKER_URL has its address and password."
            ) from error

    return ring
