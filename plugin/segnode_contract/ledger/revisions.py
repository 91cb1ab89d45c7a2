"""A result that was wrong: withdrawn by somebody, and made anew under UIDs of its own."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, exists, select, update

from segnode_contract.identity import revised
from segnode_contract.job import OPEN_STATES, RETRIED, JobState
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.events import record

WITHDRAWABLE = (JobState.DONE, JobState.SUPERSEDED, *OPEN_STATES, *RETRIED)
"""States of a job whose result, or a part of it, may lie in the archive: one that failed at its
confirmation, say, or whose images came again."""
SHORTEST, LONGEST = 5, 500
"""Characters of a reason."""
_MAY_BE_DONE = (JobState.DONE, *OPEN_STATES, *RETRIED)


def reason_of(text: str) -> str:
    """Return a reason as it is kept, in one line; empty where it cannot be one."""
    words = " ".join(text.split())
    return words if SHORTEST <= len(words) <= LONGEST and words.isprintable() else ""


def newest(connection: Connection, base_key: str) -> str:
    """Return the key of the newest revision of a job; its own where there is no other."""
    job = schema.job
    found = connection.scalar(
        select(job.c.key).where(job.c.base_key == base_key).order_by(job.c.revision.desc()).limit(1)
    )
    return found or base_key


def withdraw(connection: Connection, key: str, actor: str, reason: str) -> list[str]:
    """Say that a result is wrong, and so are those that were built on it.

    Parameters
    ----------
    reason
        In the words of who withdraws it; names no patient.

    Returns
    -------
    list of str
        Keys of the jobs that are withdrawn now, none where the job has no result.
    """
    job, result = schema.job, schema.result
    has_result = exists().where(result.c.job_key == key)
    if not _end(connection, key, ~job.c.shadow, has_result):
        return []
    record(connection, key, actor, str(JobState.WITHDRAWN), reason, person=True)
    return [key, *_withdraw_built_on(connection, key, actor)]


def _withdraw_built_on(connection: Connection, key: str, actor: str) -> list[str]:
    job = schema.job
    found: list[str] = []
    for child in connection.scalars(select(job.c.key).where(job.c.builds_on == key)).all():
        if _end(connection, child):
            record(connection, child, actor, str(JobState.WITHDRAWN), _with(key), person=True)
            found += [child, *_withdraw_built_on(connection, child, actor)]
    return found


def _end(connection: Connection, key: str, *conditions: ColumnElement[bool]) -> bool:
    """Withdraw one job, also from a worker that is at it; return whether it could be."""
    job, run = schema.job, schema.run
    changed = connection.execute(
        update(job)
        .where(job.c.key == key, job.c.state.in_(WITHDRAWABLE), *conditions)
        .values(state=JobState.WITHDRAWN, lease_owner=None, lease_until=None, updated_at=now_s())
    )
    if changed.rowcount == 0:
        return False
    connection.execute(
        update(run)
        .where(run.c.job_key == key, run.c.ended_at.is_(None))
        .values(ended_at=now_s(), outcome=str(JobState.WITHDRAWN))
    )
    return True


def _with(key: str) -> str:
    return f"with job {key}, on which it builds"


def can_run_anew(ledger: Ledger, key: str) -> bool:
    """Return whether `run_anew` would make a job, as things stand."""
    job = schema.job
    with ledger.read() as connection:
        row = connection.execute(select(job).where(job.c.key == key)).first()
        if row is None:
            return False
        first = connection.execute(_first(connection, row.builds_on)).first()
        return _may_run_anew(connection, row, first)


def run_anew(connection: Connection, key: str, actor: str) -> str | None:
    """Queue the next revision of a withdrawn job, and of those that were withdrawn with it.

    Returns
    -------
    str or None
        Its key; None where the job is not withdrawn, is not the newest revision, or another job of
        the same series and model has taken its place.
    """
    job = schema.job
    builds_on = connection.scalar(select(job.c.builds_on).where(job.c.key == key))
    # locked, so that it cannot be done unseen before this one waits for it, and before this one, as
    # by who ends or withdraws it
    first = connection.execute(_first(connection, builds_on or "").with_for_update()).first()
    row = connection.execute(select(job).where(job.c.key == key).with_for_update()).first()
    if row is None or not _may_run_anew(connection, row, first):
        return None
    waits = first is not None and first.state != JobState.DONE
    return _next(connection, row, first.key if first else "", actor, waits=waits)


def _may_run_anew(connection: Connection, row: Row[Any], first: Row[Any] | None) -> bool:
    """Return whether a job can be made anew.

    Parameters
    ----------
    row
        Of the job table.
    first
        Key and state of the job that it builds on, None for none.
    """
    if row.state != JobState.WITHDRAWN or newest(connection, row.base_key) != row.key:
        return False
    if row.builds_on and (first is None or first.state not in _MAY_BE_DONE):
        return False
    return not _taken(connection, row)


def _first(connection: Connection, key: str) -> Select[Any]:
    """Return what asks for key and state of the newest revision of a job that another builds on."""
    job = schema.job
    first = newest(connection, _base_of(connection, key)) if key else ""
    return select(job.c.key, job.c.state).where(job.c.key == first)


def _base_of(connection: Connection, key: str) -> str:
    job = schema.job
    return connection.scalar(select(job.c.base_key).where(job.c.key == key)) or key


def _taken(connection: Connection, row: Row[Any]) -> bool:
    job = schema.job
    other = (
        select(job.c.key)
        .where(
            job.c.key != row.key,
            job.c.series_uids == row.series_uids,
            job.c.model == row.model,
            job.c.shadow == row.shadow,
            job.c.archive_id == row.archive_id,
            job.c.state.in_((JobState.DONE, *OPEN_STATES)),
        )
        .limit(1)
    )
    return connection.scalar(other) is not None


def _next(
    connection: Connection,
    row: Row[Any],
    builds_on: str,
    actor: str,
    *,
    waits: bool,
) -> str:
    job = schema.job
    number = row.revision + 1
    key = revised(row.base_key, number)
    state = JobState.WAITING if waits else JobState.QUEUED
    kept = {name: value for name, value in row._asdict().items() if name in job.c}
    fresh = {
        "key": key,
        "revision": number,
        "builds_on": builds_on,
        "state": state,
        "attempts": 0,
        "deliveries": 0,
        "lease_owner": None,
        "lease_epoch": 0,
        "lease_until": None,
        "error_code": None,
        "error_sentence": None,
        "error_stage": None,
        "progress": None,
        "input_digest": None,
        "findings": None,
        "not_before": now_s(),
        "tried_since": now_s(),
        "created_at": now_s(),
        "updated_at": now_s(),
    }
    connection.execute(job.insert().values(kept | fresh))
    if not waits:
        connection.execute(
            schema.outbox.insert().values(job_key=key, lane=row.lane, due_at=now_s())
        )
    said = f"revision {number} of job {row.base_key}"
    record(connection, key, actor, str(state), said, person=True)
    record(connection, row.key, actor, "run anew", f"as job {key}", person=True)
    # one that came after the withdrawal waits for a result that would never be
    connection.execute(
        update(job)
        .where(
            job.c.builds_on == row.key,
            job.c.state.in_((JobState.WAITING, JobState.SUPERSEDED, *RETRIED)),
        )
        .values(builds_on=key)
    )
    event = schema.event
    with_it = exists().where(
        event.c.job_key == job.c.key,
        event.c.kind == str(JobState.WITHDRAWN),
        event.c.detail == _with(row.key),
    )
    withdrawn = select(job).where(
        job.c.builds_on == row.key, job.c.state == JobState.WITHDRAWN, with_it
    )
    for child in connection.execute(withdrawn).all():
        if newest(connection, child.base_key) == child.key and not _taken(connection, child):
            _next(connection, child, key, actor, waits=True)
    return key
