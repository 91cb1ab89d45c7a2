"""What a user sees in OHIF, on a phantom whose markers are known in millimetres."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from playwright.sync_api import expect

from .browser import Picture, Viewer, coloured
from .viewer_node import ViewerNode
from .viewer_phantom import (
    BODY_MM,
    LEFT_FRONT,
    RIGHT_BACK,
    RIGHT_FRONT,
    Marker,
    Study,
    make_study,
)


@pytest.fixture(scope="module")
def study(orthanc_with_viewer: ViewerNode) -> Study:
    study = make_study()
    for instance in study.instances:
        orthanc_with_viewer.upload(instance)
    return study


@pytest.fixture(autouse=True)
def ledger_knows(orthanc_with_viewer: ViewerNode, study: Study) -> None:
    orthanc_with_viewer.say(study.overlays())


def where_mm(picture: Picture, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Return the centre of a colour, right to left and front to back, in millimetres.

    The body's own outline is the ruler: it reaches `BODY_MM` to all sides of the origin. Columns
    are taken to run to the patient's left, as radiologists hang an axial slice.
    """
    rows, columns = np.nonzero(picture.max(axis=2) > 20)
    hue = picture.astype(float) - picture.mean(axis=2, keepdims=True)
    likeness = hue @ (np.asarray(colour) - np.mean(colour)) / np.linalg.norm(colour)
    found_rows, found_columns = np.nonzero(coloured(picture) & (likeness > 30))
    assert found_rows.size, f"nothing is drawn in {colour}"
    x = np.interp(found_columns.mean(), [columns.min(), columns.max()], [-BODY_MM[0], BODY_MM[0]])
    y = np.interp(found_rows.mean(), [rows.min(), rows.max()], [-BODY_MM[1], BODY_MM[1]])
    return float(x), float(y)


def check_marker(viewer: Viewer, marker: Marker, viewport: int = 0) -> None:
    """Scroll to the marker's middle and find it there in its colour, and nothing else."""
    viewer.scroll_to(marker.centre_mm[2])
    picture = viewer.wait_for(shows_marker(marker), viewport=viewport)
    assert where_mm(picture, marker.colour) == pytest.approx(marker.centre_mm[:2], abs=3)


def shows_marker(marker: Marker) -> Callable[[Picture], bool]:
    """Return a test for a picture in which all colour is the marker's, of the marker's size."""
    expected = marker.radius_mm**2 / (BODY_MM[0] * BODY_MM[1])

    def shows(picture: Picture) -> bool:
        body = (picture.max(axis=2) > 20).sum()
        share = coloured(picture).sum() / max(body, 1)
        return channels(picture) == {int(np.argmax(marker.colour))} and bool(
            0.7 < share / expected < 1.3
        )

    return shows


def channels(picture: Picture) -> set[int]:
    """Return which of red, green and blue lead in the colours of a picture."""
    return set(np.argmax(picture[coloured(picture)], axis=1).tolist())


def check_nothing_went_wrong(viewer: Viewer) -> None:
    """See that no request left the machine or failed, and that no script stopped."""
    assert viewer.external == []
    assert viewer.failed == []
    assert viewer.errors == []


def test_overlay_lies_on_the_right_anatomy_without_a_click(viewer: Viewer, study: Study) -> None:
    viewer.open_study(study.study_uid)

    viewer.wait_for_overlay()
    viewer.screenshot("overlay")

    # the localizer comes first in the study, but has no overlay
    assert viewer.viewports() == [study.first[0].SeriesInstanceUID]
    assert viewer.segment_names() == [f"1 {LEFT_FRONT.name}", f"2 {RIGHT_BACK.name}"]
    check_marker(viewer, LEFT_FRONT)
    check_marker(viewer, RIGHT_BACK)
    check_nothing_went_wrong(viewer)


def test_each_series_gets_its_own_overlay(viewer: Viewer, study: Study) -> None:
    viewer.open_study(study.study_uid)
    viewer.wait_for_overlay()

    viewer.open_series("Second CT")
    viewer.wait_for(shows_marker(RIGHT_FRONT))
    viewer.screenshot("second-series")

    assert viewer.segment_names() == [f"1 {RIGHT_FRONT.name}"]
    check_marker(viewer, RIGHT_FRONT)
    viewer.open_series("First CT")
    viewer.wait_for(lambda picture: not shows_marker(RIGHT_FRONT)(picture))
    check_marker(viewer, LEFT_FRONT)
    check_nothing_went_wrong(viewer)


def test_viewports_of_one_frame_of_reference_keep_to_the_overlay_of_their_series(
    viewer: Viewer, study: Study
) -> None:
    # OHIF itself spreads a segmentation to every reformatted viewport of the frame of reference
    viewer.open_study(study.study_uid, "&hangingprotocolId=mpr")
    viewer.wait_for(lambda picture: channels(picture) == {0, 1})

    viewer.show_axial(study.second[0].SeriesInstanceUID, viewport=1)

    viewer.wait_for(lambda picture: channels(picture) == {2}, viewport=1)
    viewer.wait_for(lambda picture: channels(picture) == {0, 1}, viewport=0)
    viewer.screenshot("two-series")


def test_without_the_ledgers_answer_there_is_no_overlay_but_a_warning(
    viewer: Viewer, study: Study, orthanc_with_viewer: ViewerNode
) -> None:
    orthanc_with_viewer.say(None)

    viewer.open_study(
        study.study_uid, "&initialSeriesInstanceUID=" + study.first[0].SeriesInstanceUID
    )
    viewer.wait_for_image()
    viewer.page.wait_for_timeout(3000)

    picture = viewer.pixels()
    assert picture is not None
    assert not coloured(picture).any()
    assert any("ledger" in text for text in viewer.warnings)
    expect(viewer.notice("AI results cannot be checked just now")).to_be_visible()


def test_segmentation_of_another_series_is_refused_even_if_the_ledger_names_it(
    viewer: Viewer, study: Study, orthanc_with_viewer: ViewerNode
) -> None:
    first, second = study.overlays()
    orthanc_with_viewer.say([first | {"seg_series_uid": second["seg_series_uid"]}])

    viewer.open_study(study.study_uid)
    viewer.wait_for_image()
    viewer.page.wait_for_timeout(3000)

    picture = viewer.pixels()
    assert picture is not None
    assert not coloured(picture).any()
    assert any("another series" in text for text in viewer.warnings)
