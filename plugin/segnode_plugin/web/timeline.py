"""The way of one job, from its first image to the confirmed result, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from segnode_contract.job import JobState, Stage
from segnode_contract.ledger.view import Job, JobRow, RunRow
from segnode_plugin.by_hand import BY_HAND
from segnode_plugin.web.timing import duration, stage_name

WAITS = ("arriving", "quiet", "waiting", str(Stage.QUEUED), str(Stage.TURN))
"""Steps in which nothing is worked at: they may last for days."""
_LEAST_WAIT_S = 0.05
"""Between two steps; shorter ones are the ledger's own work."""
_IN_FULL = 4
"""So many runs, the newest ones, are drawn stage by stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing after the other that happened to a job, or happens."""

    name: str
    kind: str
    """A stage, or ``arriving``, ``quiet``, ``waiting``."""
    began_at: float
    ended_at: float | None
    """None while it goes on."""
    seconds: float
    """Until now, while it goes on."""
    run: int | None = None
    outcome: str = ""
    """Of the run that ended in this step, where it was not done."""

    @property
    def words(self) -> str:
        """What it took, and how it ended where that was no good end."""
        took = duration(self.seconds)
        said = f"{took} so far" if self.ended_at is None else took
        return f"{said}, {self.outcome}" if self.outcome else said


def steps_of(job: Job, now: float, *, whole: bool = False) -> tuple[Step, ...]:
    """Return what happened to a job, in its order.

    Parameters
    ----------
    now
        By the ledger's clock.
    whole
        Every run with its stages; else those before the newest few as one step.
    """
    row = job.row
    steps = _arrival(row)
    at, first, why = row.created_at, True, "until the next try"
    runs = job.runs if whole else job.runs[-_IN_FULL:]
    earlier = job.runs[: len(job.runs) - len(runs)]
    if earlier:
        steps.append(_earlier(earlier, row.created_at))
        at, first = steps[-1].began_at + steps[-1].seconds, False
    for run in runs:
        began_at = run.stages[0].started_at if run.stages else run.started_at
        if began_at - at > _LEAST_WAIT_S:
            steps.append(_wait(_why_first(row) if first else why, at, began_at))
        steps += _of_run(run, now)
        at, first = run.ended_at or now, False
        why = "until images came again" if run.outcome == "done" else "until the next try"
    return (*steps, *_going_on(row, at, now, first=first))


def _step(name: str, kind: str, began_at: float, ended_at: float | None, now: float = 0.0) -> Step:
    until = now if ended_at is None else ended_at
    return Step(
        name=name,
        kind=kind,
        began_at=began_at,
        ended_at=ended_at,
        seconds=max(until - began_at, 0.0),
    )


def _wait(name: str, began_at: float, ended_at: float) -> Step:
    return _step(name, "waiting", began_at, ended_at)


def _arrival(row: JobRow) -> list[Step]:
    first, last, made = row.first_instance_at, row.last_instance_at, row.created_at
    if last > made:
        return []  # images came again: what there was before is not known any more
    steps = []
    if first is not None and first <= last:
        steps.append(_step("first to last image", "arriving", first, last))
    if row.revision:
        return [*steps, _wait("until it was made anew", last, made)]
    if row.route == BY_HAND:
        return [*steps, _wait("until somebody asked for it", last, made)]
    return [*steps, _step("quiet period, decision", "quiet", last, made)]


def _why_first(row: JobRow) -> str:
    return "for the job it builds on" if row.builds_on else "until it came into the queue"


def _earlier(runs: Sequence[RunRow], since: float) -> Step:
    ended_at = runs[-1].ended_at or runs[-1].started_at
    name = f"{len(runs)} earlier run{'s' if len(runs) > 1 else ''}"
    step = _step(name, "waiting", since, ended_at)
    return replace(step, outcome=f"the last one {runs[-1].error_code or runs[-1].outcome}")


def _of_run(run: RunRow, now: float) -> list[Step]:
    steps = []
    for stage in run.stages:
        ended_at = run.ended_at
        if stage.seconds is not None:
            ended_at = stage.started_at + stage.seconds
        step = _step(stage_name(stage.stage), stage.stage, stage.started_at, ended_at, now)
        steps.append(replace(step, run=run.epoch))
    if steps and run.outcome not in (None, "done"):
        steps[-1] = replace(steps[-1], outcome=run.outcome or "")
    return steps


def _going_on(row: JobRow, at: float, now: float, *, first: bool) -> list[Step]:
    """Return what the job waits for now."""
    if row.state == JobState.WAITING:
        return [_step("for the job it builds on", "waiting", at, None, now)]
    if row.state != JobState.QUEUED:
        return []
    if row.not_before > now:
        return [_step("until the next try", "waiting", at, None, now)]
    steps = []
    if row.not_before - at > _LEAST_WAIT_S:
        steps.append(_wait(_why_first(row) if first else "until the next try", at, row.not_before))
    return [*steps, _step("queued", "queued", max(at, row.not_before), None, now)]
