"""A ball whose place is known in millimetres, in series that are no regular grid."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from segnode_cli.ct_series import as_file
from segnode_contract.card import Card
from segnode_contract.errors import BrokenInstance, UnsuitableSeries
from segnode_worker.inputs import Fetched
from segnode_worker.result import Made, make_result
from segnode_worker.segmentation import ResultIdentity
from segnode_worker.spool import in_memory
from segnode_worker.stack import stack_series, stacks_of_series

from .brighter import Brighter
from .odd_series import (
    AXIAL,
    CENTRE_MM,
    INSIDE,
    OUTSIDE,
    PIXEL_MM,
    RADIUS_MM,
    ball_series,
    corners,
    enhanced,
    points,
    truth,
)

DCIODVFY = Path("/usr/bin/dciodvfy")
EVEN = np.arange(-36.0, 37.0, 4.0)
UNEVEN = np.array([-36.0, -31, -27, -23, -19, -16.5, -14, -11, -7, -3, 0, 3, 7, 10, 14, 17, 21, 26])
GAP = np.delete(EVEN, [9, 10])
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
OBLIQUE = ((0.98480775, 0.17364818, 0.0), (-0.15038373, 0.85286853, -0.5))


def segmented(images: Sequence[Dataset], card: Card) -> Made:
    shuffled = list(images)
    random.Random(3).shuffle(shuffled)
    return make_result(
        Fetched(files=[as_file(image) for image in shuffled]),
        card=replace(card, largest_gap_mm=12.0),
        models=Brighter((INSIDE + OUTSIDE) / 2),
        identity=ResultIdentity(job_key="ab" * 32, model_digest="cd" * 32, node_id="node-1"),
        made_at=datetime(2026, 2, 3),
        stage=lambda _: nullcontext(),
        keep=in_memory,
        pictured=True,
    )


def masks_of(seg: Dataset, number: int = 1) -> dict[tuple[str, int | None], NDArray[np.bool_]]:
    """Return a segment's frames by the image and frame that each says it was made from."""
    found = {}
    for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            [image] = group.DerivationImageSequence[0].SourceImageSequence
            place = (image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber"))
            found[place] = frame.astype(bool)
    return found


SERIES = {
    "a tilt of 18.5 degrees": (corners(EVEN, tilt_degrees=18.5), AXIAL),
    "a tilt to the other side": (corners(EVEN, tilt_degrees=-12), AXIAL),
    "uneven spacing": (corners(UNEVEN), AXIAL),
    "missing slices": (corners(GAP), AXIAL),
    "tilt, uneven and missing": (corners(np.delete(UNEVEN, 9), tilt_degrees=15), AXIAL),
    "sagittal and uneven": (corners(UNEVEN, SAGITTAL), SAGITTAL),
    "oblique and tilted": (corners(EVEN, OBLIQUE, 10), OBLIQUE),
}


@pytest.mark.parametrize(("positions", "axes"), SERIES.values(), ids=SERIES.keys())
def test_every_mask_lies_within_half_a_voxel_of_the_ball(
    positions: list[NDArray[np.float64]], axes: Sequence[Sequence[float]], card: Card
) -> None:
    images = ball_series(positions, axes)
    made = segmented(images, card)
    masks = masks_of(dcmread(BytesIO(made.objects[0].data)))
    half_gap = np.diff(np.array(positions) @ np.cross(*axes)).max() / 2
    reach = float(np.hypot(np.hypot(*PIXEL_MM) / 2, half_gap))
    for image, corner in zip(images, positions, strict=True):
        mask = masks.get((image.SOPInstanceUID, None), np.zeros((48, 56), bool))
        distance = np.linalg.norm(points(corner, axes) - CENTRE_MM, axis=2) - RADIUS_MM
        assert mask[distance < -reach].all()
        assert not mask[distance > reach].any()
        if (area := truth(corner, axes).sum()) > 150:
            middle = points(corner, axes)[mask].mean(axis=0)
            known = points(corner, axes)[truth(corner, axes)].mean(axis=0)
            down, right = np.abs((middle - known) @ np.array(axes[::-1]).T) / PIXEL_MM
            assert max(down, right) < 0.51
            assert mask.sum() == pytest.approx(area, rel=0.15)


@pytest.mark.parametrize(("positions", "axes"), SERIES.values(), ids=SERIES.keys())
def test_the_volume_is_that_of_the_ball(
    positions: list[NDArray[np.float64]], axes: Sequence[Sequence[float]], card: Card
) -> None:
    made = segmented(ball_series(positions, axes), card)
    [volume] = [m.value for m in made.findings.measurements if (m.segment, m.name) == (1, "Volume")]
    assert volume == pytest.approx(4 / 3 * np.pi * RADIUS_MM**3 / 1000, rel=0.05)


@pytest.mark.parametrize("name", [*SERIES, "frames"])
def test_dciodvfy_finds_no_error_in_seg_or_report(name: str, card: Card, tmp_path: Path) -> None:
    if not DCIODVFY.exists():
        pytest.skip("dciodvfy is not installed; `make test` installs it (dicom3tools)")
    series = ball_series(*SERIES.get(name, (corners(EVEN), AXIAL)))
    made = segmented([enhanced(series)] if name == "frames" else series, card)
    for each in made.objects:
        (tmp_path / each.role).write_bytes(each.data)
        command = [DCIODVFY, "-new", tmp_path / each.role]
        said = subprocess.run(command, check=False, capture_output=True)
        assert b"Error" not in said.stdout + said.stderr, each.role


def test_what_was_interpolated_is_said_with_its_values(card: Card) -> None:
    tilted = segmented(ball_series(SERIES["a tilt of 18.5 degrees"][0]), card).findings
    assert tilted.limitations == (
        "The slices are stacked 18.5 degrees aside of their normal (gantry tilt); the model saw "
        "them resampled.",
    )
    missing = segmented(ball_series(corners(GAP)), card).findings
    assert missing.limitations == (
        "The slices are 4.00 to 12.00 mm apart and some seem to be missing: 1 gaps are wider than "
        "1.5 times the usual 4.00 mm, the widest after (-34.375, -35.25, 8) mm; what lies between "
        "them was interpolated for the model.",
    )


def test_a_gap_wider_than_the_card_takes_is_refused_with_both_values() -> None:
    files = [as_file(image) for image in ball_series(corners(GAP))]
    for limit in (None, 11.0):
        with pytest.raises(
            UnsuitableSeries, match=r"12\.00 mm, where 4\.00 mm is usual"
        ) as refused:
            stacks_of_series(files, largest_gap_mm=limit)
        assert refused.value.code == "missing-slice"
    assert "the model's card takes 11 mm" in refused.value.sentence


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_frames_of_an_enhanced_image_are_slices_like_any_other(modality: str, card: Card) -> None:
    images = ball_series(corners(EVEN))
    whole = enhanced(images, modality)
    one = stack_series([as_file(whole)], modality=modality)
    many = stack_series([as_file(image) for image in images])
    assert np.array_equal(one.volume.array, many.volume.array)
    assert np.array_equal(one.volume.affine, many.volume.affine)
    made = segmented([whole], replace(card, modality=modality))
    masks = masks_of(dcmread(BytesIO(made.objects[0].data)))
    for number, corner in enumerate(corners(EVEN), 1):
        mask = masks.get((whole.SOPInstanceUID, number), np.zeros((48, 56), bool))
        assert np.array_equal(mask, truth(corner))


def test_a_tilted_enhanced_image_in_compressed_frames(card: Card) -> None:
    positions = corners(EVEN, tilt_degrees=18.5)
    whole = enhanced(ball_series(positions))
    plain = segmented([whole], card)
    whole.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    packed = segmented([whole], card)
    assert plain.input_digest == packed.input_digest
    assert plain.objects[0].digest == packed.objects[0].digest


def test_two_stacks_of_one_series_get_a_result_each(card: Card) -> None:
    axial, sagittal = corners(EVEN), corners(UNEVEN, SAGITTAL)
    series = [*ball_series(axial), *ball_series(sagittal, SAGITTAL, seed="sagittal")]
    for image in series[len(axial) :]:
        image.SeriesInstanceUID = series[0].SeriesInstanceUID
        image.StudyInstanceUID = series[0].StudyInstanceUID
        image.FrameOfReferenceUID = series[0].FrameOfReferenceUID
    made = segmented(series, card)
    assert [each.role for each in made.objects] == ["SEG", "SR", "SEG 2", "SR 2"]
    assert len({each.series_uid for each in made.objects}) == 4
    for number, (positions, axes) in enumerate([(axial, AXIAL), (sagittal, SAGITTAL)]):
        seg = dcmread(BytesIO(made.objects[2 * number].data))
        assert f"(stack {number + 1} of 2)" in seg.SeriesDescription
        here = series[: len(axial)] if axes is AXIAL else series[len(axial) :]
        masks = masks_of(seg)
        assert {uid for uid, _ in masks} <= {image.SOPInstanceUID for image in here}
        for image, corner in zip(here, positions, strict=True):
            mask = masks.get((image.SOPInstanceUID, None), np.zeros((48, 56), bool))
            if (area := truth(corner, axes).sum()) > 150:
                assert mask.sum() == pytest.approx(area, rel=0.15)
    volumes = [m.stack for m in made.findings.measurements if (m.segment, m.name) == (1, "Volume")]
    assert volumes == [1, 2]
    assert list(made.pictures) == [each.instance_uid for each in made.objects[::2]]
    assert [len(drawn) for drawn in made.pictures.values()] == [3, 3]


@pytest.mark.parametrize(
    "keyword",
    ["TemporalPositionIdentifier", "AcquisitionNumber", "EchoTime", "DiffusionBValue"],
)
def test_phases_at_one_place_are_told_apart(keyword: str) -> None:
    first, second = ball_series(corners(EVEN)), ball_series(corners(EVEN), seed="second")
    for image in second:
        image.SeriesInstanceUID = first[0].SeriesInstanceUID
        image.StudyInstanceUID = first[0].StudyInstanceUID
        image.FrameOfReferenceUID = first[0].FrameOfReferenceUID
    for value, phase in ((1, first), (2, second)):
        for image in phase:
            setattr(image, keyword, value)
    stacks = stacks_of_series([as_file(image) for image in (*second, *first)])
    uids = [{source.uid for source in stack.sources} for stack in stacks]
    assert sorted(uids, key=sorted) == sorted(
        [{i.SOPInstanceUID for i in first}, {i.SOPInstanceUID for i in second}], key=sorted
    )


def test_what_nothing_tells_apart_is_refused(card: Card) -> None:
    images = ball_series(corners([*EVEN, 0.0]))
    with pytest.raises(UnsuitableSeries) as refused:
        segmented(images, card)
    assert refused.value.code == "duplicate-position"


def test_a_localizer_is_left_out_and_said(card: Card) -> None:
    images = ball_series(corners(EVEN))
    scout = ball_series(corners([0.0], SAGITTAL), SAGITTAL, seed="scout")
    for image in scout:
        image.SeriesInstanceUID = images[0].SeriesInstanceUID
        image.StudyInstanceUID = images[0].StudyInstanceUID
        image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    made = segmented([*images, *scout], card)
    assert [each.role for each in made.objects] == ["SEG", "SR"]
    assert made.findings.limitations == (
        "1 images of the series were not segmented: they are localizers.",
    )


def test_directions_written_with_three_digits_are_good_enough(card: Card) -> None:
    axes = np.array([[-0.649, -0.325, 0.688], [-0.011, -0.9, -0.435]])
    normal = np.cross(*axes)
    images = ball_series(corners(EVEN))
    for place, image in enumerate(images):
        image.ImageOrientationPatient = axes.reshape(-1).tolist()
        image.ImagePositionPatient = [round(float(mm), 3) for mm in normal * 4.0 * place]
    made = segmented(images, card)
    assert made.findings.limitations == ()
    seg = dcmread(BytesIO(made.objects[0].data))
    plane = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    assert [float(v) for v in plane.ImageOrientationPatient] == axes.reshape(-1).tolist()


def test_the_order_of_files_does_not_change_what_was_seen() -> None:
    images = ball_series(corners(EVEN))
    for place, image in enumerate(images):
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 1e-5 * place]
    files = [as_file(image) for image in images]
    assert stack_series(files).digest == stack_series(files[::-1]).digest


