"""What 100,000 finished jobs cost: .venv/bin/pytest -s tests/bench/ledger_rows.py

Prints the median time of each question to an empty ledger and to a full one, on SQLite and on
PostgreSQL, and for those that grew the tables that are read whole.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, Engine, event, text

from segnode_contract.identity import content_digest
from segnode_contract.job import NewJob
from segnode_contract.ledger import (
    IntakeLedger,
    LeaseLedger,
    Ledger,
    LedgerView,
    OutboxLedger,
    WorkerLedger,
    WorkLedger,
)
from segnode_contract.ledger.intake import Decision, Verdict
from segnode_contract.ledger.overlays import study_overlays
from segnode_contract.settings import Limits

ROWS = 100_000
WAITING = 100
TIMES = 15
GREW_MS = 3.0
ARCHIVE = "archive-1"
LANE = "default"
DIGEST = "d" * 64
LIMITS = Limits()
VERDICTS = (Verdict(route="any CT", taken=True, reason="every condition holds"),)

_COUNT = f"with recursive n(i) as (select 0 union all select i + 1 from n where i < {ROWS - 1})"
_KEY = f"'{'k' * 58}' || (100000 + i)"
_SERIES = "'1.2.840.113619.2.55.3.604688119.971.' || (100000 + i)"
_STUDY = "'1.2.840.113619.2.55.3.604688119.970.' || (100000 + i / 2)"
_AGE = "1700000000.0 + i * 60"
_FINDINGS = '{"measurements": [' + ", ".join(['{"segment": 1, "value": 3.5, "unit": "ml"}'] * 8)
_STAGES = ("queued", "fetch", "stack", "infer", "encode", "verify", "store", "confirm")
_EVENTS = ("queued", "running", "done")
_FILL = (
    f"""insert into series (archive_id, orthanc_id, last_instance_at, decided_at, study_uid,
        series_uid, instance_count, decision)
    {_COUNT} select '{ARCHIVE}', 'o' || i, {_AGE}, {_AGE} + 6, {_STUDY}, {_SERIES}, 300,
        '[{{"route": "any CT", "taken": true, "reason": "every condition holds"}}]' from n""",
    f"""insert into job (key, archive_id, study_uid, series_uids, content, instance_count,
        last_instance_at, route, route_rank, model, model_version, model_digest, lane, state,
        tried_since, not_before, attempts, deliveries, lease_epoch, input_digest, findings,
        created_at, updated_at)
    {_COUNT} select {_KEY}, '{ARCHIVE}', {_STUDY}, {_SERIES}, {_KEY}, 300, {_AGE}, 'any CT', 0,
        'ct-tissue', '1.0.0', '{DIGEST}', '{LANE}', 'done', {_AGE}, {_AGE}, 0, 1, 1, {_KEY},
        '{_FINDINGS}]}}', {_AGE}, {_AGE} + 20 from n""",
    f"""insert into run (id, job_key, epoch, worker, started_at, ended_at, outcome, peak_mb)
    {_COUNT} select i + 1000000, {_KEY}, 1, 'host/1/1/1', {_AGE}, {_AGE} + 20, 'done', 900
        from n""",
    *(
        f"""insert into stage (run_id, stage, started_at, seconds)
        {_COUNT} select i + 1000000, '{stage}', {_AGE}, 2.5 from n"""
        for stage in _STAGES
    ),
    *(
        f"""insert into event (job_key, at, actor, kind, detail)
        {_COUNT} select {_KEY}, {_AGE}, 'host/1/1/1', '{kind}', '' from n"""
        for kind in _EVENTS
    ),
    f"""insert into result (instance_uid, job_key, role, series_uid, digest, bytes, stored_at,
        confirmed_at)
    {_COUNT} select '2.25.' || (100000 + i), {_KEY}, 'SEG', '2.26.' || (100000 + i), {_KEY},
        500000, {_AGE}, {_AGE} from n""",
)


class Asked:
    """Questions to a ledger in which some jobs wait and some run."""

    def __init__(self, ledger: Ledger) -> None:
        self.intake = IntakeLedger(ledger)
        self.leases = LeaseLedger(ledger, LIMITS)
        self.outbox = OutboxLedger(ledger, LIMITS)
        self.view = LedgerView(ledger)
        self.work = WorkLedger(ledger, "host/1/1/1", LIMITS)
        self.parent = WorkerLedger(ledger, "host/1")
        self.parent.announce("ct-tissue", "1.0.0", DIGEST, "card")
        self.ledger = ledger
        self.arrived = 0
        for _ in range(WAITING):
            self.decide()
        for _ in range(4):
            self.work.claim(LANE, [DIGEST])

    def decide(self) -> None:
        self.arrived += 1
        name, series = f"new{self.arrived}", f"1.3.{self.arrived}"
        self.intake.note(ARCHIVE, self.arrived, [name])
        [quiet] = [q for q in self.intake.quiet(ARCHIVE, 0) if q.orthanc_id == name]
        made = NewJob(
            key=content_digest([series]),
            study_uid=series,
            series_uids=(series,),
            content=content_digest([series]),
            instance_count=300,
            route="any CT",
            route_rank=0,
            model="ct-tissue",
            model_version="1.0.0",
            model_digest=DIGEST,
            lane=LANE,
            last_instance_at=quiet.last_instance_at,
        )
        decision = Decision(
            orthanc_id=name,
            last_instance_at=quiet.last_instance_at,
            study_uid=series,
            series_uid=series,
            instance_count=300,
            verdicts=VERDICTS,
            jobs=(made,),
        )
        assert self.intake.decide(ARCHIVE, decision) == [made.key]

    def questions(self) -> dict[str, tuple[str, Callable[[], object]]]:
        """Return who asks how often, and the question."""
        one = content_digest(["1.3.7"])
        every = [f"o{number}" for number in range(ROWS)]
        return {
            "claim": ("ring", lambda: self.work.claim(LANE, [DIGEST])),
            "claim, no work": ("ring", lambda: self.work.claim("other", [DIGEST])),
            "note + quiet + decide": ("series", self.decide),
            "leases.expired": ("0.5 s", self.leases.expired),
            "outbox.due": ("0.5 s", self.outbox.due),
            "outbox.tidy": ("10 s", self.outbox.tidy),
            "intake.quiet": ("0.5 s", lambda: self.intake.quiet(ARCHIVE, 5)),
            "intake.replace_stranded": (
                "0.5 s",
                lambda: self.intake.replace_stranded(60),
            ),
            "intake.models": ("series", lambda: self.intake.models(60)),
            "intake.own_series": ("series", lambda: self.intake.own_series("2.26.100007")),
            "intake.unlisted": ("1 h", lambda: self.intake.unlisted(ARCHIVE, every)),
            "intake.recent": ("1 h", lambda: self.intake.recent(ARCHIVE, 3 * 86400)),
            "leases.held": ("1 s", lambda: self.leases.held("host")),
            "worker.needed": ("60 s", self.parent.needed),
            "view.jobs": ("page", self.view.jobs),
            "view.jobs, state failed": ("page", lambda: self.view.jobs(state="failed")),
            "view.jobs, state queued": ("page", lambda: self.view.jobs(state="queued")),
            "view.jobs, page 50": ("page", lambda: self.view.jobs(offset=4900)),
            "view.jobs, study": ("page", lambda: self.view.jobs(study_uid="1.3.7")),
            "view.job": ("page", lambda: self.view.job(one)),
            "view.job, 12 digits": ("command", lambda: self.view.job(one[:12])),
            "view.counts": ("page", self.view.counts),
            "study_overlays": ("viewer", lambda: study_overlays(self.ledger, "1.3.7")),
            "view.series": ("page", lambda: self.view.series("1.3.7")),
        }

    def median_ms(self, question: Callable[[], object]) -> float:
        took = []
        for _ in range(TIMES):
            began = time.perf_counter()
            question()
            took.append(time.perf_counter() - began)
        return 1000 * statistics.median(took)


def fill(connection: Connection) -> None:
    for statement in _FILL:
        connection.exec_driver_sql(statement)


def settle(engine: Engine) -> None:
    """Do what PostgreSQL's autovacuum does within minutes."""
    if engine.dialect.name == "postgresql":
        alone = engine.execution_options(isolation_level="AUTOCOMMIT")
        with alone.connect() as connection:
            connection.exec_driver_sql("vacuum analyze")


