"""What each page costs with 100,000 jobs in the ledger: .venv/bin/pytest -qs tests/bench/pages.py

Prints the median and the 95th percentile of each page's answer, on SQLite and on PostgreSQL. Fails
where one does not answer; a slow one is called so.
"""

from __future__ import annotations

import re
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from flask.testing import FlaskClient
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, text

from segnode_contract.ledger import Ledger, WorkerLedger
from segnode_contract.ledger.tally import EVER
from segnode_contract.settings import load_settings
from segnode_models.registry import builtin_models
from segnode_plugin.web.site import Site

from ..plugin.pages import CONFIG, Named, archive_pages, client, token
from ..plugin.shelf import Shelf
from .ledger_rows import settle
from .measured import machine

ROWS = 100_000
STUDIES = ROWS // 2
DAYS = 90
FOUND = 30
TIMES = 30
SLOW_MS = 300
SLOW_FILE_MS = 3000
"""A file of 90 days has up to 100,000 lines, and people wait for a download."""
SLOW_REPLAY_MS = 4500
"""A replay looks at studies for 4 s, and then says where it goes on."""

_N = f"with recursive n(i) as (select 0 union all select i + 1 from n where i < {ROWS - 1})"
_KEY = f"'{'e' * 58}' || (100000 + i)"
STUDY_UID = "1.2.840.113619.2.55.3.604688119.970."
SERIES_UID = "1.2.840.113619.2.55.3.604688119.971."
_STUDY = f"'{STUDY_UID}' || (100000 + i / 2)"
_SERIES = f"'{SERIES_UID}' || (100000 + i)"
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
        {_N} select 'a', 'o' || (100000 + i), {age} - 20, {age} - 5, {age}, {_STUDY}, {_SERIES},
            300, '[{{"route": "tissue", "taken": true, "reason": "every condition holds"}}]'
            from n""",
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


class Stocked(Shelf):
    """The archive of these jobs: what is asked for finds its study on the shelf."""

    def __init__(self, now: float) -> None:
        super().__init__()
        self._now = now
        self._number = -1

    def get(self, uri: str) -> Any:
        if uri == "/studies":
            return [f"study {STUDY_UID}{100000 + number}" for number in range(STUDIES)]
        self._fetch(uri)
        found = super().get(uri)
        if uri.startswith("/studies/study") and isinstance(found, dict):
            age = timedelta(days=DAYS * (1 - self._number / STUDIES))
            came = datetime.fromtimestamp(self._now, UTC) - age
            found |= {"LastUpdate": came.strftime("%Y%m%dT%H%M%S"), "Series": list(self.series)}
        return found

    def studies_named(self, study_uid: str) -> list[str]:
        self._fetch(study_uid)
        return super().studies_named(study_uid)

    def series_named(self, series_uid: str) -> list[str]:
        self._fetch(series_uid)
        return super().series_named(series_uid)

    def studies_with(self, keyword: str, value: str) -> list[str]:
        return [f"{STUDY_UID}{100000 + number * 1000}" for number in range(FOUND)]

    vr = Named.vr

    def _fetch(self, name: str) -> None:
        found = re.search(r"(970\.|971\.|/o)(\d{6})", name)
        place = int(found[2]) - 100000 if found else 0
        number = place if found and found[1] == "970." else place // 2
        if number != self._number:
            self._number = number
            self.series.clear()
            study_uid = f"{STUDY_UID}{100000 + number}"
            for each in (100000 + 2 * number, 100001 + 2 * number):
                self.add(f"o{each}", f"{SERIES_UID}{each}", study=study_uid)


@dataclass(frozen=True, kw_only=True)
class Question:
    """An address that people open, or a form that they send."""

    address: str
    form: dict[str, str] | None = None
    slow_ms: int = SLOW_MS
    times: int = TIMES

    def ask(self, browser: FlaskClient, word: str) -> tuple[float, int, int]:
        """Return milliseconds, status and bytes of one answer."""
        began = time.perf_counter()
        if self.form is None:
            answer = browser.get(self.address)
        else:
            answer = browser.post(self.address, data={"token": word, **self.form})
        return 1000 * (time.perf_counter() - began), answer.status_code, len(answer.data)


def questions(now: float) -> list[Question]:
    """Return what people ask for."""
    done, study = ROWS // 2 + 4, STUDIES // 2 + 2
    key, uid = f"{'e' * 58}{100000 + done}", f"{STUDY_UID}{100000 + study}"
    today = datetime.fromtimestamp(now, UTC)
    week, yesterday = (f"{today - timedelta(days=days):%Y-%m-%d}" for days in (7, 1))
    pages = [
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
        f"jobs?from={week}&to={today:%Y-%m-%d}",
        f"jobs/{key}",
        f"jobs/{key}/live",
        f"jobs/{key}/withdraw",
        f"studies/{uid}",
        f"studies/{uid}/explain",
        f"series/{SERIES_UID}{100000 + done}/run",
        "routes",
        "replay",
        "models",
        "models/ct-tissue",
        "models/ct-tissue?days=90",
        "history",
        "history?days=90",
        f"api/overlays?StudyInstanceUIDs={uid}",
    ]
    files = ("days", "latency", "failures", "people", "jobs")
    all_failed = {"state": "failed", "which": "all", "sure": "1"}
    return [
        *(Question(address=f"/segnode/{page}") for page in pages),
        Question(address="/metrics"),
        Question(address="/segnode/search", form={"by": "patient", "value": "P-1"}),
        *(
            Question(address=f"/segnode/history/{name}.csv?days=90", slow_ms=SLOW_FILE_MS, times=5)
            for name in files
        ),
        Question(address=f"/segnode/replay?since={yesterday}", slow_ms=SLOW_REPLAY_MS, times=3),
        Question(address="/segnode/jobs/retry", form=all_failed, slow_ms=SLOW_FILE_MS, times=1),
    ]


def test_each_page_with_100_000_jobs(ledger: Ledger) -> None:
    now, digests = time.time(), {}
    for listed in builtin_models():
        card = listed.card
        WorkerLedger(ledger, "host/1").announce(card.name, card.version, listed.digest, card.source)
        digests[card.name] = listed.digest
    WorkerLedger(ledger, "host/1").seen("ready")
    with ledger.write() as connection:
        fill(connection, now, digests)
    settle(ledger.engine)
    archive, settings = Stocked(now), load_settings(CONFIG)
    site = Site(ledger=ledger, settings=settings, archive=archive)
    pages = archive_pages(site, archive)
    browser = client(ledger, archive, user="admin", settings=settings, blueprints=pages)
    word = token(browser.get("/segnode/jobs").text)
    table = Table(
        *("page", "bytes", "n", "median ms", "p95 ms", "limit", ""),
        title=f"{ledger.engine.dialect.name}, {ROWS} jobs, {machine()}",
    )
    wrong = []
    for question in questions(now):
        if question.times > 1:
            question.ask(browser, word)
        told = [question.ask(browser, word) for _ in range(question.times)]
        took, (_, status, size) = [ms for ms, _, _ in told], told[-1]
        p95 = statistics.quantiles(took, n=20, method="inclusive")[-1] if took[1:] else took[0]
        wrong += [f"{question.address} answers {status}"] if status not in (200, 302) else []
        table.add_row(
            *(question.address, str(size), str(len(took)), f"{statistics.median(took):.0f}"),
            *(f"{p95:.0f}", str(question.slow_ms), "slow" if p95 > question.slow_ms else ""),
        )
    Console(width=150).print(table)
    assert wrong == []
    with ledger.read() as connection:
        jobs = connection.execute(text("select count(*) from job")).scalar_one()
    assert jobs == ROWS
