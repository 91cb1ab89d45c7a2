"""A result that was wrong: withdrawn by somebody, and made anew under UIDs of its own."""

from __future__ import annotations

from sqlalchemy import Connection, Row, exists, select, update

from segnode_contract.identity import revised
from segnode_contract.job import OPEN_STATES, RETRIED, JobState
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.events import record

WITHDRAWABLE = (JobState.DONE, JobState.SUPERSEDED)
"""States of a job whose result may lie in the archive."""
SHORTEST, LONGEST = 5, 500
"""Characters of a reason."""
_WITH_IT = (*WITHDRAWABLE, *OPEN_STATES, *RETRIED)
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
    changed = connection.execute(
        update(job)
        .where(job.c.key == key, job.c.state.in_(WITHDRAWABLE), ~job.c.shadow, has_result)
        .values(state=JobState.WITHDRAWN, updated_at=now_s())
    )
    if changed.rowcount == 0:
        return []
    record(connection, key, actor, str(JobState.WITHDRAWN), reason, person=True)
    return [key, *_withdraw_built_on(connection, key, actor)]


def _withdraw_built_on(connection: Connection, key: str, actor: str) -> list[str]:
    job, run = schema.job, schema.run
    found: list[str] = []
    built_on = select(job.c.key).where(job.c.builds_on == key, job.c.state.in_(_WITH_IT))
    for child in connection.scalars(built_on).all():
        connection.execute(
            update(job)
            .where(job.c.key == child)
            .values(
                state=JobState.WITHDRAWN, lease_owner=None, lease_until=None, updated_at=now_s()
            )
        )
        connection.execute(
            update(run)
            .where(run.c.job_key == child, run.c.ended_at.is_(None))
            .values(ended_at=now_s(), outcome=str(JobState.WITHDRAWN))
        )
        why = f"with job {key}, on which it builds"
        record(connection, child, actor, str(JobState.WITHDRAWN), why, person=True)
        found += [child, *_withdraw_built_on(connection, child, actor)]
    return found


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
    first = _first(connection, builds_on) if builds_on else None
    row = connection.execute(select(job).where(job.c.key == key).with_for_update()).first()
    if row is None or row.state != JobState.WITHDRAWN or newest(connection, row.base_key) != key:
        return None
    if builds_on and (first is None or first.state not in _MAY_BE_DONE):
        return None
    if _taken(connection, row):
        return None
    waits = first is not None and first.state != JobState.DONE
    return _next(connection, row, first.key if first else "", actor, waits=waits)


def _first(connection: Connection, key: str) -> Row | None:  # type: ignore[type-arg] # key, state
    """Return the newest revision of the job that another builds on.

    Locked, so that it cannot be done unseen before the other waits for it, and before the other, as
    by who ends or withdraws it.
    """
    job = schema.job
    first = newest(connection, _base_of(connection, key))
    return connection.execute(
        select(job.c.key, job.c.state).where(job.c.key == first).with_for_update()
    ).first()


def _base_of(connection: Connection, key: str) -> str:
    job = schema.job
    return connection.scalar(select(job.c.base_key).where(job.c.key == key)) or key


def _taken(connection: Connection, row: Row) -> bool:  # type: ignore[type-arg] # of the job table
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
    row: Row,  # type: ignore[type-arg] # of the job table
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
        .where(job.c.builds_on == row.key, job.c.state == JobState.WAITING)
        .values(builds_on=key, updated_at=now_s())
    )
    withdrawn = select(job).where(job.c.builds_on == row.key, job.c.state == JobState.WITHDRAWN)
    for child in connection.execute(withdrawn).all():
        if newest(connection, child.base_key) == child.key and not _taken(connection, child):
            _next(connection, child, key, actor, waits=True)
    return key
