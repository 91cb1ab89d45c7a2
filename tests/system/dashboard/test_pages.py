"""The dashboard in a real browser on a real node: every page, by each role."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from segnode_cli.node import Node
from segnode_contract.job import JobState
from segnode_contract.ledger.view import JobRow

from ...cli.test_dashboard import running
from ..conftest import need
from .studies import HOSTILE, set_state
from .tab import AXE, ROLES, Tab, tab

ALONE = ("now", "jobs", "job", "job-failed", "study", "models", "history")
"""Pages that show something without Orthanc."""


def addresses_of(role: str, done: JobRow, failed: JobRow, queued: str) -> dict[str, str]:
    [series_uid] = done.series_uids
    shown = {
        "now": "/segnode/",
        "jobs": "/segnode/jobs",
        "jobs-failed": "/segnode/jobs?state=failed",
        "jobs-none": "/segnode/jobs?state=done&code=no-such-code",
        "job": f"/segnode/jobs/{done.key}",
        "job-failed": f"/segnode/jobs/{failed.key}",
        "job-queued": f"/segnode/jobs/{queued}",
        "study": f"/segnode/studies/{done.study_uid}",
        "explain": f"/segnode/studies/{done.study_uid}/explain",
        "routes": "/segnode/routes",
        "replay": "/segnode/replay?since=2026-01-01",
        "models": "/segnode/models",
        "model": "/segnode/models/ct-tissue",
        "history": "/segnode/history",
    }
    ask = {
        "by-hand": f"/segnode/series/{series_uid}/run",
        "withdraw": f"/segnode/jobs/{done.key}/withdraw",
    }
    return shown if role == "viewer" else shown | ask


def each_page(seen: Tab, role: str, addresses: dict[str, str]) -> Iterator[str]:
    """Open one page after the other, those that answer a form too, and give its name."""
    for name, path in addresses.items():
        seen.open(path)
        yield name
    seen.search("patient", HOSTILE["PatientID"])
    expect(seen.page.locator("main")).to_contain_text("1 study found")
    yield "search"
    if role != "viewer":
        seen.choose_all("state=failed", "Retry")
        expect(seen.page.locator("h1")).to_have_text("Try 1 job again?")
        yield "sure"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("role", list(ROLES))
def test_every_page_is_quiet_whole_and_accessible(
    chromium: Browser,
    node: Node,
    done: JobRow,
    failed: JobRow,
    queued: str,
    role: str,
    dark: bool,
) -> None:
    need(AXE.exists(), f"axe-core is not in {AXE}")
    with tab(chromium, node, role, dark=dark) as seen:
        faults = {}
        for name in each_page(seen, role, addresses_of(role, done, failed, queued)):
            faults[name] = seen.faults()
            if role == "administrator":
                seen.look(f"{name}-{'dark' if dark else 'light'}")
        assert {name: found for name, found in faults.items() if found} == {}
        assert seen.wrong == []


def test_the_pages_without_orthanc_are_quiet_whole_and_accessible(
    chromium: Browser, node: Node, done: JobRow, failed: JobRow, queued: str
) -> None:
    need(AXE.exists(), f"axe-core is not in {AXE}")
    addresses = addresses_of("operator", done, failed, queued)
    with running(node.data) as alone:
        url = f"http://127.0.0.1:{alone.port}"
        with tab(chromium, node, "operator", url=url) as seen:
            faults = {}
            for name in ALONE:
                seen.open(addresses[name])
                faults[name] = seen.faults()
                seen.look(f"alone-{name}")
            assert {name: found for name, found in faults.items() if found} == {}
            assert seen.wrong == []


def test_hostile_words_are_shown_as_they_are(chromium: Browser, node: Node, done: JobRow) -> None:
    with tab(chromium, node, "administrator") as seen:
        main = seen.page.locator("main")
        seen.search("patient", HOSTILE["PatientID"])
        expect(main).to_contain_text("<script>alert(1)</script>")
        expect(main).to_contain_text("<script>alert(4)</script>")
        expect(main).to_contain_text(HOSTILE["AccessionNumber"])
        assert_inert(seen)
        seen.open(f"/segnode/jobs/{done.key}")
        expect(main).to_contain_text("<script>alert(1)</script>")
        assert_inert(seen)
        seen.open(f"/segnode/studies/{done.study_uid}")
        expect(main).to_contain_text("'><svg onload=alert(5)>")
        expect(main).to_contain_text("<script>alert(4)</script>")
        assert_inert(seen)
        seen.open(f"/segnode/studies/{done.study_uid}/explain")
        expect(main).to_contain_text("'><svg onload=alert(5)>")
        assert_inert(seen)


def assert_inert(seen: Tab) -> None:
    assert seen.page.locator("main script, main iframe, main img[onerror]").count() == 0
    assert seen.page.locator("main b[onx], main svg[onload]").count() == 0
    assert (seen.wrong, seen.dialogs) == ([], [])


def test_hostile_words_do_nothing_in_the_viewer_and_its_list(
    chromium: Browser, node: Node, done: JobRow
) -> None:
    with tab(chromium, node, "viewer") as seen:
        seen.open("/ohif/")
        expect(seen.page.locator("body")).to_contain_text("CANARY", timeout=30_000)
        seen.open(f"/ohif/viewer?StudyInstanceUIDs={done.study_uid}")
        seen.page.locator("canvas.cornerstone-canvas").first.wait_for(timeout=40_000)
        seen.page.wait_for_timeout(2000)
        assert [text for text in seen.wrong if "Security Policy" in text] == []
        assert seen.dialogs == []


def test_no_identifier_of_a_patient_stands_in_an_address_a_log_or_a_metric(
    chromium: Browser, node: Node, done: JobRow, failed: JobRow, queued: str
) -> None:
    with tab(chromium, node, "administrator") as seen:
        for _ in each_page(
            seen, "administrator", addresses_of("administrator", done, failed, queued)
        ):
            assert "CANARY" not in seen.page.url
        page = seen.search("patient", HOSTILE["PatientID"])
        expect(page.locator("main")).to_contain_text(done.model)
        expect(page.locator(f"a[href='/segnode/jobs/{done.key}']").first).to_be_visible()
        metrics = seen.open("/metrics").content()
        assert not any("CANARY" in address for address in seen.asked)
    assert "CANARY" not in metrics
    assert done.key[:12] not in metrics
    assert done.study_uid not in metrics
    places = [*(node.data / "logs").iterdir(), *node.data.glob("ledger.sqlite*")]
    places += [file for file in (node.data / "redis").rglob("*") if file.is_file()]
    places += [file for file in (node.data / "spool").rglob("*") if file.is_file()]
    assert [place.name for place in places if b"CANARY" in place.read_bytes()] == []


def test_the_first_page_follows_within_two_seconds(
    chromium: Browser, node: Node, failed: JobRow
) -> None:
    with tab(chromium, node, "viewer") as seen:
        page = seen.open("/segnode/")
        dead = page.locator("dt:has-text('Dead letters') + dd b")
        expect(dead).to_have_text("0")
        page.wait_for_timeout(2500)
        seen.asked.clear()
        page.wait_for_timeout(6000)
        assert 2 <= len(seen.asked) <= 4, "one request per tab and two seconds"
        set_state(node, failed.key, JobState.DEAD)
        try:
            expect(dead).to_have_text("1", timeout=2600)
        finally:
            set_state(node, failed.key, JobState.FAILED)
        expect(dead).to_have_text("0", timeout=2600)
        assert seen.wrong == []


def test_a_viewer_is_shown_nothing_that_acts(
    chromium: Browser, node: Node, done: JobRow, failed: JobRow, queued: str
) -> None:
    with tab(chromium, node, "viewer") as seen:
        page = seen.page
        for name in each_page(seen, "viewer", addresses_of("viewer", done, failed, queued)):
            actions = page.evaluate(
                "[...document.querySelectorAll('form[method=post]')].map(f => f.action)"
            )
            assert {each.removeprefix(node.url) for each in actions} <= {"/segnode/search"}, name
            assert page.locator("[formaction]").count() == 0, name
            assert page.locator("a[href^='/app/']").count() == 0, name


def test_a_node_whose_orthanc_is_away_says_so(chromium: Browser, node: Node) -> None:
    with tab(chromium, node, "viewer") as seen:
        page = seen.open("/segnode/")
        page.context.set_offline(True)
        expect(page.locator("#lost")).to_contain_text("asked again", timeout=6000)
        page.context.set_offline(False)
        expect(page.locator("#lost")).to_be_hidden(timeout=6000)
