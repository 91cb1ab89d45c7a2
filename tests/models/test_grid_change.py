"""Onto the model's grid and back, against SimpleITK and nibabel and phantoms in millimetres."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from nibabel.processing import resample_from_to
from numpy.typing import NDArray
from torch.nn import functional

from segnode_contract.card import Card, parse_card
from segnode_contract.errors import ModelFailed
from segnode_models.grid_change import EachAbove, GridChange, HighestWins, WayBack

from .trained import SIGMOID_SEGMENTS, SOFTMAX_SEGMENTS, card_toml

CPU = torch.device("cpu")
GRIDS = pytest.mark.parametrize(
    ("source", "model"),
    [
        ((20, 24, 28), (20, 24, 28)),
        ((20, 24, 28), (33, 50, 41)),
        ((33, 50, 41), (20, 24, 28)),
        ((15, 48, 48), (40, 30, 61)),
        ((1, 12, 12), (4, 12, 5)),
        ((9, 10, 11), (1, 1, 1)),
    ],
    ids=["same", "finer", "coarser", "anisotropic", "one slice", "one voxel"],
)


def card_of(segments: str, activation: str) -> Card:
    text = card_toml(
        kind="torchscript",
        needs="spacing_mm = [1, 1, 1]\nintensity = { mean = 0, std = 1 }",
        network=f'patch = [8, 8, 8]\nactivation = "{activation}"',
        segments=segments,
    )
    return parse_card(text, where="card.toml")


SOFTMAX = card_of(SOFTMAX_SEGMENTS, "softmax")
SIGMOID = card_of(SIGMOID_SEGMENTS, "sigmoid")
BY_SIMPLEITK = {"linear": SimpleITK.sitkLinear, "nearest": SimpleITK.sitkNearestNeighbor}


def simpleitk(values: NDArray, given: tuple, wanted: tuple, how: str = "linear") -> NDArray:
    """Resample between grids whose outer edges lie on those of a box of 120 mm."""
    image = SimpleITK.GetImageFromArray(values)
    image.SetSpacing([120 / n for n in reversed(given)])
    image.SetOrigin([60 / n for n in reversed(given)])
    grid = SimpleITK.Image(*(int(n) for n in reversed(wanted)), SimpleITK.sitkFloat32)
    grid.SetSpacing([120 / n for n in reversed(wanted)])
    grid.SetOrigin([60 / n for n in reversed(wanted)])
    resampled = SimpleITK.Resample(image, grid, SimpleITK.Transform(), BY_SIMPLEITK[how])
    return SimpleITK.GetArrayFromImage(resampled)


def brought_back(
    change: GridChange, scores: torch.Tensor, decide, *, linear: bool, planes: int, by: int = 3
) -> NDArray[np.uint8]:
    """Hand the slices on in portions of `by`."""
    labels = np.zeros((planes, *change.source), np.uint8)
    back = WayBack(change, decide, labels, linear=linear)
    for start in range(0, change.model[0], by):
        back.take(scores[:, start : start + by].clone())
    return labels


@GRIDS
def test_values_lie_where_simpleitk_puts_them(source, model):
    hu = np.random.default_rng(0).integers(-1000, 1000, source).astype(np.int16)
    (values,) = GridChange(source=source, model=model).to_model([hu], CPU)
    assert values.dtype == torch.float32
    expected = simpleitk(hu.astype(np.float64), source, model)
    assert np.allclose(values.numpy(), expected, atol=0.01)  # of 2000 HU


@GRIDS
def test_values_inside_lie_where_nibabel_puts_them(source, model):
    hu = np.random.default_rng(0).normal(0, 300, source).astype(np.float32)
    (values,) = GridChange(source=source, model=model).to_model([hu], CPU)

    def affine(shape):
        return nib.affines.from_matvec(np.diag([120 / n for n in shape]), [60 / n for n in shape])

    image = nib.Nifti1Image(hu, affine(source))
    laid = resample_from_to(image, (model, affine(model)), order=1, mode="nearest")
    assert np.allclose(values.numpy(), laid.get_fdata(), atol=0.01)


def test_the_same_grid_changes_no_bit():
    hu = np.random.default_rng(0).normal(0, 300, (7, 8, 9)).astype(np.float32)
    change = GridChange.to_spacing(hu.shape, (3.0, 0.7, 0.7), (3.1, 0.71, 0.69))
    assert change.model == hu.shape
    assert np.array_equal(change.to_model([hu], CPU)[0].numpy(), hu)


def test_turned_read_only_slabs_of_several_series_are_taken(monkeypatch):
    monkeypatch.setattr("segnode_models.grid_change._SLAB_BYTES", 1)
    hu = (
        np.random.default_rng(0).integers(-1000, 1000, (10, 12, 14)).astype(np.int16)[::-1, :, ::-1]
    )
    hu.flags.writeable = False
    other = hu.astype(np.float32) / 2
    change = GridChange(source=hu.shape, model=(17, 9, 20))
    values = change.to_model([hu, other], CPU)
    given = torch.from_numpy(np.stack([hu, other]).astype(np.float32))
    expected = functional.interpolate(given[None], size=change.model, mode="trilinear")[0]
    assert torch.allclose(values, expected, atol=0.01)


def test_the_models_grid_fills_the_volume_with_whole_voxels():
    change = GridChange.to_spacing((40, 512, 512), (5.0, 0.7, 0.7), (1.5, 1.5, 1.5))
    assert change.model == (133, 239, 239)
    assert GridChange.to_spacing((1, 4, 4), (1.0, 1.0, 1.0), (9.0, 9.0, 9.0)).model == (1, 1, 1)


@GRIDS
@pytest.mark.parametrize("by", [1, 3, 100])
def test_scores_come_back_as_simpleitk_brings_them(source, model, by):
    scores = torch.rand((3, *model), generator=torch.Generator().manual_seed(0))
    change = GridChange(source=source, model=model)
    labels = brought_back(change, scores, HighestWins(SOFTMAX), linear=True, planes=1, by=by)
    each = np.stack([simpleitk(one.numpy().astype(np.float64), model, source) for one in scores])
    first, second = np.sort(each, axis=0)[[-1, -2]]
    told_apart = first - second > 1e-5
    assert told_apart.mean() > 0.999
    assert np.array_equal(labels[0][told_apart], each.argmax(0)[told_apart])


@GRIDS
@pytest.mark.parametrize("by", [1, 3, 100])
def test_labels_come_back_by_the_nearest_as_simpleitk_brings_them(source, model, by):
    scores = torch.rand((3, *model), generator=torch.Generator().manual_seed(0))
    change = GridChange(source=source, model=model)
    labels = brought_back(change, scores, HighestWins(SOFTMAX), linear=False, planes=1, by=by)
    on_model = scores.argmax(0).numpy().astype(np.uint8)
    expected = simpleitk(on_model, model, source, "nearest")
    apart = _not_on_an_edge(model, source)
    assert np.array_equal(labels[0][apart], expected[apart])


def _not_on_an_edge(given, wanted) -> NDArray[np.bool_]:
    """Return where a wanted voxel's centre lies on no border of given voxels, but within one."""
    inside = [(2 * np.arange(n) + 1) * m % (2 * n) != 0 for n, m in zip(wanted, given, strict=True)]
    return inside[0][:, None, None] & inside[1][:, None] & inside[2]


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "nearest"])
def test_overlapping_segments_keep_their_planes(linear):
    change = GridChange(source=(9, 8, 7), model=(12, 5, 14))
    scores = torch.rand((2, *change.model), generator=torch.Generator().manual_seed(0))
    decide = EachAbove(SIGMOID, 0.4)
    labels = brought_back(change, scores, decide, linear=linear, planes=2)
    for plane, score in zip(labels, scores, strict=True):
        if linear:
            expected = simpleitk(score.numpy().astype(np.float64), change.model, change.source)
            apart = abs(expected - 0.4) > 1e-5
        else:
            above = (score > 0.4).numpy().astype(np.uint8)
            expected = simpleitk(above, change.model, change.source, "nearest")
            apart = _not_on_an_edge(change.model, change.source)
        assert np.array_equal(plane[apart] > 0, (expected > 0.4)[apart])


