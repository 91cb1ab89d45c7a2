"""The sender's side: results that are to be sent on to other archives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    case,
    exists,
    false,
    or_,
    select,
    update,
)

from segnode_contract.destination import DeliveryState
from segnode_contract.errors import SegnodeError, TransientError
from segnode_contract.job import JobState
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.events import record
from segnode_contract.ledger.shared import shared_in
from segnode_contract.ledger.upsert import upsert
from segnode_contract.settings import Limits, Shared


class DeliveryLost(TransientError):
    """The delivery is no longer ours, or its job is not done any more."""

    code = "lease-lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class SentObject:
    """An object of a result, by its UIDs."""

    role: str
    series_uid: str
    instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A result in the hands of one sender, until its lease ends."""

    job_key: str
    destination: str
    epoch: int
    """Fencing token, as `Claim.epoch`."""
    study_uid: str
    series_uids: tuple[str, ...]
    instance_count: int
    objects: tuple[SentObject, ...]
    attempts: int = 0
    """How often this was tried, since the job was done or somebody had it sent again."""


@dataclass(slots=True, kw_only=True)
class Taken:
    """What a destination took of a delivery so far."""

    objects: int = 0
    bytes: int = 0
    note: str = ""
    """What it said of objects that it took, of the first one."""
    uids: set[str] = field(default_factory=set)
    """Which objects it took."""


def order(connection: Connection, key: str, model: str) -> None:
    """Have the result of a job sent to all destinations that get it.

    What was sent before is sent again: the job ran again because its images came again.
    """
    shared, table = shared_in(connection), schema.delivery
    for destination in shared.destinations if shared else ():
        if not destination.takes(model):
            continue
        fresh = {
            "state": DeliveryState.WAITING,
            "tried_since": now_s(),
            "due_at": now_s(),
            "attempts": 0,
            "losses": 0,
            "lease_owner": None,
            "lease_epoch": table.c.lease_epoch + 1,
            "lease_until": None,
            "error_code": None,
            "error_sentence": None,
            "updated_at": now_s(),
        }
        which = {"job_key": key, "destination": destination.name}
        upsert(connection, table, which, fresh, at_first={"lease_epoch": 0})


