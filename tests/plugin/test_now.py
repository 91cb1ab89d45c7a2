"""What the first page says of this moment, and when it is sent again."""

from __future__ import annotations

import html
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from segnode_contract.destination import Destination
from segnode_contract.errors import PeerRefused
from segnode_contract.job import Stage
from segnode_contract.ledger import DeliveryLedger, Ledger, WorkerLedger, write_shared
from segnode_contract.ledger.alerts import AlertLedger
from segnode_contract.ledger.deliveries import Taken
from segnode_contract.settings import Connections, Limits, Settings, load_settings
from segnode_contract.troubles import Trouble
from segnode_plugin.web.app import create_app
from segnode_plugin.web.servers import Reading, Servers, servers_of
from segnode_plugin.web.site import Site
from segnode_plugin.web.timing import age

from .pages import CONFIG, SCRIPT, Named, client
from .rows import TILTED, claim_job, fail_job, finish_job, queue_job

REPORT: dict[str, Any] = {
    "device": "NVIDIA H100",
    "memory_mb": 73000,
    "used_mb": 5120,
    "loaded": [{"model": "ct-tissue", "version": "1.0.0", "digest": "abc", "mb": 120}],
    "free_mb": 51200,
    "children": 4,
}


@pytest.fixture
def pages(ledger: Ledger) -> FlaskClient:
    return client(ledger, Named())


def words(pages: FlaskClient, address: str = "") -> str:
    """Return what a page says, as people read it."""
    answer = pages.get(f"/segnode/{address}")
    assert answer.status_code == 200, answer.text
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", answer.text)).split())


def with_servers(
    ledger: Ledger, servers: Servers | None = None, settings: Settings | None = None
) -> FlaskClient:
    """Return a browser; the node was looked at, of no servers but the ledger if none are given."""
    settings = settings or load_settings(CONFIG)
    if servers is None:
        servers = servers_of(ledger, settings, None)
        servers.tick()
    site = Site(ledger=ledger, settings=settings, servers=servers)
    found = create_app(site).test_client()
    found.environ_base["REMOTE_USER"] = "viewer"
    return found


def within(folder: Path) -> Connections:
    """Return where servers would be of which none answers."""
    return Connections(
        data=folder,
        ledger_url="",
        broker_url="redis://127.0.0.1:1/0",
        archive_url="http://127.0.0.1:1/",
        archive_user="",
        archive_password="",
    )


def alter(ledger: Ledger, statement: str, **values: object) -> None:
    with ledger.write() as connection:
        connection.execute(text(statement), values)


def test_an_empty_node_says_what_to_do_next(pages: FlaskClient) -> None:
    said = words(pages)
    assert "No job runs. Nothing is queued either: send a study with segnode send FOLDER" in said
    assert "No worker was seen in the last day. segnode up starts workers" in said
    assert "Not checked yet: segnode doctor checks every part." in said


def test_the_queue_is_counted_by_priority_with_the_age_of_its_first(
    pages: FlaskClient, ledger: Ledger
) -> None:
    keys = [queue_job(ledger, number=number) for number in (1, 2, 3)]
    alter(
        ledger,
        "update job set priority = 0, tried_since = tried_since - 200 where key = :key",
        key=keys[0],
    )
    alter(ledger, "update job set lane = 'other' where key = :key", key=keys[1])
    said = words(pages)
    assert re.search(r"Queued, stat 1 the first for 3 min 2\d s", said)
    assert re.search(r"Queued, routine 2 the first for \d s", said)
    assert "Queued, background 0 none" in said


