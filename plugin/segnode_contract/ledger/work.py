"""The worker's side: claim a job, keep its lease, say what became of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, case, func, select, update

from segnode_contract.errors import (
    LedgerUnavailable,
    ModelProcessDied,
    OutOfMemory,
    PriorMissing,
    SegnodeError,
    TransientError,
)
from segnode_contract.findings import Findings
from segnode_contract.form import Form
from segnode_contract.job import Claim, JobState, ResultObject, Stage
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.deliveries import order
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.events import record
from segnode_contract.ledger.queue import release
from segnode_contract.ledger.tally import count_done, count_lost
from segnode_contract.ledger.turns import next_job
from segnode_contract.settings import Background, Limits

_TOLD_S = 0.8
"""Between two looks of `progress` at the ledger: a cancelled job ends within two seconds."""


class LeaseLost(TransientError):
    """The job is no longer ours: it was superseded, cancelled, or given to another worker."""

    code = "lease-lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownObject:
    """An object of a job's result that an earlier run, or this one, recorded."""

    role: str
    instance_uid: str
    series_uid: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """The stored segmentation on which a job builds."""

    model: str
    card: str
    series_uid: str
    instance_uid: str
    digest: str
    withheld: str
    """Why the first segment that it left out was left out; empty where it has all."""


