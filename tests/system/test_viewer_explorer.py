"""Our buttons in Orthanc's own pages, clicked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import ConsoleMessage, expect

from .browser import Viewer
from .viewer_node import ViewerNode
from .viewer_phantom import Study, make_study


@pytest.fixture(scope="module")
def study(orthanc_with_viewer: ViewerNode) -> Study:
    made = make_study()
    for image in made.instances:
        image.PatientName = "EXPLORER^ONE"
        image.PatientID = "EXPLORER"
        orthanc_with_viewer.upload(image)
    orthanc_with_viewer.say(made.overlays())
    return made


@pytest.fixture
def explorer(viewer: Viewer, study: Study) -> Iterator[Viewer]:
    """Orthanc Explorer with the patient's page open; nothing may be said in the console."""
    said: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and "/app/" in viewer.page.url:
            said.append(message.text)

    viewer.page.on("console", note)
    viewer.page.goto(f"{viewer.base_url}/app/explorer.html#find-studies")
    viewer.page.get_by_text("Two series & a localizer").filter(visible=True).first.wait_for()
    yield viewer
    assert said == []
    assert viewer.errors == []


def open_study(explorer: Viewer) -> None:
    study = explorer.page.locator("#find-studies").get_by_text("EXPLORER^ONE")
    study.filter(visible=True).first.click()
    explorer.page.wait_for_url("**/app/explorer.html#study?uuid=*")


def click(explorer: Viewer, page: str, text: str) -> None:
    """Click a button of the page that is open; the one before may still fade out."""
    explorer.page.locator(f"#{page} a.segnode-button").filter(has_text=text).click()


def open_series(explorer: Viewer, description: str) -> None:
    open_study(explorer)
    explorer.page.locator("#study").get_by_text(description).filter(visible=True).first.click()
    explorer.page.wait_for_url("**/app/explorer.html#series?uuid=*")


def test_a_study_opens_in_the_viewer(explorer: Viewer, study: Study) -> None:
    open_study(explorer)
    expect(explorer.page.locator("a.segnode-button:visible")).to_have_text(
        ["Open in OHIF", "AI jobs"]
    )
    explorer.page.wait_for_timeout(500)
    explorer.screenshot("explorer-study")
    click(explorer, "study", "Open in OHIF")
    explorer.page.wait_for_url(f"**/ohif/viewer?StudyInstanceUIDs={study.study_uid}")
    explorer.wait_for_overlay()


def test_a_study_leads_to_its_jobs(explorer: Viewer, study: Study) -> None:
    open_study(explorer)
    click(explorer, "study", "AI jobs")
    explorer.page.wait_for_url(f"**/segnode/studies/{study.study_uid}")


def test_a_series_opens_in_the_viewer(explorer: Viewer, study: Study) -> None:
    open_series(explorer, "Second CT")
    explorer.page.wait_for_timeout(500)
    explorer.screenshot("explorer-series")
    click(explorer, "series", "Open in OHIF")
    explorer.wait_for_overlay()
    assert explorer.viewports() == [study.second[0].SeriesInstanceUID]


def test_a_series_leads_to_its_study_s_jobs_and_to_a_model(explorer: Viewer, study: Study) -> None:
    open_series(explorer, "First CT")
    click(explorer, "series", "AI jobs")
    explorer.page.wait_for_url(f"**/segnode/studies/{study.study_uid}")
    explorer.page.go_back()
    click(explorer, "series", "Run a model")
    explorer.page.wait_for_url(f"**/segnode/series/{study.first[0].SeriesInstanceUID}/run")


def test_buttons_are_those_of_the_series_that_is_open(explorer: Viewer, study: Study) -> None:
    open_series(explorer, "First CT")
    click(explorer, "series", "Run a model")
    explorer.page.wait_for_url("**/run")
    explorer.page.goto(f"{explorer.base_url}/app/explorer.html#find-studies")
    open_series(explorer, "Second CT")
    click(explorer, "series", "Run a model")
    explorer.page.wait_for_url(f"**/segnode/series/{study.second[0].SeriesInstanceUID}/run")
