"""What the page of one job says, and to whom it offers what."""

from __future__ import annotations

import html
import re
from contextlib import suppress
from dataclasses import replace

import pytest
from flask import Blueprint
from flask.testing import FlaskClient

from segnode_contract.destination import Destination
from segnode_contract.errors import (
    ArchiveUnavailable,
    ModelProcessDied,
    OutOfMemory,
    PeerRefused,
    PeerUnavailable,
    SeriesChanged,
    TransientError,
    UnsuitableSeries,
)
from segnode_contract.job import Stage
from segnode_contract.ledger import ActLedger, DeliveryLedger, Ledger, write_shared
from segnode_contract.ledger.deliveries import Taken
from segnode_contract.settings import Limits, load_settings

from .pages import CONFIG, SCRIPT, Named, client, token
from .rows import claim_job, fail_job, finish_job, queue_job
from .shelf import Shelf


@pytest.fixture
def pages(ledger: Ledger) -> FlaskClient:
    return client(ledger, Named())


def done(ledger: Ledger) -> str:
    key = queue_job(ledger)
    finish_job(ledger)
    return key


def read(pages: FlaskClient, key: str, user: str = "viewer") -> str:
    """Return a job's page as people read it, spaces counted once."""
    answer = pages.get(f"/segnode/jobs/{key}", environ_overrides={"REMOTE_USER": user})
    assert answer.status_code == 200, answer.text
    assert SCRIPT not in answer.text
    return html.unescape(re.sub(r"\s+", " ", answer.text))


def buttons(pages: FlaskClient, key: str, user: str) -> list[str]:
    answer = pages.get(f"/segnode/jobs/{key}", environ_overrides={"REMOTE_USER": user})
    found = re.findall(r'<button title[^>]*>([^<]+)|class="button"[^>]*>([^<]+)', answer.text)
    return [first or second for first, second in found]


def test_the_timeline_names_every_step_with_its_seconds(pages: FlaskClient, ledger: Ledger) -> None:
    key = done(ledger)
    with ledger.write() as connection:
        connection.exec_driver_sql("update job set first_instance_at = last_instance_at - 42")
        connection.exec_driver_sql("update stage set seconds = 7.25 where stage = 'store'")
    text = read(pages, key)
    [picture] = re.findall(r"<svg viewBox.*?</svg>", text)
    for words in ("first to last image 42.0 s", "quiet period, decision", "store 7.25 s"):
        assert words in picture
    assert re.search(r"confirm \d\.\d\d s</title>", picture)
    assert re.search(r"<td>store</td>.*?7\.25 s</td>", text)
    assert "after the last image: read back from the archive" in text


