"""What an administrator sees, without an Orthanc."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from segnode_contract.destination import Destination
from segnode_contract.errors import ArchiveUnavailable, PeerRefused, PeerUnavailable
from segnode_contract.ledger import (
    DeliveryLedger,
    Ledger,
    LedgerView,
    WorkerLedger,
    write_shared,
)
from segnode_contract.ledger.deliveries import Taken
from segnode_contract.ledger.view import StageTime
from segnode_contract.settings import Limits, load_settings
from segnode_plugin.web.app import StudyWords, create_app
from segnode_plugin.web.timing import bars, duration

from .rows import claim_job, fail_job, finish_job, queue_job

CONFIG = Path(__file__).parents[2] / "orthanc-config" / "segnode.toml"
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def pages(ledger: Ledger) -> FlaskClient:
    return client(ledger)


def client(ledger: Ledger) -> FlaskClient:
    app = create_app(
        LedgerView(ledger),
        settings=load_settings(CONFIG),
        describe=lambda uid: StudyWords(patient_name=SCRIPT, description="d", accession="a"),
    )
    app.testing = True
    return app.test_client()


def add_job(ledger: Ledger) -> str:
    key = queue_job(ledger)
    finish_job(ledger)
    return key


def test_an_empty_node_says_what_to_do_next(pages: FlaskClient) -> None:
    text = pages.get("/segnode/").text
    assert "No job yet" in text
    assert "segnode send" in text


def test_a_state_without_jobs_says_so(pages: FlaskClient, ledger: Ledger) -> None:
    add_job(ledger)
    assert "No job is failed." in pages.get("/segnode/?state=failed").text


def test_a_failed_job_shows_its_code_stage_and_sentence(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    fail_job(ledger)
    for address in ("", "?state=failed", f"jobs/{key}", "studies/1.2"):
        text = pages.get(f"/segnode/{address}").text
        assert "<strong>gantry-tilt</strong> in stack" in text
        assert "18.5 degrees; &lt;b&gt;this" in text
        assert "Open in OHIF</a></td>" not in text


def test_a_job_that_will_be_tried_again_says_when(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    fail_job(ledger, ArchiveUnavailable("The archive answers 503; it is asked again."))
    assert "Next try at <time" in pages.get(f"/segnode/jobs/{key}").text


def test_a_job_that_waits_says_for_what(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    assert "waits for one that serves lane default" in pages.get(f"/segnode/jobs/{key}").text


def test_a_done_job_shows_findings_by_name_and_the_viewer(
    pages: FlaskClient, ledger: Ledger
) -> None:
    text = pages.get(f"/segnode/jobs/{add_job(ledger)}").text
    assert "Adipose tissue" in text
    assert "1234.5 ml" in text
    assert "-102.2 HU" in text
    assert text.count("left out: Contrast medium is likely.") == 1
    assert "not measurable: It is cut." in text
    assert "2 slices are &lt;b&gt;missing&lt;/b&gt;." in text
    assert "verified by nobody" in text
    assert "structured report" not in text
    assert "/ohif/viewer?StudyInstanceUIDs=1.2" in text
    assert "after the last image" in text


def test_a_report_among_the_results_is_mentioned(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    finish_job(ledger, role="SR")
    assert "in the archive as a structured report (SR)" in pages.get(f"/segnode/jobs/{key}").text


def test_the_list_shows_stages_and_counts(pages: FlaskClient, ledger: Ledger) -> None:
    add_job(ledger)
    queue_job(ledger, number=2)
    queue_job(ledger, number=3)
    fail_job(ledger)
    text = pages.get("/segnode/").text
    for count in ("all <b>3</b>", "queued <b>1</b>", "done <b>1</b>", "failed <b>1</b>"):
        assert count in text
    for stage in ("store", "confirm"):
        assert f'<rect class="{stage}"' in text


def test_the_list_refreshes_itself_while_jobs_are_going_on_only(
    pages: FlaskClient, ledger: Ledger
) -> None:
    queue_job(ledger)
    assert 'http-equiv="refresh"' in pages.get("/segnode/?state=queued").text
    claim_job(ledger)
    assert 'http-equiv="refresh"' in pages.get("/segnode/").text


def test_a_finished_list_keeps_still(pages: FlaskClient, ledger: Ledger) -> None:
    key = add_job(ledger)
    for address in ("", f"jobs/{key}", "studies/1.2"):
        assert "http-equiv" not in pages.get(f"/segnode/{address}").text


def test_a_delivery_that_failed_is_shown_with_reason_and_cure(
    pages: FlaskClient, ledger: Ledger
) -> None:
    shared = load_settings(CONFIG).shared
    for name in ("pacs", "other"):
        pacs = Destination(name=name, aet="PACS", host="127.0.0.1")
        shared = replace(shared, destinations=(*shared.destinations, pacs))
    write_shared(ledger, shared)
    key = add_job(ledger)
    assert pages.get(f"/segnode/jobs/{key}").text.count("It waits for the sender") == 2
    deliveries = DeliveryLedger(ledger, "s1", Limits())
    held = deliveries.claim("pacs")
    assert held is not None
    deliveries.failed(held, PeerRefused("It refused <b>it</b>."), Taken(objects=2, bytes=9))
    away = deliveries.claim("other")
    assert away is not None
    deliveries.failed(away, PeerUnavailable("It is away."), Taken())
    text = pages.get(f"/segnode/jobs/{key}").text
    assert "<strong>object-refused</strong>: It refused &lt;b&gt;it&lt;/b&gt;." in text
    assert f"<code>segnode retry {key[:12]}</code> tries again" in text
    assert "It is away. Next try at <time" in " ".join(text.split())
    assert "1 delivery to other archives failed" in pages.get("/segnode/").text


def test_fifty_jobs_make_a_page(pages: FlaskClient, ledger: Ledger) -> None:
    for number in range(1, 53):
        queue_job(ledger, number=number, study_uid=f"1.{number}")
    first, second = (pages.get(f"/segnode/?state=queued&page={n}").text for n in (1, 2))
    assert first.count(">Details</a>") == 50
    assert second.count(">Details</a>") == 2
    assert '<a rel="next" href="/segnode/?page=2&amp;state=queued">' in first
    assert '<a rel="prev" href="/segnode/?page=1&amp;state=queued">' in second
    assert "No more jobs" in pages.get("/segnode/?page=99999999999999999999").text


def test_a_study_shows_the_clause_that_decided(pages: FlaskClient, ledger: Ledger) -> None:
    add_job(ledger)
    assert "Body Part Examined is HEAD, CHEST is wanted" in pages.get("/segnode/studies/1.2").text


def test_a_script_in_a_name_is_text(pages: FlaskClient, ledger: Ledger) -> None:
    key = add_job(ledger)
    for address in ("/segnode/", f"/segnode/jobs/{key}", "/segnode/studies/1.2"):
        page = pages.get(address)
        assert "<script" not in page.text
        assert "&lt;script&gt;" in page.text


def test_every_answer_forbids_scripts_frames_and_copies(pages: FlaskClient, ledger: Ledger) -> None:
    key = add_job(ledger)
    addresses = ["", f"jobs/{key}", "studies/1.2", "health", "nothing", "static/icon.svg"]
    for address in [*addresses, "api/overlays?StudyInstanceUIDs=1.2"]:
        headers = pages.get(f"/segnode/{address}", buffered=True).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cache-Control"] == ("no-cache" if "static" in address else "no-store")


def test_a_ledger_that_does_not_answer_is_said_plainly(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/no-such-folder/ledger.sqlite")
    for address in ("", "jobs/00000001", "studies/1.2", "health", "api/overlays"):
        page = client(ledger).get(f"/segnode/{address}", query_string={"StudyInstanceUIDs": "1.2"})
        assert page.status_code == 503
        assert "Check SEGNODE_LEDGER_URL" in page.text
    ledger.close()


def test_health_names_the_schema(pages: FlaskClient, ledger: Ledger) -> None:
    assert pages.get("/segnode/health").json == {"status": "ok", "schema": ledger.schema_version()}


def test_pages_change_nothing(pages: FlaskClient) -> None:
    answer = pages.post("/segnode/")
    assert answer.status_code == 405
    assert "GET" in answer.headers["Allow"]


def test_bars_lie_one_after_another_and_the_open_one_lasts_until_now() -> None:
    stages = [
        StageTime(stage="queued", started_at=100.0, seconds=5.0),
        StageTime(stage="fetch", started_at=105.0, seconds=None),
    ]
    queued, fetch = bars(stages, until=125.0)
    assert (queued.left, queued.width) == (0.0, 20.0)
    assert (fetch.left, fetch.width) == (20.0, 80.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "\u2026"),
        (0.03, "0.03 s"),
        (9.994, "9.99 s"),
        (12.34, "12.3 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (12_000, "3 h 20 min"),
    ],
)
def test_durations_are_words(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_the_viewer_is_told_which_overlay_to_show(pages: FlaskClient, ledger: Ledger) -> None:
    add_job(ledger)
    told = pages.get("/segnode/api/overlays?StudyInstanceUIDs=1.2").json
    expected = {
        "series_uid": "1.2.3",
        "seg_series_uid": "2.1",
        "model": "ct-tissue",
        "route": "tissue",
    }
    assert told == {"overlays": [expected]}


@pytest.mark.parametrize(
    "address",
    [
        "jobs/../../x",
        "jobs/zz",
        "studies/1.2'or'1",
        "studies/9.9",
        "?state=x",
        "api/overlays",
        "api/overlays?StudyInstanceUIDs=<x>",
        "nothing",
    ],
)
def test_an_address_that_names_nothing_is_not_found(pages: FlaskClient, address: str) -> None:
    assert pages.get(f"/segnode/{address}").status_code == 404


def test_why_no_worker_takes_jobs_stands_on_the_first_page(
    pages: FlaskClient, ledger: Ledger
) -> None:
    assert "No worker says that it lives" in pages.get("/segnode/").text
    worker = WorkerLedger(ledger, "host/1")
    worker.seen("ready")
    assert "trouble" not in pages.get("/segnode/").text
    worker.seen("no-space", "12 MB are free for results, 2048 MB are wanted")
    assert "12 MB are free for results" in pages.get("/segnode/").text
