"""Kind torchscript: small networks, trained in the tests, on phantoms that they have not seen."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from monai.inferers import sliding_window_inference
from monai.transforms import NormalizeIntensity, ScaleIntensityRange
from numpy.typing import NDArray
from torch import Tensor, nn

from segnode_contract.card import Card, parse_card
from segnode_contract.card_network import Intensity, TorchScriptNetwork
from segnode_contract.errors import ModelFailed
from segnode_contract.findings import Findings
from segnode_models.model import InputVolume, Stopped
from segnode_models.torchscript import TorchScriptModel, map_intensity

from .trained import (
    CLIP_HU,
    PATCH,
    SIGMOID_SEGMENTS,
    SOFTMAX_SEGMENTS,
    SPACING_MM,
    Shapes,
    Trained,
    card_toml,
    shapes_phantom,
    trained_sigmoid,
    trained_softmax,
)

GPU = ["cuda"] if torch.cuda.is_available() else []
AS_TRAINED = f"clip = {list(CLIP_HU)}, scale = [0, 1]"
TWO_SERIES = """
[[input.series]]
role = "first"
[[input.series]]
role = "second"
optional = true
"""
GRIDS = pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [
        ((48, 64, 64), SPACING_MM),
        ((72, 107, 128), (2.0, 1.2, 1.0)),
        ((29, 142, 142), (5.0, 0.9, 0.9)),
        ((24, 40, 40), (6.0, 3.2, 3.2)),
    ],
    ids=["as trained", "finer", "thick slices", "coarser"],
)


def card_of(
    segments: str = SOFTMAX_SEGMENTS,
    *,
    activation: str = "softmax",
    spacing_mm: Iterable[float] = SPACING_MM,
    patch: Iterable[int] = PATCH,
    intensity: str = AS_TRAINED,
    series: str = "",
    more: str = "",
) -> Card:
    text = card_toml(
        kind="torchscript",
        needs=f"spacing_mm = {list(spacing_mm)}\nintensity = {{ {intensity} }}\n{series}",
        network=f'patch = {list(patch)}\nactivation = "{activation}"\noverlap = 0.7\n{more}',
        segments=segments,
    )
    return parse_card(text, where="card.toml")


def model_of(card: Card, folder: Path, device: str = "cpu") -> TorchScriptModel:
    assert isinstance(card.network, TorchScriptNetwork)
    torch.set_num_threads(1)
    return TorchScriptModel(card, card.network, folder, torch.device(device))


def labels_of(
    model: TorchScriptModel,
    hu: NDArray,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    *,
    told: Callable[[float], None] = lambda _: None,
    others: dict[str, NDArray[np.float32]] | None = None,
) -> NDArray[np.uint8]:
    volume = InputVolume(hu=hu, spacing_mm=spacing_mm, attributes={}, others=others or {})
    labels = np.zeros((model.card.planes, *hu.shape), np.uint8)
    assert model.segment(volume, labels, told) == Findings()
    return labels


@dataclass(frozen=True, kw_only=True)
class Case:
    """One of the trained networks, with its card and what it should find."""

    trained: Trained
    card: Card
    truth: Callable[[Shapes], list[NDArray[np.bool_]]]
    """Masks of the card's segments."""


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def case(request) -> Case:
    if request.param == "softmax":
        return Case(trained=trained_softmax(), card=card_of(), truth=lambda s: [s.organ, s.rod])
    return Case(
        trained=trained_sigmoid(),
        card=card_of(SIGMOID_SEGMENTS, activation="sigmoid"),
        truth=lambda s: [s.organ, s.lesion],
    )


@pytest.mark.parametrize("device", ["cpu", *GPU])
@GRIDS
def test_each_segment_of_an_unseen_phantom_is_found(case, dice, shape, spacing_mm, device):
    shapes = shapes_phantom(7, shape=shape, spacing_mm=spacing_mm)
    model = model_of(case.card, case.trained.torchscript.parent, device)
    labels = labels_of(model, shapes.hu, spacing_mm)
    for segment, truth in zip(case.card.segments, case.truth(shapes), strict=True):
        assert dice(labels[segment.plane] == segment.value, truth) >= 0.9, segment.label


