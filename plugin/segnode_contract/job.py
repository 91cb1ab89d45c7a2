"""What a job is: one model on one series' content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from mmap import mmap

from segnode_contract.form import Form


class JobState(StrEnum):
    """Where a job stands."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    DEAD = "dead"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"


OPEN_STATES = (JobState.WAITING, JobState.QUEUED, JobState.RUNNING)
RETRIED = (JobState.FAILED, JobState.DEAD, JobState.CANCELLED)
"""States out of which a job is tried again by an act only."""


class Priority(IntEnum):
    """In which order waiting jobs are taken."""

    STAT = 0
    ROUTINE = 1
    BACKGROUND = 2


class Stage(StrEnum):
    """A step of a run, in the order in which they come."""

    QUEUED = "queued"
    FETCH = "fetch"
    STACK = "stack"
    TURN = "turn"
    """The wait for the model: one job at a time is on a GPU, others are made ready meanwhile."""
    INFER = "infer"
    ENCODE = "encode"
    VERIFY = "verify"
    STORE = "store"
    CONFIRM = "confirm"


StageTimer = Callable[[Stage], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job as intake asks for it."""

    key: str
    study_uid: str
    series_uids: tuple[str, ...]
    content: str
    """`identity.content_digest` of the instances that it is made for."""
    instance_count: int
    route: str
    route_rank: int
    """Place of the route in the settings: the overlay of the first route is shown first."""
    model: str
    model_version: str
    model_digest: str
    lane: str
    last_instance_at: float
    first_instance_at: float | None = None
    """When the first of the images came, of those since the series was decided before."""
    modality: str = ""
    priority: Priority = Priority.ROUTINE
    roles: tuple[str, ...] = ()
    """What each series is to the model, where it takes several."""
    builds_on: str = ""
    """Key of the job whose result the model builds on."""
    alone: bool = False
    """Whether it is to be the only job of its route in the study."""
    shadow: bool = False
    """Whether its result is kept out of the archive."""
    form: Form = Form.BINARY
    """Of the segmentation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A job in the hands of one worker child, until its lease ends."""

    key: str
    epoch: int
    """Fencing token: whatever is written under an older epoch is refused."""
    run_id: int
    study_uid: str
    series_uids: tuple[str, ...]
    content: str
    instance_count: int
    model: str
    model_digest: str
    created_at: float
    """Seconds since 1970, UTC, by the ledger's clock; the result carries this date."""
    roles: tuple[str, ...]
    builds_on: str
    shadow: bool
    form: Form
    input_digest: str
    """Of the images that an earlier run saw, empty for none."""
    on_cpu: bool
    """A run had not enough memory: use the CPU, where the model's card allows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultObject:
    """One object of a job's result, proved and not yet stored."""

    role: str
    """``SEG`` or ``SR``; of the second stack of a series ``SEG 2`` and ``SR 2``."""
    instance_uid: str
    series_uid: str
    data: bytes | mmap
    """A Part 10 file; in memory, or where it lies on disk."""
    digest: str = ""
    """SHA-256 of `data`, found out where it is not given."""

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", hashlib.sha256(self.data).hexdigest())

    def as_kept(self, data: bytes) -> ResultObject:
        """Return the object as an archive keeps it, which may be in other bytes."""
        return replace(self, data=data, digest="")
