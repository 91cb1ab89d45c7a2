"""How a job gets into the queue: made, brought back, or put in an older one's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, select, update

from segnode_contract.errors import SeriesChanged
from segnode_contract.job import OPEN_STATES, RETRIED, JobState, NewJob, Priority
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.events import record
from segnode_contract.ledger.revisions import newest

_REPLACED = (JobState.DONE, *OPEN_STATES, *RETRIED)


def queue(connection: Connection, archive_id: str, job: NewJob) -> bool:
    """Make a job, or bring back one that is there; return whether anything is to do.

    Where results of it were withdrawn, its newest revision is meant.
    """
    table = schema.job
    base_key = job.key
    job = replace(
        job,
        key=newest(connection, job.key),
        builds_on=newest(connection, job.builds_on) if job.builds_on else "",
    )
    place = {
        "archive_id": archive_id,
        "study_uid": job.study_uid,
        "route": job.route,
        "route_rank": job.route_rank,
        "lane": job.lane,
        "priority": int(job.priority),
        "builds_on": job.builds_on,
        "model_version": job.model_version,
        "modality": job.modality,
        "first_instance_at": job.first_instance_at,
        "last_instance_at": job.last_instance_at,
        "updated_at": now_s(),
    }
    if job.builds_on:
        _hurry(connection, job.builds_on, job.priority)
    columns = [table.c[name] for name in (*place, "state", "error_code")]
    # the job that it builds on is locked before any other, as by who ends that one
    state = _first_state(connection, job)
    # locked: who withdraws it meanwhile must not be overruled
    mine = select(*columns).where(table.c.key == job.key).with_for_update()
    known = connection.execute(mine).first()
    if known is not None and not _comes_back(connection, job, known, place):
        _hurry(connection, job.key, job.priority)
        return False
    _supersede_others(connection, job, place)
    fresh = {
        "state": state,
        "not_before": now_s(),
        "tried_since": now_s(),
        "attempts": 0,
        "deliveries": 0,
        "lease_owner": None,
        "lease_until": None,
        "error_code": None,
        "error_sentence": None,
        "error_stage": None,
    }
    if known is None:
        made = {
            "base_key": base_key,
            "series_uids": _joined(job.series_uids),
            "roles": _joined(job.roles),
            "lease_epoch": 0,
            "created_at": now_s(),
        }
        values = {name: value for name, value in asdict(job).items() if name in table.c}
        connection.execute(table.insert().values(values | place | made | fresh))
    else:
        _end_run(connection, job.key)
        connection.execute(update(table).where(table.c.key == job.key).values(place | fresh))
    if state == JobState.QUEUED:
        _ring(connection, job.key, job.lane)
    waits = f", waits for job {job.builds_on}" if state == JobState.WAITING else ""
    record(connection, job.key, "intake", str(state), f"route {job.route}{waits}")
    return True


def _hurry(connection: Connection, key: str, priority: Priority) -> None:
    """Let a job that has not begun come as soon as the most urgent of those who want it.

    With it all that it builds on, from the first one on: they are locked in this order, as by who
    ends or supersedes one.
    """
    job = schema.job
    builds_on = connection.scalar(select(job.c.builds_on).where(job.c.key == key))
    if builds_on:
        _hurry(connection, builds_on, priority)
    waits = job.c.state.in_((JobState.QUEUED, JobState.WAITING))
    connection.execute(
        update(job)
        .where(job.c.key == key, waits, job.c.priority > int(priority))
        .values(priority=int(priority), updated_at=now_s())
    )


def release(connection: Connection, key: str) -> None:
    """Queue the jobs that waited for job `key`, which is done."""
    job = schema.job
    waiting = and_(job.c.builds_on == key, job.c.state == JobState.WAITING)
    for child, lane in connection.execute(select(job.c.key, job.c.lane).where(waiting)).all():
        released = connection.execute(
            update(job)
            # it may have been superseded since it was read
            .where(job.c.key == child, job.c.state == JobState.WAITING)
            .values(
                state=JobState.QUEUED, not_before=now_s(), tried_since=now_s(), updated_at=now_s()
            )
        )
        if released.rowcount:
            _ring(connection, child, lane)
            record(connection, child, "ledger", str(JobState.QUEUED), f"job {key} is done")


def _first_state(connection: Connection, job: NewJob) -> JobState:
    if not job.builds_on:
        return JobState.QUEUED
    table = schema.job
    # locked, so that it cannot be done unseen before this one waits for it
    first = connection.scalar(
        select(table.c.state).where(table.c.key == job.builds_on).with_for_update()
    )
    return JobState.QUEUED if first == JobState.DONE else JobState.WAITING


def _comes_back(
    connection: Connection, job: NewJob, known: Row[Any], place: Mapping[str, object]
) -> bool:
    """Return whether a job runs again now that its images were decided again.

    One that failed does so by an act only, unless its images were not whole then.
    """
    came = known.last_instance_at < job.last_instance_at
    elsewhere = known.study_uid != job.study_uid
    moved = elsewhere or known.archive_id != place["archive_id"]
    if known.state == JobState.RUNNING and not (came or moved):
        return False  # what runs may have fetched other pixels than those that came
    if known.state == JobState.WITHDRAWN:
        if came or moved:
            _supersede_others(connection, job, place)
        return False  # its study and UIDs stay as they are, so that no viewer opens them again
    if came or moved:
        _doubt(connection, job.key, known.state, elsewhere=elsewhere)
    match known.state:
        case JobState.SUPERSEDED | JobState.RUNNING:
            return True
        case JobState.DONE if (came or moved) and not job.shadow:
            return True
        case JobState.FAILED | JobState.DEAD if came and known.error_code == SeriesChanged.code:
            return True
    if came or moved:
        table = schema.job
        connection.execute(update(table).where(table.c.key == job.key).values(place))
        _supersede_others(connection, job, place)
        if known.state == JobState.QUEUED and known.lane != job.lane:
            _ring(connection, job.key, job.lane)
    return False


def _doubt(connection: Connection, key: str, state: str, *, elsewhere: bool) -> None:
    """Hold what is known of a job's result for uncertain.

    Images that came again may have been deleted before, and the result with them: the worker looks
    for a result that was stored. One that was not is made anew, since the patient's name may have
    been corrected, and so is one of another study.
    """
    result = schema.result
    ours = result.c.job_key == key
    if elsewhere or state not in (JobState.DONE, JobState.SUPERSEDED):
        connection.execute(result.delete().where(ours))
    else:
        connection.execute(update(result).where(ours).values(stored_at=None, confirmed_at=None))


def _ring(connection: Connection, key: str, lane: str) -> None:
    connection.execute(schema.outbox.insert().values(job_key=key, lane=lane, due_at=now_s()))


def _joined(values: tuple[str, ...]) -> str:
    return "\\".join(values)  # DICOM's own separator of values


def _supersede_others(connection: Connection, job: NewJob, place: Mapping[str, object]) -> None:
    table = schema.job
    same: ColumnElement[bool] = table.c.series_uids == _joined(job.series_uids)
    if job.alone:
        same |= and_(table.c.study_uid == job.study_uid, table.c.route == job.route)
    others = and_(
        table.c.key != job.key,
        same,
        table.c.model == job.model,
        table.c.shadow == job.shadow,
        table.c.archive_id == place["archive_id"],
        table.c.state.in_(_REPLACED),
    )
    for key in connection.scalars(select(table.c.key).where(others)).all():
        supersede(connection, key, f"by job {job.key}")


def supersede(connection: Connection, key: str, why: str) -> None:
    """Say that a job no longer counts, nor what was built on it; a worker at it notices."""
    job = schema.job
    superseded = connection.execute(
        update(job)
        # it may have been withdrawn since it was read
        .where(job.c.key == key, job.c.state.in_(_REPLACED))
        .values(state=JobState.SUPERSEDED, lease_owner=None, lease_until=None, updated_at=now_s())
    )
    if superseded.rowcount == 0:
        return
    _end_run(connection, key)
    record(connection, key, "intake", "superseded", why)
    builds_on_it = and_(job.c.builds_on == key, job.c.state.in_(_REPLACED))
    for child in connection.scalars(select(job.c.key).where(builds_on_it)).all():
        supersede(connection, child, f"with job {key}, on which it builds")


def _end_run(connection: Connection, key: str) -> None:
    run = schema.run
    connection.execute(
        update(run)
        .where(run.c.job_key == key, run.c.ended_at.is_(None))
        .values(ended_at=now_s(), outcome=str(JobState.SUPERSEDED))
    )