def test_a_lesion_of_known_place_is_found_there(dice):
    shapes = shapes_phantom(7, shape=(60, 90, 100), spacing_mm=(2.4, 1.42, 1.28))
    card = card_of(SIGMOID_SEGMENTS, activation="sigmoid")
    labels = labels_of(
        model_of(card, trained_sigmoid().torchscript.parent), shapes.hu, (2.4, 1.42, 1.28)
    )
    places = (np.argwhere(labels[1]) + 0.5) * shapes.spacing_mm
    off = abs(places.mean(axis=0) - shapes.lesion_centre_mm)
    assert (off <= np.array(SPACING_MM) / 2).all()
    radius = (len(places) * np.prod(shapes.spacing_mm) * 3 / 4 / np.pi) ** (1 / 3)
    assert radius == pytest.approx(shapes.lesion_radius_mm, abs=1.0)


@GRIDS
def test_result_is_that_of_monai_and_simpleitk_on_a_nifti(case, shape, spacing_mm, tmp_path):
    """Equal, but for voxels where two channels, or one and the threshold, are within rounding."""
    shapes = shapes_phantom(8, shape=shape, spacing_mm=spacing_mm)
    probability = _by_monai(case.trained, case.card, shapes, tmp_path)
    labels = labels_of(model_of(case.card, case.trained.torchscript.parent), shapes.hu, spacing_mm)
    if len(probability) == 2:
        expected = (probability > 0.5).astype(np.uint8)
        close = abs(probability - 0.5) < 1e-4
    else:
        expected = probability.argmax(0)[None]
        first, second = np.sort(probability, axis=0)[[-1, -2]]
        close = (first - second < 1e-4)[None]
    assert close.mean() < 1e-4
    assert np.array_equal(labels[~close], expected[~close])


def _by_monai(trained: Trained, card: Card, shapes: Shapes, folder: Path) -> NDArray[np.float64]:
    """Return probabilities on the phantom's grid, by the tools that a researcher would use."""
    slices_mm, rows_mm, columns_mm = shapes.spacing_mm
    # columns grow to the left and rows to the back, RAS millimetres to the right and to the front
    affine = np.diag([-columns_mm, -rows_mm, slices_mm, 1])
    nib.save(nib.Nifti1Image(shapes.hu.T, affine), folder / "image.nii.gz")
    image = SimpleITK.ReadImage(folder / "image.nii.gz")
    hu = SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(image, "LPS"))
    size = [
        round(n * mm / wanted)
        for n, mm, wanted in zip(hu.shape, shapes.spacing_mm, SPACING_MM, strict=True)
    ]
    on_model = _resampled(hu, size, hu.shape)
    values = ScaleIntensityRange(*CLIP_HU, 0, 1, clip=True)(torch.from_numpy(on_model).float())
    with torch.inference_mode():
        (scores,) = sliding_window_inference(
            values[None, None], PATCH, 2, trained.module(), overlap=0.7, mode="gaussian"
        )
    softmax = card.network.activation == "softmax"
    probability = scores.softmax(0) if softmax else scores.sigmoid()
    return np.stack([_resampled(one.numpy(), hu.shape, size) for one in probability])


def _resampled(values: NDArray, wanted: Iterable[int], given: Iterable[int]) -> NDArray[np.float64]:
    """Resample between two grids over one box, its sides taken as 1 mm."""
    image = SimpleITK.GetImageFromArray(values.astype(np.float64))
    image.SetSpacing([1 / n for n in reversed(tuple(given))])
    image.SetOrigin([0.5 / n for n in reversed(tuple(given))])
    grid = SimpleITK.Image(*(int(n) for n in reversed(tuple(wanted))), SimpleITK.sitkFloat64)
    grid.SetSpacing([1 / n for n in reversed(tuple(wanted))])
    grid.SetOrigin([0.5 / n for n in reversed(tuple(wanted))])
    return SimpleITK.GetArrayFromImage(SimpleITK.Resample(image, grid))


def test_the_card_decides_how_labels_come_back(dice):
    shapes = shapes_phantom(7, shape=(72, 128, 128), spacing_mm=(2.0, 1.0, 1.0))
    folder = trained_softmax().torchscript.parent
    linear, nearest = (
        labels_of(model_of(card_of(more=f'back = "{back}"'), folder), shapes.hu, (2.0, 1.0, 1.0))
        for back in ("linear", "nearest")
    )
    blocks = nearest[0].reshape(72, 64, 2, 64, 2)
    assert (blocks == blocks[:, :, :1, :, :1]).all()  # of the network's 2 mm
    assert not np.array_equal(linear, nearest)
    assert dice(linear == 1, nearest == 1) > 0.97


def test_a_warm_model_gives_the_same_again():
    shapes = shapes_phantom(7)
    model = model_of(card_of(), trained_softmax().torchscript.parent)
    assert np.array_equal(labels_of(model, shapes.hu), labels_of(model, shapes.hu))


