"""Alerts in the ledger: each is told once by each channel, however many Orthancs look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update

from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.upsert import inserted
from segnode_contract.standing import News, Standing, Step, overdue, plan
from segnode_contract.troubles import Trouble

_IN_HAND_S = 300.0
"""Telling takes less, also where each step of a mail takes all the time that it may."""


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

        Nobody else tells it meanwhile; an exception inside gives it back. What somebody had in hand
        who ended in the middle of it is told again minutes later: twice, perhaps, but never not.
        """
        steps = self._take(channel, {each.name: each for each in found}, now, quiet_s)
        news = [step.news for step in steps if step.news]
        try:
            yield news
        except BaseException:  # whatever ends it, an interrupt too, nobody was told
            self._end(channel, news, now)
            raise
        self._end(channel, news, now, told_at=now)

    def _take(
        self, channel: str, troubles: Mapping[str, Trouble], now: float, quiet_s: float
    ) -> list[Step]:
        with self._ledger.read() as connection:
            standing, mine = _of(connection, channel, troubles, now)
            if not plan(standing, mine, now, quiet_s):
                return []
        with self._ledger.write() as connection:
            for name in sorted(troubles):
                _begin(connection, channel, troubles[name], now)
            standing, mine = _of(connection, channel, troubles, now, locked=True)
            steps = plan(standing, mine, now, quiet_s)
            for step in steps:
                _write(connection, channel, step, now)
        return steps

    def _end(self, channel: str, news: Sequence[News], claimed_at: float, **told: float) -> None:
        """Let go of what was in hand, told or not."""
        alert = schema.alert
        if not news:
            return
        with self._ledger.write() as connection:
            for each in news:
                ours = (alert.c.name == _key(each.name, channel), alert.c.claimed_at == claimed_at)
                connection.execute(update(alert).where(*ours).values(claimed_at=None, **told))


def _key(name: str, channel: str) -> str:
    return f"{name}/{channel}"


def _rows(connection: Connection) -> dict[tuple[str, str], Standing]:
    """Return all alerts by name and channel."""
    rows = connection.execute(select(schema.alert).order_by(schema.alert.c.name))
    return {_named(row.name): _standing(row) for row in rows}


def _of(
    connection: Connection,
    channel: str,
    troubles: Mapping[str, Trouble],
    now: float,
    *,
    locked: bool = False,
) -> tuple[dict[str, Standing], dict[str, Trouble]]:
    """Return the alerts of a channel and the troubles, less what somebody tells just now."""
    query = select(schema.alert).order_by(schema.alert.c.name)
    standing, mine = {}, dict(troubles)
    for row in connection.execute(query.with_for_update() if locked else query):
        name, of = _named(row.name)
        if of != channel:
            continue
        if row.claimed_at is not None and now - row.claimed_at < _IN_HAND_S:
            mine.pop(name, None)
        else:
            standing[name] = _standing(row)
    return standing, mine


def _named(key: str) -> tuple[str, str]:
    name, _, channel = key.partition("/")
    return name, channel


def _standing(row: Row[Any]) -> Standing:
    known = {field.name: getattr(row, field.name) for field in fields(Standing)}
    return Standing(**known | {"name": _named(row.name)[0]})


def _begin(connection: Connection, channel: str, trouble: Trouble, now: float) -> None:
    """Make an alert's row where there is none: what is not there cannot be locked."""
    row = inserted(connection, schema.alert).values(
        name=_key(trouble.name, channel), sentence=trouble.sentence, raised_at=now
    )
    connection.execute(row.on_conflict_do_nothing())


def _write(connection: Connection, channel: str, step: Step, now: float) -> None:
    alert = schema.alert
    row = alert.c.name == _key(step.name, channel)
    if step.after is None:
        connection.execute(delete(alert).where(row))
        return
    values = asdict(step.after) | {"name": _key(step.name, channel), "claimed_at": None}
    if step.news:
        told_at = step.before.told_at if step.before else None
        values |= {"told_at": told_at, "claimed_at": now}
    connection.execute(update(alert).where(row).values(values))
