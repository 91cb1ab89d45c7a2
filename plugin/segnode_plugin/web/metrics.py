"""Numbers for Prometheus: read from the ledger at each scrape, and without identifiers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flask import Blueprint, Response
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from segnode_contract import __version__
from segnode_contract.destination import DeliveryState
from segnode_contract.job import JobState, Priority, Stage
from segnode_contract.ledger import Ledger, LedgerView
from segnode_contract.ledger.now import NowView
from segnode_contract.ledger.statistics import Buckets, Statistics
from segnode_contract.ledger.tally import EVER, LATENCY, OUTCOMES, seconds_of
from segnode_contract.workers import SILENT_S, machine_of
from segnode_plugin.web.site import Site

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""What every Prometheus reads."""
_BOUNDS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_MB = 1 << 20
_SILENT = "silent"
_STATES = ("ready", "no-space", "no-model", _SILENT)
"""Of workers: as they say, or that they say nothing."""


def pages(site: Site) -> Blueprint:
    """Answer scrapes."""
    blueprint = Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(Numbers(site.ledger)), content_type=_TEXT)

    return blueprint


class Numbers(Collector):
    """All that is told; labels have few values, which are names of settings and models."""

    def __init__(self, ledger: Ledger) -> None:
        self._view = LedgerView(ledger)
        self._now = NowView(ledger)
        self._statistics = Statistics(ledger)

    def collect(self) -> Iterator[Metric]:
        """Read the ledger."""
        yield InfoMetricFamily("segnode", "This program.", {"version": __version__})
        yield from self._jobs()
        yield from self._queue()
        yield from self._workers()
        yield from self._tallied()

    def _jobs(self) -> Iterator[Metric]:
        jobs, deliveries = self._view.counts(), self._statistics.deliveries()
        yield _gauge("segnode_jobs", "Jobs by state.", "state", _all(JobState, jobs))
        yield _gauge(
            "segnode_deliveries",
            "Results on their way to other archives, by state.",
            "state",
            _all(DeliveryState, deliveries),
        )
        yield _gauge(
            "segnode_dead_letters",
            "What nothing but an act brings on: jobs that are dead, deliveries that failed.",
            "kind",
            {
                "job": jobs.get(JobState.DEAD, 0),
                "delivery": self._view.failed_deliveries(),
            },
        )

    def _queue(self) -> Iterator[Metric]:
        names = [priority.name.lower() for priority in Priority]
        now, queue = self._view.now(), self._now.queue()
        counts = {each.priority: each.count for each in queue}
        oldest = {each.priority: max(now - each.since, 0.0) for each in queue}
        yield _gauge("segnode_queue", "Queued jobs.", "priority", _all(names, counts))
        yield _gauge(
            "segnode_queue_oldest_seconds",
            "How long the queued job that comes first waits, 0 without one.",
            "priority",
            _all(names, oldest),
        )

    def _workers(self) -> Iterator[Metric]:
        states: dict[str, int] = {}
        free: dict[str, float] = {}
        now = self._view.now()
        for worker in self._view.workers():
            lives = now - worker.seen_at < SILENT_S
            state = worker.state if lives else _SILENT
            states[state] = states.get(state, 0) + 1
            free_mb = (worker.report or {}).get("free_mb")
            if lives and free_mb is not None:
                host = machine_of(worker.name)
                free[host] = min(free.get(host, free_mb * _MB), free_mb * _MB)
        yield _gauge("segnode_workers", "Workers of the last day.", "state", _all(_STATES, states))
        yield _gauge(
            "segnode_worker_free_bytes", "Room for results on a worker's disk.", "host", free
        )

    def _tallied(self) -> Iterator[Metric]:
        tallied = self._statistics.by_model([EVER], (*Stage, LATENCY, *OUTCOMES))
        stages = HistogramMetricFamily(
            "segnode_stage_seconds",
            "Stages of runs that are done; the sum is right within 2.5 %.",
            labels=["model", "stage"],
        )
        latency = HistogramMetricFamily(
            "segnode_latency_seconds",
            "From the last image to the result confirmed, of results that came by themselves.",
            labels=["model"],
        )
        results = CounterMetricFamily(
            "segnode_results",
            "Runs that ended, and are not tried again by themselves.",
            labels=["model", "outcome"],
        )
        for model, measures in sorted(tallied.items()):
            for stage in Stage:
                if stage in measures:
                    stages.add_metric([model, stage], *_histogram(measures[stage]))
            if LATENCY in measures:
                latency.add_metric([model], *_histogram(measures[LATENCY]))
            for outcome in OUTCOMES:
                results.add_metric([model, outcome], sum(measures.get(outcome, {}).values()))
        yield from (stages, latency, results)


def _all(names: Iterable[str], counts: dict[str, float] | dict[str, int]) -> dict[str, float]:
    """Return a number for each name, so that one that is 0 is there as well."""
    return {str(name): 0.0 for name in names} | {name: float(n) for name, n in counts.items()}


def _gauge(name: str, words: str, label: str, values: dict[str, float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _histogram(buckets: Buckets) -> tuple[list[tuple[str, float]], float]:
    """Return the counts up to each bound, and the sum of all times."""
    times = [(seconds_of(bucket), count) for bucket, count in buckets.items()]
    bounds = [*_BOUNDS_S, float("inf")]
    return [
        (_bound_text(bound), float(sum(count for seconds, count in times if seconds <= bound)))
        for bound in bounds
    ], sum(seconds * count for seconds, count in times)


def _bound_text(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(float(bound))
