"""One delivery: from our archive to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from segnode_contract.destination import Destination
from segnode_contract.errors import ObjectMissing, PeerRefused
from segnode_contract.ledger.deliveries import Delivery, SentObject, Taken
from segnode_worker.archive import Archive
from segnode_worker.receivers import Receiver


@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    """From where, to where."""

    archive: Archive
    """Ours, which is the truth."""
    receiver: Receiver
    destination: Destination


def deliver(delivery: Delivery, road: Road, taken: Taken, go_on: Callable[[], None]) -> None:
    """Send a result, after its images where they are wanted.

    What one batch is refused does not keep the next from being sent.

    Parameters
    ----------
    taken
        Is kept up to date with what the destination took.
    go_on
        Is called after each object; what it raises ends the delivery.

    Raises
    ------
    SegnodeError
        If not everything was taken.
    """

    def took(size: int, note: str) -> None:
        taken.objects += 1
        taken.bytes += size
        taken.note = taken.note or note
        go_on()

    refused: PeerRefused | None = None
    for batch in _batches(delivery, road):
        go_on()
        try:
            road.receiver.send(delivery.study_uid, batch, took)
        except PeerRefused as error:
            refused = refused or error
    if refused is not None:
        raise refused


def _batches(delivery: Delivery, road: Road) -> list[list[bytes]]:
    """Return the images of each series, then the result: a viewer finds what it lies on."""
    result = [_fetched(delivery, one, road.archive) for one in delivery.objects]
    if not road.destination.images:
        return [result]
    series = [road.archive.fetch_series(delivery.study_uid, uid) for uid in delivery.series_uids]
    count = sum(map(len, series))
    if count < delivery.instance_count:
        raise ObjectMissing(
            f"The archive has {count} of the {delivery.instance_count} images that the result was "
            "made from; they were deleted, or are to come again."
        )
    return [batch for batch in [*series, result] if batch]


def _fetched(delivery: Delivery, one: SentObject, archive: Archive) -> bytes:
    data = archive.fetch_instance(delivery.study_uid, one.series_uid, one.instance_uid)
    if data is None:
        raise ObjectMissing(
            f"The archive does not have the {one.role} {one.instance_uid} (any more); "
            "`segnode verify` says what else is missing."
        )
    return data
