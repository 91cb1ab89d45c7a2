"""The sender: `python -m segnode_worker.sender` sends results on to the node's destinations.

Several may run, here and elsewhere: each delivery is leased from the ledger, and one whose sender
ended is sent again, which does no harm.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from segnode_contract.destination import Destination
from segnode_contract.errors import (
    LedgerSchemaError,
    LedgerUnavailable,
    MemoryExhausted,
    PeerUnavailable,
    PermanentError,
    SegnodeError,
    SettingsError,
    TransientError,
)
from segnode_contract.events import log_events
from segnode_contract.ledger import DeliveryLedger, Ledger, read_shared
from segnode_contract.ledger.deliveries import Delivery, DeliveryLost, Taken
from segnode_contract.settings import Connections, Limits, Shared, load_connections
from segnode_worker.archive import DicomWebArchive
from segnode_worker.delivery import Road, deliver
from segnode_worker.owner import worker_name
from segnode_worker.receivers import LateReceiver, Receiver, receiver_of

log = logging.getLogger("segnode_worker.sender")  # as a program its __name__ is another

_LOOK_S = 1.0
_ASK_AGAIN_S = 2.0
_SETTINGS_S = 10.0
_LONGEST_PAUSE_S = 60.0
"""A destination that is away is tried this often, by one delivery or another."""
_END_S = 50.0
"""The objects at hand have this long to be sent, when the sender is asked to stop."""
_REMEMBERED = 64
"""Of so many interrupted deliveries to a destination it is known which objects it took."""


class Stopped(Exception):
    """The sender was asked to stop."""


class Courier:
    """Sends to one destination, in a thread of its own: one that is away delays no other."""

    def __init__(
        self, road: Road, deliveries: DeliveryLedger, limits: Limits, stop: threading.Event
    ) -> None:
        self._road = road
        self._deliveries = deliveries
        self._limits = limits
        self._stop = stop
        self._failures = 0
        self._interrupted: dict[str, Taken] = {}
        name = road.destination.name
        self._name = name
        self.thread = threading.Thread(target=self._run, name=f"to {name}", daemon=True)

    def _run(self) -> None:
        trouble = ""
        while not self._stop.is_set():
            try:
                pause_s, now = self._step(), ""
            except SegnodeError as error:
                pause_s, now = _ASK_AGAIN_S, error.sentence
            except Exception as error:  # no fault may end the thread before the process
                pause_s, now = _ASK_AGAIN_S, f"internal: {type(error).__name__}"
            if now != trouble:
                log.warning(now or "working again", extra={"destination": self._name})
            trouble = now
            self._stop.wait(pause_s)

    def _step(self) -> float:
        """Send what is due longest, if anything is; return how long to wait then."""
        delivery = self._deliveries.claim(self._name)
        if delivery is None:
            return _LOOK_S
        with _beating(self._deliveries, delivery, self._limits) as lost:
            away = self._send(delivery, lost)
        self._failures = self._failures + 1 if away else 0
        if not away:
            return 0.0
        waits = self._limits.back_off_s
        return min(waits[min(self._failures, len(waits)) - 1], _LONGEST_PAUSE_S)

    def _send(self, delivery: Delivery, lost: threading.Event) -> bool:
        """Send one result, tell the ledger, and return whether the destination is away."""
        taken = self._taken_before(delivery)
        event = {"job_key": delivery.job_key, "destination": self._name}

        def go_on() -> None:
            if lost.is_set():
                raise DeliveryLost("The delivery is another sender's, or its job counts no more.")
            if self._stop.is_set():
                raise Stopped

        try:
            deliver(delivery, self._road, taken, go_on)
            self._tell(lambda: self._deliveries.done(delivery, taken))
            log.info("result sent", extra={**event, "objects": taken.objects})
            return False
        except (DeliveryLost, Stopped) as error:
            log.warning("delivery left", extra={**event, "reason": type(error).__name__})
            self._deliveries.hand_back(delivery)
            return False
        except SegnodeError as error:
            said = error
        except MemoryError:
            said = MemoryExhausted("There was not enough memory to send this; give it more.")
        except Exception as error:  # a fault of ours must not keep the others waiting
            said = _internal(error)
        log.warning("result not sent", extra={**event, "code": said.code})
        self._tell(lambda: self._deliveries.failed(delivery, said, taken))
        if isinstance(said, TransientError) and taken.uids:
            self._interrupted[delivery.job_key] = taken
        return isinstance(said, PeerUnavailable)

    def _taken_before(self, delivery: Delivery) -> Taken:
        """Return what was taken before the last try was interrupted: on a weak line each gets on.

        A first try begins anew, also after `segnode retry`.
        """
        while len(self._interrupted) > _REMEMBERED:
            del self._interrupted[next(iter(self._interrupted))]  # the oldest
        before = self._interrupted.pop(delivery.job_key, None)
        return before if before and delivery.attempts else Taken()

    def _tell(self, what: Callable[[], None]) -> None:
        """Tell the ledger how it ended, as soon as it listens; unsaid, all is sent once more."""
        while True:
            try:
                return what()
            except LedgerUnavailable:
                if self._stop.wait(_ASK_AGAIN_S):
                    raise


@contextmanager
def _beating(
    deliveries: DeliveryLedger, delivery: Delivery, limits: Limits
) -> Iterator[threading.Event]:
    """Keep the lease inside the ``with``; the event says that it is lost."""
    over, lost = threading.Event(), threading.Event()

    def beat() -> None:
        while not over.wait(min(5.0, limits.lease_s / 3)):
            try:
                deliveries.heartbeat(delivery)
            except DeliveryLost:
                lost.set()
                return
            except Exception as error:  # no fault may end the beat before the delivery
                log.warning("no heartbeat", extra={"error": type(error).__name__})

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        over.set()
        thread.join()


def _internal(error: Exception) -> SegnodeError:
    # the text of the exception may quote a DICOM file, so it goes nowhere
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
    return PermanentError(
        f"segnode itself failed: {where}. Please report this with the version.", code="internal"
    )


def run(connections: Connections, stop: threading.Event) -> None:
    """Send until `stop`, or until the node has other settings: who supervises starts it anew."""
    ledger, shared = _ledger(connections.ledger_url, stop)
    if ledger is None or shared is None:
        return
    owner = f"{worker_name(os.getpid())}/sender"
    deliveries = DeliveryLedger(ledger, owner, shared.limits)
    archive = DicomWebArchive(
        connections.archive_url,
        connections.archive_user,
        connections.archive_password,
        certificate=connections.archive_certificate,
    )
    couriers = []
    for one in shared.destinations:
        receiver = _receiver(one, shared.dicom.aet)
        road = Road(archive=archive, receiver=receiver, destination=one)
        couriers.append(Courier(road, deliveries, shared.limits, stop))
    for courier in couriers:
        courier.thread.start()
    log.info("sender started", extra={"destinations": len(couriers)})
    while not stop.wait(_SETTINGS_S):
        try:
            deliveries.fail_unnamed()
            if read_shared(ledger) != shared:
                log.info("the node's settings changed; the sender starts anew")
                stop.set()
        except LedgerUnavailable as error:
            log.warning(error.sentence)
    end = time.monotonic() + _END_S
    for courier in couriers:
        courier.thread.join(max(0.0, end - time.monotonic()))
    ledger.close()


def _receiver(destination: Destination, calling: str) -> Receiver:
    """Return what sends to a destination; what waits for one with wrong settings says so."""
    try:
        return receiver_of(destination, calling, os.environ)
    except SettingsError as error:
        log.error(error.sentence, extra={"destination": destination.name})
        return LateReceiver(destination, calling, os.environ)


def _ledger(url: str, stop: threading.Event) -> tuple[Ledger | None, Shared | None]:
    """Open the ledger as soon as its server is up and the plugin has prepared it."""
    told = False
    while not stop.is_set():
        try:
            ledger = Ledger.open(url)
            return ledger, read_shared(ledger)
        except (LedgerUnavailable, LedgerSchemaError) as error:
            if not told:
                log.warning(error.sentence)
            told = True
            stop.wait(_ASK_AGAIN_S)
    return None, None


def main() -> int:
    """Run the sender until SIGTERM."""
    log_events()
    # what it says of objects may quote them, and our own sentences say it better
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        run(load_connections(os.environ), stop)
    except SegnodeError as error:
        log.error(error.sentence)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
