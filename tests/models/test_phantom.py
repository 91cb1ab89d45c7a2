"""The chest that the demo sends."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def chest(phantom):
    return phantom()


def test_phantom_is_a_chest_ct_in_hounsfield_units(chest):
    assert chest.hu.shape == (80, 256, 256)
    assert chest.hu.dtype == np.int16
    assert -1024 <= chest.hu.min() < chest.hu.max() <= 3071


def test_the_same_seed_gives_the_same_image(phantom, chest):
    again = phantom(seed=1)
    assert np.array_equal(again.hu, chest.hu)
    assert not np.array_equal(phantom(seed=2).hu, chest.hu)


def test_lungs_are_large_high_and_apart(chest):
    right, left = chest.truth["right_lung"], chest.truth["left_lung"]
    assert not (right & left).any()
    for lung in (right, left):
        assert lung.sum() * np.prod(chest.spacing_mm) / 1000 > 500
        assert lung.any(axis=(1, 2)).sum() * chest.spacing_mm[0] >= 150
    assert np.argwhere(right)[:, 2].mean() < np.argwhere(left)[:, 2].mean()


def test_marker_is_at_the_front_of_the_left_chest_high_up(chest):
    up, back, left = np.argwhere(chest.truth["marker"]).mean(axis=0) / chest.hu.shape
    assert (up > 0.6, back < 0.35, left > 0.65) == (True, True, True)
    assert chest.hu[chest.truth["marker"]].mean() > 800


def test_masks_lie_in_the_body(chest):
    outside = ~chest.truth["body"]
    assert not any((mask & outside).any() for mask in chest.truth.values())