def test_padding_is_not_mixed_into_tissue(card: Card) -> None:
    images = ball_series(corners(EVEN, tilt_degrees=12))
    for image in images:
        values = np.frombuffer(image.PixelData, "<u2").reshape(48, 56).astype("<i2") - 1024
        values[:9] = -3024
        image.PixelData, image.PixelRepresentation = values.tobytes(), 1
        image.RescaleIntercept = 0
        image.add_new("PixelPaddingValue", "SS", -3024)
    voxels = stack_series([as_file(image) for image in images]).volume.array
    between = (voxels > -3024) & (voxels < OUTSIDE)
    assert not between.any()


def test_large_values_of_an_mr_are_kept(card: Card) -> None:
    images = ball_series(corners(EVEN))
    for image in images:
        image.Modality, image.SOPClassUID = "MR", "1.2.840.10008.5.1.4.1.1.4"
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.PixelData = np.full((48, 56), 60000, "<u2").tobytes()
        image.RescaleIntercept = 0
    stack = stack_series([as_file(image) for image in images], modality="MR")
    assert stack.volume.array.max() == 60000


def test_slices_aside_of_each_other_are_no_tilt(card: Card) -> None:
    images = ball_series(corners(EVEN))
    images[4].ImagePositionPatient[0] += 3
    [said] = segmented(images, card).findings.limitations
    assert said.startswith("The slices lie up to 3.0 mm aside of each other, not on one line")
    for image in images[:5]:
        image.ImagePositionPatient[0] += 60
    with pytest.raises(UnsuitableSeries) as refused:
        segmented(images, card)
    assert refused.value.code == "shifted-slices"