@contextmanager
def selects(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    said: list[tuple[str, Any]] = []

    def note(  # as SQLAlchemy calls it
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if statement.startswith("SELECT"):
            said.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    yield said
    event.remove(engine, "before_cursor_execute", note)


def plans(ledger: Ledger, question: Callable[[], object]) -> list[str]:
    """Return the tables that a question reads whole, with the SELECT that does so."""
    with selects(ledger.engine) as said:
        question()
    sqlite = ledger.engine.dialect.name == "sqlite"
    explain = "explain query plan " if sqlite else "explain (analyze, timing off, costs off) "
    lines = []
    with ledger.read() as connection:
        for statement, parameters in said:
            plan = connection.exec_driver_sql(explain + statement, parameters).all()
            steps = [str(row[-1]).strip()[:110] for row in plan]
            whole = [step for step in steps if "SCAN " in step or "Seq Scan" in step]
            if whole:
                lines += [" ".join(statement.split())[-110:], *(f"    {step}" for step in whole)]
    return lines


def test_finished_jobs_cost_nothing_noticeable(ledger: Ledger) -> None:
    asked = Asked(ledger)
    questions = asked.questions()
    empty = {name: asked.median_ms(question) for name, (_, question) in questions.items()}
    with ledger.write() as connection:
        # those that stand there by now, so that claims find work in both rounds
        connection.execute(text("update job set state = 'queued' where state = 'running'"))
        fill(connection)
    settle(ledger.engine)
    console = Console(width=120)
    table = Table(
        "asked",
        "how often",
        "0 rows, ms",
        f"{ROWS} rows, ms",
        title=f"{ledger.engine.dialect.name} {ledger.engine.dialect.server_version_info}",
    )
    grown = []
    for name, (often, question) in questions.items():
        full = asked.median_ms(question)
        table.add_row(name, often, f"{empty[name]:.2f}", f"{full:.2f}")
        if full - empty[name] > GREW_MS:
            grown.append(name)
    console.print(table)
    for name in grown:
        console.print(f"\n{name}", style="bold")
        for line in plans(ledger, questions[name][1]):
            console.print(line, markup=False, highlight=False)
