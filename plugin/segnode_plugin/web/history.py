"""What was: jobs by day, how long results took, what failed, and what people did."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flask import Blueprint, Response, abort, render_template, request

from segnode_contract.ledger.statistics import Statistics
from segnode_contract.ledger.tally import LATENCY
from segnode_plugin.web.days import RANGES, asked_days, day_text
from segnode_plugin.web.days_chart import ENDS, chart_of
from segnode_plugin.web.plots import plot_of
from segnode_plugin.web.site import Site
from segnode_plugin.web.spreadsheet import Cell, csv_text, download
from segnode_plugin.web.timing import Times, counts_from, iso, times_of

_ACTS = 50
"""So many acts of people make a page."""
_ACTS_IN_A_FILE = 10_000
_LAST_SEQ = 2**62
"""No database takes a larger number."""
JOBS_IN_A_FILE = 100_000
_LINES = ("p50", "p95", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A table as a file."""

    head: tuple[str, ...]
    rows: Callable[[Statistics, range], Iterable[Iterable[Cell]]]


def pages(site: Site) -> Blueprint:
    """Make the page, and its tables as files."""
    blueprint = Blueprint("history", __name__, url_prefix="/segnode")
    blueprint.add_app_template_filter(day_text, "day")
    statistics = Statistics(site.ledger)

    @blueprint.get("/history")
    def history() -> str:
        return _history(statistics)

    @blueprint.get("/history/<name>.csv")
    def sheet(name: str) -> Response:
        return _sheet(statistics, name)

    return blueprint


def _history(statistics: Statistics) -> str:
    days = asked_days(statistics)
    stand = statistics.jobs_by_day(days)
    took = _latency(statistics, days)
    failures = statistics.failures(days)
    before = request.args.get("before", None, int)
    before = None if before is None else min(max(before, 0), _LAST_SEQ)
    acts = statistics.acts(days, _ACTS + 1, before=before)
    return render_template(
        "history.html",
        days=days,
        ranges=RANGES,
        stand=stand,
        totals=[(state, sum(each.get(state, 0) for each in stand.values())) for state in ENDS],
        chart=chart_of(days, stand),
        took=took,
        drawn=plot_of(days, took, _LINES),
        failures=failures,
        failed=sum(row.jobs for row in failures),
        acts=acts[:_ACTS],
        more=acts[_ACTS - 1].seq if len(acts) > _ACTS else None,
        most=JOBS_IN_A_FILE,
    )


def _sheet(statistics: Statistics, name: str) -> Response:
    sheet = _SHEETS.get(name)
    if sheet is None:
        abort(404)
    days = asked_days(statistics)
    text = csv_text(sheet.head, sheet.rows(statistics, days))
    return download(f"segnode-{name}-{day_text(days[0])}-{day_text(days[-1])}.csv", text)


def _latency(statistics: Statistics, days: range) -> dict[int, Times]:
    tallied = statistics.by_day(days, [LATENCY])
    return {day: times_of(measures[LATENCY]) for day, measures in tallied.items()}


def _days_rows(statistics: Statistics, days: range) -> Iterable[Iterable[Cell]]:
    stand = statistics.jobs_by_day(days)
    for day in days:
        yield [day_text(day), *(stand.get(day, {}).get(state, 0) for state in ENDS)]


def _latency_rows(statistics: Statistics, days: range) -> Iterable[Iterable[Cell]]:
    for day, took in sorted(_latency(statistics, days).items()):
        yield [day_text(day), took.count, *map(_rounded, (took.p50, took.p95, took.p99))]


def _failure_rows(statistics: Statistics, days: range) -> Iterable[Iterable[Cell]]:
    failures = statistics.failures(days)
    failed = sum(row.jobs for row in failures)
    for row in failures:
        yield [row.code, row.jobs, round(row.jobs / failed, 4), iso(row.last_at)]


def _act_rows(statistics: Statistics, days: range) -> Iterable[Iterable[Cell]]:
    for act in statistics.acts(days, _ACTS_IN_A_FILE):
        yield [iso(act.at), act.actor, act.kind, act.detail, act.job_key]


def _job_rows(statistics: Statistics, days: range) -> Iterable[Iterable[Cell]]:
    for job in statistics.jobs(days, JOBS_IN_A_FILE):
        since, what = counts_from(job)
        yield [
            job.key,
            job.state,
            job.model,
            job.model_version,
            job.route,
            job.priority,
            job.modality,
            iso(job.created_at),
            None if job.confirmed_at is None else _rounded(job.confirmed_at - since),
            what,
            job.error_code,
        ]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)


_SHEETS = {
    "days": Sheet(head=("day (UTC)", *ENDS), rows=_days_rows),
    "latency": Sheet(
        head=("day (UTC)", "results", "p50 (s)", "p95 (s)", "p99 (s)"), rows=_latency_rows
    ),
    "failures": Sheet(head=("code", "jobs", "share", "last seen (UTC)"), rows=_failure_rows),
    "people": Sheet(head=("when (UTC)", "who", "what", "detail", "job"), rows=_act_rows),
    "jobs": Sheet(
        head=(
            *("job", "state", "model", "version", "route", "priority", "modality"),
            *("created (UTC)", "result after (s)", "counted from", "error code"),
        ),
        rows=_job_rows,
    ),
}
