"""What is wrong with a node, so that somebody should come: decided from one look at it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from segnode_contract.alerts import Alerts
from segnode_contract.destination import failed_hint
from segnode_contract.workers import SILENT_S, machine_of

NO_SPACE = "no-space"
"""A state of workers."""
LOST, SPACE_LOW = "worker-lost", "space-low"
"""Names of troubles."""
_FORGOTTEN_S = 86400.0
"""A worker that was not seen for a day is missed by nobody, while others live."""
_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadJobs:
    """Dead jobs that have the same error."""

    code: str
    count: int
    key: str
    """Of one of them."""
    newest_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The job that waits longest; `since` in seconds since 1970 by the ledger's clock."""

    key: str
    since: float
    code: str
    """Of the error with which it was last tried; empty before its first try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSeen:
    """A worker, as it last said of itself; times in seconds since 1970 by the ledger's clock."""

    name: str
    state: str
    started_at: float
    seen_at: float
    free_mb: float | None = None
    """Room for results, None where it does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """A node at one moment; times in seconds since 1970 by the ledger's clock."""

    now: float
    dead: tuple[DeadJobs, ...] = ()
    undelivered: int = 0
    undelivered_at: float = 0.0
    """When the newest of the deliveries failed."""
    waiting: int = 0
    oldest: Waiting | None = None
    workers: tuple[WorkerSeen, ...] = ()
    free_mb: float | None = None
    """Room for the node's data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Something that is wrong now."""

    name: str
    sentence: str
    """With the value, and what to do; no patient is in it."""
    news_at: float
    """When it became worse: it is told again if that was after it was told."""


def troubles(state: NodeState, alerts: Alerts) -> tuple[Trouble, ...]:
    """Return what is wrong, each kind once: a thousand dead jobs are one trouble."""
    return (
        *_dead(state),
        *_backlog(state, alerts.backlog_s),
        *_lost(state, alerts.worker_lost_s),
        *_space(state, alerts),
    )


def _dead(state: NodeState) -> Iterator[Trouble]:
    count = sum(each.count for each in state.dead)
    said = []
    if count:
        kinds = [f"{e.count} by {e.code} (such as {e.key[:12]})" for e in state.dead]
        what = "1 job is dead" if count == 1 else f"{count} jobs are dead"
        said.append(
            f"{what}: {_some(kinds)}. Their pages say why; mend the cause, then retry them."
        )
    if state.undelivered:
        said.append(failed_hint(state.undelivered))
    if said:
        newest = max(state.undelivered_at, *(each.newest_at for each in state.dead), 0.0)
        yield Trouble(name="dead-letter", sentence=" ".join(said), news_at=newest)


def _backlog(state: NodeState, limit_s: float) -> Iterator[Trouble]:
    oldest = state.oldest
    if oldest is None or not limit_s or state.now - oldest.since <= limit_s:
        return
    waits = "1 job waits" if state.waiting == 1 else f"{state.waiting} jobs wait"
    error = f"; its last try ended with {oldest.code}" if oldest.code else ""
    yield Trouble(
        name="backlog",
        sentence=f"{waits}, the oldest ({oldest.key[:12]}) for "
        f"{_duration(state.now - oldest.since)}, where {_duration(limit_s)} is the limit{error}. "
        "The first page says whether workers live and take jobs.",
        news_at=state.now,
    )


def _lost(state: NodeState, silent_s: float) -> Iterator[Trouble]:
    if not silent_s:
        return
    lost = lost_workers(state, silent_s)
    if not lost:
        return
    alive = _alive(state, silent_s)
    names = _some([f"{each.name} ({_duration(state.now - each.seen_at)} silent)" for each in lost])
    what = "A worker is lost" if len(lost) == 1 else f"{len(lost)} workers are lost"
    rest = "" if alive else " None is left, so that jobs wait."
    yield Trouble(
        name=LOST,
        sentence=f"{what}: {names}.{rest} See whether its machine runs, and the worker's log.",
        # while others do the work one is told of each once
        news_at=max(each.seen_at for each in lost) + silent_s if alive else state.now,
    )


def lost_workers(state: NodeState, silent_s: float) -> list[WorkerSeen]:
    """Return the workers that went silent without a word, and in whose place no other came.

    One that ends in good order says so, and has no row. Where its processes are started again
    after a crash, the new worker of that machine stands for the lost one.
    """
    alive = _alive(state, silent_s)
    silent = [each for each in state.workers if each not in alive]
    if alive:
        silent = [each for each in silent if state.now - each.seen_at <= _FORGOTTEN_S]
    free = sorted(alive, key=lambda each: each.started_at)
    lost = []
    for each in sorted(silent, key=lambda each: each.seen_at):
        machine = machine_of(each.name)
        heirs = [h for h in free if machine_of(h.name) == machine and h.started_at > each.seen_at]
        if heirs:
            free.remove(heirs[0])
        else:
            lost.append(each)
    return lost


def _space(state: NodeState, alerts: Alerts) -> Iterator[Trouble]:
    low = []
    if state.free_mb is not None and state.free_mb < alerts.free_mb:
        low.append(f"{state.free_mb:.0f} MB left for the node's data")
    for each in _alive(state, alerts.worker_lost_s or SILENT_S):
        if each.free_mb is not None and each.free_mb < alerts.free_mb:
            low.append(f"{each.free_mb:.0f} MB left for results of worker {each.name}")
        elif each.state == NO_SPACE and alerts.free_mb:
            low.append(f"worker {each.name} has no room for results and takes no jobs")
    if low:
        yield Trouble(
            name=SPACE_LOW,
            sentence=f"Space is low ({alerts.free_mb} MB are the limit): {_some(low)}. "
            "Make room before images and results are refused.",
            news_at=state.now,
        )


def _alive(state: NodeState, silent_s: float) -> list[WorkerSeen]:
    return [each for each in state.workers if state.now - each.seen_at <= silent_s]


def _some(words: Sequence[str]) -> str:
    more = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