def test_one_slice_without_a_thickness_says_what_its_volume_means(card: Card) -> None:
    [image] = ball_series(corners([6.0]))
    image.SliceThickness = None
    made = segmented([image], replace(card, min_slices=1))
    assert "no thickness" in made.findings.limitations[0]
    seg = dcmread(BytesIO(made.objects[0].data))
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert "SpacingBetweenSlices" not in measures


def test_a_smaller_stack_that_cannot_be_placed_is_said_and_the_other_segmented(card: Card) -> None:
    good, bad = ball_series(corners(EVEN)), ball_series(corners(EVEN[:9], SAGITTAL), SAGITTAL, "x")
    for image in bad:
        image.SeriesInstanceUID = good[0].SeriesInstanceUID
        image.StudyInstanceUID = good[0].StudyInstanceUID
    bad[-1].ImagePositionPatient[0] -= 40  # along its normal
    made = segmented([*good, *bad], card)
    assert [each.role for each in made.objects] == ["SEG", "SR"]
    [said] = made.findings.limitations
    assert said.startswith("A stack of the series was not segmented: ")


def test_water_and_fat_of_one_series_are_two_stacks() -> None:
    water, fat = ball_series(corners(EVEN)), ball_series(corners(EVEN), seed="fat")
    for images, kind in ((water, "W"), (fat, "F")):
        for image in images:
            image.ImageType = ["DERIVED", "PRIMARY", "DIXON", kind]
            image.SeriesInstanceUID = water[0].SeriesInstanceUID
            image.StudyInstanceUID = water[0].StudyInstanceUID
            image.FrameOfReferenceUID = water[0].FrameOfReferenceUID
    assert len(stacks_of_series([as_file(image) for image in (*water, *fat)])) == 2


def test_an_enhanced_image_without_a_frame_is_broken() -> None:
    whole = enhanced(ball_series(corners(EVEN)))
    whole.NumberOfFrames, whole.PerFrameFunctionalGroupsSequence = 0, []
    with pytest.raises(BrokenInstance) as refused:
        stack_series([as_file(whole)])
    assert refused.value.code == "frame-groups"
