"""What a user sees in OHIF of label maps, RLE-compressed: each marker in its place and colour.

OHIF 3.13.2 takes colours by the place of an item in Segment Sequence, and not by its number.
"""

from __future__ import annotations

import pytest

from .browser import Viewer
from .test_overlay_pixels import check_marker, check_nothing_went_wrong
from .viewer_node import ViewerNode
from .viewer_phantom import make_label_map_study


@pytest.mark.parametrize("count", [2, 30, 104])
def test_every_segment_has_its_own_place_name_and_colour(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, count: int
) -> None:
    study = make_label_map_study(count)
    for image in study.images:
        orthanc_with_viewer.upload(image)
    orthanc_with_viewer.get("/instances", study.seg)
    orthanc_with_viewer.say(study.overlays())

    viewer.open_study(study.study_uid)
    viewer.wait_for_overlay()

    viewer.screenshot(f"label-map-{count}")
    for number, marker in sorted(study.markers.items(), reverse=True):
        check_marker(viewer, marker)
        assert study.names[number - 1] == marker.name
    viewer.screenshot(f"label-map-{count}")
    rows = [f"{number} {name}" for number, name in enumerate(study.names, 1)]
    assert viewer.segment_names() == ["0 Background", *rows]
    check_nothing_went_wrong(viewer)