def test_many_channels_are_decided_as_one_argmax_decides(monkeypatch):
    """Channels that cannot win are left out early; equals go to the first."""
    monkeypatch.setattr("segnode_models.grid_change._SLAB_BYTES", 1)
    many = card_of("".join(_segment(number) for number in range(1, 60)), "softmax")
    change = GridChange(source=(11, 30, 30), model=(7, 15, 20))
    noise = torch.rand((60, *change.model), generator=torch.Generator().manual_seed(0))
    noise[:, :, :5] = noise[:, :, :5].round(decimals=1)  # equals
    noise[:, :, 10:] = noise[:, :, 10:] * torch.linspace(0.1, 9, 60)[:, None, None, None]
    scores = noise.softmax(0)
    labels = brought_back(change, scores, HighestWins(many), linear=True, planes=1)
    enlarged = functional.interpolate(scores[None], size=change.source, mode="trilinear")[0]
    first, second = enlarged.topk(2, dim=0).values
    apart = (first - second > 1e-6).numpy()
    assert apart.mean() > 0.95
    assert np.array_equal(labels[0][apart], enlarged.argmax(0).numpy()[apart])
    same = GridChange(source=change.model, model=change.model)
    labels = brought_back(same, scores, HighestWins(many), linear=True, planes=1)
    assert np.array_equal(labels[0], scores.argmax(0).numpy())


def test_channels_that_cannot_win_are_not_enlarged():
    scores = torch.full((60, 4, 8, 8), 0.1)
    scores[7, :, :4], scores[9, :, 3:] = 0.6, 0.5
    enlarged: list[torch.Tensor] = []
    many = card_of("".join(_segment(number) for number in range(1, 60)), "softmax")
    planes = HighestWins(many)(scores, lambda score: enlarged.append(score) or score)
    assert planes[0].unique().tolist() == [7, 9]
    assert len(enlarged) == 2