def test_progress_grows_to_one_and_a_stop_is_passed_on():
    shapes, fractions = shapes_phantom(7), list[float]()
    model = model_of(card_of(), trained_softmax().torchscript.parent)
    labels_of(model, shapes.hu, told=fractions.append)
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert len(set(fractions)) > 8

    def stop(fraction: float) -> None:
        if fraction > 0.5:
            raise Stopped

    with pytest.raises(Stopped):
        labels_of(model, shapes.hu, told=stop)


@pytest.mark.parametrize(
    "intensity",
    [
        Intensity(clip=(-100, 200), scale=(-1, 3), mean=0, std=1, per_image=False),
        Intensity(clip=None, scale=None, mean=40, std=250, per_image=False),
        Intensity(clip=(-500, 500), scale=None, mean=40, std=250, per_image=False),
        Intensity(clip=None, scale=None, mean=0, std=1, per_image=True),
        Intensity(clip=(-500, 500), scale=None, mean=0, std=1, per_image=True),
    ],
    ids=["scale", "mean and std", "clip, mean and std", "per image", "clip, per image"],
)
def test_intensity_becomes_what_monai_makes_of_it(intensity):
    hu = torch.randn((20, 20, 20), generator=torch.Generator().manual_seed(0)) * 400
    clipped = hu.clamp(*intensity.clip) if intensity.clip else hu
    if intensity.scale:
        expected = ScaleIntensityRange(*intensity.clip, *intensity.scale, clip=True)(hu)
    elif intensity.per_image:
        expected = NormalizeIntensity()(clipped)
    else:
        expected = NormalizeIntensity(subtrahend=intensity.mean, divisor=intensity.std)(clipped)
    map_intensity(hu, intensity)
    assert torch.allclose(hu, expected, atol=1e-5)


def test_an_even_image_is_no_division_by_zero():
    even = torch.full((4, 4, 4), -1000.0)
    map_intensity(even, Intensity(clip=None, scale=None, mean=0, std=1, per_image=True))
    assert torch.equal(even, torch.zeros(4, 4, 4))


class Difference(nn.Module):
    """Takes two channels; tells where the second is higher."""

    def forward(self, seen: Tensor) -> Tensor:
        return seen[:, 1:2] - seen[:, :1]


class Halved(nn.Module):
    def forward(self, seen: Tensor) -> Tensor:
        return seen[:, :, ::2].repeat(1, 3, 1, 1, 1)


class Several(nn.Module):
    def forward(self, seen: Tensor) -> list[Tensor]:
        return [seen, seen]


class Logarithm(nn.Module):
    def forward(self, seen: Tensor) -> Tensor:
        return seen.repeat(1, 3, 1, 1, 1).log()


class Elsewhere(nn.Module):
    """Has the device of its making in its code, as a network has that was traced."""

    def forward(self, seen: Tensor) -> Tensor:
        return seen.repeat(1, 3, 1, 1, 1) + torch.zeros([1], device="cuda:0")


class Greedy(nn.Module):
    def forward(self, seen: Tensor) -> Tensor:
        return torch.zeros([1, 3, 100000, 100000, 10000])


