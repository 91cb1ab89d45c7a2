"""What people do to jobs; each act is recorded with who did it."""

from __future__ import annotations

from sqlalchemy import exists, or_, select, update

from segnode_contract.destination import DeliveryState
from segnode_contract.job import OPEN_STATES, RETRIED, JobState, Stage
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.events import record


class ActLedger:
    """What commands write."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def retry(self, key: str, actor: str) -> bool:
        """Queue a job that ended without a result, as if it were new.

        Returns
        -------
        bool
            False where the job is in no such state.
        """
        job = schema.job
        with self._ledger.write() as connection:
            changed = connection.execute(
                update(job)
                .where(job.c.key == key, job.c.state.in_(RETRIED))
                .values(
                    state=JobState.QUEUED,
                    attempts=0,
                    deliveries=0,
                    tried_since=now_s(),
                    not_before=now_s(),
                    updated_at=now_s(),
                    error_code=None,
                    error_sentence=None,
                    error_stage=None,
                )
            )
            if changed.rowcount == 0:
                return False
            lane = select(job.c.lane).where(job.c.key == key).scalar_subquery()
            connection.execute(
                schema.outbox.insert().values(job_key=key, lane=lane, due_at=now_s())
            )
            record(connection, key, actor, str(JobState.QUEUED), "retried by hand")
            return True

    def cancel(self, key: str, actor: str) -> bool:
        """Take a job out of the queue, or from the worker that runs it, which notices in a second.

        Not one that ever began to store its result: what lies in the archive, or may, is withdrawn
        and not cancelled.

        Returns
        -------
        bool
            False where the job has ended, or began to store its result.
        """
        job, run, stage = schema.job, schema.run, schema.stage
        began_to_store = (
            select(stage.c.id)
            .join(run, run.c.id == stage.c.run_id)
            .where(run.c.job_key == key, stage.c.stage == Stage.STORE)
        )
        with self._ledger.write() as connection:
            changed = connection.execute(
                update(job)
                .where(
                    job.c.key == key,
                    job.c.state.in_(OPEN_STATES),
                    ~exists(began_to_store),
                    # in the row itself as well: PostgreSQL looks again at that alone when
                    # somebody else changed it meanwhile
                    or_(job.c.error_stage.is_(None), job.c.error_stage != Stage.STORE),
                )
                .values(
                    state=JobState.CANCELLED,
                    lease_owner=None,
                    lease_until=None,
                    updated_at=now_s(),
                )
            )
            if changed.rowcount == 0:
                return False
            connection.execute(
                update(run)
                .where(run.c.job_key == key, run.c.ended_at.is_(None))
                .values(ended_at=now_s(), outcome=str(JobState.CANCELLED))
            )
            record(connection, key, actor, str(JobState.CANCELLED), "by hand")
            return True

    def send_again(self, key: str, actor: str) -> list[str]:
        """Try the deliveries of a job that is done, and that failed or wait, at once.

        Not one that a living sender has in hand.

        Returns
        -------
        list of str
            Their destinations.
        """
        job, delivery = schema.job, schema.delivery
        done = exists().where(job.c.key == key, job.c.state == JobState.DONE)
        with self._ledger.write() as connection:
            destinations = connection.scalars(
                update(delivery)
                .where(
                    delivery.c.job_key == key,
                    delivery.c.state != DeliveryState.DONE,
                    or_(delivery.c.lease_until.is_(None), delivery.c.lease_until < now_s()),
                    done,
                )
                .values(
                    state=DeliveryState.WAITING,
                    attempts=0,
                    losses=0,
                    lease_owner=None,
                    lease_epoch=delivery.c.lease_epoch + 1,  # it may be slow and not dead
                    lease_until=None,
                    due_at=now_s(),
                    tried_since=now_s(),
                    updated_at=now_s(),
                )
                .returning(delivery.c.destination)
            ).all()
            for name in destinations:
                record(connection, key, actor, "to send", f"to {name} again, by hand")
        return sorted(destinations)
