"""The dashboard in a real browser on a real node: what people do there, and what comes of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from pydicom import Dataset

from segnode_cli.ct_series import ct_series
from segnode_cli.node import Node
from segnode_cli.phantom import chest_phantom
from segnode_contract.ledger.view import JobRow

from .studies import again, decided, ended, queue_for_nobody, send
from .tab import overlays, tab

LATE_ROUTE = """
[[routes]]
name = "late"
model = "ct-lung-density"
modality = "CT"
where = { attribute = "AccessionNumber", equals = "LATE-1" }
"""


@pytest.mark.parametrize("place", ["the list", "its own page"])
def test_an_operator_retries_what_failed(
    chromium: Browser, node: Node, failed: JobRow, place: str
) -> None:
    with tab(chromium, node, "operator") as seen:
        if place == "the list":
            page = seen.open("/segnode/jobs?state=failed")
            page.locator(f"input[value='{failed.key}']").check()
        else:
            page = seen.open(f"/segnode/jobs/{failed.key}")
        before = page.get_by_text("retried by hand").count()
        page.get_by_role("button", name="Retry").click()
        expect(page.get_by_role("status").filter(has_text="1 job")).to_be_visible()
        ended(node, failed.study_uid)
        page = seen.open(f"/segnode/jobs/{failed.key}")
        expect(page.get_by_text("retried by hand")).not_to_have_count(before)
        expect(page.locator("main")).to_contain_text("operator")
        expect(page.locator("main")).to_contain_text("not-hounsfield")
        assert seen.wrong == []


def test_an_operator_cancels_a_queued_job_on_its_page(chromium: Browser, node: Node) -> None:
    key = queue_for_nobody(node, "cancelled")
    with tab(chromium, node, "operator") as seen:
        page = seen.open(f"/segnode/jobs/{key}")
        expect(page.locator("h1")).to_contain_text("queued")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("h1")).to_contain_text("cancelled")
        expect(page.get_by_role("status").filter(has_text="1 job is cancelled")).to_be_visible()
        expect(page.locator("main")).to_contain_text("operator")
        assert seen.wrong == []


def test_all_that_match_are_cancelled_once_the_operator_is_sure(
    chromium: Browser, node: Node
) -> None:
    keys = [queue_for_nobody(node, f"one of {number}") for number in range(3)]
    with tab(chromium, node, "operator") as seen:
        page = seen.choose_all("state=queued&route=to+nobody", "Cancel")
        expect(page.locator("h1")).to_have_text("Cancel 3 jobs?")
        for key in keys:
            expect(seen.open(f"/segnode/jobs/{key}").locator("h1")).to_contain_text("queued")
        page = seen.choose_all("state=queued&route=to+nobody", "Cancel")
        page.get_by_role("button", name="Cancel 3 jobs").click()
        expect(page.get_by_role("status").filter(has_text="3 jobs are cancelled")).to_be_visible()
        for key in keys:
            expect(seen.open(f"/segnode/jobs/{key}").locator("h1")).to_contain_text("cancelled")
        assert seen.wrong == []


def test_an_operator_replays_from_the_list(chromium: Browser, node: Node, done: JobRow) -> None:
    with tab(chromium, node, "operator") as seen:
        page = seen.open("/segnode/jobs?state=done")
        page.locator(f"input[value='{done.key}']").check()
        page.get_by_role("button", name="Replay").click()
        expect(page.get_by_role("status").filter(has_text="decided again")).to_be_visible()
        page = seen.open(f"/segnode/jobs/{done.key}")
        expect(page.locator("main")).to_contain_text("its series are decided again")
        assert seen.wrong == []
    decided(node, done.study_uid)
    [job] = ended(node, done.study_uid)
    assert (job.key, job.state) == (done.key, "done"), "nothing was missing"


def test_what_a_new_route_misses_is_started(
    chromium: Browser, node: Node, images: list[Dataset], tmp_path: Path
) -> None:
    made = again(images, "late")
    for image in made:
        image.AccessionNumber = "LATE-1"
    study_uid = send(node, made, tmp_path)
    ended(node, study_uid)
    node.config.write_text(node.config.read_text() + LATE_ROUTE)
    with tab(chromium, node, "operator") as seen:
        page = seen.open("/segnode/replay?since=2026-01-01")
        expect(page.locator("main")).to_contain_text("1 missing")
        seen.look("missing")
        page.get_by_role("button", name="Start what is missing").click()
        expect(page.locator("main")).to_contain_text("were given back to intake")
        newer, _ = ended(node, study_uid, count=2)
        assert (newer.route, newer.state, newer.priority) == ("late", "done", "background")
        page = seen.open("/segnode/replay?since=2026-01-01")
        expect(page.locator("main")).not_to_contain_text("missing")
        assert seen.wrong == []


def test_a_wrong_result_is_withdrawn_and_made_anew(
    chromium: Browser, node: Node, images: list[Dataset], tmp_path: Path
) -> None:
    [job] = ended(node, send(node, again(images, "withdrawn"), tmp_path))
    [overlay] = overlays(chromium, node, job.study_uid)["overlays"]
    with tab(chromium, node, "operator") as seen:
        page = seen.open(f"/segnode/jobs/{job.key}")
        page.get_by_role("link", name="Withdraw").click()
        page.get_by_label("What is wrong with it").first.fill("It calls the table bone.")
        assert page.get_by_role("button", name="delete").count() == 0
        seen.look("withdrawing")
        page.get_by_role("button", name="Withdraw").first.click()
        expect(page.locator("main")).to_contain_text("withdrawn")
        expect(page.locator("main")).to_contain_text("It calls the table bone.")
        expect(page.locator("main")).to_contain_text("operator")
        seen.look("withdrawn")
        assert overlays(chromium, node, job.study_uid) == {
            "overlays": [],
            "hidden": sorted(o.series_uid for o in job.objects),
        }
        page.get_by_role("button", name="Make it anew").click()
        newer, older = ended(node, job.study_uid, count=2)
        assert (newer.state, newer.revision, older.state) == ("done", 1, "withdrawn")
        [shown] = overlays(chromium, node, job.study_uid)["overlays"]
        assert shown["seg_series_uid"] != overlay["seg_series_uid"]
        assert {o.instance_uid for o in newer.objects}.isdisjoint(
            o.instance_uid for o in older.objects
        )
        assert seen.wrong == []


def test_an_administrator_deletes_a_wrong_result_for_good(
    chromium: Browser, node: Node, images: list[Dataset], tmp_path: Path
) -> None:
    [job] = ended(node, send(node, again(images, "deleted"), tmp_path))
    with tab(chromium, node, "administrator") as seen:
        page = seen.open(f"/segnode/jobs/{job.key}/withdraw")
        page.locator("summary").click()
        form = page.locator("form", has_text="Withdraw and delete")
        form.get_by_label("What is wrong with it").fill("Of another patient's arm.")
        form.get_by_label("To delete").fill(job.key[:8])
        form.get_by_role("button").click()
        expect(page.locator("main")).to_contain_text("Of another patient's arm.")
        found = page.evaluate(
            "uid => fetch(`/qido/studies/${uid}/series`).then(answer => answer.json())",
            job.study_uid,
        )
        assert len(found) == 1, "the images' series alone is left"
        assert seen.wrong == []


def test_somebody_new_finds_out_why_there_is_no_overlay_and_puts_it_right(
    chromium: Browser, node: Node, tmp_path: Path
) -> None:
    """By what the pages show alone: the study's reason, then the model by hand."""
    phantom = chest_phantom()
    made = ct_series(
        phantom.hu[::4],
        spacing_mm=(12.0, *phantom.spacing_mm[1:]),
        seed="yesterday",
        study_description="Yesterday",
    )
    for image in made:
        image.ImageType = ["DERIVED", "SECONDARY", "REFORMATTED"]
        image.AccessionNumber = "A-4711"
    study_uid = send(node, made, tmp_path)
    decided(node, study_uid)
    with tab(chromium, node, "operator") as seen:
        seen.open("/segnode/")
        page = seen.search("accession", "A-4711")
        seen.look("story-1-search")
        page.locator(f"main a[href^='/segnode/studies/{study_uid}']").first.click()
        expect(page.locator("main")).to_contain_text(re.compile("derived", re.IGNORECASE))
        seen.look("story-2-why")
        seen.open(f"/segnode/studies/{study_uid}")
        page.get_by_role("link", name="Run a model").click()
        page.get_by_role("button", name="Run ct-tissue").click()
        ended(node, study_uid)
        seen.page.reload()
        expect(page.locator("h1")).to_contain_text("done")
        seen.look("story-3-done")
        expect(page.locator("main")).to_contain_text("by hand")
        pictures = page.locator("img[src^='/segnode/pictures/']")
        expect(pictures.first).to_be_visible()
        shown = page.evaluate(
            "[...document.querySelectorAll(\"img[src^='/segnode/pictures/']\")]"
            ".map(image => image.complete && image.naturalWidth > 0)"
        )
        assert shown == [True, True, True]
        assert seen.wrong == []
    assert len(overlays(chromium, node, study_uid)["overlays"]) == 1


def test_who_acted_is_on_record_and_in_a_file(chromium: Browser, node: Node) -> None:
    act = "by accession number: 0 studies"
    with tab(chromium, node, "viewer") as seen:
        seen.search("accession", "A-NOBODY")
        page = seen.open("/segnode/history")
        row = page.locator("tr", has_text=act)
        expect(row).to_have_count(1)
        expect(row).to_contain_text("viewer")
        with page.expect_download() as download:
            page.get_by_role("link", name="Acts as CSV").click()
        lines = download.value.path().read_text(encoding="utf-8-sig").splitlines()
        assert [line.split(",")[1:4] for line in lines if act in line] == [
            ["viewer", "search", act]
        ]
        assert "A-NOBODY" not in "".join(lines)
        assert seen.wrong == []