class DeliveryLedger:
    """What a sender reads and writes; every write is fenced by the delivery's epoch."""

    def __init__(self, ledger: Ledger, owner: str, limits: Limits) -> None:
        self._ledger = ledger
        self._owner = owner
        self._limits = limits

    def claim(self, destination: str) -> Delivery | None:
        """Take what is due longest for `destination`, if anything is.

        What others took and did not end within their lease is taken over; it fails when that
        happened as often as `Limits.deliveries` says.
        """
        with self._ledger.write() as connection:
            while (row := _next(connection, destination)) is not None:
                losses = row.losses + (row.lease_until is not None)
                if losses < self._limits.deliveries:
                    return self._take(connection, row, losses)
                sentence = (
                    f"The sender ended {losses} times in the middle of this; see its log and "
                    "whether it lacks memory, then `segnode retry`."
                )
                ended = _Ended(state=DeliveryState.FAILED, code="sender-lost", sentence=sentence)
                key = row.job_key
                _end(connection, _row(key, destination, row.lease_epoch), ended, losses=losses)
                record(connection, key, self._owner, "not sent", f"to {destination}: sender-lost")
        return None

    def heartbeat(self, delivery: Delivery) -> None:
        """Extend the lease.

        Raises
        ------
        DeliveryLost
            If the delivery is somebody else's, this try ended, or the job was superseded, say.
        """
        job, table = schema.job, schema.delivery
        done = exists().where(job.c.key == delivery.job_key, job.c.state == JobState.DONE)
        with self._ledger.write() as connection:
            changed = connection.execute(
                update(table)
                .where(_ours(delivery), table.c.lease_until.is_not(None), done)
                .values(lease_until=now_s() + self._limits.lease_s)
            )
        if changed.rowcount == 0:
            raise _lost(delivery)

    def done(self, delivery: Delivery, taken: Taken) -> None:
        """Close a delivery: the destination took every object.

        Raises
        ------
        RuntimeError
            If it took fewer: that is no success.
        """
        if taken.objects < max(1, len(delivery.objects)):
            raise RuntimeError(f"{taken.objects} of {len(delivery.objects)} objects were taken")
        said = f"to {delivery.destination}: {taken.objects} objects, {taken.bytes} bytes"
        with self._ledger.write() as connection:
            _end(connection, _ours(delivery), _Ended(state=DeliveryState.DONE), taken=taken)
            record(connection, delivery.job_key, self._owner, "sent", said)

    def failed(self, delivery: Delivery, error: SegnodeError, taken: Taken) -> None:
        """Close a try: later again if that may help, else for good."""
        table = schema.delivery
        with self._ledger.write() as connection:
            # waiting for a first try is no failure
            since = case((table.c.attempts == 0, now_s()), else_=table.c.tried_since)
            row = connection.execute(
                select(table.c.attempts, since.label("since"), now_s().label("now")).where(
                    _ours(delivery)
                )
            ).first()
            if row is None:
                raise _lost(delivery)
            hours = (row.now - row.since) / 3600
            lasting = isinstance(error, TransientError)
            again = lasting and hours <= self._limits.give_up_h
            waits = self._limits.back_off_s
            wait_s = waits[min(row.attempts, len(waits) - 1)] if again else 0.0
            gave_up = f" Given up after {hours:.1f} h; mend the cause, then `segnode retry`."
            ended = _Ended(
                state=DeliveryState.WAITING if again else DeliveryState.FAILED,
                code=error.code,
                sentence=error.sentence + (gave_up if lasting and not again else ""),
            )
            due = {"due_at": now_s() + wait_s, "tried_since": row.since}
            _end(connection, _ours(delivery), ended, taken=taken, **due)
            later = f"; next try in {wait_s:g} s" if again else ""
            said = f"to {delivery.destination}: {error.code}{later}"
            record(connection, delivery.job_key, self._owner, "not sent", said)

    def hand_back(self, delivery: Delivery) -> None:
        """Give up a delivery as the sender is asked to stop; this is no loss."""
        with self._ledger.write() as connection:
            connection.execute(
                update(schema.delivery)
                .where(_ours(delivery))
                .values(lease_owner=None, lease_until=None, updated_at=now_s())
            )

    def fail_unnamed(self) -> None:
        """Fail what waits for a destination that the node's settings do not name any more."""
        table = schema.delivery
        with self._ledger.read() as connection:
            nowhere = _nowhere(shared_in(connection))
            if connection.scalar(select(table.c.job_key).where(nowhere).limit(1)) is None:
                return
        sentence = (
            "There is no such destination in segnode.toml any more; name it there again, then "
            "`segnode retry`."
        )
        with self._ledger.write() as connection:
            # what waits for a destination is written after the settings that name it
            nowhere = _nowhere(shared_in(connection, kept=True))
            failed = connection.execute(
                update(table)
                .where(nowhere)
                .values(
                    state=DeliveryState.FAILED,
                    error_code="destination-unknown",
                    error_sentence=sentence,
                    updated_at=now_s(),
                )
                .returning(table.c.job_key, table.c.destination)
            ).all()
            for key, name in failed:
                record(connection, key, self._owner, "not sent", f"to {name}: destination-unknown")

    def _take(self, connection: Connection, row: Row[Any], losses: int) -> Delivery:
        table, result = schema.delivery, schema.result
        epoch = row.lease_epoch + 1
        connection.execute(
            update(table)
            .where(_row(row.job_key, row.destination, row.lease_epoch))
            .values(
                lease_owner=self._owner,
                lease_epoch=epoch,
                lease_until=now_s() + self._limits.lease_s,
                losses=losses,
                updated_at=now_s(),
            )
        )
        objects = connection.execute(
            select(result).where(result.c.job_key == row.job_key).order_by(result.c.role)
        ).all()
        return Delivery(
            job_key=row.job_key,
            destination=row.destination,
            epoch=epoch,
            study_uid=row.study_uid,
            series_uids=tuple(row.series_uids.split("\\")),
            instance_count=row.instance_count,
            attempts=row.attempts,
            objects=tuple(
                SentObject(role=o.role, series_uid=o.series_uid, instance_uid=o.instance_uid)
                for o in objects
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """How a try ended."""

    state: DeliveryState
    code: str | None = None
    sentence: str | None = None


def _nowhere(shared: Shared | None) -> ColumnElement[bool]:
    """Return what waits, in nobody's hands, for a destination that these settings do not name."""
    if shared is None:
        return false()
    table = schema.delivery
    return and_(
        table.c.state == DeliveryState.WAITING,
        table.c.destination.not_in([one.name for one in shared.destinations]),
        table.c.lease_until.is_(None),
    )


def _next(connection: Connection, destination: str) -> Row[Any] | None:
    table, job = schema.delivery, schema.job
    return connection.execute(
        select(table, job.c.study_uid, job.c.series_uids, job.c.instance_count)
        .join(job, job.c.key == table.c.job_key)
        .where(
            table.c.destination == destination,
            table.c.state == DeliveryState.WAITING,
            table.c.due_at <= now_s(),
            or_(table.c.lease_until.is_(None), table.c.lease_until < now_s()),
            job.c.state == JobState.DONE,
        )
        .order_by(table.c.due_at)
        .limit(1)
        .with_for_update(of=table, skip_locked=True)
    ).first()


def _end(
    connection: Connection,
    which: ColumnElement[bool],
    ended: _Ended,
    *,
    taken: Taken | None = None,
    **values: object,
) -> None:
    table = schema.delivery
    if taken is not None:
        tried = {"attempts": table.c.attempts + 1, "losses": 0}
        values |= tried | {"objects": taken.objects, "bytes": taken.bytes, "note": taken.note}
    changed = connection.execute(
        update(table)
        .where(which)
        .values(
            state=ended.state,
            error_code=ended.code,
            error_sentence=ended.sentence,
            lease_owner=None,
            lease_until=None,
            updated_at=now_s(),
            **values,
        )
    )
    if changed.rowcount == 0:
        raise DeliveryLost("The delivery is this sender's no more; what it did is not recorded.")


def _ours(delivery: Delivery) -> ColumnElement[bool]:
    return _row(delivery.job_key, delivery.destination, delivery.epoch)


def _row(key: str, destination: str, epoch: int) -> ColumnElement[bool]:
    table = schema.delivery
    return and_(
        table.c.job_key == key,
        table.c.destination == destination,
        table.c.lease_epoch == epoch,
        table.c.state == DeliveryState.WAITING,
    )


def _lost(delivery: Delivery) -> DeliveryLost:
    return DeliveryLost(
        f"The result of job {delivery.job_key[:12]} is not this sender's any more to send to "
        f"{delivery.destination}, or counts no more."
    )
