"""What Prometheus scrapes."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from segnode_contract.errors import ModelProcessDied
from segnode_contract.ledger import ActLedger, Ledger, WorkerLedger, schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.settings import Limits

from .conftest import PageNode
from .pages import SCRIPT, Named, client
from .rows import claim_job, fail_job, finish_job, queue_job

STATES = 9
STUDY = "1.2.840.99999.7"


@pytest.fixture
def monitor(ledger: Ledger) -> FlaskClient:
    return client(ledger, Named(), user="viewer")


def read(monitor: FlaskClient) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples by name and values of their labels, in the order of the labels' names."""
    samples: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(monitor.get("/metrics").text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            samples.setdefault(sample.name, {})[labels] = sample.value
    return samples


def test_an_empty_node_answers_with_zeros(monitor: FlaskClient) -> None:
    samples = read(monitor)
    assert len(samples["segnode_jobs"]) == STATES
    assert set(samples["segnode_jobs"].values()) == {0}
    assert samples["segnode_queue"] == {("stat",): 0, ("routine",): 0, ("background",): 0}
    assert samples["segnode_workers"][("ready",)] == 0
    assert list(samples["segnode_info"].values()) == [1]


def test_jobs_and_the_queue_are_counted(monitor: FlaskClient, ledger: Ledger) -> None:
    for number in range(1, 5):
        queue_job(ledger, number=number)
    finish_job(ledger)
    claim_job(ledger)
    with ledger.write() as connection:
        connection.execute(update(schema.job).values(tried_since=now_s() - 100))
    samples = read(monitor)
    jobs = samples["segnode_jobs"]
    assert [jobs[(state,)] for state in ("done", "running", "queued")] == [1, 1, 2]
    assert samples["segnode_queue"][("routine",)] == 2
    assert samples["segnode_queue_oldest_seconds"][("routine",)] == pytest.approx(100, abs=20)
    assert samples["segnode_queue_oldest_seconds"][("stat",)] == 0


def test_what_only_people_bring_on_is_a_dead_letter(monitor: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    for _ in range(Limits().deliveries):
        fail_job(ledger, ModelProcessDied("It died."))
        with ledger.write() as connection:
            connection.execute(update(schema.job).values(not_before=0))
    samples = read(monitor)
    assert samples["segnode_dead_letters"] == {("job",): 1, ("delivery",): 0}
    assert samples["segnode_results_total"][("ct-tissue", "dead")] == 1


def test_times_are_histograms_whose_counts_only_grow(monitor: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    with ledger.write() as connection:
        connection.execute(update(schema.job).values(last_instance_at=now_s() - 45))
    finish_job(ledger)
    samples = read(monitor)
    buckets = {
        bound: count for (bound, _), count in samples["segnode_latency_seconds_bucket"].items()
    }
    assert (buckets["30.0"], buckets["60.0"], buckets["+Inf"]) == (0, 1, 1)
    assert list(buckets.values()) == sorted(buckets.values())
    assert samples["segnode_latency_seconds_sum"][("ct-tissue",)] == pytest.approx(45, rel=0.1)
    assert samples["segnode_stage_seconds_count"][("ct-tissue", "confirm")] == 1
    assert ("ct-tissue", "infer") not in samples["segnode_stage_seconds_count"]


def test_results_of_days_gone_by_stay_counted(monitor: FlaskClient, ledger: Ledger) -> None:
    for number in (1, 2):
        queue_job(ledger, number=number)
        finish_job(ledger)
        with ledger.write() as connection:
            day = schema.tally.c.day
            connection.execute(update(schema.tally).where(day > 0).values(day=day - 400))
    samples = read(monitor)
    assert samples["segnode_results_total"][("ct-tissue", "done")] == 2
    assert samples["segnode_latency_seconds_count"][("ct-tissue",)] == 2


def test_workers_are_told_by_state_and_room_by_host(monitor: FlaskClient, ledger: Ledger) -> None:
    WorkerLedger(ledger, "a-0a1b2c3d-f0000001/1").seen("ready", "", {"free_mb": 9000})
    WorkerLedger(ledger, "a-9f8e7d6c-f0000002/2").seen("ready", "", {"free_mb": 7000})
    WorkerLedger(ledger, "b-0a1b2c3d-f0000001/1").seen("no-space", "Make room.", {"free_mb": 10})
    WorkerLedger(ledger, "c-0a1b2c3d-f0000001/1").seen("ready", "", {"free_mb": 1})
    WorkerLedger(ledger, "d-0a1b2c3d-f0000001/1").seen("ready")
    with ledger.write() as connection:
        lost = update(schema.worker).where(schema.worker.c.name == "c-0a1b2c3d-f0000001/1")
        connection.execute(lost.values(seen_at=now_s() - 65))
    samples = read(monitor)
    workers = samples["segnode_workers"]
    assert [workers[(state,)] for state in ("ready", "no-space", "silent")] == [3, 1, 1]
    assert samples["segnode_worker_free_bytes"] == {
        ("a",): 7000 << 20,
        ("b",): 10 << 20,
    }, "by its name, whichever boot or container"


def test_nothing_in_it_tells_of_a_patient_a_job_or_a_user(
    monitor: FlaskClient, ledger: Ledger
) -> None:
    key = queue_job(ledger, study_uid=STUDY)
    fail_job(ledger)
    ActLedger(ledger).retry(key, "operator")
    finish_job(ledger)
    text = monitor.get("/metrics").text
    for identifier in (key[:12], STUDY, SCRIPT, "operator", "viewer", "e" * 12):
        assert identifier not in text


def test_more_jobs_make_no_more_lines(monitor: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    finish_job(ledger)
    lines = monitor.get("/metrics").text.count("\n")
    for number in range(2, 12):
        queue_job(ledger, number=number, study_uid=f"1.{number}")
        finish_job(ledger)
    assert monitor.get("/metrics").text.count("\n") == lines


def test_it_says_that_it_is_the_text_format(monitor: FlaskClient) -> None:
    wanted = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=x"}
    answer = monitor.get("/metrics", headers=wanted)
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"


def test_a_stranger_and_a_worker_get_nothing(ledger: Ledger) -> None:
    for user in ("stranger", "worker"):
        assert client(ledger, user=user).get("/metrics").status_code == 403


def test_orthanc_serves_it_to_people_and_not_to_strangers(page_node: PageNode) -> None:
    answer = page_node.ask("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'segnode_jobs{state="done"} 1.0' in answer.text
    assert page_node.ask("/metrics", user=None).status == 401
    assert page_node.ask("/metrics", user="worker").status == 403
    assert page_node.ask("/metrics", method="POST").status == 403
