"""One delivery: from our archive to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from segnode_contract.destination import Destination
from segnode_contract.errors import ObjectMissing, PeerRefused
from segnode_contract.ledger.deliveries import Delivery, SentObject, Taken
from segnode_worker.receivers import Receiver

_BATCH_BYTES = 32 << 20
"""So much, and the object that goes beyond, is fetched and sent at once."""


class Source(Protocol):
    """Our archive, read an object at a time."""

    def instance_uids(self, study_uid: str, series_uid: str) -> list[str]:
        """Return the SOP Instance UIDs of a series, none where the archive lacks it."""

    def fetch_instance(self, study_uid: str, series_uid: str, instance_uid: str) -> bytes | None:
        """Return one instance as a Part 10 file, None where the archive lacks it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    """From where, to where."""

    archive: Source
    """Ours, which is the truth."""
    receiver: Receiver
    destination: Destination


def deliver(delivery: Delivery, road: Road, taken: Taken, go_on: Callable[[], None]) -> None:
    """Send a result, after its images where they are wanted.

    What one batch is refused does not keep the next from being sent.

    Parameters
    ----------
    taken
        Is kept up to date with what the destination took; what it took before is not sent.
    go_on
        Is called before and after each object; what it raises ends the delivery.

    Raises
    ------
    SegnodeError
        If not everything was taken.
    """

    def took(uid: str, size: int, note: str) -> None:
        taken.uids.add(uid)
        taken.objects += 1
        taken.bytes += size
        taken.note = taken.note or note
        go_on()

    refused: PeerRefused | None = None
    groups = _groups(delivery, road)
    for batch in _batches(delivery, groups, road.archive, taken, go_on):
        try:
            road.receiver.send(delivery.study_uid, batch, took)
        except PeerRefused as error:
            refused = refused or error
    if refused is not None:
        uids = [one.instance_uid for group in groups for one in group]
        left = sum(uid not in taken.uids for uid in uids)
        many = f" {left} of {len(uids)} were refused." if len(uids) > 1 else ""
        raise PeerRefused(refused.sentence + many, code=refused.code)


def _groups(delivery: Delivery, road: Road) -> list[list[SentObject]]:
    """Return the images of each series, then the result: a viewer finds what it lies on."""
    study_uid, archive = delivery.study_uid, road.archive
    for one in delivery.objects:
        if one.instance_uid not in archive.instance_uids(study_uid, one.series_uid):
            raise _missing(one)
    if not road.destination.images:
        return [list(delivery.objects)]
    series = {uid: archive.instance_uids(study_uid, uid) for uid in delivery.series_uids}
    count = sum(map(len, series.values()))
    if count < delivery.instance_count:
        raise ObjectMissing(
            f"The archive has {count} of the {delivery.instance_count} images that the result was "
            "made from; they were deleted, or are to come again."
        )
    images = [
        [SentObject(role="image", series_uid=series_uid, instance_uid=uid) for uid in uids]
        for series_uid, uids in series.items()
    ]
    return [*images, list(delivery.objects)]


def _batches(
    delivery: Delivery,
    groups: Sequence[Sequence[SentObject]],
    archive: Source,
    taken: Taken,
    go_on: Callable[[], None],
) -> Iterator[dict[str, bytes]]:
    """Yield what was not taken yet, by UIDs, each batch fetched as the one before was sent."""
    for group in groups:
        batch: dict[str, bytes] = {}
        size = 0
        for one in group:
            if one.instance_uid in taken.uids:
                continue
            go_on()
            data = batch[one.instance_uid] = _fetched(delivery, one, archive)
            size += len(data)
            if size >= _BATCH_BYTES:
                yield batch
                batch, size = {}, 0
        if batch:
            yield batch


def _fetched(delivery: Delivery, one: SentObject, archive: Source) -> bytes:
    data = archive.fetch_instance(delivery.study_uid, one.series_uid, one.instance_uid)
    if data is None:
        raise _missing(one)
    return data


def _missing(one: SentObject) -> ObjectMissing:
    return ObjectMissing(
        f"The archive does not have the {one.role} {one.instance_uid} (any more); "
        "`segnode verify` says what else is missing."
    )
