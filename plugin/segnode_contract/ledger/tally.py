"""How long stages take and how runs end: counted as it happens, by day and model.

Times are counted in buckets that grow by 5 %, so that a percentile is right within 2.5 %.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from sqlalchemy import Connection, exists, func, select

from segnode_contract.job import Claim, JobState, Priority
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import day_of, now_s
from segnode_contract.ledger.upsert import inserted

LATENCY = "latency"
"""From the last image to the result confirmed, beside the stages by their names."""
OUTCOMES = (JobState.DONE, JobState.FAILED, JobState.DEAD)
"""How a run ends that is not tried again by itself; each is a measure without a time."""
EVER = 0
"""The day under which all days are counted together."""

_RATIO = math.log(1.05)
_LEAST_S = 0.001


def bucket_of(seconds: float) -> int:
    """Return the bucket that counts a time; the first holds all up to a millisecond."""
    return max(round(math.log(max(seconds, _LEAST_S) / _LEAST_S) / _RATIO), 0)


def seconds_of(bucket: int) -> float:
    """Return the time in the middle of a bucket."""
    return _LEAST_S * math.exp(bucket * _RATIO)


def percentile(counts: Mapping[int, int], percent: float) -> float | None:
    """Return the time that so many percent of those counted did not exceed, None without any.

    Parameters
    ----------
    counts
        By bucket.
    """
    rank, seen = percent / 100 * sum(counts.values()), 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if counts[bucket] and seen >= rank:
            return seconds_of(bucket)
    return None


def count_done(connection: Connection, claim: Claim) -> None:
    """Count a run that ended with its result confirmed: its stages, and the whole.

    As the last of a transaction: many ends count in the same rows, and wait for each other there.
    """
    stage = schema.stage
    took = select(stage.c.stage, func.sum(stage.c.seconds)).where(
        stage.c.run_id == claim.run_id, stage.c.seconds.is_not(None)
    )
    seconds = {row[0]: row[1] for row in connection.execute(took.group_by(stage.c.stage))}
    latency = _latency(connection, claim.key)
    if latency is not None:
        seconds[LATENCY] = latency
    counted = {(name, bucket_of(each)): 1 for name, each in seconds.items()}
    _count(connection, claim.model, {**counted, (str(JobState.DONE), 0): 1})


def count_lost(connection: Connection, keys: Collection[str]) -> None:
    """Count those of these jobs that just failed for good or died; as the last as well."""
    job = schema.job
    lost = select(job.c.model, job.c.state, func.count()).where(
        job.c.key.in_(keys), job.c.state.in_((JobState.FAILED, JobState.DEAD))
    )
    ends = lost.group_by(job.c.model, job.c.state).order_by(job.c.model, job.c.state)
    for model, state, count in connection.execute(ends).all():
        _count(connection, model, {(state, 0): count})


def _latency(connection: Connection, key: str) -> float | None:
    """Return how long a result took that came by itself, None for any other.

    When a replay or somebody's hand made the job, its images may have lain there for years; and of
    a shadow run nothing is confirmed.
    """
    job, result, event = schema.job, schema.result, schema.event
    confirmed = select(func.max(result.c.confirmed_at)).where(result.c.job_key == key)
    by_hand = exists().where(event.c.job_key == key, event.c.person)
    return connection.scalar(
        select(confirmed.scalar_subquery() - job.c.last_instance_at).where(
            job.c.key == key, job.c.priority != int(Priority.BACKGROUND), ~by_hand
        )
    )


def _count(connection: Connection, model: str, counted: Mapping[tuple[str, int], int]) -> None:
    day = connection.execute(select(day_of(now_s()))).scalar_one()
    table = schema.tally
    more = inserted(connection, table)
    statement = more.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={"count": table.c.count + more.excluded.count},
    )
    # in one order for all, so that no two wait for each other
    rows = sorted(
        (each, model, measure, bucket, count)
        for (measure, bucket), count in counted.items()
        for each in (EVER, day)
    )
    names = [column.name for column in table.columns]
    connection.execute(statement, [dict(zip(names, row, strict=True)) for row in rows])
