"""`segnode jobs`, `job`, `deliveries`, and what is done to them: `retry`, `cancel`, `withdraw`."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Column, Table

from segnode_cli.node import node_variables, read_environment
from segnode_cli.show import console, say
from segnode_contract.destination import failed_hint
from segnode_contract.errors import SetupError
from segnode_contract.findings import Findings, Marked, Measurement, Withheld
from segnode_contract.job import OPEN_STATES, RETRIED, JobState
from segnode_contract.ledger import ActLedger, Ledger, LedgerView
from segnode_contract.ledger.revisions import LONGEST, SHORTEST, reason_of
from segnode_contract.ledger.view import DeliveryRow


@contextmanager
def view_of(data: Path) -> Iterator[LedgerView]:
    """Open the ledger of the node in `data`, reading; raises as `ledger_of`."""
    with ledger_of(data) as ledger:
        yield LedgerView(ledger)


@contextmanager
def ledger_of(data: Path) -> Iterator[Ledger]:
    """Open the ledger of the node in `data`.

    Raises
    ------
    SetupError
        If there is no node.
    """
    there = os.environ.get("SEGNODE_LEDGER_URL") if not read_environment(data) else None
    ledger = Ledger.open(there or node_variables(data)["SEGNODE_LEDGER_URL"])
    try:
        yield ledger
    finally:
        ledger.close()


def print_jobs(data: Path, as_json: bool) -> None:
    """Print the newest jobs."""
    with view_of(data) as view:
        rows, failed = view.jobs(), view.failed_deliveries()
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    whole = [Column(name, no_wrap=True) for name in ("job", "state")]
    table = Table(*whole, "model", "route", "images", "created", "what happened")
    for row in rows:
        said = f"{row.error_code}: {row.error_sentence}" if row.error_code else ""
        created = datetime.fromtimestamp(row.created_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        images = str(row.instance_count)
        table.add_row(row.key[:12], row.state, row.model, row.route, images, created, said)
    console.print(table if rows else "No job yet; send a study with `segnode send FOLDER`.")
    if failed:
        say(failed_hint(failed))


def print_deliveries(data: Path, as_json: bool) -> None:
    """Print the deliveries that are not done."""
    with view_of(data) as view:
        rows = view.deliveries()
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    whole = [Column(name, no_wrap=True) for name in ("job", "to", "state", "tries")]
    table = Table(*whole, "last", "what happened")
    for row in rows:
        said = f"{row.error_code}: {row.error_sentence}" if row.error_code else ""
        last = datetime.fromtimestamp(row.updated_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(row.job_key[:12], row.destination, row.state, str(row.attempts), last, said)
    console.print(table if rows else "Nothing waits to be sent on, and nothing failed.")
    if rows:
        say("`segnode retry KEY` tries a job's deliveries again at once.")


def show_job(data: Path, key: str, as_json: bool) -> None:
    """Print one job with its runs and history.

    Raises
    ------
    SetupError
        If no job, or more than one, begins with `key`.
    """
    with view_of(data) as view:
        job = view.job(key)
        card = view.card(job.row.model, job.row.model_digest) if job else None
    if job is None:
        raise SetupError(f"No single job's key begins with '{key}'; see `segnode jobs`.")
    names = {segment.number: segment.label for segment in card.segments} if card else {}
    if as_json:
        print(json.dumps(asdict(job)))
        return
    row = job.row
    far = f" ({row.progress:.0%} of the model)" if row.progress is not None else ""
    made_by = f"{row.model} {row.model_version}, route {row.route}"
    console.print(f"{row.key} {row.state}{far}, {made_by}")
    if row.error_code:
        console.print(f"{row.error_code} in {row.error_stage}: {row.error_sentence}", markup=False)
    if row.findings is not None:
        for line in lines_of(Findings.from_json(row.findings), names):
            console.print(line, markup=False, highlight=False)
    for run in job.runs:
        times = ", ".join(
            f"{s.stage} {s.seconds:.2f} s" if s.seconds is not None else f"{s.stage} …"
            for s in run.stages
        )
        console.print(f"run {run.epoch} by {run.worker}: {run.outcome or 'going on'}; {times}")
    for delivery in job.deliveries:
        console.print(_delivery(delivery), markup=False, highlight=False)
    for event in job.events:
        at = datetime.fromtimestamp(event.at, UTC).strftime("%H:%M:%S")
        console.print(f"{at} {event.kind} by {event.actor} {event.detail}", markup=False)


def lines_of(found: Findings, names: Mapping[int, str]) -> Iterator[str]:
    """Give what a job measured, what of it is left out or in doubt, and what limits it.

    Where a series held several stacks, each line says of which one it is.
    """
    said = (found.measurements, found.marked, found.withheld)
    several = any(each.stack > 1 for some in said for each in some)

    def name_of(each: Measurement | Marked | Withheld) -> str:
        name = names.get(each.segment, str(each.segment))
        return f"{name}, stack {each.stack}" if several else name

    for m in found.measurements:
        reason = m.reason.removeprefix("Not measurable: ")
        value = f"{m.value:.1f} {m.unit}" if m.value is not None else f"not measurable: {reason}"
        yield f"{name_of(m)}, {m.name}: {value}"
    for marked in found.marked:
        yield f"{name_of(marked)} is shown, but in doubt: {marked.reason}"
    for withheld in found.withheld:
        yield f"{name_of(withheld)} is left out: {withheld.reason}"
    for text in found.limitations:
        yield f"limitation of these images: {text}"


def _delivery(row: DeliveryRow) -> str:
    """Return how one delivery stands, in a line."""
    tries = f"{row.attempts} {'try' if row.attempts == 1 else 'tries'}"
    said = f"to {row.destination}: {row.state}, {tries}"
    if row.objects is not None:
        said += f", {row.objects} objects taken"
    if row.note:
        said += f" ({row.note})"
    return f"{said}; {row.error_code}: {row.error_sentence}" if row.error_code else said


def actor() -> str:
    """Return who acts, for the history."""
    return f"command line, {getpass.getuser()}"


def retry_jobs(data: Path, keys: Sequence[str]) -> None:
    """Queue jobs that ended without a result again, and deliveries that did not arrive.

    A result that was withdrawn is made anew. Who asked is recorded.

    Raises
    ------
    SetupError
        If a key begins no single job, or that of one of which nothing failed; none is retried then.
    """
    with ledger_of(data) as ledger:
        view, acts = LedgerView(ledger), ActLedger(ledger)
        whole = [_retryable(view, key) for key in keys]
        for key, state in whole:
            if state == JobState.WITHDRAWN:
                _run_anew(acts, key)
                continue
            queued = acts.retry(key, actor())
            if queued:
                say(f"job {key[:12]} is queued again")
            names = acts.send_again(key, actor())
            for name in names:
                say(f"the result of job {key[:12]} is sent to {name} again")
            if not queued and not names:
                say(
                    f"the result of job {key[:12]} is in a sender's hands just now; one that died "
                    "is noticed within lease_s of [limits], and the result then sent again"
                )


def cancel_jobs(data: Path, keys: Sequence[str]) -> None:
    """Cancel jobs that have not ended; who asked is recorded.

    Raises
    ------
    SetupError
        If a key begins no single job, or that of one that cannot be cancelled any more.
    """
    with ledger_of(data) as ledger:
        view, acts = LedgerView(ledger), ActLedger(ledger)
        for key in [_one(view, key) for key in keys]:
            if not acts.cancel(key, actor()):
                job = view.job(key)
                state = job.row.state if job else "gone"
                raise SetupError(
                    f"Job {key[:12]} is {state}, and its result is in the archive or on its way "
                    "there; a result is not cancelled."
                    if state in OPEN_STATES
                    else f"Job {key[:12]} is {state}; only jobs that are "
                    f"{', '.join(OPEN_STATES)} are cancelled."
                )
            say(f"job {key[:12]} is cancelled")


def withdraw_jobs(data: Path, keys: Sequence[str], reason: str) -> None:
    """Say that results are wrong, and why; who said it is recorded.

    Raises
    ------
    SetupError
        If the reason is none, or a key begins no single job, or that of one without a result.
    """
    words = reason_of(reason)
    if not words:
        raise SetupError(
            f"--reason is '{reason}'; {SHORTEST} to {LONGEST} printable characters are needed, and "
            "no name, number or date of a patient belongs in them."
        )
    with ledger_of(data) as ledger:
        view, acts = LedgerView(ledger), ActLedger(ledger)
        for key in [_one(view, key) for key in keys]:
            withdrawn = acts.withdraw(key, actor(), words)
            if not withdrawn:
                job = view.job(key)
                raise SetupError(
                    f"Job {key[:12]} is {job.row.state if job else 'gone'}; only a result that was "
                    "stored is withdrawn."
                )
            say(f"the result of job {key[:12]} is withdrawn, and the viewer opens it no more")
            for other in withdrawn[1:]:
                say(f"so is that of job {other[:12]}, which builds on it")
        say(
            "The objects stay in the archive; an administrator can delete them on the job's page. "
            "What was sent on to other archives is not called back. `segnode retry` makes a result "
            "anew."
        )


def _run_anew(acts: ActLedger, key: str) -> None:
    new = acts.run_anew(key, actor())
    if new is None:
        raise SetupError(
            f"Job {key[:12]} cannot be made anew: a newer job has its place, or what it builds on "
            "is withdrawn too. `segnode job` shows its history."
        )
    say(f"the result of job {key[:12]} is made anew as job {new[:12]}")


def _one(view: LedgerView, key: str) -> str:
    job = view.job(key)
    if job is None:
        raise SetupError(f"No single job's key begins with '{key}'; see `segnode jobs`.")
    return job.row.key


def _retryable(view: LedgerView, key: str) -> tuple[str, str]:
    """Return the whole key of a job that can be retried, and its state."""
    job = view.job(key)
    if job is None:
        raise SetupError(f"No single job's key begins with '{key}'; see `segnode jobs`.")
    unsent = any(delivery.state != JobState.DONE for delivery in job.deliveries)
    again = (*RETRIED, JobState.WITHDRAWN)
    if job.row.state not in again and not (job.row.state == JobState.DONE and unsent):
        raise SetupError(
            f"Job {job.row.key[:12]} is {job.row.state}; only jobs that are "
            f"{', '.join(again)} are retried, and results that did not reach a destination."
        )
    return job.row.key, job.row.state
