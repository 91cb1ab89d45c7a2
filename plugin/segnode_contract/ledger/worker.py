"""The side of a worker's parent: how it is, and which models it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from segnode_contract.job import JobState
from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.upsert import upsert

_FORGOTTEN_S = 86400.0
"""A worker that was not seen for a day has no row any more."""


class WorkerLedger:
    """What a worker's parent reads and writes about itself."""

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
        key = {"name": name, "digest": digest}
        with self._ledger.write() as connection:
            upsert(connection, schema.model, key, values, at_first={"first_announced_at": now_s()})

    def seen(self, state: str, detail: str = "", report: Mapping[str, Any] | None = None) -> None:
        """Say that this worker lives, and whether it takes jobs (`ready`) or why not.

        Parameters
        ----------
        report
            What else pages show of it: device, memory, loaded models, free space.
        """
        table = schema.worker
        values = {"state": state, "detail": detail, "seen_at": now_s(), "report": report}
        with self._ledger.write() as connection:
            connection.execute(table.delete().where(table.c.seen_at < now_s() - _FORGOTTEN_S))
            upsert(
                connection, table, {"name": self.worker}, values, at_first={"started_at": now_s()}
            )

    def gone(self) -> None:
        """Say that this worker ends."""
        with self._ledger.write() as connection:
            connection.execute(schema.worker.delete().where(schema.worker.c.name == self.worker))

    def needed(self) -> set[str]:
        """Return the digests of objects whose job has not ended: what a spool must keep."""
        job, result = schema.job, schema.result
        with self._ledger.read() as connection:
            return set(
                connection.scalars(
                    select(result.c.digest)
                    .join(job, job.c.key == result.c.job_key)
                    .where(job.c.state.in_((JobState.QUEUED, JobState.RUNNING)))
                )
            )