def test_a_failed_job_says_what_happened_and_what_to_do(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    fail_job(ledger)
    text = read(pages, key)
    assert "<strong>gantry-tilt</strong> in stack: The gantry is tilted by 18.5 degrees" in text
    assert '<h2 id="cure">What to do</h2> <p>Nothing has to be mended here' in text
    assert "failed</text>" in text
    assert "gantry-tilt in stack</td>" in text
    assert "Open in OHIF" not in text


def test_the_sentence_of_an_error_is_text(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    fail_job(ledger)
    assert "&lt;b&gt;this&lt;/b&gt; is refused" in pages.get(f"/segnode/jobs/{key}").text


def test_a_done_job_needs_no_cure(pages: FlaskClient, ledger: Ledger) -> None:
    assert "What to do" not in read(pages, done(ledger))


def test_a_job_that_will_be_tried_again_says_when(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    fail_job(ledger, ArchiveUnavailable("The archive answers 503; it is asked again."))
    text = read(pages, key)
    assert "Next try at <time" in text
    assert "The job is tried again by itself" in text


def test_a_job_that_was_given_up_does_not_promise_to_be_tried_again(
    pages: FlaskClient, ledger: Ledger
) -> None:
    key = queue_job(ledger)
    fail_job(ledger, ArchiveUnavailable("The archive answers 503; it is asked again."))
    with ledger.write() as connection:
        connection.exec_driver_sql("update job set state = 'dead'")
    text = read(pages, key)
    assert "It is not tried again by itself any more: retry it once the cause is gone." in text
    assert "The job is tried again by itself" not in text


@pytest.mark.parametrize("error", [OutOfMemory, SeriesChanged, ModelProcessDied])
def test_a_queued_job_has_no_cure_that_needs_a_button(
    pages: FlaskClient, ledger: Ledger, error: type[TransientError]
) -> None:
    key = queue_job(ledger)
    fail_job(ledger, error("It did not work."))
    text = read(pages, key, "operator")
    assert '<h2 id="cure">What to do</h2> <p>The job is tried again by itself. ' in text
    assert "etry" not in text


def test_a_stage_has_the_name_that_the_timeline_gives_it(
    pages: FlaskClient, ledger: Ledger
) -> None:
    key = queue_job(ledger)
    work, claim = claim_job(ledger)
    with suppress(UnsuitableSeries), work.stage(claim, Stage.TURN):
        raise UnsuitableSeries("It is refused.")
    work.failed(claim, UnsuitableSeries("It is refused."), 100)
    text = read(pages, key)
    assert "<strong>unsuitable-series</strong> in wait for the model: It" in text
    assert "unsuitable-series in wait for the model</td>" in text
    assert "wait for the model, ended there</span>" in pages.get("/segnode/jobs").text


def test_a_job_that_was_cancelled_has_no_cure(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    fail_job(ledger, ArchiveUnavailable("The archive answers 503; it is asked again."))
    ActLedger(ledger).cancel(key, "ada")
    text = read(pages, key)
    assert "What to do" not in text
    assert "Cancelled by ada at" in text


def test_a_job_that_waits_says_for_what(pages: FlaskClient, ledger: Ledger) -> None:
    assert "waits for one that serves lane default" in read(pages, queue_job(ledger))


def test_one_that_waits_for_a_failed_job_names_it(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    fail_job(ledger)
    child = queue_job(ledger, number=2)
    with ledger.write() as connection:
        connection.exec_driver_sql(
            f"update job set state = 'waiting', builds_on = '{key}' where key = '{child}'"
        )
    text = read(pages, child)
    assert f'It waits for <a href="/segnode/jobs/{key}">job {key[:12]}</a>, which is failed' in text


def test_a_done_job_shows_findings_by_name_and_the_viewer(
    pages: FlaskClient, ledger: Ledger
) -> None:
    text = pages.get(f"/segnode/jobs/{done(ledger)}").text
    for words in ("Adipose tissue", "1234.5 ml", "-102.2 HU", "not measurable: It is cut."):
        assert words in text
    assert text.count("left out: Contrast medium is likely.") == 1
    assert "2 slices are &lt;b&gt;missing&lt;/b&gt;." in text
    assert "verified by nobody" in text
    assert "structured report" not in text
    assert "/ohif/viewer?StudyInstanceUIDs=1.2" in text


def test_a_report_among_the_results_is_mentioned(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    finish_job(ledger, role="SR")
    assert "in the archive as a structured report (SR)" in read(pages, key)


def test_the_model_card_is_shown_with_colours_and_plausible_volumes(
    pages: FlaskClient, ledger: Ledger
) -> None:
    text = read(pages, queue_job(ledger))
    for words in ("Intended use", "Not a diagnosis", "Licence", "CT, at least 3 slices"):
        assert words in text
    assert re.search(r'<rect width="100%" height="100%" fill="#[0-9a-f]{6}"/>', text)
    assert re.search(r"\d+ to \d+ ml</td>", text)


def test_a_model_that_nobody_announced_is_named_by_its_digest(
    pages: FlaskClient, ledger: Ledger
) -> None:
    key = done(ledger)
    with ledger.write() as connection:
        connection.exec_driver_sql("delete from model")
    text = read(pages, key)
    assert "No worker of this version has announced the card of ct-tissue 1.0.0" in text


def test_a_series_is_called_as_the_archive_calls_it(ledger: Ledger) -> None:
    shelf = Shelf()
    shelf.add("o1", "1.2.3", SeriesNumber="4", SeriesDescription=f"thin {SCRIPT}")
    pages = client(ledger, shelf)
    key = done(ledger)
    text = pages.get(f"/segnode/jobs/{key}").text
    assert "4 CT thin &lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "explorer.html" not in text  # a viewer may not see it
    assert "/app/explorer.html#series?uuid=o1" in read(pages, key, "admin")


def test_what_is_known_of_the_images_is_shown(ledger: Ledger) -> None:
    shelf = Shelf()
    shelf.add(
        "o1",
        "1.2.3",
        Rows="512",
        Columns="500",
        BodyPartExamined="CHEST",
        ContrastBolusAgent="Ultravist",
        ConvolutionKernel=f"B31f {SCRIPT}",
    )
    pages, key = client(ledger, shelf), done(ledger)
    said = "500 × 512 pixels, body part CHEST, contrast medium, kernel B31f <script>"
    assert said in html.unescape(pages.get(f"/segnode/jobs/{key}").text)
    assert SCRIPT not in pages.get(f"/segnode/jobs/{key}").text
    assert "every value that decides" not in read(pages, key)
    with_routes = client(ledger, shelf, blueprints=[Blueprint("routes", __name__)])
    link = '<a href="/segnode/studies/1.2/explain">every value that decides</a>'
    assert link in read(with_routes, key)


def test_the_distance_of_slices_is_told_and_what_is_not_there_is_not(ledger: Ledger) -> None:
    shelf = Shelf()
    shelf.add("o1", "1.2.3")
    for number, uid in enumerate(shelf.series["o1"].instances):
        shelf.placed[uid] = {
            "ImageOrientationPatient": "1\\0\\0\\0\\1\\0",
            "ImagePositionPatient": f"0\\0\\{2.5 * number}",
        }
    assert "<small>slices 2.5 mm apart</small>" in read(client(ledger, shelf), done(ledger))


def test_a_result_that_is_gone_from_the_archive_is_said_to_be(ledger: Ledger) -> None:
    shelf = Shelf()
    shelf.add("o1", "1.2.3")
    key = done(ledger)
    assert "<small>not in the archive</small>" in read(client(ledger, shelf), key)
    shelf.add("r1", "2.1", "2.1.1", Modality="SEG")
    assert "<small>not in the archive</small>" not in read(client(ledger, shelf), key)


def test_key_slices_are_shown_where_the_archive_has_them(ledger: Ledger) -> None:
    shelf = Shelf()
    shelf.add("r1", "2.1", "2.1.1", Modality="SEG")
    pages, key = client(ledger, shelf), done(ledger)
    assert "Key slices" not in read(pages, key)
    shelf.add("r1", "2.1", "2.1.1", Modality="SEG", attachments=(1032, 1034))
    text = read(pages, key)
    pictures = re.findall(r'<img src="(/segnode/pictures/[^"]+)" alt="([^"]+)"', text)
    assert [address for address, _ in pictures] == [
        "/segnode/pictures/2.1.1/1.png",
        "/segnode/pictures/2.1.1/3.png",
    ]
    assert all("ct-tissue" in words for _, words in pictures)


def test_without_an_archive_the_ledger_alone_is_shown(ledger: Ledger) -> None:
    text = read(client(ledger), done(ledger), "admin")
    assert "Adipose tissue" in text
    assert "explorer.html" not in text
    assert "Key slices" not in text


def test_attempts_say_by_whom_and_with_how_much_memory(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    fail_job(ledger)
    ActLedger(ledger).retry(key, "ada")
    finish_job(ledger)
    text = read(pages, key)
    [attempts] = re.findall(r"<h2>Attempts</h2>.*?</table>", text)
    assert attempts.count("<td>w1</td>") == 2
    assert attempts.count("100 MB") == 2
    assert "<td>ada</td><td>retried by hand</td>" in text


def test_other_jobs_in_the_history_can_be_followed(pages: FlaskClient, ledger: Ledger) -> None:
    key = done(ledger)
    other = "f" * 64
    ActLedger(ledger).note("superseded", "intake", f"by job {other}", key)
    text = read(pages, key)
    assert f'by job <a href="/segnode/jobs/{other}">{other[:12]}</a></td>' in text


@pytest.mark.parametrize(
    ("how", "viewer", "operator"),
    [
        ("queued", [], ["Cancel"]),
        ("failed", [], ["Retry", "Replay"]),
        ("done", [], ["Replay", "Withdraw …"]),
    ],
)
def test_each_role_is_offered_what_it_may_do(
    pages: FlaskClient, ledger: Ledger, how: str, viewer: list[str], operator: list[str]
) -> None:
    key = queue_job(ledger)
    if how == "failed":
        fail_job(ledger)
    elif how == "done":
        finish_job(ledger)
    assert buttons(pages, key, "viewer") == viewer
    assert buttons(pages, key, "operator") == operator
    assert buttons(pages, key, "admin") == operator


def test_what_a_button_did_stands_on_the_page_it_leads_to(
    pages: FlaskClient, ledger: Ledger
) -> None:
    key = queue_job(ledger)
    fail_job(ledger)
    user = {"REMOTE_USER": "operator"}
    word = token(pages.get(f"/segnode/jobs/{key}", environ_overrides=user).text)
    answer = pages.post(
        "/segnode/jobs/retry",
        data={"token": word, "keys": key, "back": "job"},
        environ_overrides=user,
        follow_redirects=True,
    )
    assert answer.request.path == f"/segnode/jobs/{key}"
    assert "1 job is tried again" in answer.text
    assert "<td>operator</td>" in answer.text


def test_a_job_that_goes_on_is_asked_for_again_and_a_finished_one_is_not(
    pages: FlaskClient, ledger: Ledger
) -> None:
    key = queue_job(ledger)
    live = f'hx-get="/segnode/jobs/{key}/live" hx-trigger="every 2s'
    assert live in read(pages, key)
    finish_job(ledger)
    assert "hx-get" not in read(pages, key)
    assert "http-equiv" not in read(pages, key)


def test_without_scripts_a_job_that_goes_on_is_loaded_again(
    ledger: Ledger, pages: FlaskClient
) -> None:
    key = queue_job(ledger)
    assert '<meta http-equiv="refresh" content="10">' in read(pages, key)
    assert "<noscript>" not in read(pages, key)  # htmx is not installed here


def test_the_part_that_changes_is_sent_only_when_it_did(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    first = pages.get(f"/segnode/jobs/{key}/live")
    assert first.status_code == 200
    assert "<html" not in first.text
    tag = {"If-None-Match": first.headers["ETag"]}
    again = pages.get(f"/segnode/jobs/{key}/live", headers=tag)
    assert (again.status_code, again.data) == (304, b"")
    work, claim = claim_job(ledger)
    with work.stage(claim, Stage.FETCH):
        pass
    changed = pages.get(f"/segnode/jobs/{key}/live", headers=tag)
    assert changed.status_code == 200
    assert "fetch" in changed.text


def test_how_far_the_model_is_can_be_heard_and_seen(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    work, claim = claim_job(ledger)
    work.progress(claim, 0.42)
    assert 'aria-label="Progress of the model"></progress> 42 % of the model' in read(pages, key)


def test_a_delivery_that_failed_is_shown_with_reason_and_button(
    pages: FlaskClient, ledger: Ledger
) -> None:
    shared = load_settings(CONFIG).shared
    for name in ("pacs", "other"):
        pacs = Destination(name=name, aet="PACS", host="127.0.0.1")
        shared = replace(shared, destinations=(*shared.destinations, pacs))
    write_shared(ledger, shared)
    key = done(ledger)
    assert read(pages, key).count("It waits for the sender") == 2
    deliveries = DeliveryLedger(ledger, "s1", Limits())
    held = deliveries.claim("pacs")
    assert held is not None
    deliveries.failed(held, PeerRefused("It refused <b>it</b>."), Taken(objects=2, bytes=9))
    away = deliveries.claim("other")
    assert away is not None
    deliveries.failed(away, PeerUnavailable("It is away."), Taken())
    text = pages.get(f"/segnode/jobs/{key}").text
    assert "<strong>object-refused</strong>: It refused &lt;b&gt;it&lt;/b&gt;." in text
    assert "It is away. Next try at <time" in " ".join(text.split())
    assert "Mend the destination or its table in segnode.toml" in text
    assert "See whether the destination runs" not in text  # it is tried again by itself
    assert "Send it on again" in buttons(pages, key, "operator")
    assert "Send it on again" not in buttons(pages, key, "viewer")


@pytest.mark.parametrize("address", ["zz", "0" * 64, "0" * 64 + "/live", "00000001/live"])
def test_an_address_that_names_no_job_is_not_found(pages: FlaskClient, address: str) -> None:
    assert pages.get(f"/segnode/jobs/{address}").status_code == 404
