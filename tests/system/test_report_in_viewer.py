"""The report beside its segmentation in OHIF: listed, and nothing in the viewer suffers from it."""

from __future__ import annotations

from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pytest
from playwright.sync_api import expect
from pydicom import Dataset, dcmread

from segnode_cli.ct_series import as_file
from segnode_contract.card import parse_card
from segnode_contract.findings import Findings, Measurement
from segnode_contract.identity import content_digest
from segnode_worker.intensity import measured
from segnode_worker.plausible import counts_of, judged
from segnode_worker.report import report
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.stack import stack_series

from .browser import Viewer
from .viewer_node import ViewerNode
from .viewer_phantom import make_study, overlay_of

CARD = """
name = "markers"
version = "1"
kind = "builtin"
intended_use = "Tests."
limitations = ["It knows a phantom only."]
licence = "AGPL-3.0-or-later"
memory_bytes = 1000000
time_limit_s = 10
[input]
modality = "CT"
orientation = "HPL"
min_slices = 3
[[segments]]
number = 1
label = "Left half"
plane = 0
value = 1
colour = [40000, 50000, 30000]
category = {value = "91723000", scheme = "SCT", meaning = "Anatomical structure"}
type = {value = "39607008", scheme = "SCT", meaning = "Lung"}
modifiers = [{value = "7771000", scheme = "SCT", meaning = "Left"}]
"""
CUT = "Not measurable: It is cut."
MADE_AT = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


def result_of(images: list[Dataset]) -> tuple[Dataset, Dataset]:
    """Return SEG and SR of the left half of a series, one measure of which could not be taken."""
    stack = stack_series([as_file(image) for image in images])
    card = parse_card(CARD, where="a test's card")
    key = content_digest(str(image.SOPInstanceUID) for image in images)
    identity = ResultIdentity(job_key=key, model_digest="cd" * 32, node_id="node-1")
    labels = (stack.values > -500)[None].astype(np.uint8)
    labels[..., : labels.shape[-1] // 2] = 0
    failed = Measurement(segment=1, name="LAA-950", value=None, unit="%", reason=CUT)
    counts = counts_of(labels)
    findings = judged(labels, counts, card, Findings(measurements=(failed,)), stack.slice_ml)
    findings = measured(stack, labels, counts, card, findings)
    seg = b"".join(encode(stack, labels, card, findings, identity, MADE_AT))
    made = report(stack, card, findings, identity, MADE_AT)
    return dcmread(BytesIO(seg)), dcmread(BytesIO(made))


@pytest.fixture
def result(orthanc_with_viewer: ViewerNode) -> tuple[Dataset, Dataset]:
    images = make_study().first
    seg, made = result_of(images)
    for instance in (*images, seg, made):
        orthanc_with_viewer.upload(instance)
    orthanc_with_viewer.say([overlay_of(seg)])
    return seg, made


def test_the_report_is_listed_and_read_and_the_overlay_is_shown_as_without_it(
    viewer: Viewer, result: tuple[Dataset, Dataset]
) -> None:
    seg, made = result
    viewer.open_study(made.StudyInstanceUID)
    viewer.wait_for_overlay()
    assert viewer.segment_names() == ["1 Left half"]

    listed = viewer.page.get_by_text(made.SeriesDescription)
    listed.first.wait_for(timeout=10_000)
    viewer.screenshot("report-listed")
    kinds: dict[str, str] = viewer.page.evaluate(
        """() => Object.fromEntries(window.services.displaySetService.getActiveDisplaySets()
            .map(set => [set.SeriesInstanceUID, set.Modality]))"""
    )
    assert kinds[made.SeriesInstanceUID] == "SR"
    assert kinds[seg.SeriesInstanceUID] == "SEG"

    listed.first.dblclick()
    text = viewer.page.get_by_text("Volume: 1210 ml")
    text.wait_for(timeout=10_000)
    viewer.screenshot("report-read")
    shown = viewer.page.inner_text("body")
    assert "Share of volume below -950 HU (LAA-950): Measurement failure" in shown
    assert CUT in shown
    assert "verified by nobody" in shown
    assert "went wrong" not in shown

    assert viewer.external == []
    assert viewer.failed == []
    assert viewer.errors == []


def test_a_withdrawn_result_is_listed_no_more_and_its_report_neither(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, result: tuple[Dataset, Dataset]
) -> None:
    seg, made = result
    orthanc_with_viewer.say([], [seg.SeriesInstanceUID, made.SeriesInstanceUID])
    viewer.open_study(made.StudyInstanceUID)
    # it counts results, not objects
    expect(viewer.notice("1 AI result is hidden")).to_be_visible(timeout=20_000)
    viewer.wait_for_image()
    assert not viewer.listed() & {seg.SeriesInstanceUID, made.SeriesInstanceUID}
    expect(viewer.page.get_by_text(made.SeriesDescription)).to_have_count(0)
    assert viewer.failed == []
    assert viewer.errors == []


def test_a_report_that_is_withdrawn_while_it_is_read_gives_way_to_images(
    viewer: Viewer, orthanc_with_viewer: ViewerNode, result: tuple[Dataset, Dataset]
) -> None:
    seg, made = result
    viewer.open_study(made.StudyInstanceUID)
    viewer.wait_for_overlay()
    viewer.page.get_by_text(made.SeriesDescription).first.dblclick()
    text = viewer.page.get_by_text("Volume: 1210 ml")
    text.wait_for(timeout=10_000)

    orthanc_with_viewer.say([], [seg.SeriesInstanceUID, made.SeriesInstanceUID])

    expect(viewer.notice(f"{made.SeriesDescription} was closed")).to_be_visible(timeout=7000)
    viewer.wait_for_image()
    expect(text).to_have_count(0)
    assert not viewer.listed() & {seg.SeriesInstanceUID, made.SeriesInstanceUID}
    viewer.screenshot("report-withdrawn")
    assert viewer.marks() == []
    assert viewer.errors == []
