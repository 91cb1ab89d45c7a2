"""OHIF draws the mask of a tilted, of an uneven and of a multi-frame series where the ball is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from segnode_cli.ct_series import as_file
from segnode_contract.form import Form
from segnode_worker.inputs import Fetched
from segnode_worker.result import make_result
from segnode_worker.segmentation import ResultIdentity
from segnode_worker.spool import in_memory

from ..worker.brighter import Brighter
from ..worker.many_segments import card_of
from ..worker.odd_series import (
    AXIAL,
    COLUMNS,
    INSIDE,
    OUTSIDE,
    ROWS,
    ball_series,
    corners,
    enhanced,
    truth,
)
from .browser import Picture, Viewer, coloured
from .viewer_node import ViewerNode

RED = (34885, 53485, 50171)
EVEN = np.arange(-12.0, 25.0, 4.0)
UNEVEN = np.array([-12.0, -8, -4, 0, 3, 5, 8, 12, 15, 19, 24])
SERIES = {
    "tilted": lambda: ball_series(corners(EVEN, tilt_degrees=18.5), seed="ohif tilt"),
    "uneven": lambda: ball_series(corners(UNEVEN), seed="ohif uneven"),
    "frames": lambda: [enhanced(ball_series(corners(EVEN), seed="ohif frames"))],
}


@pytest.fixture(params=SERIES.values(), ids=SERIES.keys())
def series(
    request: pytest.FixtureRequest, orthanc_with_viewer: ViewerNode
) -> Iterator[Sequence[Dataset]]:
    """The images, which the archive has, and their segmentation too."""
    images: list[Dataset] = request.param()
    give(orthanc_with_viewer, images, Form.BINARY)
    yield images
    orthanc_with_viewer.say([])


def give(node: ViewerNode, images: Sequence[Dataset], form: Form) -> None:
    """Store images and the segmentation that is made of them, and let the ledger name it."""
    for image in images:
        image.WindowCenter, image.WindowWidth = 500, 2000
        node.upload(image)
    made = make_result(
        Fetched(files=[as_file(image) for image in images]),
        card=replace(card_of(1, {1: "Ball"}, {1: RED}), largest_gap_mm=12.0),
        models=Brighter((INSIDE + OUTSIDE) / 2),
        identity=ResultIdentity(
            job_key=images[0].SOPInstanceUID, model_digest="cd" * 32, node_id="node-1", form=form
        ),
        made_at=datetime(2026, 2, 3),
        stage=lambda _: nullcontext(),
        keep=in_memory,
    )
    seg = dcmread(BytesIO(bytes(made.objects[0].data)))
    node.upload(seg)
    overlay = {
        "series_uid": images[0].SeriesInstanceUID,
        "seg_series_uid": seg.SeriesInstanceUID,
        "model": "ball",
        "description": seg.SeriesDescription,
    }
    node.say([overlay])


@pytest.mark.parametrize("form", Form)
def test_a_result_without_a_voxel_is_listed_and_stops_nothing(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, form: Form
) -> None:
    images = ball_series(corners(EVEN), seed=f"ohif empty {form}")
    for image in images:
        image.PixelData = (np.frombuffer(image.PixelData, "<u2") * 0 + 1064).tobytes()
    give(orthanc_with_viewer, images, form)
    viewer.open_study(images[0].StudyInstanceUID)
    viewer.wait_for_image()
    assert viewer.segment_names()[-1].endswith("Ball")
    viewer.scroll_to(float(images[0].ImagePositionPatient[2]))
    viewer.page.wait_for_timeout(300)
    assert not coloured(viewer.wait_for_image()).any()
    viewer.screenshot(f"empty-{form}")
    assert viewer.errors == []
    assert viewer.failed == []


def middle_of(picture: Picture) -> tuple[float, float]:
    """Return row and column of the colour's middle, in pixels of the image."""
    shown_rows, shown_columns = np.nonzero(picture.max(axis=2) > 5)
    rows, columns = np.nonzero(coloured(picture))
    span = (shown_rows.min(), shown_rows.max() + 1), (shown_columns.min(), shown_columns.max() + 1)
    row = np.interp(rows.mean() + 0.5, span[0], (0, ROWS)) - 0.5
    column = np.interp(columns.mean() + 0.5, span[1], (0, COLUMNS)) - 0.5
    return float(row), float(column)


def test_the_mask_is_drawn_where_the_ball_is(
    viewer: Viewer, series: Sequence[Dataset], request: pytest.FixtureRequest
) -> None:
    viewer.open_study(series[0].StudyInstanceUID)
    viewer.wait_for_overlay()
    middles = [c for c in positions_of(series) if truth(c, AXIAL).sum() > 150]
    for corner in (middles[0], middles[-1], middles[len(middles) // 2]):
        viewer.scroll_to(float(corner[2]))
        viewer.page.wait_for_timeout(300)  # the slice before has colour too
        picture = viewer.wait_for(lambda picture: bool(coloured(picture).sum() > 100))
        known = np.argwhere(truth(corner, AXIAL)).mean(axis=0)
        assert middle_of(picture) == pytest.approx(known, abs=1.0), corner
    viewer.screenshot(f"odd-{request.node.callspec.id}")
    assert viewer.errors == []


def positions_of(series: Sequence[Dataset]) -> list[NDArray[np.float64]]:
    if "PerFrameFunctionalGroupsSequence" in series[0]:
        groups = series[0].PerFrameFunctionalGroupsSequence
        planes = [group.PlanePositionSequence[0] for group in groups]
    else:
        planes = list(series)
    return [np.array(plane.ImagePositionPatient, float) for plane in planes]
