"""What the page of one job asks beside the job itself."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, select

from segnode_contract.job import JobState
from segnode_contract.ledger import schema
from segnode_contract.ledger.engine import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLink:
    """A job as another one's page names it."""

    key: str
    state: str
    model: str
    model_version: str
    revision: int


def built_on(ledger: Ledger, key: str) -> list[JobLink]:
    """Return the jobs that build on a job's result, and those that build on theirs."""
    with ledger.read() as connection:
        return _built_on(connection, key)


def _built_on(connection: Connection, key: str) -> list[JobLink]:
    job = schema.job
    rows = connection.execute(
        select(job.c.key, job.c.state, job.c.model, job.c.model_version, job.c.revision)
        .where(job.c.builds_on == key)
        .order_by(job.c.created_at, job.c.key)
    ).all()
    found: list[JobLink] = []
    for row in rows:
        found += [JobLink(**row._asdict()), *_built_on(connection, row.key)]
    return found


def withdrawn_before(ledger: Ledger, key: str) -> list[JobLink]:
    """Return withdrawn jobs of the same model on the same images that are no revisions of this one.

    With other settings, or another version of the writer, a job has a key of its own, and its
    result may have the same fault.
    """
    job, same = schema.job, schema.job.alias()
    query = (
        select(job.c.key, job.c.state, job.c.model, job.c.model_version, job.c.revision)
        .join(same, and_(same.c.series_uids == job.c.series_uids, same.c.model == job.c.model))
        .where(
            same.c.key == key,
            job.c.base_key != same.c.base_key,
            job.c.content == same.c.content,
            job.c.state == JobState.WITHDRAWN,
        )
        .order_by(job.c.created_at, job.c.key)
    )
    with ledger.read() as connection:
        return [JobLink(**row._asdict()) for row in connection.execute(query)]


def changed(ledger: Ledger, key: str) -> tuple[float | None, int | None, float | None]:
    """Return three numbers, of which one differs once anything is new about a job.

    When it was changed, its newest event, and when a delivery of it was changed; None for none.
    """
    job, event, delivery = schema.job, schema.event, schema.delivery
    with ledger.read() as connection:
        row = connection.execute(
            select(
                select(job.c.updated_at).where(job.c.key == key).scalar_subquery(),
                select(func.max(event.c.seq)).where(event.c.job_key == key).scalar_subquery(),
                select(func.max(delivery.c.updated_at))
                .where(delivery.c.job_key == key)
                .scalar_subquery(),
            )
        ).one()
    return row[0], row[1], row[2]
