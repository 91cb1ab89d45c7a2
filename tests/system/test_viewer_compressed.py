"""Overlays over compressed images, and the worklist's words, in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect
from pydicom import Dataset, dcmread
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from .browser import Picture, Viewer, coloured
from .conftest import need
from .test_overlay_pixels import channels, check_marker, check_nothing_went_wrong
from .viewer_node import ViewerNode
from .viewer_phantom import BODY_MM, LEFT_FRONT, RIGHT_BACK, SLICE_MM, SLICES, make_study

SYNTAXES = {
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
    "RLE": RLELossless,
    "JPEG lossless": JPEGLosslessSV1,
}


def compressed(image: Dataset, syntax: UID, folder: Path) -> Dataset:
    """Return the image in another transfer syntax, its pixels the same."""
    if syntax != JPEGLosslessSV1:
        image.compress(syntax, generate_instance_uid=False)
        return image
    need(shutil.which("dcmcjpeg"), "DCMTK's dcmcjpeg is not installed")
    before, after = folder / "before.dcm", folder / "after.dcm"
    image.save_as(before, enforce_file_format=True)
    subprocess.run(["dcmcjpeg", "--encode-lossless-sv1", before, after], check=True)
    return dcmread(after)


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES.keys())
def test_overlay_lies_right_over_compressed_images(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, syntax: UID, tmp_path: Path
) -> None:
    node, study = orthanc_with_viewer, make_study()
    node.upload(study.first_seg)
    pixels = study.first[0].PixelData
    for image in study.first:
        uid = image.SOPInstanceUID
        made = compressed(image, syntax, tmp_path)
        assert (made.file_meta.TransferSyntaxUID, made.SOPInstanceUID) == (syntax, uid)
        node.upload(made)
    assert made.pixel_array.astype(np.uint16).tobytes() == pixels
    node.say([study.overlays()[0]])

    viewer.open_study(study.study_uid)
    viewer.wait_for_overlay()

    viewer.screenshot(f"compressed-{syntax.name.split(',')[0].replace(' ', '-')}")
    check_marker(viewer, LEFT_FRONT)
    check_marker(viewer, RIGHT_BACK)
    check_nothing_went_wrong(viewer)


def test_reformatted_views_show_the_overlay_where_the_marker_is_in_three_planes(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, tmp_path: Path
) -> None:
    node, study = orthanc_with_viewer, make_study()
    node.upload(study.first_seg)
    for image in study.first:
        node.upload(compressed(image, JPEGLSLossless, tmp_path))
    node.say([study.overlays()[0]])
    x, y, z = LEFT_FRONT.centre_mm

    viewer.open_study(study.study_uid, "&hangingprotocolId=mpr")
    viewer.wait_for(lambda picture: channels(picture) == {0, 1})
    for viewport in range(3):
        viewer.jump_to(LEFT_FRONT.centre_mm, viewport)

    def red(picture: Picture) -> bool:
        return channels(picture) == {0}

    axial, sagittal, coronal = (viewer.wait_for(red, viewport=i) for i in range(3))
    viewer.screenshot("mpr-compressed")
    half_z = SLICES * SLICE_MM / 2
    # the body is cut there beside its middle
    half_y = BODY_MM[1] * np.sqrt(1 - (x / BODY_MM[0]) ** 2)
    half_x = BODY_MM[0] * np.sqrt(1 - (y / BODY_MM[1]) ** 2)
    assert middle_mm(axial, BODY_MM[0], BODY_MM[1]) == pytest.approx((x, y), abs=4)
    assert middle_mm(sagittal, half_y, half_z) == pytest.approx((y, -z), abs=4)  # head up
    assert middle_mm(coronal, half_x, half_z) == pytest.approx((x, -z), abs=4)
    check_nothing_went_wrong(viewer)


def middle_mm(picture: Picture, half_width: float, half_height: float) -> tuple[float, float]:
    """Return the colour's middle, to the right and down of the body's, which is so large."""
    shown_rows, shown_columns = np.nonzero(picture.max(axis=2) > 20)
    rows, columns = np.nonzero(coloured(picture))
    right = np.interp(
        columns.mean(), [shown_columns.min(), shown_columns.max()], [-half_width, half_width]
    )
    down = np.interp(rows.mean(), [shown_rows.min(), shown_rows.max()], [-half_height, half_height])
    return float(right), float(down)


def test_the_worklist_has_the_descriptions(viewer: Viewer, orthanc_with_viewer: ViewerNode) -> None:
    study = make_study()
    for image in (*study.first, study.localizer):
        image.PatientName, image.StudyDescription = "WORKLIST^ONE", "Chest & abdomen, 50%"
        image.AccessionNumber = "A-4711"
        orthanc_with_viewer.upload(image)
    viewer.page.goto(f"{viewer.base_url}/ohif/?patientName=WORKLIST")

    row = viewer.page.get_by_role("row").filter(has_text="WORKLIST")

    expect(row).to_contain_text("Chest & abdomen, 50%", timeout=20_000)
    expect(row).to_contain_text("A-4711")
    expect(row).to_contain_text("21")
    expect(row).to_have_count(1)
    viewer.screenshot("worklist")
    check_nothing_went_wrong(viewer)