def program(network: nn.Module, folder: Path) -> Path:
    """Save a network as users do, and return its folder."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        torch.jit.script(network).save(str(folder / "model.ts"))
    return folder


ONE_SEGMENT = SIGMOID_SEGMENTS[: SIGMOID_SEGMENTS.index("\n[[segments]]\nnumber = 2")]
NO_WINDOW = "mean = 0, std = 1"


def test_series_are_channels_in_the_order_of_the_card_and_zeros_where_absent(tmp_path):
    card = card_of(
        ONE_SEGMENT,
        activation="none",
        intensity="mean = 60, std = 2",
        series=TWO_SERIES,
        patch=(4, 4, 4),
    )
    model = model_of(card, program(Difference(), tmp_path))
    first = np.full((4, 5, 6), 100, np.int16)
    second = np.full((4, 5, 6), 50, np.float32)
    second[1, 2, 3] = 103
    labels = labels_of(model, first, others={"second": second})
    assert np.argwhere(labels).tolist() == [[0, 1, 2, 3]]
    assert not labels_of(model, first).any()
    assert labels_of(model, -first).all()


@pytest.mark.parametrize(
    ("activation", "threshold", "least"),
    [("none", 0.25, 0.25), ("sigmoid", 0.75, np.log(3))],
)
def test_a_segment_is_above_the_threshold(tmp_path, activation, threshold, least):
    card = card_of(
        ONE_SEGMENT,
        activation=activation,
        intensity=NO_WINDOW,
        patch=(4, 4, 4),
        more=f"threshold = {threshold}",
    )
    model = model_of(card, program(nn.Identity(), tmp_path))
    values = np.random.default_rng(0).normal(0.5, 1, (9, 9, 9)).astype(np.float32)
    assert np.array_equal(labels_of(model, values)[0] == 1, values > least)


@pytest.mark.parametrize("checked", ["", 'half_precision_checked = "Nobody."'])
@pytest.mark.parametrize("device", ["cpu", *GPU])
def test_half_precision_is_for_gpus_and_cards_that_were_checked(monkeypatch, checked, device):
    text = card_of().source.replace("\n[input]", f"\n{checked}\n[input]")
    card = parse_card(text, where="card.toml")
    model = model_of(card, trained_softmax().torchscript.parent, device)
    used: list[bool] = []
    monkeypatch.setattr(
        "segnode_models.torchscript.slide", lambda *_, half, **__: used.append(half)
    )
    labels_of(model, shapes_phantom(7).hu)
    assert used == [bool(checked) and device == "cuda"]


def _cut(folder: Path) -> None:
    whole = trained_softmax().torchscript.read_bytes()
    (folder / "model.ts").write_bytes(whole[: len(whole) // 2])


def _state_dict(folder: Path) -> None:
    (folder / "model.ts").write_bytes(trained_softmax().state_dict.read_bytes())


class _Planted:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return Path.touch, (self.canary,)


def _pickle(folder: Path) -> None:
    (folder / "model.ts").write_bytes(pickle.dumps(_Planted(folder / "canary")))


def _torch_pickle(folder: Path) -> None:
    torch.save(_Planted(folder / "canary"), folder / "model.ts")


@pytest.mark.parametrize(
    "write",
    [_cut, _state_dict, _pickle, _torch_pickle, lambda folder: None],
    ids=["cut", "state dictionary", "pickle", "pickle by torch", "missing"],
)
def test_weights_that_are_no_program_are_refused_unread(tmp_path, write):
    write(tmp_path)
    with pytest.raises(ModelFailed, match=f"{tmp_path.name}/model.ts") as failure:
        model_of(card_of(), tmp_path)
    assert failure.value.code == "model-weights"
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("card", "network", "code", "words"),
    [
        (
            {"segments": SOFTMAX_SEGMENTS.replace("channel = 2", "channel = 5")},
            None,
            "model-mismatch",
            "'Rod' in channel 5; the network gives channels 0 to 2",
        ),
        ({"patch": (30, 48, 48)}, None, "model-mismatch", "patch of 30 × 48 × 48"),
        (
            {"series": TWO_SERIES},
            None,
            "model-channels",
            "is 1 for the network of shapes and 2 in its",
        ),
        ({}, nn.Conv3d(2, 3, 3), "model-channels", "is 2 for the network of shapes and 1 in its"),
        ({}, Halved(), "model-mismatch", r"\[1, 3, 16, 48, 48\]"),
        ({}, Several(), "model-output", "a list"),
        ({}, Elsewhere(), "model-mismatch", "traced on another device than cpu"),
    ],
    ids=[
        "channel that is not there",
        "patch that does not fit",
        "too many series",
        "too few series",
        "another space",
        "several outputs",
        "another device",
    ],
)
def test_a_card_that_does_not_fit_its_network_is_refused_when_it_is_loaded(
    tmp_path, card, network, code, words
):
    folder = program(network, tmp_path) if network else trained_softmax().torchscript.parent
    with pytest.raises(ModelFailed, match=words) as failure:
        model_of(card_of(**card), folder)
    assert failure.value.code == code


def test_output_that_is_no_number_is_refused(tmp_path):
    model = model_of(card_of(patch=(8, 8, 8)), program(Logarithm(), tmp_path))
    with pytest.raises(ModelFailed, match="NaN or infinity") as failure:
        labels_of(model, np.full((8, 8, 8), -1000, np.int16))
    assert failure.value.code == "model-output"


def test_a_winner_that_the_card_does_not_name_is_refused():
    organ_alone = SOFTMAX_SEGMENTS[: SOFTMAX_SEGMENTS.index("\n[[segments]]\nnumber = 2")]
    model = model_of(card_of(organ_alone), trained_softmax().torchscript.parent)
    with pytest.raises(ModelFailed, match="channel 2") as failure:
        labels_of(model, shapes_phantom(7).hu)
    assert failure.value.code == "model-strange-label"


def test_lack_of_memory_is_not_taken_for_a_fault_of_the_card(tmp_path):
    with pytest.raises(RuntimeError, match="allocate memory"):
        model_of(card_of(), program(Greedy(), tmp_path))
