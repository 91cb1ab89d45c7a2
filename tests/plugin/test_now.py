"""What the first page says of this moment, and when it is sent again."""

from __future__ import annotations

import html
import re
import time
from dataclasses import replace

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from segnode_contract.destination import Destination
from segnode_contract.errors import PeerRefused
from segnode_contract.job import Stage
from segnode_contract.ledger import DeliveryLedger, Ledger, WorkerLedger, write_shared
from segnode_contract.ledger.alerts import AlertLedger
from segnode_contract.ledger.deliveries import Taken
from segnode_contract.settings import Limits, load_settings
from segnode_contract.troubles import Trouble
from segnode_plugin.web.app import create_app
from segnode_plugin.web.health import Health, Reading
from segnode_plugin.web.now import age
from segnode_plugin.web.site import Site

from .pages import CONFIG, SCRIPT, Named, client
from .rows import TILTED, claim_job, fail_job, finish_job, queue_job

REPORT = {
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


def with_health(ledger: Ledger, health: Health) -> FlaskClient:
    site = Site(ledger=ledger, settings=load_settings(CONFIG), health=health)
    found = create_app(site).test_client()
    found.environ_base["REMOTE_USER"] = "viewer"
    return found


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
    assert "Dead letters 1 see, and retry" in words(pages)
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
    alter(ledger, "update worker set seen_at = seen_at - 100")
    said = words(pages)
    assert "No worker says that it lives" in said
    assert re.search(r"silent not said none 1 min 4\d s ago", said)


def test_a_delivery_that_failed_is_warned_of(pages: FlaskClient, ledger: Ledger) -> None:
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
    assert "1 delivery to other archives failed" in words(pages)
    assert pages.get("/segnode/").headers["ETag"] != before


def test_an_alert_that_could_not_be_told_is_seen_here_at_least(
    pages: FlaskClient, ledger: Ledger
) -> None:
    now = time.time() - 100
    alerts = AlertLedger(ledger)
    trouble = Trouble(name="backlog", sentence="Jobs wait for 2 h.", news_at=now)
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
    assert "Jobs wait for 2 h." in said
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
    health = Health([lambda: Reading(name="Archive", good=True, words="answers"), lambda: redis])
    pages = with_health(ledger, health)
    assert "Not checked yet" in words(pages)
    health.tick()
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


def test_a_server_that_goes_down_is_a_change(ledger: Ledger) -> None:
    readings = [Reading(name="Redis", good=True, words="answers")]
    health = Health([lambda: readings[0]])
    health.tick()
    pages = with_health(ledger, health)
    tag = pages.get("/segnode/now/live").headers["ETag"]
    health._looked = float("-inf")
    readings[0] = replace(readings[0], good=False)
    health.tick()
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
