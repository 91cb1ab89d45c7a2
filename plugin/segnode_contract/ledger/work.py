"""The worker's side: claim a job, keep its lease, say what became of it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, select, update

from segnode_contract.errors import ModelProcessDied, SegnodeError, TransientError
from segnode_contract.findings import Findings
from segnode_contract.job import Claim, JobState, Stage
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.events import record

BACK_OFF_S = (5, 15, 45, 120, 300, 600, 900, 900)
"""Waits after the first, second … transient failure; after the last the job is dead."""


class LeaseLost(TransientError):
    """The job is no longer ours: it was superseded, cancelled, or given to another worker."""

    code = "lease-lost"


class WorkLedger:
    """What a worker child reads and writes; every write is fenced by the claim's epoch."""

    def __init__(self, ledger: Ledger, worker: str) -> None:
        self._ledger = ledger
        self.worker = worker

    def announce(self, name: str, version: str, digest: str, card: str) -> None:
        """Say that this worker has a model, so that routes can make jobs for it."""
        values = {
            "version": version,
            "card": card,
            "worker": self.worker,
            "announced_at": now_s(),
        }
        table = schema.model
        here = (table.c.name == name, table.c.digest == digest)
        with self._ledger.write() as connection:
            if connection.execute(update(table).where(*here).values(values)).rowcount == 0:
                connection.execute(table.insert().values(name=name, digest=digest, **values))

    def claim(self, lane: str, digests: Collection[str], lease_s: float) -> Claim | None:
        """Take the best job of `lane` that runs on one of the models `digests`, if there is one.

        The delivery is counted before any work, so that a job that takes its worker down is
        counted too.
        """
        job = schema.job
        with self._ledger.write() as connection:
            row = connection.execute(
                select(job)
                .where(
                    job.c.lane == lane,
                    job.c.state == JobState.QUEUED,
                    job.c.not_before <= now_s(),
                    job.c.model_digest.in_(digests),
                )
                .order_by(job.c.created_at, job.c.route_rank)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).first()
            if row is None:
                return None
            epoch = row.lease_epoch + 1
            connection.execute(
                update(job)
                .where(job.c.key == row.key)
                .values(
                    state=JobState.RUNNING,
                    lease_owner=self.worker,
                    lease_epoch=epoch,
                    lease_until=now_s() + lease_s,
                    deliveries=row.deliveries + 1,
                    updated_at=now_s(),
                )
            )
            run_id = connection.scalar(
                schema.run.insert()
                .values(job_key=row.key, epoch=epoch, worker=self.worker, started_at=now_s())
                .returning(schema.run.c.id)
            )
            assert run_id is not None  # noqa: S101 # RETURNING of an INSERT has a row
            _wait_as_stage(connection, run_id, row.not_before)
            record(connection, row.key, self.worker, "running", f"run {epoch}")
            return Claim(
                key=row.key,
                epoch=epoch,
                run_id=run_id,
                study_uid=row.study_uid,
                series_uids=tuple(row.series_uids.split("\\")),
                content=row.content,
                instance_count=row.instance_count,
                model=row.model,
                model_digest=row.model_digest,
                created_at=row.created_at,
            )

    def card(self, claim: Claim) -> str:
        """Return the TOML of the card of the claim's model."""
        table = schema.model
        with self._ledger.read() as connection:
            card: str = connection.execute(
                select(table.c.card).where(
                    table.c.name == claim.model, table.c.digest == claim.model_digest
                )
            ).scalar_one()
        return card

    def heartbeat(self, claim: Claim, lease_s: float) -> None:
        """Extend the lease.

        Raises
        ------
        LeaseLost
            If the job is no longer this claim's.
        """
        with self._ledger.write() as connection:
            _fenced(connection, claim, lease_until=now_s() + lease_s)

    @contextmanager
    def stage(self, claim: Claim, stage: Stage) -> Iterator[None]:
        """Time one step of the run, and note where a failure happened."""
        table = schema.stage
        with self._ledger.write() as connection:
            _fenced(connection, claim, error_stage=stage)
            stage_id = connection.scalar(
                table.insert()
                .values(run_id=claim.run_id, stage=stage, started_at=now_s())
                .returning(table.c.id)
            )
        yield
        with self._ledger.write() as connection:
            connection.execute(
                update(table)
                .where(table.c.id == stage_id)
                .values(seconds=now_s() - table.c.started_at)
            )

    def input_digest(self, claim: Claim, digest: str) -> None:
        """Record the digest of pixels and geometry that the run worked on."""
        with self._ledger.write() as connection:
            _fenced(connection, claim, input_digest=digest)

    def will_store(
        self, claim: Claim, *, role: str, instance_uid: str, series_uid: str, data: bytes
    ) -> None:
        """Record an object before it is stored, so that nothing of ours lies there unknown."""
        table = schema.result
        values = {"digest": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        with self._ledger.write() as connection:
            _fenced(connection, claim)
            here = table.c.instance_uid == instance_uid
            if connection.execute(update(table).where(here).values(values)).rowcount == 0:
                connection.execute(
                    table.insert().values(
                        instance_uid=instance_uid,
                        job_key=claim.key,
                        role=role,
                        series_uid=series_uid,
                        **values,
                    )
                )

    def stored(self, claim: Claim, instance_uid: str) -> None:
        """Record that the archive took an object."""
        self._mark(claim, instance_uid, "stored_at")

    def confirmed(self, claim: Claim, instance_uid: str) -> None:
        """Record that an object was read back from the archive and compared."""
        self._mark(claim, instance_uid, "confirmed_at")

    def _mark(self, claim: Claim, instance_uid: str, column: str) -> None:
        with self._ledger.write() as connection:
            _fenced(connection, claim)
            connection.execute(
                update(schema.result)
                .where(schema.result.c.instance_uid == instance_uid)
                .values({column: now_s()})
            )

    def done(self, claim: Claim, findings: Findings, peak_mb: int) -> None:
        """Close the run: every object of the job is confirmed."""
        with self._ledger.write() as connection:
            _fenced(
                connection,
                claim,
                state=JobState.DONE,
                lease_owner=None,
                lease_until=None,
                error_code=None,
                error_sentence=None,
                error_stage=None,
                findings=findings.to_json(),
            )
            _end_run(connection, claim, "done", None, peak_mb)
            record(connection, claim.key, self.worker, "done")

    def failed(self, claim: Claim, error: SegnodeError, peak_mb: int, deliveries: int = 3) -> None:
        """Close the run with an error: later again if that may help, else for good.

        A job under which the model process died `deliveries` times is dead.
        """
        job = schema.job
        died = isinstance(error, ModelProcessDied)
        with self._ledger.write() as connection:
            attempts, lane, delivered = connection.execute(
                select(job.c.attempts, job.c.lane, job.c.deliveries).where(job.c.key == claim.key)
            ).one()
            again = isinstance(error, TransientError) and attempts < len(BACK_OFF_S)
            again = again and not (died and delivered >= deliveries)
            wait = BACK_OFF_S[attempts] if again else 0
            if again:
                state = JobState.QUEUED
            else:
                state = JobState.DEAD if isinstance(error, TransientError) else JobState.FAILED
            _fenced(
                connection,
                claim,
                state=state,
                attempts=attempts + 1,
                # deliveries count deaths; a run that ended by itself takes its count back
                deliveries=job.c.deliveries - (1 if again and not died else 0),
                not_before=now_s() + wait,
                lease_owner=None,
                lease_until=None,
                error_code=error.code,
                error_sentence=error.sentence,
            )
            if again:
                connection.execute(
                    schema.outbox.insert().values(
                        job_key=claim.key, lane=lane, due_at=now_s() + wait
                    )
                )
            _end_run(connection, claim, "failed", error.code, peak_mb)
            again_text = f"; next try in {wait} s" if again else ""
            record(connection, claim.key, self.worker, str(state), error.code + again_text)


def _fenced(connection: Connection, claim: Claim, **values: object) -> None:
    job = schema.job
    changed = connection.execute(
        update(job)
        .where(
            job.c.key == claim.key,
            job.c.lease_epoch == claim.epoch,
            job.c.state == JobState.RUNNING,
        )
        .values(updated_at=now_s(), **values)
    )
    if changed.rowcount == 0:
        raise LeaseLost(
            f"Job {claim.key[:12]} is no longer this worker's (run {claim.epoch}); "
            "what this run still does is not recorded."
        )


def _wait_as_stage(connection: Connection, run_id: int, since: float) -> None:
    connection.execute(
        schema.stage.insert().values(
            run_id=run_id, stage=Stage.QUEUED, started_at=since, seconds=now_s() - since
        )
    )


def _end_run(
    connection: Connection, claim: Claim, outcome: str, code: str | None, peak_mb: int
) -> None:
    connection.execute(
        update(schema.run)
        .where(schema.run.c.id == claim.run_id)
        .values(ended_at=now_s(), outcome=outcome, error_code=code, peak_mb=peak_mb)
    )