def test_jobs_that_wait_for_another_are_counted(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    alter(ledger, "update job set state = 'waiting' where key = :key", key=key)
    assert "Waiting for another job 1" in words(pages)
    assert "Queued, routine 0" in words(pages)


def test_a_running_job_shows_stage_and_progress_and_leads_to_its_page(
    pages: FlaskClient, ledger: Ledger
) -> None:
    key = queue_job(ledger)
    work, claim = claim_job(ledger)
    with work.stage(claim, Stage.INFER):
        work.progress(claim, 0.42)
        said = words(pages)
        assert re.search(r"ct-tissue \S+ , job 00000001eeee tissue 112 infer for \d s 42 %", said)
        assert f'href="/segnode/jobs/{key}"' in pages.get("/segnode/").text
    with work.stage(claim, Stage.ENCODE):
        assert "encode for" in words(pages)


def test_what_ended_lately_is_counted(pages: FlaskClient, ledger: Ledger) -> None:
    for number in (1, 2, 3):
        queue_job(ledger, number=number)
    finish_job(ledger)
    finish_job(ledger)
    fail_job(ledger)
    said = words(pages)
    assert "Done 2 in the last hour; 2 in 24 h" in said
    assert "Failed 1 in 24 h" in said
    alter(ledger, "update job set updated_at = updated_at - 7200 where state = 'done'")
    assert "Done 0 in the last hour; 2 in 24 h" in words(pages)
    alter(ledger, "update job set updated_at = updated_at - 90000")
    assert "Done 0 in the last hour; 0 in 24 h" in words(pages)
    assert "Failed 0 in 24 h" in words(pages)


def test_dead_letters_lead_to_their_list(pages: FlaskClient, ledger: Ledger) -> None:
    assert "state=dead" not in pages.get("/segnode/").text
    key = queue_job(ledger)
    alter(ledger, "update job set state = 'dead' where key = :key", key=key)
    said = words(pages)
    assert "Dead letters 1 see, and retry ; 1 in 24 h" in said
    assert "Failed 0 in 24 h; all that failed" in said, "its list has no dead ones"
    assert 'href="/segnode/jobs?state=dead"' in pages.get("/segnode/").text


def test_a_worker_shows_its_device_memory_and_models(pages: FlaskClient, ledger: Ledger) -> None:
    WorkerLedger(ledger, "host/1").seen("ready", "", REPORT)
    said = words(pages)
    assert "ready NVIDIA H100 5,120 of 73,000 MB ct-tissue 1.0.0 (120 MB) 4 50.0 GB 0 s ago" in said


def test_a_worker_that_reports_nothing_is_shown_all_the_same(
    pages: FlaskClient, ledger: Ledger
) -> None:
    WorkerLedger(ledger, "host/1").seen("ready")
    assert "ready not said none 0 s ago" in words(pages)
    WorkerLedger(ledger, "host/1").seen("ready", "", {"loaded": [{}], "memory_mb": None})
    assert "ready not said" in words(pages)


def test_why_no_worker_takes_jobs_stands_on_the_first_page(
    pages: FlaskClient, ledger: Ledger
) -> None:
    assert "No worker says that it lives" in words(pages)
    worker = WorkerLedger(ledger, "host/1")
    worker.seen("ready")
    assert 'class="trouble">' not in pages.get("/segnode/").text
    worker.seen("no-space", "12 MB are free for results, 2048 MB are wanted")
    assert "Worker host/1 takes no jobs: 12 MB are free for results" in words(pages)
    worker.seen("ready", "ct-liver is refused: it is not pinned.")
    assert "Worker host/1 does not offer every model: ct-liver is refused" in words(pages)


def test_a_worker_that_fell_silent_is_told_from_one_that_lives(
    pages: FlaskClient, ledger: Ledger
) -> None:
    WorkerLedger(ledger, "host/1").seen("ready")
    alter(ledger, "update worker set seen_at = seen_at - 65")
    said = words(pages)
    assert "No worker says that it lives" in said
    assert re.search(r"silent not said none 1 min [01]\d s ago", said)


def test_a_worker_that_is_lost_is_named_once(ledger: Ledger) -> None:
    WorkerLedger(ledger, "gpu1-0a1b2c3d-f0000000/7").seen("ready")
    alter(ledger, "update worker set seen_at = seen_at - 400")
    said = words(with_servers(ledger))
    assert "A worker is lost: gpu1-0a1b2c3d-f0000000/7 (6 min silent). None is left" in said
    assert "No worker says that it lives" not in said


def test_jobs_that_wait_too_long_are_named_though_nobody_is_told(ledger: Ledger) -> None:
    queue_job(ledger)
    alter(ledger, "update job set tried_since = tried_since - 9000, not_before = not_before - 9000")
    pages = with_servers(ledger)
    assert "1 job waits, the oldest (00000001eeee) for 2.5 h, where 30 min is the limit" in words(
        pages
    )


def test_no_request_waits_for_what_looks_at_the_whole_node(ledger: Ledger) -> None:
    def judge() -> tuple[Trouble, ...]:
        raise AssertionError("only the thread of its own looks")

    assert "Running jobs" in words(with_servers(ledger, Servers([], judge)))


def test_a_data_folder_without_room_is_said_once_with_the_limit_of_the_alerts(
    ledger: Ledger, tmp_path: Path
) -> None:
    settings = load_settings(CONFIG)
    much = replace(settings, alerts=replace(settings.alerts, free_mb=10**9))
    servers = servers_of(ledger, much, within(tmp_path))
    servers.tick()
    said = words(with_servers(ledger, servers, much))
    assert "Space is low (1000000000 MB are the limit)" in said
    assert "Data folder:" not in said
    assert re.search(r"Data folder trouble .* free, 976562 GB are wanted", said)


def test_a_data_folder_that_cannot_be_read_is_warned_of(ledger: Ledger, tmp_path: Path) -> None:
    settings = load_settings(CONFIG)
    servers = servers_of(ledger, settings, within(tmp_path / "none"))
    servers.tick()
    assert "Data folder: It cannot be read; SEGNODE_DATA names it." in words(
        with_servers(ledger, servers, settings)
    )


def test_a_delivery_that_failed_is_warned_of_once(pages: FlaskClient, ledger: Ledger) -> None:
    shared = load_settings(CONFIG).shared
    pacs = Destination(name="pacs", aet="PACS", host="127.0.0.1")
    write_shared(ledger, replace(shared, destinations=(pacs,)))
    queue_job(ledger)
    finish_job(ledger)
    deliveries = DeliveryLedger(ledger, "s1", Limits())
    held = deliveries.claim("pacs")
    assert held is not None
    before = pages.get("/segnode/").headers["ETag"]
    deliveries.failed(held, PeerRefused("It refused it."), Taken(objects=2, bytes=9))
    assert pages.get("/segnode/").headers["ETag"] != before
    alter(ledger, "update delivery set updated_at = updated_at - 3")
    assert words(with_servers(ledger)).count("1 delivery to other archives failed") == 1


def test_an_alert_that_could_not_be_told_is_seen_here_at_least(ledger: Ledger) -> None:
    now = time.time() - 100
    alerts = AlertLedger(ledger)
    trouble = Trouble(name="backlog", sentence="Jobs wait for 2 h.", news_at=now)
    servers = Servers([], lambda: (trouble,))
    servers.tick()
    pages = with_servers(ledger, servers)
    tag = pages.get("/segnode/").headers["ETag"]
    with (
        pytest.raises(OSError, match="away"),
        alerts.telling("email", [trouble], now, 3600),
    ):
        raise OSError("away")
    assert pages.get("/segnode/").headers["ETag"] != tag
    assert "Jobs wait for 2 h. It could not be told by email: Orthanc's log says why" in words(
        pages
    )
    with alerts.telling("email", [trouble], now + 30, 3600):
        pass
    said = words(pages)
    assert said.count("Jobs wait for 2 h.") == 1
    assert "could not be told" not in said


def test_what_is_wrong_with_the_routes_is_warned_of(ledger: Ledger) -> None:
    WorkerLedger(ledger, "host/1").seen("ready")
    site = Site(ledger=ledger, settings=load_settings(CONFIG), trouble=lambda: "Line 3 is <odd>.")
    found = create_app(site).test_client()
    found.environ_base["REMOTE_USER"] = "viewer"
    assert "Line 3 is &lt;odd&gt;." in found.get("/segnode/").text


def test_a_server_that_is_down_is_warned_of_and_one_that_is_up_is_not(ledger: Ledger) -> None:
    WorkerLedger(ledger, "host/1").seen("ready")
    redis = Reading(name="Redis", good=False, words="It does not answer.")
    servers = Servers([lambda: Reading(name="Archive", good=True, words="answers"), lambda: redis])
    pages = with_servers(ledger, servers)
    assert "Not checked yet" in words(pages)
    servers.tick()
    said = words(pages)
    assert "Now Redis: It does not answer. Queued" in said
    assert re.search(r"Archive good answers \d s Redis trouble It does not answer\. \d s", said)


def test_no_patients_name_stands_on_the_first_page(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    claim_job(ledger)
    for address in ("", "now/live"):
        text = pages.get(f"/segnode/{address}").text
        assert html.escape(SCRIPT) not in text
        assert SCRIPT not in text


def test_it_is_the_same_without_an_archive(ledger: Ledger) -> None:
    queue_job(ledger)
    claim_job(ledger)
    assert "Running 1" in words(client(ledger))


def test_an_unchanged_page_is_not_sent_again(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    whole, live = (pages.get(f"/segnode/{address}") for address in ("", "now/live"))
    assert "Running jobs" in live.text
    assert "<html" not in live.text
    assert live.headers["ETag"] == whole.headers["ETag"]
    again = pages.get("/segnode/now/live", headers={"If-None-Match": whole.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert f'data-tag="{whole.headers["ETag"].strip(chr(34))}"' in whole.text


def test_any_change_is_sent(pages: FlaskClient, ledger: Ledger) -> None:
    seen = ""

    def sent() -> bool:
        nonlocal seen
        answer = pages.get("/segnode/now/live", headers={"If-None-Match": seen})
        seen = answer.headers["ETag"]
        return answer.status_code == 200

    assert sent()
    queue_job(ledger)
    assert sent()
    work, claim = claim_job(ledger)
    assert sent()
    with work.stage(claim, Stage.INFER):
        assert sent()
        work.progress(claim, 0.3)
        assert sent()
    work.failed(claim, TILTED, 100)
    assert sent()
    worker = WorkerLedger(ledger, "host/1")
    for change in (
        lambda: worker.seen("ready"),
        lambda: worker.seen("ready", "", REPORT),
        worker.gone,
    ):
        change()
        assert sent()
    assert not sent()


def test_a_heartbeat_alone_is_sent_each_ten_seconds(
    pages: FlaskClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segnode_plugin.web.fresh._MINUTE_S", float("inf"))
    WorkerLedger(ledger, "host/1").seen("ready", "", REPORT)
    now = time.time() // 10 * 10

    def tag(seen_at: float, free_mb: int = REPORT["free_mb"]) -> str:
        report = json.dumps({**REPORT, "free_mb": free_mb})
        change = "update worker set seen_at = :seen_at, report = :report"
        alter(ledger, change, seen_at=seen_at, report=report)
        return pages.get("/segnode/now/live").headers["ETag"]

    first = tag(now)
    assert tag(now + 2) == tag(now + 9.9) == first
    assert tag(now + 4, REPORT["free_mb"] + 3) == first, "a result was written"
    assert tag(now + 10) != first
    assert tag(now + 4, REPORT["free_mb"] - 2000) != first


def test_that_there_are_more_running_jobs_is_said(
    pages: FlaskClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        queue_job(ledger, number=number)
        claim_job(ledger)
    assert "are shown" not in words(pages)
    monkeypatch.setattr("segnode_plugin.web.now.MOST_RUNNING", 1)
    monkeypatch.setattr("segnode_contract.ledger.now.MOST_RUNNING", 1)
    assert "Running 2" in words(pages)
    assert "The oldest 1 are shown." in words(pages)


def test_a_server_that_goes_down_is_a_change(ledger: Ledger) -> None:
    readings = [Reading(name="Redis", good=True, words="answers")]
    servers = Servers([lambda: readings[0]])
    servers.tick()
    pages = with_servers(ledger, servers)
    tag = pages.get("/segnode/now/live").headers["ETag"]
    servers._looked = float("-inf")
    readings[0] = replace(readings[0], good=False)
    servers.tick()
    assert pages.get("/segnode/now/live", headers={"If-None-Match": tag}).status_code == 200


def test_what_one_user_was_sent_says_nothing_to_another(ledger: Ledger) -> None:
    viewer, operator = (client(ledger, user=user) for user in ("viewer", "operator"))
    tag = viewer.get("/segnode/now/live").headers["ETag"]
    assert operator.get("/segnode/now/live").headers["ETag"] != tag


def test_without_scripts_the_page_is_loaded_again(pages: FlaskClient) -> None:
    assert '<meta http-equiv="refresh" content="5">' in pages.get("/segnode/").text


def test_health_names_the_schema(pages: FlaskClient, ledger: Ledger) -> None:
    assert pages.get("/segnode/health").json == {"status": "ok", "schema": ledger.schema_version()}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "0 s"),
        (12.9, "12 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (86399, "23 h 59 min"),
        (100_000, "1 d 3 h"),
    ],
)
def test_ages_are_words(seconds: float, said: str) -> None:
    assert age(seconds) == said
