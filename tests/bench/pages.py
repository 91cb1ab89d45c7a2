"""What each page costs with 100,000 jobs in the ledger: .venv/bin/pytest -qs tests/bench/pages.py

Prints the median and the 95th percentile of each page's answer, on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import statistics
import time

from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, text

from segnode_contract.ledger import Ledger, WorkerLedger
from segnode_contract.ledger.tally import EVER
from segnode_models.registry import builtin_models

from ..plugin.pages import Named, client, token
from .ledger_rows import settle
from .measured import machine

ROWS = 100_000
STUDIES = ROWS // 2
DAYS = 90
TIMES = 30
SLOW_MS = 300

_N = f"with recursive n(i) as (select 0 union all select i + 1 from n where i < {ROWS - 1})"
_KEY = f"'{'e' * 58}' || (100000 + i)"
_STUDY = "'1.2.840.113619.2.55.3.604688119.970.' || (100000 + i / 2)"
_SERIES = "'1.2.840.113619.2.55.3.604688119.971.' || (100000 + i)"
_FINDINGS = '{"withheld": [], "measurements": [' + ", ".join(
    ['{"segment": 1, "name": "Volume", "value": 3.5, "unit": "ml"}'] * 8
)
_STAGES = ("queued", "fetch", "stack", "turn", "infer", "encode", "verify", "store", "confirm")
_STATE = """case when i % 20 = 0 then 'failed' when i % 50 = 1 then 'superseded'
    when i % 500 = 2 then 'dead' when i % 333 = 3 then 'cancelled' else 'done' end"""
_CODE = """case when i % 500 = 2 then 'archive-unavailable' when i % 20 <> 0 then null
    when i % 3 = 0 then 'gantry-tilt' when i % 3 = 1 then 'missing-slice' else 'too-few' end"""


def fill(connection: Connection, now: float, digests: dict[str, str]) -> None:
    """Write 100,000 jobs of the last 90 days, with all that hangs on them."""
    age = f"{now} - {DAYS * 86400.0} + i * {DAYS * 86400.0 / ROWS}"
    model = "case when i % 2 = 0 then 'ct-tissue' else 'ct-lung-density' end"
    digest = (
        f"case when i % 2 = 0 then '{digests['ct-tissue']}' else '{digests['ct-lung-density']}' end"
    )
    for statement in (
        f"insert into archive (archive_id, last_change, seen_at) values ('a', 1, {now})",
        f"""insert into series (archive_id, orthanc_id, first_instance_at, last_instance_at,
            decided_at, study_uid, series_uid, instance_count, decision)
        {_N} select 'a', 'o' || i, {age} - 20, {age} - 5, {age}, {_STUDY}, {_SERIES}, 300,
            '[{{"route": "tissue", "taken": true, "reason": "every condition holds"}}]' from n""",
        f"""insert into job (key, base_key, archive_id, study_uid, series_uids, content,
            instance_count, modality, first_instance_at, last_instance_at, route, route_rank,
            model, model_version, model_digest, lane, state, tried_since, not_before, attempts,
            deliveries, lease_epoch, error_code, error_sentence, error_stage, priority, findings,
            created_at, updated_at)
        {_N} select {_KEY}, {_KEY}, 'a', {_STUDY}, {_SERIES}, {_KEY}, 300,
            case when i % 7 = 0 then 'MR' else 'CT' end, {age} - 20, {age} - 5,
            'route ' || (i % 6), i % 6, {model}, '1.0.0', {digest}, 'default', {_STATE}, {age},
            {age}, 0, 1, 1, {_CODE}, case when i % 20 = 0 then 'It is refused.' end,
            case when i % 20 = 0 then 'stack' end, i % 3, '{_FINDINGS}]}}', {age}, {age} + 20
            from n""",
        f"""insert into run (id, job_key, epoch, worker, started_at, ended_at, outcome, peak_mb)
        {_N} select i + 1000000, {_KEY}, 1, 'host/1/1/1', {age}, {age} + 20, 'done', 900 from n""",
        *(
            f"""insert into stage (run_id, stage, started_at, seconds)
            {_N} select i + 1000000, '{stage}', {age} + {place}, 2.5 from n"""
            for place, stage in enumerate(_STAGES)
        ),
        *(
            f"""insert into event (job_key, at, actor, kind, detail, person)
            {_N} select {_KEY}, {age}, 'host/1/1/1', '{kind}', '', {person} from n"""
            for kind, person in (("queued", "false"), ("done", "false"), ("retried", "true"))
        ),
        f"""insert into result (instance_uid, job_key, role, series_uid, digest, bytes, stored_at,
            confirmed_at)
        {_N} select '2.25.' || (100000 + i), {_KEY}, 'SEG', '2.26.' || (100000 + i), {_KEY},
            500000, {age} + 15, {age} + 20 from n""",
        *(
            f"""insert into tally (day, model, measure, bucket, count)
            {_N} select {int(now // 86400)} - i / 60 % {DAYS}, '{name}', '{measure}', i % 60, 9
                from n where i < {DAYS * 60}"""
            for name in digests
            for measure in (*_STAGES, "latency", "done", "failed")
        ),
        f"""insert into tally (day, model, measure, bucket, count)
        select {EVER}, model, measure, bucket, sum(count) from tally
            group by model, measure, bucket""",
    ):
        connection.execute(text(statement))


def questions() -> list[str]:
    """Return the addresses that people open."""
    key, uid = f"{'e' * 58}{100000 + ROWS // 2}", "1.2.840.113619.2.55.3.604688119.970.125000"
    return [
        "",
        "now/live",
        "jobs",
        "jobs?page=1500",
        "jobs?state=failed",
        "jobs?state=queued",
        "jobs?state=done&page=500",
        "jobs?model=ct-tissue&state=failed",
        "jobs?route=route+3",
        "jobs?modality=MR&state=superseded",
        "jobs?code=gantry-tilt",
        f"jobs/{key}",
        f"studies/{uid}",
        "models",
        "models/ct-tissue",
        "models/ct-tissue?days=90",
        "history",
        "history?days=90",
        f"api/overlays?StudyInstanceUIDs={uid}",
    ]


def test_each_page_with_100_000_jobs(ledger: Ledger) -> None:
    digests = {}
    for listed in builtin_models():
        card = listed.card
        WorkerLedger(ledger, "host/1").announce(card.name, card.version, listed.digest, card.source)
        digests[card.name] = listed.digest
    WorkerLedger(ledger, "host/1").seen("ready")
    with ledger.write() as connection:
        fill(connection, time.time(), digests)
    settle(ledger.engine)
    browser = client(ledger, Named(), user="admin")
    table = Table(
        "page",
        "bytes",
        "median ms",
        "p95 ms",
        "",
        title=f"{ledger.engine.dialect.name}, {ROWS} jobs, {machine()}, n={TIMES}",
    )
    for address in [*(f"/segnode/{one}" for one in questions()), "/metrics"]:
        took, answer = [], browser.get(address)
        for _ in range(TIMES):
            began = time.perf_counter()
            answer = browser.get(address)
            took.append(1000 * (time.perf_counter() - began))
        p95 = statistics.quantiles(took, n=20)[-1]
        note = f"answers {answer.status_code}" if answer.status_code != 200 else ""
        note = note or ("slow" if p95 > SLOW_MS else "")
        size, middle = str(len(answer.data)), statistics.median(took)
        table.add_row(address, size, f"{middle:.0f}", f"{p95:.0f}", note)
    form = {
        "token": token(browser.get("/segnode/jobs").text),
        "state": "failed",
        "which": "all",
        "sure": "1",
    }
    began = time.perf_counter()
    answer = browser.post("/segnode/jobs/retry", data=form)
    took_ms = 1000 * (time.perf_counter() - began)
    table.add_row(
        "retry all that failed", "", f"{took_ms:.0f}", "", f"answers {answer.status_code}"
    )
    Console(width=120).print(table)
    with ledger.read() as connection:
        jobs = connection.execute(text("select count(*) from job")).scalar_one()
    assert jobs == ROWS
