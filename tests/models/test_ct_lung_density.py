"""The method before its gate, on one patient's lung bases and on phantoms; then the gate."""

import numpy as np
import pytest
import torch

from segnode_models.builtin.ct_lung_density.density import label_lungs
from segnode_models.builtin.ct_lung_density.sides import split_sides
from segnode_models.model import InputVolume

RIGHT, LEFT, LAA = 1, 2, 3
RIGHT_LOBES, LEFT_LOBES = (12, 13, 14), (10, 11)


def lungs_of(hu, spacing_mm):
    labels = np.zeros((2, *hu.shape), dtype=np.uint8)
    volume = InputVolume(hu=hu, spacing_mm=spacing_mm, attributes={})
    right, left = label_lungs(volume, labels, torch.device("cpu"))
    return labels, right + left


@pytest.fixture(scope="module")
def chest(phantom):
    return phantom(spacing_mm=(3.0, 3.0, 3.0), noise_hu=20.0)


@pytest.mark.parametrize("offset_hu", [0, 20, -20, 40])
def test_lung_bases_agree_with_the_reference(ct, dice, offset_hu):
    labels, _ = lungs_of(ct.hu + np.int16(offset_hu), ct.spacing_mm)
    assert dice(labels[0] == RIGHT, ct.labelled(*RIGHT_LOBES)) >= 0.92
    assert dice(labels[0] == LEFT, ct.labelled(*LEFT_LOBES)) >= 0.92
    assert dice(labels[0] > 0, ct.labelled(*RIGHT_LOBES, *LEFT_LOBES)) >= 0.93


def test_lung_bases_have_the_density_that_was_measured(ct):
    _, both = lungs_of(ct.hu, ct.spacing_mm)
    assert 0.0 <= both.laa_percent <= 0.5
    assert both.mean_hu == pytest.approx(-750, abs=10)


def test_bowel_gas_is_no_lung(ct):
    labels, both = lungs_of(ct.hu[:95], ct.spacing_mm)
    assert not labels.any()
    assert both.volume_ml == 0


def test_a_mirrored_patient_has_the_sides_swapped(ct, dice):
    labels, _ = lungs_of(ct.hu, ct.spacing_mm)
    mirrored, _ = lungs_of(ct.hu[:, :, ::-1], ct.spacing_mm)
    for side, other in ((RIGHT, LEFT), (LEFT, RIGHT)):
        assert dice(labels[0] == side, mirrored[0, :, :, ::-1] == other) > 0.998


@pytest.mark.parametrize("spacing_mm", [(3.0, 1.5, 1.5), (3.0, 3.0, 3.0), (1.5, 1.5, 1.5)])
def test_touching_lungs_are_told_apart(phantom, dice, spacing_mm):
    chest = phantom(spacing_mm=spacing_mm, noise_hu=20.0)
    labels, _ = lungs_of(chest.hu, chest.spacing_mm)
    right, left = chest.truth["right_lung"], chest.truth["left_lung"]
    assert dice(labels[0] == RIGHT, right) >= 0.98
    assert dice(labels[0] == LEFT, left) >= 0.98
    swapped = (right & (labels[0] == LEFT)) | (left & (labels[0] == RIGHT))
    assert swapped.sum() <= 0.01 * (right | left).sum()


def test_lungs_that_touch_beside_the_midline_are_parted_where_they_touch():
    lungs = torch.zeros((20, 40, 100), dtype=torch.bool)
    lungs[:, :, 5:60] = True
    lungs[:, :, 62:95] = True
    lungs[:, :2, 60:62] = True
    right, left = split_sides(lungs, (3.0, 3.0, 3.0), midline=50.0)
    assert right[:, :, 5:60].all()
    assert left[:, :, 62:95].all()
    assert not (right & left).any()


def test_low_attenuation_areas_are_lung_voxels_below_950_hu(chest):
    labels, _ = lungs_of(chest.hu, chest.spacing_mm)
    assert np.array_equal(labels[1] == 1, (labels[0] > 0) & (chest.hu < -950))


def test_airway_is_no_lung(chest):
    labels, _ = lungs_of(chest.hu, chest.spacing_mm)
    assert (labels[0] > 0)[chest.truth["airway"]].mean() < 0.1


def test_share_of_low_attenuation_areas_is_within_a_point_of_the_truth(run, chest):
    outcome = run("ct-lung-density", chest.hu, chest.spacing_mm)
    lungs = chest.truth["right_lung"] | chest.truth["left_lung"]
    truth_percent = 100 * chest.truth["laa"].sum() / lungs.sum()
    assert truth_percent > 5
    assert outcome.value(LAA, "LAA-950") == pytest.approx(truth_percent, abs=1)
    assert not outcome.findings.withheld


def test_measures_of_a_phantom_are_plausible(run, chest):
    outcome = run("ct-lung-density", chest.hu, chest.spacing_mm, BodyPartExamined="CHEST")
    for segment, lung in ((RIGHT, "right_lung"), (LEFT, "left_lung")):
        volume_ml = chest.truth[lung].sum() * 0.027
        assert outcome.value(segment, "Volume") == pytest.approx(volume_ml, rel=0.03)
        assert -880 < outcome.value(segment, "Mean density") < -800
    assert not (outcome.labels[1] > 0)[outcome.labels[0] == 0].any()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"part": np.s_[25:55]}, "cover 90 mm"),
        ({"spacing_mm": (3.3, 3.0, 3.0)}, "3.3 mm thick"),
        ({"SliceThickness": "5"}, "5.0 mm thick"),
        ({"SpacingBetweenSlices": "4.5"}, "4.5 mm thick"),
        ({"Interpolated": "yes"}, "interpolated between tilted or uneven slices"),
        ({"part": np.s_[:50]}, "right lung is cut by the edge"),
        ({"part": np.s_[:, :, :75]}, "left lung"),
        ({"BodyPartExamined": "ABDOMEN"}, "other than the chest"),
        ({"spacing_mm": (2.0, 2.0, 2.0)}, "at least 500 ml"),
    ],
    ids=[
        *("short", "thick", "thick by header", "far apart", "interpolated", "cut above"),
        *("cut beside", "abdomen", "small"),
    ],
)
def test_what_cannot_be_measured_says_why_and_is_never_zero(run, chest, changed, reason):
    attributes = dict(changed)
    hu = chest.hu[attributes.pop("part", np.s_[:])]
    spacing_mm = attributes.pop("spacing_mm", chest.spacing_mm)
    outcome = run("ct-lung-density", hu, spacing_mm, **attributes)
    assert reason in outcome.reason(LAA)
    assert not outcome.labels[1].any()
    assert (outcome.labels[0] > 0).any()
    assert all(m.value is None and m.reason for m in outcome.findings.measurements)


@pytest.mark.parametrize("part", ["CHEST", "THORAX", "CHESTABDPELVIS", "CHEST ABDOMEN", ""])
def test_body_parts_with_the_chest_are_measured(run, chest, part):
    outcome = run("ct-lung-density", chest.hu, chest.spacing_mm, BodyPartExamined=part)
    assert not outcome.findings.withheld


def test_without_lungs_everything_is_withheld(run):
    outcome = run("ct-lung-density", np.full((40, 64, 64), -1000, dtype=np.int16), (3.0, 3.0, 3.0))
    assert not outcome.labels.any()
    assert "No right lung" in outcome.reason(RIGHT)
    assert "No left lung" in outcome.reason(LEFT)
    assert "No right lung" in outcome.reason(LAA)
