"""The dashboard in a real browser on a real node: every page, each act, each role."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pydicom.config
import pytest
from playwright.sync_api import Browser, Page, expect
from pydicom import Dataset

from segnode_cli.ct_series import ct_series
from segnode_cli.jobs import ledger_of, view_of
from segnode_cli.node import CONFIG, PARTS, Node
from segnode_cli.phantom import chest_phantom
from segnode_cli.send import Peer, send_paths
from segnode_contract.job import OPEN_STATES, JobState
from segnode_contract.ledger import ActLedger
from segnode_contract.ledger.view import JobRow

from .browser import ARTIFACTS, logged_in
from .conftest import need, whole_node

AXE = PARTS.with_name("front-tests") / "axe.min.js"
HOSTILE = {
    "PatientName": "CANARY^<script>alert(1)</script>",
    "PatientID": 'CANARYID"><img src=x onerror=alert(2)>',
    "AccessionNumber": "<b onx=alert(3)>",
    "StudyDescription": "</title><script>alert(4)</script>",
    "SeriesDescription": "'><svg onload=alert(5)>",
    "ProtocolName": "{{7*7}}${7*7}<%=7*7%>",
    "InstitutionName": "<iframe srcdoc='<script>alert(6)</script>'>",
    "ReferringPhysicianName": "javascript:alert(7)^<a href=javascript:alert(7)>x",
    "StationName": "<x onclick=a(8)>",
    "Manufacturer": "--><script>alert(9)</script><!--",
    "StudyID": "<i onx=alert(A)>",
    "ImageComments": "]]><script>alert(11)</script>\u202egnp.exe",
}
"""What a scanner, or somebody with one, may have put into twelve attributes."""
ROLES = {"viewer": "viewer", "operator": "operator", "administrator": "admin"}
SETTINGS = """
[[routes]]
name = "head only"
model = "ct-lung-density"
modality = "CT"
body_parts = ["HEAD"]
"""


@dataclass(kw_only=True)
class Tab:
    """A page of somebody, and what went wrong in it."""

    page: Page
    url: str
    wrong: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def look(self, name: str) -> None:
        ARTIFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTIFACTS / f"dashboard-{name}.png", full_page=True)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, viewer_dist: Path) -> Iterator[Node]:
    need(PARTS.is_dir(), f"the scripts of the pages are not in {PARTS}")
    words = (CONFIG / "segnode.toml").read_text().replace("quiet_s = 5 ", "quiet_s = 1 ")
    with whole_node(tmp_path_factory.mktemp("dashboard"), words + SETTINGS, 1) as node:
        yield node


@pytest.fixture(scope="module")
def images() -> list[Dataset]:
    phantom = chest_phantom()
    made = ct_series(phantom.hu[::4], spacing_mm=(12.0, *phantom.spacing_mm[1:]), seed="dashboard")
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    for image in made:
        for keyword, value in HOSTILE.items():
            setattr(image, keyword, value)
    return made


@pytest.fixture(scope="module")
def done(node: Node, images: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> JobRow:
    """A job that is done, of a study with hostile words."""
    return send(node, images, tmp_path_factory.mktemp("done"))[0]


@pytest.fixture(scope="module")
def failed(node: Node, tmp_path_factory: pytest.TempPathFactory) -> JobRow:
    """A job that failed: its images have no Hounsfield units."""
    phantom = chest_phantom()
    made = ct_series(phantom.hu[::8], spacing_mm=(24.0, *phantom.spacing_mm[1:]), seed="failed")
    for image in made:
        image.RescaleType = "US"
    return send(node, made, tmp_path_factory.mktemp("failed"))[0]


def send(node: Node, images: list[Dataset], folder: Path) -> list[JobRow]:
    for number, image in enumerate(images):
        image.save_as(folder / f"{number:04}.dcm", enforce_file_format=True)
    peer = Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port)
    [study_uid] = send_paths([folder], peer).study_uids
    return ended(node, study_uid)


def ended(node: Node, study_uid: str, count: int = 1) -> list[JobRow]:
    """Return the jobs of a study once there are so many and none is open."""
    end = time.monotonic() + 120
    with view_of(node.data) as view:
        while time.monotonic() < end:
            jobs = view.jobs(study_uid=study_uid)
            if len(jobs) >= count and not any(job.state in OPEN_STATES for job in jobs):
                return jobs
            time.sleep(0.2)
    raise AssertionError(f"jobs after two minutes: {jobs}")


@contextmanager
def tab(chromium: Browser, node: Node, role: str, *, dark: bool = False) -> Iterator[Tab]:
    user = ROLES[role]
    with logged_in(chromium, node.url, user, node.passwords[user]) as context:
        page = context.new_page()
        page.set_viewport_size({"width": 1280, "height": 900})
        page.emulate_media(color_scheme="dark" if dark else "light")
        found = Tab(page=page, url=node.url)
        page.on("dialog", lambda dialog: (found.wrong.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: found.wrong.append(str(error)))
        page.on("request", lambda request: found.asked.append(request.url))

        def said(kind: str, text: str) -> None:
            if kind == "error" or "Content Security Policy" in text:
                found.wrong.append(text)

        page.on("console", lambda message: said(message.type, message.text))
        yield found


def pages_of(done: JobRow, failed: JobRow) -> dict[str, str]:
    [series_uid] = done.series_uids
    return {
        "now": "/segnode/",
        "jobs": "/segnode/jobs",
        "jobs-failed": "/segnode/jobs?state=failed",
        "job": f"/segnode/jobs/{done.key}",
        "job-failed": f"/segnode/jobs/{failed.key}",
        "study": f"/segnode/studies/{done.study_uid}",
        "explain": f"/segnode/studies/{done.study_uid}/explain",
        "routes": "/segnode/routes",
        "replay": "/segnode/replay?since=2026-01-01",
        "models": "/segnode/models",
        "model": "/segnode/models/ct-tissue",
        "history": "/segnode/history",
        "by-hand": f"/segnode/series/{series_uid}/run",
        "withdraw": f"/segnode/jobs/{done.key}/withdraw",
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("role", list(ROLES))
def test_every_page_is_quiet_whole_and_accessible(
    chromium: Browser, node: Node, done: JobRow, failed: JobRow, role: str, dark: bool
) -> None:
    need(AXE.exists(), f"axe-core is not in {AXE}")
    with tab(chromium, node, role, dark=dark) as seen:
        faults: dict[str, list[tuple[str, list[str]]]] = {}
        for name, path in pages_of(done, failed).items():
            page = seen.open(path)
            page.wait_for_timeout(300)
            page.evaluate(AXE.read_text())
            found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
            faults[name] = [
                (each["id"], [node["target"] for node in each["nodes"]][:3])
                for each in found["violations"]
            ]
            wide = page.evaluate("document.documentElement.scrollWidth")
            faults[name] += [("too wide", [f"{wide} px"])] if wide > 1280 else []
            if role == "administrator":
                seen.look(f"{name}-{'dark' if dark else 'light'}")
        assert {name: found for name, found in faults.items() if found} == {}
        assert seen.wrong == []


def test_hostile_words_are_shown_as_they_are(chromium: Browser, node: Node, done: JobRow) -> None:
    with tab(chromium, node, "administrator") as seen:
        page = seen.open(f"/segnode/jobs/{done.key}")
        expect(page.locator("main")).to_contain_text("<script>alert(1)</script>")
        page = seen.open(f"/segnode/studies/{done.study_uid}")
        expect(page.locator("main")).to_contain_text("'><svg onload=alert(5)>")
        expect(page.locator("main")).to_contain_text("<script>alert(4)</script>")
        page = seen.open(f"/segnode/studies/{done.study_uid}/explain")
        expect(page.locator("main")).to_contain_text("'><svg onload=alert(5)>")
        assert page.locator("main script, main iframe, main img[onerror]").count() == 0
        assert seen.wrong == []


def test_hostile_words_do_nothing_in_the_viewer_and_its_list(
    chromium: Browser, node: Node, done: JobRow
) -> None:
    with tab(chromium, node, "viewer") as seen:
        seen.open("/ohif/")
        expect(seen.page.locator("body")).to_contain_text("CANARY", timeout=30_000)
        seen.open(f"/ohif/viewer?StudyInstanceUIDs={done.study_uid}")
        seen.page.locator("canvas.cornerstone-canvas").first.wait_for(timeout=40_000)
        seen.page.wait_for_timeout(2000)
        said = [text for text in seen.wrong if not text.startswith("Failed to load resource")]
        assert [text for text in said if "alert" in text or "Security Policy" in text] == []


def test_no_identifier_of_a_patient_stands_in_an_address_a_log_or_a_metric(
    chromium: Browser, node: Node, done: JobRow, failed: JobRow
) -> None:
    with tab(chromium, node, "administrator") as seen:
        for path in pages_of(done, failed).values():
            seen.open(path)
        page = seen.open("/segnode/jobs")
        page.get_by_label("Search by", exact=True).select_option("patient")
        page.get_by_label("Whole number or ID").fill(HOSTILE["PatientID"])
        page.get_by_role("button", name="Search").click()
        expect(page.locator("main")).to_contain_text(done.model)
        expect(page.locator(f"a[href='/segnode/jobs/{done.key}']").first).to_be_visible()
        metrics = seen.open("/metrics").content()
        assert not any("CANARY" in address for address in [*seen.asked, page.url])
    assert "CANARY" not in metrics
    assert done.key[:12] not in metrics
    assert done.study_uid not in metrics
    places = [*(node.data / "logs").iterdir(), *node.data.glob("ledger.sqlite*")]
    places += [file for file in (node.data / "redis").rglob("*") if file.is_file()]
    places += [file for file in (node.data / "spool").rglob("*") if file.is_file()]
    assert [place.name for place in places if b"CANARY" in place.read_bytes()] == []
    with view_of(node.data) as view:
        assert "search" in {act.kind for act in acts_of(view, node)}


def acts_of(view: object, node: Node) -> list[object]:
    from sqlalchemy import text

    with ledger_of(node.data) as ledger, ledger.read() as connection:
        return list(connection.execute(text("select * from event where person")).all())


def test_the_first_page_follows_within_two_seconds(
    chromium: Browser, node: Node, failed: JobRow
) -> None:
    with tab(chromium, node, "viewer") as seen:
        page = seen.open("/segnode/")
        queued = page.locator("dt:has-text('Dead letters') + dd b")
        expect(queued).to_have_text("0")
        page.wait_for_timeout(2500)
        seen.asked.clear()
        page.wait_for_timeout(6000)
        assert 2 <= len(seen.asked) <= 4, "one request per tab and two seconds"
        set_state(node, failed.key, JobState.DEAD)
        try:
            expect(queued).to_have_text("1", timeout=2600)
        finally:
            set_state(node, failed.key, JobState.FAILED)
        expect(queued).to_have_text("0", timeout=2600)
        assert seen.wrong == []


def set_state(node: Node, key: str, state: JobState) -> None:
    from sqlalchemy import update

    from segnode_contract.ledger import schema
    from segnode_contract.ledger.clock import now_s

    with ledger_of(node.data) as ledger, ledger.write() as connection:
        job = schema.job
        connection.execute(
            update(job).where(job.c.key == key).values(state=state, updated_at=now_s())
        )


def test_a_viewer_is_shown_nothing_that_acts(
    chromium: Browser, node: Node, done: JobRow, failed: JobRow
) -> None:
    with tab(chromium, node, "viewer") as seen:
        for path in pages_of(done, failed).values():
            page = seen.open(path)
            actions = page.evaluate(
                "[...document.querySelectorAll('form[method=post]')].map(f => f.action)"
            )
            assert {address.removeprefix(node.url) for address in actions} <= {"/segnode/search"}
            assert page.locator("[formaction]").count() == 0
            assert page.locator("a[href^='/app/']").count() == 0


def test_an_operator_retries_what_failed_from_the_list(
    chromium: Browser, node: Node, failed: JobRow
) -> None:
    with tab(chromium, node, "operator") as seen:
        page = seen.open("/segnode/jobs?state=failed")
        page.locator(f"input[value='{failed.key}']").check()
        page.get_by_role("button", name="Retry").click()
        expect(page.get_by_role("status")).to_contain_text("1 job")
        ended(node, failed.study_uid)
        page = seen.open(f"/segnode/jobs/{failed.key}")
        expect(page.locator("main")).to_contain_text("retried by hand")
        expect(page.locator("main")).to_contain_text("operator")
        expect(page.locator("main")).to_contain_text("not-hounsfield")
        assert seen.wrong == []


def test_a_wrong_result_is_withdrawn_and_made_anew(
    chromium: Browser, node: Node, images: list[Dataset], tmp_path: Path
) -> None:
    job = send(node, again(images, "withdrawn"), tmp_path)[0]
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
    job = send(node, again(images, "deleted"), tmp_path)[0]
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


def again(images: list[Dataset], seed: str) -> list[Dataset]:
    """Return the same images as another study."""
    from copy import deepcopy

    from segnode_contract.identity import derived_uid

    made = [deepcopy(image) for image in images]
    for image in made:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(image, keyword, derived_uid(seed, getattr(image, keyword)))
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    return made


def overlays(chromium: Browser, node: Node, study_uid: str) -> dict[str, list[dict[str, str]]]:
    """Return what the ledger tells the viewer of a study."""
    with tab(chromium, node, "viewer") as seen:
        text = seen.open(f"/segnode/api/overlays?StudyInstanceUIDs={study_uid}").inner_text("body")
    told: dict[str, list[dict[str, str]]] = json.loads(text)
    told["hidden"] = sorted(told["hidden"])  # type: ignore[type-var] # texts
    return told


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
    for number, image in enumerate(made):
        image.save_as(tmp_path / f"{number:04}.dcm", enforce_file_format=True)
    peer = Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port)
    [study_uid] = send_paths([tmp_path], peer).study_uids
    decided(node, study_uid)
    with tab(chromium, node, "operator") as seen:
        page = seen.open("/segnode/")
        page.get_by_role("link", name="Jobs", exact=True).click()
        page.get_by_label("Search by", exact=True).select_option("accession")
        page.get_by_label("Whole number or ID").fill("A-4711")
        page.get_by_role("button", name="Search").click()
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


def decided(node: Node, study_uid: str) -> None:
    wait(lambda: bool(series_of(node, study_uid)), "the series was not decided")


def series_of(node: Node, study_uid: str) -> list[object]:
    with view_of(node.data) as view:
        return [each for each in view.series(study_uid) if each.decided_at is not None]


def wait(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def test_a_node_whose_orthanc_is_away_says_so(chromium: Browser, node: Node, done: JobRow) -> None:
    with tab(chromium, node, "viewer") as seen:
        page = seen.open("/segnode/")
        page.context.set_offline(True)
        expect(page.locator("#lost")).to_contain_text("asked again", timeout=6000)
        page.context.set_offline(False)
        expect(page.locator("#lost")).to_be_hidden(timeout=6000)


def test_who_acted_is_on_record(chromium: Browser, node: Node, done: JobRow) -> None:
    with ledger_of(node.data) as ledger:
        ActLedger(ledger).note("search", "viewer", "by patient ID: 1 study")
    with tab(chromium, node, "administrator") as seen:
        page = seen.open("/segnode/history")
        expect(page.locator("main")).to_contain_text("by patient ID: 1 study")
