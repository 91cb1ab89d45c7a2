"""Workers that live, and the models that each holds in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from segnode_contract.ledger.view import WorkerRow
from segnode_contract.workers import SILENT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A worker that has one version of a model loaded."""

    worker: str
    model: str
    digest: str
    """Its first 12 digits."""
    device: str
    megabytes: int


def alive(workers: Iterable[WorkerRow], now: float) -> list[WorkerRow]:
    """Return the workers that spoke lately."""
    return [worker for worker in workers if now - worker.seen_at < SILENT_S]


def holders(workers: Iterable[WorkerRow]) -> list[Holder]:
    """Return what each of these workers says that it has loaded."""
    return [
        Holder(
            worker=worker.name,
            model=str(one.get("model", "")),
            digest=str(one.get("digest", ""))[:12],
            device=str((worker.report or {}).get("device", "")),
            megabytes=int(one.get("mb", 0)),
        )
        for worker in workers
        for one in (worker.report or {}).get("loaded", ())
    ]