class WorkLedger:
    """What a worker child reads and writes; every write is fenced by the claim's epoch."""

    def __init__(
        self, ledger: Ledger, worker: str, limits: Limits, background: Background | None = None
    ) -> None:
        self._ledger = ledger
        self.worker = worker
        self._limits = limits
        self._background = background or Background()
        self._told = float("-inf")
        self.at_hand: tuple[Stage, float] = (Stage.QUEUED, 0.0)
        """The stage that runs, or `QUEUED` between two, and since when by `time.monotonic`."""

    def claim(self, lane: str, digests: Collection[str]) -> Claim | None:
        """Take the best job of `lane` that runs on one of the models `digests`, if there is one.

        The delivery is counted before any work, so that a job that takes its worker down is
        counted too.
        """
        job = schema.job
        with self._ledger.write() as connection:
            row = next_job(connection, lane, digests, self._background)
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
                    lease_until=now_s() + self._limits.lease_s,
                    deliveries=row.deliveries + 1,
                    progress=None,
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
            self.at_hand = (Stage.QUEUED, time.monotonic())
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
                roles=tuple(row.roles.split("\\")) if row.roles else (),
                builds_on=row.builds_on,
                shadow=row.shadow,
                form=Form(row.form),
                input_digest=row.input_digest or "",
                on_cpu=_lacked_memory(connection, row.key, row.tried_since),
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

    def prior(self, claim: Claim) -> Prior:
        """Return the result of the job on which the claim's job builds.

        Raises
        ------
        PriorMissing
            If that job has none: it runs again, say.
        """
        job, model, result = schema.job, schema.model, schema.result
        with self._ledger.read() as connection:
            first = connection.execute(
                select(job.c.state, job.c.model, job.c.findings, model.c.card)
                .join(model, model.c.digest == job.c.model_digest)
                .where(job.c.key == claim.builds_on, model.c.name == job.c.model)
            ).first()
            seg = connection.execute(
                select(result).where(result.c.job_key == claim.builds_on, result.c.role == "SEG")
            ).first()
        if first is None or seg is None or first.state != JobState.DONE:
            raise PriorMissing(
                f"Job {claim.builds_on[:12]}, on whose result this one builds, is not done any "
                "more; this one waits until it is again."
            )
        left_out = Findings.from_json(first.findings).withheld if first.findings else ()
        return Prior(
            model=first.model,
            withheld=left_out[0].reason if left_out else "",
            card=first.card,
            series_uid=seg.series_uid,
            digest=seg.digest,
            instance_uid=seg.instance_uid,
        )

    def heartbeat(self, claim: Claim) -> None:
        """Extend the lease.

        Raises
        ------
        LeaseLost
            If the job is no longer this claim's.
        """
        with self._ledger.write() as connection:
            _fenced(connection, claim, lease_until=now_s() + self._limits.lease_s)

    def check(self, claim: Claim) -> None:
        """Raise `LeaseLost` if the job is no longer this claim's; costs one row read."""
        job = schema.job
        with self._ledger.read() as connection:
            ours = connection.scalar(select(job.c.key).where(_ours(claim)))
        if ours is None:
            raise _lost(claim)

    def progress(self, claim: Claim, fraction: float | None) -> None:
        """Note how far the model is, None for no news; what comes more often than once a second is
        passed over, and so is a ledger that is away: the heartbeat sees to that.

        Raises
        ------
        LeaseLost
            If the job is no longer this claim's: it was cancelled, say.
        """
        if time.monotonic() - self._told < _TOLD_S:
            return
        self._told = time.monotonic()
        with suppress(LedgerUnavailable):
            if fraction is None:
                self.check(claim)
                return
            with self._ledger.write() as connection:
                _fenced(connection, claim, progress=fraction)

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
        self.at_hand = (stage, time.monotonic())
        try:
            yield
        finally:
            self.at_hand = (Stage.QUEUED, time.monotonic())
        with self._ledger.write() as connection:
            connection.execute(
                update(table)
                .where(table.c.id == stage_id)
                .values(seconds=now_s() - table.c.started_at)
            )

    def known(self, claim: Claim) -> list[KnownObject]:
        """Return the objects that an earlier run made, in the order of their roles."""
        table = schema.result
        with self._ledger.read() as connection:
            rows = connection.execute(
                select(table).where(table.c.job_key == claim.key).order_by(table.c.role)
            ).all()
        return [
            KnownObject(
                role=row.role,
                instance_uid=row.instance_uid,
                series_uid=row.series_uid,
                digest=row.digest,
            )
            for row in rows
        ]

    def made(
        self,
        claim: Claim,
        objects: Sequence[ResultObject],
        findings: Findings,
        input_digest: str,
    ) -> None:
        """Record a whole result before any of it is stored.

        So nothing of ours lies in the archive unknown, and a later run knows the bytes.

        Parameters
        ----------
        input_digest
            Of the pixels and the geometry that the run worked on.
        """
        table = schema.result
        with self._ledger.write() as connection:
            _fenced(connection, claim, input_digest=input_digest, findings=findings.to_json())
            connection.execute(table.delete().where(table.c.job_key == claim.key))
            for each in objects:
                connection.execute(
                    table.insert().values(
                        instance_uid=each.instance_uid,
                        job_key=claim.key,
                        role=each.role,
                        series_uid=each.series_uid,
                        digest=each.digest,
                        bytes=len(each.data),
                    )
                )

    def shadowed(
        self,
        claim: Claim,
        objects: Sequence[ResultObject],
        findings: Findings,
        input_digest: str,
    ) -> None:
        """Record what a shadow run found; its objects are kept nowhere."""
        with self._ledger.write() as connection:
            _fenced(connection, claim, input_digest=input_digest, findings=findings.to_json())
            for each in objects:
                said = f"{each.role} of {len(each.data)} bytes, proved and not stored"
                record(connection, claim.key, self.worker, "shadow", said)

    def adopted(self, claim: Claim, found: ResultObject) -> None:
        """Record that the archive held the object already, in bytes of its own."""
        with self._ledger.write() as connection:
            _fenced(connection, claim)
            connection.execute(
                update(schema.result)
                .where(schema.result.c.instance_uid == found.instance_uid)
                .values(digest=found.digest, bytes=len(found.data), stored_at=now_s())
            )
            record(
                connection, claim.key, self.worker, "adopted", f"{found.role} was in the archive"
            )

    def stored(self, claim: Claim, instance_uid: str) -> None:
        """Record that the archive took an object."""
        self._mark(claim, instance_uid, stored_at=now_s())

    def confirmed(self, claim: Claim, kept: ResultObject) -> None:
        """Record that an object was read back from the archive and compared, as it is kept."""
        self._mark(
            claim,
            kept.instance_uid,
            confirmed_at=now_s(),
            digest=kept.digest,
            bytes=len(kept.data),
        )

    def _mark(self, claim: Claim, instance_uid: str, **values: object) -> None:
        with self._ledger.write() as connection:
            _fenced(connection, claim)
            connection.execute(
                update(schema.result)
                .where(schema.result.c.instance_uid == instance_uid)
                .values(values)
            )

    def left(self, claim: Claim, peak_mb: int) -> None:
        """Say that this worker noticed that the job is no longer its own."""
        run = schema.run
        with self._ledger.write() as connection:
            connection.execute(update(run).where(run.c.id == claim.run_id).values(peak_mb=peak_mb))

    def done(self, claim: Claim, peak_mb: int) -> None:
        """Close the run.

        Raises
        ------
        RuntimeError
            If an object of the job is not confirmed: a result is one set.
        """
        result = schema.result
        ours = result.c.job_key == claim.key
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
            )
            counts = select(func.count(), func.count(result.c.confirmed_at)).where(ours)
            objects, confirmed = connection.execute(counts).one()
            if confirmed < objects or not (objects or claim.shadow):
                raise RuntimeError(f"{confirmed} of {objects} objects are confirmed")
            _end_run(connection, claim, "done", None, peak_mb)
            record(connection, claim.key, self.worker, "done")
            if not claim.shadow:
                order(connection, claim.key, claim.model)
            release(connection, claim.key)
            count_done(connection, claim)

    def failed(self, claim: Claim, error: SegnodeError, peak_mb: int) -> None:
        """Close the run with an error: later again if that may help, else for good.

        A job under which a model process died as often as `Limits.deliveries` says is dead, and
        so is one that nothing but transient errors kept from its end for `Limits.give_up_h`, or
        for the error's own patience.
        """
        job = schema.job
        with self._ledger.write() as connection:
            row = connection.execute(
                select(
                    job.c.attempts,
                    job.c.lane,
                    job.c.deliveries,
                    # waiting for a first try is no failure
                    case((job.c.attempts == 0, now_s()), else_=job.c.tried_since).label("since"),
                    now_s().label("now"),
                ).where(job.c.key == claim.key)
            ).one()
            died = isinstance(error, ModelProcessDied)
            same = _same_since(connection, claim.key, error.code, row.since)
            state, why = self._after(error, row.deliveries, row.now - row.since, row.now - same)
            again = state == JobState.QUEUED
            wait_s = self._wait_s(error, row.attempts) if again else 0.0
            _fenced(
                connection,
                claim,
                state=state,
                attempts=row.attempts + 1,
                tried_since=row.since,
                # deliveries count deaths; a run that ended by itself takes its count back
                deliveries=job.c.deliveries - (1 if again and not died else 0),
                not_before=now_s() + wait_s,
                lease_owner=None,
                lease_until=None,
                error_code=error.code,
                error_sentence=f"{error.sentence} {why}" if why else error.sentence,
            )
            if again:
                connection.execute(
                    schema.outbox.insert().values(
                        job_key=claim.key, lane=row.lane, due_at=now_s() + wait_s
                    )
                )
            _end_run(connection, claim, "failed", error.code, peak_mb)
            again_text = f"; next try in {wait_s:g} s" if again else ""
            record(connection, claim.key, self.worker, str(state), error.code + again_text)
            count_lost(connection, [claim.key])

    def _after(
        self, error: SegnodeError, deliveries: int, age_s: float, same_s: float
    ) -> tuple[JobState, str]:
        """Return what becomes of a job, and for a dead one why.

        Parameters
        ----------
        age_s, same_s
            Since when it fails, and since when with this error.
        """
        if not isinstance(error, TransientError):
            return JobState.FAILED, ""
        if isinstance(error, ModelProcessDied) and deliveries >= self._limits.deliveries:
            return JobState.DEAD, (
                f"{deliveries} losses of workers or model processes are too many to try again by "
                "itself: see the worker's log, then `segnode retry`."
            )
        if age_s > self._limits.give_up_h * 3600 or same_s > error.patience_s:
            hours = max(age_s, same_s) / 3600
            return JobState.DEAD, (
                f"Given up after {hours:.1f} h; mend the cause, then `segnode retry`."
            )
        return JobState.QUEUED, ""

    def _wait_s(self, error: SegnodeError, attempts: int) -> float:
        if isinstance(error, OutOfMemory):
            return 0.0
        waits = self._limits.back_off_s
        return waits[min(attempts, len(waits) - 1)]


def _lacked_memory(connection: Connection, key: str, since: float) -> bool:
    run = schema.run
    lacked = (run.c.job_key == key, run.c.error_code == OutOfMemory.code, run.c.ended_at >= since)
    return connection.scalar(select(run.c.id).where(*lacked).limit(1)) is not None


def _same_since(connection: Connection, key: str, code: str, since: float) -> float:
    """Return when a run first ended with `code` since `since`; now where none did."""
    run = schema.run
    first: float = connection.execute(
        select(func.coalesce(func.min(run.c.ended_at), now_s())).where(
            run.c.job_key == key, run.c.error_code == code, run.c.ended_at >= since
        )
    ).scalar_one()
    return first


def _fenced(connection: Connection, claim: Claim, **values: object) -> None:
    changed = connection.execute(
        update(schema.job).where(_ours(claim)).values(updated_at=now_s(), **values)
    )
    if changed.rowcount == 0:
        raise _lost(claim)


def _ours(claim: Claim) -> ColumnElement[bool]:
    job = schema.job
    return and_(
        job.c.key == claim.key,
        job.c.lease_epoch == claim.epoch,
        job.c.state == JobState.RUNNING,
    )


def _lost(claim: Claim) -> LeaseLost:
    return LeaseLost(
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
