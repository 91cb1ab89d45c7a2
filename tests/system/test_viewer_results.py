"""Several results in one study, and what comes and goes while it is open."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect
from pydicom import Dataset

from .browser import Picture, Viewer, coloured
from .test_overlay_pixels import channels, check_marker, check_nothing_went_wrong
from .viewer_node import ViewerNode
from .viewer_phantom import (
    BLUE,
    LEFT_FRONT,
    RIGHT_BACK,
    RIGHT_FRONT,
    Marker,
    Study,
    make_study,
    overlay_of,
    segmentation,
)

MARK = "AI, unverified, research use"
NEW_MIDDLE = Marker(name="Middle", colour=BLUE, centre_mm=(0.0, 0.0, 0.0))
ASKED_MS = 7000
"""The viewer asks the ledger every 5 s."""


@pytest.fixture
def study(orthanc_with_viewer: ViewerNode) -> Study:
    made = make_study()
    for instance in made.instances:
        orthanc_with_viewer.upload(instance)
    return made


def give(node: ViewerNode, images: list[Dataset], marker: Marker, number: int) -> Dataset:
    """Store one more result for a series."""
    seg = segmentation(images, [marker], number)
    seg.SeriesDescription = f"Result {number}"
    node.upload(seg)
    return seg


def shows(*leading: int) -> Callable[[Picture], bool]:
    """Return a test for a picture whose colours are led by just these channels."""
    return lambda picture: channels(picture) == set(leading)


def shows_no_colour(picture: Picture) -> bool:
    return not coloured(picture).any()


def test_a_second_model_is_listed_and_its_colours_wait_for_a_click(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    node = orthanc_with_viewer
    other = give(node, study.first, RIGHT_FRONT, 104)
    node.say([*study.overlays(), overlay_of(other, "ct-lung", "2.1")])

    viewer.open_study(study.study_uid)
    viewer.wait_for(shows(0, 1))
    expect(viewer.page.get_by_text("Result 104").nth(1)).to_be_visible()
    assert viewer.segment_names()[-1] == f"1 {RIGHT_FRONT.name}"
    viewer.wait_for(shows(0, 1))
    assert viewer.marks() == [f"{MARK}\nmarkers 1.0"]

    # what OHIF restores with the series stays switched off
    viewer.open_series("Second CT")
    viewer.wait_for(shows(2))
    assert viewer.marks() == [f"{MARK}\nmarkers 1.0"]
    viewer.open_series("First CT")
    viewer.wait_for(shows(0, 1))

    viewer.eye(1).click()
    viewer.wait_for(shows(0, 1, 2))
    assert viewer.marks() == [f"{MARK}\nmarkers 1.0\nct-lung 2.1"]
    viewer.screenshot("two-models")
    viewer.eye(0).click()
    viewer.wait_for(shows(2))
    assert viewer.marks() == [f"{MARK}\nct-lung 2.1"]
    check_nothing_went_wrong(viewer)


def test_all_stacks_of_one_result_are_seen_at_once(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    node = orthanc_with_viewer
    stacks = [
        give(node, study.first, marker, 104 + number)
        for number, marker in enumerate((LEFT_FRONT, RIGHT_BACK))
    ]
    other = give(node, study.first, RIGHT_FRONT, 110)
    said = [overlay_of(seg, "ct-tissue") for seg in stacks]
    node.say([*said, overlay_of(other, "ct-lung")])

    viewer.open_study(study.study_uid)

    viewer.wait_for_overlay()
    check_marker(viewer, LEFT_FRONT)
    check_marker(viewer, RIGHT_BACK)
    assert viewer.marks() == [f"{MARK}\nct-tissue 1.0"]
    check_nothing_went_wrong(viewer)


def test_a_second_model_opened_from_the_list_takes_the_place_of_the_first(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    node = orthanc_with_viewer
    other = give(node, study.first, RIGHT_FRONT, 104)
    node.say([*study.overlays(), overlay_of(other, "ct-lung", "2.1")])
    viewer.open_study(study.study_uid)
    viewer.wait_for(shows(0, 1))

    viewer.open_series("Result 104")

    viewer.wait_for(shows(2))
    assert viewer.marks() == [f"{MARK}\nct-lung 2.1"]


def test_reformatted_views_keep_the_second_model_off_and_are_marked_each(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    node = orthanc_with_viewer
    other = give(node, study.first, NEW_MIDDLE, 104)
    node.say([*study.overlays(), overlay_of(other, "ct-lung", "2.1")])

    viewer.open_study(study.study_uid, "&hangingprotocolId=mpr")
    viewer.wait_for(shows(0, 1))
    viewer.segment_names()
    viewer.page.wait_for_timeout(2000)

    viewer.screenshot("mpr-marks")
    viewer.wait_for(shows(0, 1))
    for viewport in (1, 2):  # through the middle, where only the second model has a marker
        viewer.wait_for(shows_no_colour, viewport=viewport)
    assert viewer.marks() == [f"{MARK}\nmarkers 1.0"] * 3

    viewer.eye(1).click()
    viewer.wait_for(shows(0, 1, 2))
    assert sorted(viewer.marks()) == [
        f"{MARK}\nmarkers 1.0",
        f"{MARK}\nmarkers 1.0",
        f"{MARK}\nmarkers 1.0\nct-lung 2.1",
    ]
    check_nothing_went_wrong(viewer)


def test_results_that_hold_no_more_are_not_in_the_list(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    node = orthanc_with_viewer
    old = [give(node, study.first, RIGHT_FRONT, number) for number in (104, 105)]
    node.say(study.overlays(), [seg.SeriesInstanceUID for seg in old])

    viewer.open_study(study.study_uid)

    expect(viewer.notice("2 AI results are hidden")).to_be_visible(timeout=20_000)
    viewer.wait_for(shows(0, 1))
    assert not viewer.listed() & {seg.SeriesInstanceUID for seg in old}
    assert study.first_seg.SeriesInstanceUID in viewer.listed()
    expect(viewer.page.get_by_text("Result 104")).to_have_count(0)
    viewer.screenshot("older-hidden")
    check_nothing_went_wrong(viewer)


def test_a_result_that_comes_announces_itself_and_one_click_shows_it(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    node = orthanc_with_viewer
    node.say([])
    viewer.open_study(study.study_uid, f"&initialSeriesInstanceUID={series_of(study.first)}")
    viewer.wait_for_image()
    viewer.page.evaluate("window.sameePage = true")
    asked: list[str] = []
    viewer.page.on("request", lambda request: asked.append(request.url))

    seg = give(node, study.first, RIGHT_FRONT, 110)
    node.say([overlay_of(seg, "ct-tissue", "1.0")])

    notice = viewer.notice("New AI result: ct-tissue 1.0")
    expect(notice).to_be_visible(timeout=ASKED_MS)
    assert viewer.marks() == []
    assert shows_no_colour(viewer.wait_for_image())
    viewer.screenshot("announced")
    notice.get_by_role("button", name="Show it").click()

    viewer.wait_for(shows(2))
    assert viewer.marks() == [f"{MARK}\nct-tissue 1.0"]
    assert seg.SeriesInstanceUID in viewer.listed()
    expect(notice).to_have_count(0)
    viewer.screenshot("shown-by-a-click")
    assert viewer.page.evaluate("window.sameePage")
    assert not [url for url in asked if f"series/{series_of(study.first)}/metadata" in url]
    check_nothing_went_wrong(viewer)


def test_a_result_for_another_series_moves_nobody_before_the_click(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    node = orthanc_with_viewer
    node.say([])
    viewer.open_study(study.study_uid)
    viewer.wait_for_image()
    localizer = [study.localizer.SeriesInstanceUID]
    assert viewer.viewports() == localizer

    node.say([study.overlays()[1]])

    notice = viewer.notice("New AI result: markers 1.0")
    expect(notice).to_be_visible(timeout=ASKED_MS)
    viewer.page.wait_for_timeout(1000)
    assert viewer.viewports() == localizer
    notice.get_by_role("button", name="Show it").click()
    viewer.wait_for(shows(2))
    assert viewer.viewports() == [series_of(study.second)]
    assert viewer.marks() == [f"{MARK}\nmarkers 1.0"]


def series_of(images: list[Dataset]) -> str:
    return str(images[0].SeriesInstanceUID)


def test_while_nothing_changes_no_answer_is_sent_twice(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    orthanc_with_viewer.say(study.overlays())
    statuses: list[int] = []
    viewer.page.on(
        "response",
        lambda answer: statuses.append(answer.status) if "/api/overlays" in answer.url else None,
    )
    viewer.open_study(study.study_uid)
    viewer.wait_for_overlay()
    viewer.page.wait_for_timeout(2 * ASKED_MS)
    assert statuses[0] == 200
    assert len(statuses) >= 3
    assert set(statuses[1:]) == {304}


def test_a_withdrawn_result_leaves_the_screen_and_that_is_said(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    node = orthanc_with_viewer
    other = give(node, study.first, RIGHT_FRONT, 104)
    rest = [*study.overlays()[1:], overlay_of(other, "ct-lung", "2.1")]
    node.say([study.overlays()[0], *rest])
    viewer.open_study(study.study_uid)
    viewer.wait_for(shows(0, 1))

    node.say(rest, [study.first_seg.SeriesInstanceUID])

    expect(viewer.notice("AI result markers 1.0 was taken off")).to_be_visible(timeout=ASKED_MS)
    viewer.wait_for(lambda picture: shows_no_colour(picture) and picture.max() > 20)
    viewer.screenshot("withdrawn")
    assert viewer.marks() == []
    assert study.first_seg.SeriesInstanceUID not in viewer.listed()
    # what it says is not that of the other model unasked
    viewer.page.wait_for_timeout(1000)
    viewer.wait_for(shows_no_colour)
    check_nothing_went_wrong(viewer)


def test_a_newer_result_replaces_the_one_on_the_screen(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    node = orthanc_with_viewer
    node.say(study.overlays())
    viewer.open_study(study.study_uid)
    viewer.wait_for(shows(0, 1))

    newer = give(node, study.first, RIGHT_FRONT, 111)
    newest = [overlay_of(newer, "markers", "1.1"), study.overlays()[1]]
    node.say(newest, [study.first_seg.SeriesInstanceUID])

    notice = viewer.notice("New AI result: markers 1.1")
    expect(notice).to_contain_text("replaces the one that was on the screen", timeout=ASKED_MS)
    viewer.wait_for(shows_no_colour)
    notice.get_by_role("button", name="Show it").click()
    viewer.wait_for(shows(2))
    assert viewer.marks() == [f"{MARK}\nmarkers 1.1"]
    check_nothing_went_wrong(viewer)


def test_a_result_that_was_uncertain_for_a_while_comes_back_with_a_click(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    # its images came again: the job runs once more, and confirms the same objects
    node = orthanc_with_viewer
    first, *rest = study.overlays()
    node.say([first, *rest])
    viewer.open_study(study.study_uid)
    viewer.wait_for(shows(0, 1))
    node.say(rest, [study.first_seg.SeriesInstanceUID])
    off = viewer.notice("AI result markers 1.0 was taken off")
    expect(off).to_contain_text("is being made again", timeout=ASKED_MS)
    viewer.wait_for(shows_no_colour)

    node.say([first, *rest])

    notice = viewer.notice("New AI result: markers 1.0")
    expect(notice).to_be_visible(timeout=ASKED_MS)
    notice.get_by_role("button", name="Show it").click()
    viewer.wait_for(shows(0, 1))
    assert viewer.marks() == [f"{MARK}\nmarkers 1.0"]
    check_marker(viewer, LEFT_FRONT)
    check_nothing_went_wrong(viewer)


def test_an_offer_is_taken_back_with_its_result(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    node = orthanc_with_viewer
    node.say([study.overlays()[1]])
    viewer.open_study(study.study_uid)
    viewer.wait_for_overlay()
    node.say(study.overlays())
    notice = viewer.notice("New AI result: markers 1.0")
    expect(notice).to_be_visible(timeout=ASKED_MS)

    node.say([study.overlays()[1]], [study.first_seg.SeriesInstanceUID])

    expect(notice).to_have_count(0, timeout=ASKED_MS)


def test_the_mark_goes_with_the_overlay_and_comes_with_it(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    orthanc_with_viewer.say(study.overlays())
    viewer.open_study(study.study_uid)
    viewer.wait_for(shows(0, 1))
    assert viewer.marks() == [f"{MARK}\nmarkers 1.0"]
    viewer.eye(0).click()
    viewer.wait_for(shows_no_colour)
    assert viewer.marks() == []
    viewer.eye(0).click()
    viewer.wait_for(shows(0, 1))
    assert viewer.marks() == [f"{MARK}\nmarkers 1.0"]
    viewer.open_series("Localizer")
    viewer.wait_for(shows_no_colour)
    viewer.page.wait_for_timeout(300)
    assert viewer.marks() == []


def test_a_captured_image_carries_the_mark(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    orthanc_with_viewer.say(study.overlays())
    viewer.open_study(study.study_uid)
    viewer.wait_for(shows(0, 1))
    viewer.page.locator('[data-cy="Capture"]').click()
    captured = viewer.page.locator('[data-viewport-uid="cornerstone-viewport-download-form"]')
    expect(captured.get_by_text(MARK)).to_be_visible(timeout=10_000)
    viewer.screenshot("capture")


def test_words_from_the_ledger_are_text(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    evil = "<img src=x onerror=document.title='owned'>"
    orthanc_with_viewer.say([overlay_of(study.first_seg, evil)])
    viewer.open_study(study.study_uid)
    viewer.wait_for(shows(0, 1))
    assert evil in viewer.marks()[0]
    assert viewer.page.title() != "owned"


def test_results_of_a_study_that_is_opened_again_are_the_ones_of_then(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, study: Study
) -> None:
    node = orthanc_with_viewer
    node.say(study.overlays())
    viewer.open_study(study.study_uid)
    viewer.wait_for(shows(0, 1))
    seg = give(node, study.first, LEFT_FRONT, 120)
    viewer.page.locator('[data-cy="return-to-work-list"]').click()
    expect(viewer.page.get_by_text("Study List")).to_be_visible(timeout=10_000)
    node.say([overlay_of(seg, "markers", "1.1")], [study.first_seg.SeriesInstanceUID])

    viewer.page.go_back()

    viewer.wait_for(shows(0))
    viewer.screenshot("opened-again")
    assert viewer.marks() == [f"{MARK}\nmarkers 1.1"]
    check_marker(viewer, LEFT_FRONT)
