"""Alerts in the ledger: each is told once by each channel, however many Orthancs look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from sqlalchemy import Connection, delete, select, update

from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.upsert import inserted
from segnode_contract.standing import News, Standing, Step, overdue, plan
from segnode_contract.troubles import Trouble


class AlertLedger:
    """What those who tell of alerts write, and pages read."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def held(self, quiet_s: float) -> dict[str, tuple[str, ...]]:
        """Return the alerts that hold by name, and the channels that could not tell of each."""
        with self._ledger.read() as connection:
            now = connection.execute(select(now_s())).scalar_one()
            rows = _rows(connection)
        found: dict[str, tuple[str, ...]] = {}
        for (name, channel), alert in rows.items():
            if alert.over_at is None:
                late = (channel,) if overdue(alert, now, quiet_s) else ()
                found[name] = found.get(name, ()) + late
        return found

    def keep(self, channels: Sequence[str]) -> None:
        """Forget what was to be told by channels that there are no more."""
        alert = schema.alert
        with self._ledger.read() as connection:
            gone = [_key(*key) for key in _rows(connection) if key[1] not in channels]
        if gone:
            with self._ledger.write() as connection:
                connection.execute(delete(alert).where(alert.c.name.in_(gone)))

    @contextmanager
    def telling(
        self, channel: str, found: Sequence[Trouble], now: float, quiet_s: float
    ) -> Iterator[list[News]]:
        """Note what is wrong, and give what `channel` is to tell inside the ``with``.

        Nobody else tells it; an exception inside gives it back. Who ends in the middle of it leaves
        it untold until the quiet time is over.
        """
        steps = self._take(channel, {each.name: each for each in found}, now, quiet_s)
        try:
            yield [step.news for step in steps if step.news]
        except BaseException:
            self._give_back(channel, steps, now)
            raise

    def _take(
        self, channel: str, troubles: Mapping[str, Trouble], now: float, quiet_s: float
    ) -> list[Step]:
        with self._ledger.read() as connection:
            if not plan(_of(connection, channel), troubles, now, quiet_s):
                return []
        with self._ledger.write() as connection:
            for name in sorted(troubles):
                _begin(connection, channel, troubles[name], now)
            steps = plan(_of(connection, channel, locked=True), troubles, now, quiet_s)
            for step in steps:
                _write(connection, channel, step)
        return steps

    def _give_back(self, channel: str, steps: Sequence[Step], now: float) -> None:
        alert = schema.alert
        with self._ledger.write() as connection:
            for step in steps:
                if step.news is None:
                    continue
                ours = (alert.c.name == _key(step.name, channel), alert.c.told_at == now)
                told_at = step.before.told_at if step.before else None
                connection.execute(update(alert).where(*ours).values(told_at=told_at))


def _key(name: str, channel: str) -> str:
    return f"{name}/{channel}"


def _rows(connection: Connection, *, locked: bool = False) -> dict[tuple[str, str], Standing]:
    """Return all alerts by name and channel."""
    query = select(schema.alert).order_by(schema.alert.c.name)
    rows = connection.execute(query.with_for_update() if locked else query)
    found = {}
    for row in rows:
        name, _, channel = row.name.partition("/")
        found[name, channel] = Standing(**{**row._asdict(), "name": name})
    return found


def _of(connection: Connection, channel: str, *, locked: bool = False) -> dict[str, Standing]:
    rows = _rows(connection, locked=locked)
    return {name: alert for (name, of), alert in rows.items() if of == channel}


def _begin(connection: Connection, channel: str, trouble: Trouble, now: float) -> None:
    """Make an alert's row where there is none: what is not there cannot be locked."""
    row = inserted(connection, schema.alert).values(
        name=_key(trouble.name, channel), sentence=trouble.sentence, raised_at=now
    )
    connection.execute(row.on_conflict_do_nothing())


def _write(connection: Connection, channel: str, step: Step) -> None:
    alert = schema.alert
    row = alert.c.name == _key(step.name, channel)
    if step.after is None:
        connection.execute(delete(alert).where(row))
        return
    values = asdict(step.after) | {"name": _key(step.name, channel)}
    connection.execute(update(alert).where(row).values(values))