def _segment(number: int) -> str:
    return (
        SOFTMAX_SEGMENTS.split("\n\n[[segments]]")[0]
        .replace("number = 1", f"number = {number}")
        .replace("value = 1\n", f"value = {number}\n")
        .replace("channel = 1", f"channel = {number}")
    )


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "nearest"])
@pytest.mark.parametrize(
    "wanted_mm",
    [(1.1, 0.9, 1.3), (4.3, 3.7, 5.1), (6.0, 1.2, 2.7)],
    ids=["finer", "coarser", "anisotropic"],
)
def test_no_voxel_farther_than_half_a_voxel_of_the_model_from_a_face_is_wrong(linear, wanted_mm):
    """A network that is right at the centre of each of its voxels; a box, its faces in mm."""
    shape, spacing_mm = (30, 50, 45), (3.0, 1.5, 1.7)
    low, high = np.array([21.3, 17.9, 20.4]), np.array([67.1, 52.2, 61.6])
    change = GridChange.to_spacing(shape, spacing_mm, wanted_mm)
    model_mm = [n * mm / m for n, mm, m in zip(shape, spacing_mm, change.model, strict=True)]
    inside = _box(change.model, model_mm, low, high)
    scores = torch.from_numpy(np.stack([~inside, inside, np.zeros_like(inside)])).float()
    labels = brought_back(change, scores, HighestWins(SOFTMAX), linear=linear, planes=1)
    half = np.array(model_mm) / 2 + 1e-6
    surely = _box(shape, spacing_mm, low + half, high - half)
    maybe = _box(shape, spacing_mm, low - half, high + half)
    assert labels[0][surely].all()
    assert not labels[0][~maybe].any()


def _box(shape, spacing_mm, low, high) -> NDArray[np.bool_]:
    axes = [(np.arange(n) + 0.5) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    inside = [(a >= b) & (a <= c) for a, b, c in zip(axes, low, high, strict=True)]
    return inside[0][:, None, None] & inside[1][:, None] & inside[2]


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "nearest"])
@pytest.mark.parametrize(
    "wanted_mm",
    [(3.0, 1.5, 1.7), (1.1, 0.9, 1.3), (4.3, 3.7, 5.1), (6.0, 1.2, 2.7)],
    ids=["same", "finer", "coarser", "anisotropic"],
)
def test_a_ball_comes_back_in_its_place_and_size(linear, wanted_mm):
    """Image to the model's grid, threshold there, and back: all that may shift."""
    shape, spacing_mm = (30, 50, 45), (3.0, 1.5, 1.7)
    centre, radius = np.array([46.2, 37.1, 40.9]), 21.7
    axes = [(np.arange(n) + 0.5) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    ball = np.linalg.norm(places - centre, axis=-1) <= radius
    change = GridChange.to_spacing(shape, spacing_mm, wanted_mm)
    (values,) = change.to_model([np.where(ball, 100, -100).astype(np.int16)], CPU)
    inside = (values > 0).float()
    scores = torch.stack([1 - inside, inside, torch.zeros_like(inside)])
    labels = brought_back(change, scores, HighestWins(SOFTMAX), linear=linear, planes=1)
    found = places[labels[0] == 1]
    coarser = np.maximum(spacing_mm, wanted_mm)
    # measured: 0.12 of a voxel at most, as a surface averages out most of a single face's half
    assert (abs(found.mean(axis=0) - centre) <= 0.15 * coarser).all()
    volume = len(found) * np.prod(spacing_mm)
    assert volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.06)
    off = abs(np.linalg.norm(places - centre, axis=-1) - radius)[(labels[0] == 1) != ball]
    assert off.max(initial=0) <= np.linalg.norm(coarser) / 2
    if change.model == change.source:
        assert not off.size


def test_a_channel_that_is_no_segment_is_refused_where_it_wins():
    change = GridChange(source=(4, 4, 4), model=(4, 4, 4))
    scores = torch.zeros((4, 4, 4, 4))
    scores[0] = 0.5
    brought_back(change, scores, HighestWins(SOFTMAX), linear=True, planes=1)
    scores[3, 2, 1, 1] = 0.9
    with pytest.raises(ModelFailed, match="channel 3") as failure:
        brought_back(change, scores, HighestWins(SOFTMAX), linear=True, planes=1)
    assert failure.value.code == "model-strange-label"


def test_no_float_volume_of_all_channels_stands_on_the_images_grid(monkeypatch):
    made: list[int] = []
    interpolate = functional.interpolate

    def spy(planes: torch.Tensor, **how) -> torch.Tensor:
        enlarged = interpolate(planes, **how)
        made.append(enlarged.numel())
        return enlarged

    monkeypatch.setattr(functional, "interpolate", spy)
    monkeypatch.setattr("segnode_models.grid_change._SLAB_BYTES", 4 * 40 * 40 * 8)
    many = card_of("".join(_segment(number) for number in range(1, 60)), "softmax")
    change = GridChange(source=(50, 40, 40), model=(25, 10, 10))
    scores = torch.rand((60, *change.model), generator=torch.Generator().manual_seed(0))
    brought_back(change, scores, HighestWins(many), linear=True, planes=1)
    assert made
    assert max(made) <= 2 * 40 * 40
