"""Bounds measured on one patient: a margin below what the method reaches there."""

import numpy as np
import pytest
from scipy import ndimage

BODY, GAS, ADIPOSE, LEAN, BONE = 1, 2, 3, 4, 5
MUSCLES = range(80, 90)
PARENCHYMA = (1, 2, 3, 5)
BONES = (*range(25, 51), *range(75, 79), *range(92, 116))
SPINAL_CORD = 79
ARTERIES, VEINS, KIDNEYS, BLADDER = (52, 65, 66), (63, 64, 67, 68), (2, 3), (21,)


@pytest.fixture(scope="module")
def tissue(run, ct):
    return run("ct-tissue", ct.hu, ct.spacing_mm)


def test_every_organ_lies_in_the_body(tissue, ct):
    assert tissue.labels[0][ct.labels > 0].mean() >= 0.999


def test_body_has_the_volume_that_was_measured(tissue):
    assert 23_500 <= tissue.value(BODY, "Volume") <= 24_500


def test_adipose_and_lean_tissue_have_the_volumes_that_were_measured(tissue):
    assert tissue.value(ADIPOSE, "Volume") == pytest.approx(10_800, rel=0.03)
    assert tissue.value(LEAN, "Volume") == pytest.approx(10_600, rel=0.03)


def test_muscles_and_organs_are_lean_soft_tissue(tissue, ct):
    assert (tissue.labels[1][ct.labelled(*MUSCLES)] == 3).mean() >= 0.93
    assert (tissue.labels[1][ct.labelled(*PARENCHYMA)] == 3).mean() >= 0.97


def test_bone_agrees_with_the_reference_and_leaves_the_spinal_canal(tissue, ct, dice):
    bone = tissue.labels[1] == 4
    assert dice(bone, ct.labelled(*BONES)) >= 0.87
    assert bone[ct.labelled(SPINAL_CORD)].mean() <= 0.20


def test_tissues_lie_in_the_body(tissue):
    assert not tissue.labels[1][tissue.labels[0] == 0].any()


def test_volumes_are_those_of_the_labels(tissue, ct):
    assert tissue.value(GAS, "Volume") == pytest.approx(ct.ml(tissue.labels[1] == 1))


def test_bone_is_left_out_when_the_header_tells_of_contrast(run, ct):
    outcome = run("ct-tissue", ct.hu, ct.spacing_mm, ContrastBolus="yes")
    assert "header" in outcome.reason(BONE)
    assert outcome.value(BONE, "Volume") is None
    assert not (outcome.labels[1] == 4).any()
    assert outcome.value(LEAN, "Volume") > 10_000


@pytest.mark.parametrize(
    "enhancement",
    [
        {ARTERIES: 300, VEINS: 120, KIDNEYS: 180, BLADDER: 600},
        {ARTERIES: 250},
        {ARTERIES: 120, VEINS: 130, KIDNEYS: 150},
        {ARTERIES: 100, VEINS: 90, KIDNEYS: 120},
        {BLADDER: 600},
    ],
    ids=["all", "arteries alone", "portal venous", "weak", "bladder alone"],
)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_bone_is_left_out_when_the_image_shows_contrast(run, ct, enhancement, dtype):
    added = np.zeros(ct.hu.shape, dtype=np.float32)
    for organs, hu in enhancement.items():
        added[ct.labelled(*organs)] = hu
    image = (ct.hu + ndimage.gaussian_filter(added, 0.5)).astype(dtype)
    outcome = run("ct-tissue", image, ct.spacing_mm)
    assert "images show" in outcome.reason(BONE)
    assert not (outcome.labels[1] == 4).any()


@pytest.mark.parametrize("noise_hu", [0, 20, 40])
def test_bone_is_kept_in_an_image_without_contrast(run, ct, noise_hu):
    noise = np.random.default_rng(0).normal(0, noise_hu, ct.hu.shape)
    assert not run("ct-tissue", (ct.hu + noise).astype(np.int16), ct.spacing_mm).findings.withheld


@pytest.mark.parametrize(
    "zoom", [(1, 1.5, 1.5), (2, 2, 2), (0.5, 1, 1)], ids=["2 mm", "1.5 mm", "6 mm slices"]
)
def test_bone_is_kept_on_other_grids(run, ct, dice, zoom):
    image = ndimage.zoom(ct.hu, zoom, order=1)
    spacing_mm = tuple(3 * a / b for a, b in zip(ct.hu.shape, image.shape, strict=True))
    outcome = run("ct-tissue", image, spacing_mm)
    assert not outcome.findings.withheld
    assert outcome.value(BODY, "Volume") == pytest.approx(24_000, rel=0.02)
    assert outcome.value(BONE, "Volume") == pytest.approx(1_600, rel=0.15)


@pytest.mark.parametrize(
    ("spacing_mm", "noise_hu"),
    [((3.0, 1.5, 1.5), 12.0), ((3.0, 3.0, 3.0), 20.0), ((1.5, 1.5, 1.5), 12.0)],
)
def test_phantom_keeps_body_bone_and_marker(run, phantom, dice, spacing_mm, noise_hu):
    chest = phantom(spacing_mm=spacing_mm, noise_hu=noise_hu)
    outcome = run("ct-tissue", chest.hu, chest.spacing_mm)
    assert not outcome.findings.withheld
    assert dice(outcome.labels[0] > 0, chest.truth["body"]) > 0.99
    assert dice(outcome.labels[1] == 4, chest.truth["bone"]) > 0.85
    assert (outcome.labels[1] == 4)[chest.truth["marker"]].mean() > 0.99


def test_lungs_that_the_field_of_view_opens_stay_in_the_body(run, phantom):
    chest = phantom(spacing_mm=(3.0, 3.0, 3.0), noise_hu=20.0)
    middle = np.s_[:, :, 30:98]
    outcome = run("ct-tissue", chest.hu[middle], chest.spacing_mm)
    body, lung = outcome.labels[0] > 0, chest.truth["left_lung"][middle]
    assert body[lung].mean() > 0.9
    assert body[~chest.truth["body"][middle]].mean() < 0.05


def test_air_has_no_body_and_says_so(run):
    outcome = run("ct-tissue", np.full((20, 64, 64), -1000, dtype=np.int16), (3.0, 2.0, 2.0))
    assert not outcome.labels.any()
    assert all("No body" in outcome.reason(segment) for segment in range(1, 6))
    assert outcome.value(BODY, "Volume") is None


@pytest.mark.parametrize("value", [-1000, 0, 200])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 2, 5)])
@pytest.mark.parametrize("model", ["ct-tissue", "ct-lung-density"])
def test_tiny_images_do_not_stop_a_model(run, model, shape, value):
    run(model, np.full(shape, value, dtype=np.int16), (5.0, 0.7, 0.7))


@pytest.mark.parametrize("model", ["ct-tissue", "ct-lung-density"])
@pytest.mark.parametrize("slices", [15, 16, 17, 18, 31, 33])
def test_any_number_of_thin_slices_is_segmented(run, model, slices):
    hu = np.full((slices, 60, 60), 40, np.int16)
    hu[:, :4] = -1000
    labels = run(model, hu, (1.25, 3.0, 3.0)).labels
    assert labels.shape[1:] == hu.shape


def test_read_only_turned_images_give_the_same(run, ct):
    turned = np.ascontiguousarray(ct.hu[::-1, ::-1])[::-1, ::-1]
    turned.flags.writeable = False
    expected = run("ct-tissue", ct.hu, ct.spacing_mm)
    assert np.array_equal(run("ct-tissue", turned, ct.spacing_mm).labels, expected.labels)
