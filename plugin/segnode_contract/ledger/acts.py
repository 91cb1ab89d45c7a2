"""What people do to jobs; each act is recorded with who did it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Row, exists, or_, select, update

from segnode_contract.destination import DeliveryState
from segnode_contract.job import OPEN_STATES, RETRIED, JobState, Stage
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.events import record
from segnode_contract.ledger.intake import IntakeLedger
from segnode_contract.ledger.revisions import run_anew, withdraw


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
            record(connection, key, actor, str(JobState.QUEUED), "retried by hand", person=True)
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
            record(connection, key, actor, str(JobState.CANCELLED), "by hand", person=True)
            return True

    def withdraw(self, key: str, actor: str, reason: str) -> list[str]:
        """Say that a job's result is wrong; as `revisions.withdraw`."""
        with self._ledger.write() as connection:
            return withdraw(connection, key, actor, reason)

    def run_anew(self, key: str, actor: str) -> str | None:
        """Make a withdrawn result anew; as `revisions.run_anew`."""
        with self._ledger.write() as connection:
            return run_anew(connection, key, actor)

    def again(self, key: str, actor: str) -> str | None:
        """Try once more whatever of a job did not come to its end.

        One that ended without a result is queued again, a withdrawn one is made anew, and of one
        that is done the deliveries that failed are tried again.

        Returns
        -------
        str or None
            The key of the job that goes on, another one after a withdrawal; None where there is
            nothing to try again.
        """
        if self.retry(key, actor) or self.send_again(key, actor):
            return key
        return self.run_anew(key, actor)

    def replay(self, keys: Collection[str], actor: str) -> list[str]:
        """Have the series of jobs decided again, by the routes as they are now.

        Returns
        -------
        list of str
            Keys of those jobs of which a series is known to intake, in the archive that it reads.
        """
        intake = IntakeLedger(self._ledger)
        here = intake.newest_archive()
        rows = [row for row in self._series_of(keys) if row.archive_id == here]
        if here and rows:
            intake.reopen(here, {row.orthanc_id for row in rows}, actor)
        found = list(dict.fromkeys(row.key for row in rows))
        said = "its series are decided again"
        with self._ledger.write() as connection:
            for key in found:
                record(connection, key, actor, "replay", said, person=True)
        return found

    def _series_of(self, keys: Collection[str]) -> list[Row[*tuple[Any, ...]]]:
        """Return key, archive and Orthanc id of each series that intake knows of jobs."""
        job, series = schema.job, schema.series
        of_job = [job.c.key, job.c.series_uids, job.c.archive_id]
        of_series = [series.c.orthanc_id, series.c.series_uid, series.c.archive_id.label("lies_in")]
        query = (
            select(*of_job, *of_series)
            # not by archive too: SQLite would read all series of the archive for each job
            .join(series, series.c.study_uid == job.c.study_uid)
            .where(job.c.key.in_(keys))
            .order_by(job.c.key)
        )
        with self._ledger.read() as connection:
            rows = connection.execute(query).all()
        return [
            row
            for row in rows
            if row.archive_id == row.lies_in and row.series_uid in row.series_uids.split("\\")
        ]

    def note(self, kind: str, actor: str, detail: str = "", key: str | None = None) -> None:
        """Record what somebody did beside: a search, say; `detail` names no patient."""
        with self._ledger.write() as connection:
            record(connection, key, actor, kind, detail, person=True)

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
                said = f"to {name} again, by hand"
                record(connection, key, actor, "to send", said, person=True)
        return sorted(destinations)
