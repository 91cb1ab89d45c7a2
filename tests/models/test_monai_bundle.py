"""MONAI bundles: right labels, MONAI's own answer, and a clear sentence where one cannot run."""

import itertools
import json
import os
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from scipy import ndimage
from torch.utils._python_dispatch import TorchDispatchMode

from segnode_contract.card import Card, parse_card
from segnode_contract.errors import ModelFailed
from segnode_models.bundle.model import MonaiBundleModel, affine_of
from segnode_models.model import InputVolume, Stopped

from .bundle import ARGMAX, THRESHOLD, make_bundle, write_config
from .trained import (
    SIGMOID_SEGMENTS,
    SOFTMAX_SEGMENTS,
    Shapes,
    card_toml,
    shapes_phantom,
    trained_sigmoid,
    trained_softmax,
)

SEED = 7
"""Of a phantom that no network was trained on."""


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes() -> Shapes:
    return shapes_phantom(SEED)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "shapes"


def card_of(segments=SOFTMAX_SEGMENTS, *, network="", needs="", orientation="HPL") -> Card:
    text = card_toml(kind="monai-bundle", needs=needs, network=network, segments=segments)
    return parse_card(text.replace('"HPL"', f'"{orientation}"'), where="card.toml")


def loaded(folder: Path, card: Card) -> MonaiBundleModel:
    return MonaiBundleModel(card, card.network, folder, torch.device("cpu"))


def segmented(model, hu, spacing_mm, *, others=None, told=lambda share: None) -> np.ndarray:
    """Return the label planes of an image that nobody may write to."""
    hu = np.ascontiguousarray(hu)
    hu.flags.writeable = False
    volume = InputVolume(hu=hu, spacing_mm=spacing_mm, attributes={}, others=others or {})
    labels = np.zeros((model.card.planes, *hu.shape), np.uint8)
    findings = model.segment(volume, labels, told)
    assert (findings.withheld, findings.measurements) == ((), ())
    return labels


def failure(folder: Path, card: Card, shapes: Shapes) -> ModelFailed:
    """Return how a bundle fails, at loading or at work."""
    with pytest.raises(ModelFailed) as raised:
        segmented(loaded(folder, card), shapes.hu, shapes.spacing_mm)
    assert str(folder.parent) not in raised.value.sentence
    return raised.value


def step(config, part: str, target: str) -> dict:
    """Return the transform `target` of a bundle's pre- or postprocessing."""
    transforms = config[part]["transforms"]
    return next(one for one in transforms if one["_target_"] == target)


def without(part: str, target: str):
    """Return a change that takes a transform out."""
    return lambda config: config[part]["transforms"].remove(step(config, part, target))


def centre_mm(mask, spacing_mm) -> np.ndarray:
    return (np.argwhere(mask).mean(axis=0) + 0.5) * spacing_mm


# What it finds


def test_a_trained_bundle_finds_organ_and_rod_of_an_unseen_phantom(folder, shapes, dice):
    model = loaded(make_bundle(folder, trained_softmax()), card_of())
    labels = segmented(model, shapes.hu, shapes.spacing_mm)[0]
    assert dice(labels == 1, shapes.organ) >= 0.95
    assert dice(labels == 2, shapes.rod) >= 0.95


def test_segments_of_a_sigmoid_bundle_may_overlap(folder, shapes, dice):
    bundle = make_bundle(folder, trained_sigmoid(), ending=THRESHOLD)
    labels = segmented(loaded(bundle, card_of(SIGMOID_SEGMENTS)), shapes.hu, shapes.spacing_mm)
    organ, lesion = labels[0] == 1, labels[1] == 1
    assert dice(organ, shapes.organ) >= 0.95
    assert dice(lesion, shapes.lesion) >= 0.9
    assert (organ & lesion).sum() > 0.9 * shapes.lesion.sum()
    assert abs(centre_mm(lesion, shapes.spacing_mm) - shapes.lesion_centre_mm).max() < 1


TURNS = {
    "HPL": lambda array: array,
    "FAR": lambda array: array[::-1, ::-1, ::-1],
    "LHA": lambda array: array[:, ::-1].transpose(2, 0, 1),
}
"""From HPL to each orientation."""
GRIDS = {
    "finer in the slice": ((30, 100, 128), (4.8, 1.28, 1.0)),
    "thick slices": ((24, 64, 80), (6.0, 2.0, 1.6)),
    "as trained": ((48, 64, 64), (3.0, 2.0, 2.0)),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_anatomy_stays_where_it_is_in_any_orientation_and_spacing(folder, dice, orientation, grid):
    shape, spacing_mm = grid
    shapes, turn = shapes_phantom(SEED, shape=shape, spacing_mm=spacing_mm), TURNS[orientation]
    bundle = make_bundle(folder, trained_softmax())
    model = loaded(bundle, card_of(orientation=orientation))
    hu, truth = turn(shapes.hu), turn(shapes.organ)
    turned_mm = tuple(spacing_mm[axis] for axis in _axes(turn))
    organ = segmented(model, hu, turned_mm)[0] == 1
    assert dice(organ, truth) >= 0.9
    off = abs(centre_mm(organ, turned_mm) - centre_mm(truth, turned_mm))
    assert (off <= 0.5 * np.array(turned_mm)).all(), off


CORNER = """
import torch

class Corner(torch.nn.Module):
    \"\"\"Calls the first third of each axis it is given the corner, whatever lies there.\"\"\"

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image):
        corner = torch.zeros_like(image)
        corner[:, :, :16, :21, :21] = 1
        return torch.cat([1 - corner, corner], 1) + self.bias
"""


def test_the_network_sees_the_orientation_that_its_bundle_asks_for(folder, shapes):
    def at_a_corner(config):
        config["network_def"] = {"_target_": "scripts.corner.Corner"}
        config["inferer"] = {"_target_": "SimpleInferer"}

    bundle = make_bundle(folder, trained_softmax(), change=at_a_corner)
    (bundle / "scripts").mkdir()
    (bundle / "scripts/corner.py").write_text(CORNER)
    torch.save({"bias": torch.zeros(1)}, bundle / "models/model.pt")
    corner = np.zeros(shapes.hu.shape, bool)  # foot, front, right: where HPL begins
    corner[:16, :21, :21] = True
    for orientation, turn in TURNS.items():
        model = loaded(bundle, card_of(orientation=orientation))
        spacing_mm = tuple(shapes.spacing_mm[axis] for axis in _axes(turn))
        labels = segmented(model, turn(shapes.hu), spacing_mm)[0]
        np.testing.assert_array_equal(labels == 1, turn(corner), orientation)


def test_letters_of_an_orientation_mean_what_nibabel_says():
    pairs = ["HF", "AP", "LR"]
    for order in itertools.permutations(pairs):
        for orientation in itertools.product(*order):
            affine = affine_of("".join(orientation), (3.0, 2.0, 1.0))
            names = "".join(nibabel.aff2axcodes(affine))
            assert names.replace("S", "H").replace("I", "F") == "".join(orientation)
            assert nibabel.affines.voxel_sizes(affine).tolist() == [3, 2, 1]


def _axes(turn) -> list[int]:
    """Return which axis of HPL each axis became."""
    return [(2, 3, 5).index(size) for size in turn(np.empty((2, 3, 5))).shape]


# What MONAI's own tool finds

PLAIN = {
    "initialize": [
        "$@network.load_state_dict(torch.load(@bundle_root + '/models/model.pt'))",
        "$@network.eval()",
        "$torch.set_grad_enabled(False)",
    ],
    "run": [
        "$[@postprocessing({**image, 'pred': @inferer(image['image'][None], @network)[0]})"
        " for image in @dataset]",
        "$torch.set_grad_enabled(True)",
    ],
}
"""What MONAI's evaluator does with the same parts; it needs ignite, and gives the same voxels."""


def by_monai(bundle: Path, hu, affine) -> np.ndarray:
    """Return what `monai.bundle run` writes for a NIfTI image."""
    (bundle / "images").mkdir()
    nibabel.save(nibabel.Nifti1Image(hu, affine), bundle / "images/one.nii.gz")
    write_config(bundle, "plain.json", PLAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monai.bundle.run(
            run_id="run",
            init_id="initialize",
            meta_file=str(bundle / "configs/metadata.json"),
            config_file=[str(bundle / "configs" / f"{n}.json") for n in ("inference", "plain")],
            bundle_root=str(bundle),
            dataset_dir=str(bundle / "images"),
        )
    return np.asarray(nibabel.load(bundle / "eval/one_trans.nii.gz").dataobj)


@pytest.mark.parametrize("orientation", TURNS)
def test_labels_are_those_of_monais_own_tool(folder, orientation):
    turn = TURNS[orientation]
    shapes = shapes_phantom(SEED, shape=(30, 72, 80), spacing_mm=(4.8, 1.8, 1.6))
    spacing_mm = tuple(shapes.spacing_mm[axis] for axis in _axes(turn))
    bundle = make_bundle(folder, trained_softmax())
    affine = affine_of(orientation, spacing_mm)
    affine[:3, 3] = 31.5, -412.25, 1204.75
    theirs = by_monai(bundle, turn(shapes.hu), affine)
    model = loaded(bundle, card_of(orientation=orientation))
    labels = segmented(model, turn(shapes.hu), spacing_mm)
    assert set(np.unique(theirs)) == {0, 1, 2}
    np.testing.assert_array_equal(labels[0], theirs)


def test_labels_differ_from_those_of_an_oblique_nifti_by_borders_alone(folder):
    """NIfTI holds its affine in single precision.

    An oblique one is then off a right angle by 1e-8, where MONAI's Spacing lays its grid on the
    middle of the image instead of on its first voxel: another sampling of the same anatomy.
    """
    shapes = shapes_phantom(SEED, shape=(30, 72, 80), spacing_mm=(4.8, 1.8, 1.6))
    bundle = make_bundle(folder, trained_softmax())
    affine = affine_of("HPL", shapes.spacing_mm)
    affine[:3, :3] = nibabel.eulerangles.euler2mat(z=0.2, y=-0.1, x=0.15) @ affine[:3, :3]
    theirs = by_monai(bundle, shapes.hu, affine)
    labels = segmented(loaded(bundle, card_of()), shapes.hu, shapes.spacing_mm)[0]
    differ = labels != theirs
    assert differ.mean() < 0.002
    alike = ndimage.maximum_filter(theirs, 3) == ndimage.minimum_filter(theirs, 3)
    assert not (differ & alike).any()


def test_masks_are_those_of_monais_own_tool(folder, shapes):
    bundle = make_bundle(folder, trained_sigmoid(), ending=THRESHOLD)
    affine = affine_of("HPL", shapes.spacing_mm)
    theirs = by_monai(bundle, shapes.hu, affine)
    labels = segmented(loaded(bundle, card_of(SIGMOID_SEGMENTS)), shapes.hu, shapes.spacing_mm)
    np.testing.assert_array_equal(labels, np.moveaxis(theirs, -1, 0))


# Several series

SERIES = """
[[input.series]]
role = "first"
[[input.series]]
role = "second"
[[input.series]]
role = "third"
optional = true
"""


@pytest.mark.parametrize("channel_first", [True, False], ids=["made so", "as loaded"])
def test_channels_are_the_series_in_the_order_of_the_card(folder, shapes, channel_first):
    def each_channel_by_itself(config):
        config["network_def"] = {
            "_target_": "torch.nn.Conv3d",
            "in_channels": 3,
            "out_channels": 3,
            "kernel_size": 1,
        }
        step(config, "preprocessing", "Spacingd")["pixdim"] = [3.0, 2.0, 2.0]
        if not channel_first:
            without("preprocessing", "EnsureChannelFirstd")(config)

    bundle = make_bundle(folder, trained_sigmoid(), ending=THRESHOLD, change=each_channel_by_itself)
    weight = torch.eye(3).reshape(
        3, 3, 1, 1, 1
    )  # half of the window, which is 100 HU, is the border
    torch.save({"weight": weight, "bias": torch.full((3,), -0.5)}, bundle / "models/model.pt")
    segments = "".join(
        SIGMOID_SEGMENTS[SIGMOID_SEGMENTS.index("[[segments]]", 5) :]
        .replace("number = 2", f"number = {number + 1}")
        .replace("plane = 1", f"plane = {number}")
        .replace("channel = 1", f"channel = {number}")
        for number in range(3)
    )
    others = {
        "second": np.where(shapes.rod, 300, -100).astype(np.float32),
        "unknown": np.full(shapes.hu.shape, 300, np.float32),
    }
    hu = np.where(shapes.organ, 300, -100).astype(np.int16)
    model = loaded(bundle, card_of(segments, needs=SERIES))
    labels = segmented(model, hu, shapes.spacing_mm, others=others)
    np.testing.assert_array_equal(labels[0] == 1, shapes.organ)
    np.testing.assert_array_equal(labels[1] == 1, shapes.rod)
    assert not labels[2].any()  # of the series that is not there: zeros, below the border


# Bundles as they come

DARKER = """
from monai.transforms import MapTransform

class Darkerd(MapTransform):
    def __call__(self, data):
        from scripts.darker import Darkerd  # not before it is needed
        from scripts.deep import SHIFT_HU

        assert type(self) is Darkerd
        return {**data, **{key: data[key] - SHIFT_HU for key in self.keys}}
"""


def with_quirks(folder: Path, shift_hu: int) -> Path:
    """Make a bundle with what is seen in the Model Zoo; it takes `shift_hu` from each value."""

    def quirks(config):
        loader, *others = config["preprocessing"]["transforms"]
        loader["reader"] = "ITKReader"  # needs a package that is not there
        loader["image_only"] = False
        config["imports"] += ["$import a_package_that_is_not_there", "$import scripts.darker"]
        config["high_resolution"] = True
        config["pixdim"] = "$[3.0, 2.0, 2.0] if @high_resolution else [6.0, 4.0, 4.0]"
        step(config, "preprocessing", "Spacingd")["pixdim"] = "@pixdim"
        config["loading"] = [loader, {"_target_": "scripts.darker.Darkerd", "keys": "@image_key"}]
        config["others"] = others
        config["preprocessing"]["transforms"] = "$@loading + @others"
        config["network"] = "$monai.not_there.at_all(@network_def)"
        config["inferer"]["device"] = "cuda:0"
        config["inferer"]["sw_batch_size"] = "$len(@pixdim)"
        config["postprocessing"]["transforms"] += [
            {
                "_target_": "KeepLargestConnectedComponentd",
                "keys": "pred",
                "applied_labels": [1, 2],
            },
            {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: torch.where(x > 1, 4, x)"},
            {"_target_": "monai.transforms.SaveImaged", "keys": "label", "output_ext": ".no"},
        ]

    make_bundle(folder, trained_softmax(), change=quirks)
    (folder / "scripts").mkdir()
    (folder / "scripts/__init__.py").write_text("")
    (folder / "scripts/darker.py").write_text(DARKER)
    (folder / "scripts/deep.py").write_text(f"SHIFT_HU = {shift_hu}\n")
    return folder


PROGRAM = 'weights = "models/model.ts"'
QUIRKY = SOFTMAX_SEGMENTS.replace("channel = 2", "channel = 4")


def test_bundles_with_the_model_zoos_quirks_run_as_they_are(tmp_path, shapes, dice, monkeypatch):
    elsewhere = ModuleType("scripts")
    monkeypatch.setitem(sys.modules, "scripts", elsewhere)

    def files():
        return sorted(path for path in tmp_path.rglob("*") if path.is_file())

    bundles = {shift: with_quirks(tmp_path / f"{shift}", shift) for shift in (150, -150)}
    before = files()
    card = card_of(QUIRKY, network=PROGRAM)
    # both at once, each with its own `scripts`
    models = {shift: loaded(bundle, card) for shift, bundle in bundles.items()}
    for shift, model in models.items():
        labels = segmented(model, shapes.hu + np.int16(shift), shapes.spacing_mm)[0]
        assert dice(labels == 1, shapes.organ) >= 0.95
        assert dice(labels == 2, shapes.rod) >= 0.95
    assert files() == before
    ours = {name: module for name, module in sys.modules.items() if name.startswith("scripts")}
    assert ours == {"scripts": elsewhere}
    assert not [path for path in sys.path if path.startswith(str(tmp_path))]


def test_a_program_is_known_by_its_content(tmp_path, shapes, dice):
    bundle = with_quirks(tmp_path / "quirky", 0)
    (bundle / "models/model.ts").rename(bundle / "models/model.pt")
    card = card_of(QUIRKY, network=PROGRAM.replace(".ts", ".pt"))
    labels = segmented(loaded(bundle, card), shapes.hu, shapes.spacing_mm)[0]
    assert dice(labels == 1, shapes.organ) >= 0.95


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "network"])
def test_state_dictionaries_are_taken_as_programs_save_them(folder, shapes, dice, wrapper):
    bundle = make_bundle(folder, trained_softmax())
    state = torch.load(bundle / "models/model.pt", weights_only=True)
    (bundle / "models/model.pt").unlink()
    if wrapper is None:
        save_file(state, bundle / "models/model.safetensors")
        card = card_of(network='weights = "models/model.safetensors"')
    else:
        torch.save({"epoch": 3, wrapper: state}, bundle / "models/model.pt")
        card = card_of()
    labels = segmented(loaded(bundle, card), shapes.hu, shapes.spacing_mm)[0]
    assert dice(labels == 1, shapes.organ) >= 0.95


def test_a_configuration_may_be_yaml(folder, shapes, dice):
    bundle = make_bundle(folder, trained_softmax())
    config = json.loads((bundle / "configs/inference.json").read_text())
    (bundle / "configs/inference.json").unlink()
    (bundle / "configs/inference.yaml").write_text(yaml.safe_dump(config))
    model = loaded(bundle, card_of(network='config = "configs/inference.yaml"'))
    assert dice(segmented(model, shapes.hu, shapes.spacing_mm)[0] == 1, shapes.organ) >= 0.95


def beside_their_users(config):
    config["dataset"]["transform"] = config.pop("preprocessing")
    config["evaluator"]["postprocessing"] = config.pop("postprocessing")
    config["evaluator"]["inferer"] = config.pop("inferer")
    config["evaluator"]["network"] = config.pop("network_def")
    del config["network"]
    step({"post": config["evaluator"]["postprocessing"]}, "post", "Invertd")["transform"] = (
        "@dataset#transform"
    )


def channels_by_loading(config):
    step(config, "preprocessing", "LoadImaged")["ensure_channel_first"] = True
    without("preprocessing", "EnsureChannelFirstd")(config)


def one_composed_in_another(config):
    config["preprocessing"]["transforms"][2:4] = [
        {"_target_": "Compose", "transforms": config["preprocessing"]["transforms"][2:4]}
    ]


def lazy(config):
    config["preprocessing"]["lazy"] = True


@pytest.mark.parametrize(
    "change",
    [
        beside_their_users,
        channels_by_loading,
        without("preprocessing", "LoadImaged"),
        one_composed_in_another,
        lazy,
    ],
    ids=["other ids", "loader makes channels", "no loader", "nested", "lazy"],
)
def test_configurations_may_differ(folder, shapes, change):
    usual = make_bundle(folder / "usual", trained_softmax())
    other = make_bundle(folder / "other", trained_softmax(), change=change)
    ours, theirs = (
        segmented(loaded(bundle, card_of()), shapes.hu, shapes.spacing_mm)
        for bundle in (usual, other)
    )
    np.testing.assert_array_equal(theirs, ours)
    assert set(np.unique(ours)) == {0, 1, 2}


COUNT = """
import gc
import torch
from monai.transforms import MapTransform

class Countd(MapTransform):
    def __call__(self, data):
        size = data["pred"].untyped_storage().nbytes()
        tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
        large = {one.data_ptr() for one in tensors if one.untyped_storage().nbytes() >= size}
        assert large == {data["pred"].data_ptr()}
        return data
"""


def test_no_channels_are_kept_that_a_later_step_has_replaced(folder, shapes):
    def counted(config):
        transforms = config["postprocessing"]["transforms"]
        transforms.insert(1, {"_target_": "scripts.count.Countd", "keys": "pred"})
        transforms.insert(3, {"_target_": "scripts.count.Countd", "keys": "pred"})

    make_bundle(folder, trained_softmax(), change=counted)
    (folder / "scripts").mkdir()
    (folder / "scripts/count.py").write_text(COUNT)
    segmented(loaded(folder, card_of()), shapes.hu, shapes.spacing_mm)


TOGETHER = """
from monai.transforms import InvertibleTransform, MapTransform

class Togetherd(MapTransform, InvertibleTransform):
    def __call__(self, data):
        for key in self.keys:
            self.push_transform(data, key)
        return data

    def inverse(self, data):
        for key in self.keys:
            self.pop_transform(data, key)
            data[key] = data[key] - data[key].amax(0, keepdim=True)
        return data
"""


def test_an_inverse_that_looks_at_all_channels_has_them(folder, shapes, dice):
    def together(config):
        config["preprocessing"]["transforms"].insert(
            3, {"_target_": "scripts.together.Togetherd", "keys": "image"}
        )

    make_bundle(folder, trained_softmax(), change=together)
    (folder / "scripts").mkdir()
    (folder / "scripts/together.py").write_text(TOGETHER)
    labels = segmented(loaded(folder, card_of()), shapes.hu, shapes.spacing_mm)[0]
    assert dice(labels == 2, shapes.rod) >= 0.95


class Largest(TorchDispatchMode):
    """Notes how many values the largest tensor has that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.values = max(self.values, made.untyped_storage().nbytes() // made.itemsize)
        return made


def test_channels_never_stand_on_the_images_grid_together(folder):
    def many_channels(config):
        config["network_def"] = {
            "_target_": "torch.nn.Conv3d",
            "in_channels": 1,
            "out_channels": 10,
            "kernel_size": 1,
        }

    bundle = make_bundle(folder, trained_softmax(), change=many_channels)
    weight = torch.linspace(-1, 1, 10).reshape(10, 1, 1, 1, 1)
    torch.save({"weight": weight, "bias": -(weight.flatten() ** 2)}, bundle / "models/model.pt")
    one = SOFTMAX_SEGMENTS[: SOFTMAX_SEGMENTS.index("[[segments]]", 5)]
    segments = "".join(one.replace("= 1\n", f"= {number}\n") for number in range(1, 10))
    fine = shapes_phantom(SEED, shape=(96, 128, 128), spacing_mm=(1.5, 1.0, 1.0))
    model = loaded(bundle, card_of(segments))
    with Largest() as largest:
        labels = segmented(model, fine.hu, fine.spacing_mm)
    assert len(np.unique(labels)) == 4
    # of which Spacing makes the coordinates of its voxels
    assert largest.values == 3 * fine.hu.size


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("half", ["", 'half_precision_checked = "Tests: the same."'])
def test_a_gpu_finds_what_the_cpu_finds(folder, shapes, dice, half):
    bundle = make_bundle(folder, trained_softmax())
    card = parse_card(f"{half}\n{card_of().source}", where="card.toml")
    on_gpu = MonaiBundleModel(card, card.network, bundle, torch.device("cuda:0"))
    found, expected = (
        segmented(model, shapes.hu, shapes.spacing_mm)[0]
        for model in (on_gpu, loaded(bundle, card))
    )
    for value in (1, 2):
        assert dice(found == value, expected == value) > 0.99


def test_steps_that_work_in_place_leave_the_images_alone(folder, shapes):
    def in_place(config):
        lighter = {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x.add_(100)"}
        config["preprocessing"]["transforms"].insert(1, lighter)

    hu = shapes.hu.astype(np.float32)
    model = loaded(make_bundle(folder, trained_softmax(), change=in_place), card_of())
    segmented(model, hu, shapes.spacing_mm)
    np.testing.assert_array_equal(hu, shapes.hu)


# Progress


def test_every_step_window_and_channel_tells_and_may_stop_the_work(folder, shapes):
    model = loaded(make_bundle(folder, trained_softmax()), card_of())
    shares = []
    segmented(model, shapes.hu, shapes.spacing_mm, told=shares.append)
    assert shares == sorted(shares)
    assert len(shares) == 6 + 2 + 1 + (1 + 3) + 3 + 1  # steps, windows by four, softmax, inversion
    # with its channels, slabs of slices, and the end
    assert shares[-1] == 1
    assert max(np.diff([0.0, *shares])) < 0.5  # two calls of four windows each

    def stop_at(number):
        calls = itertools.count()

        def told(share):
            if next(calls) == number:
                raise Stopped

        return told

    for number in range(len(shares)):
        with pytest.raises(Stopped):
            segmented(model, shapes.hu, shapes.spacing_mm, told=stop_at(number))
    again = []
    segmented(model, shapes.hu, shapes.spacing_mm, told=again.append)
    assert again == shares


@pytest.mark.parametrize("overlap", [0, 0.25, [0.5, 0.25, 0.7]])
@pytest.mark.parametrize("roi", [[16, 24, 32], [64, 16, 40], [-1, 32, 16], 20])
@pytest.mark.parametrize("batch", [1, 3])
def test_progress_runs_evenly_through_the_windows(folder, shapes, overlap, roi, batch):
    def windows(config):
        config["network_def"] = {
            "_target_": "torch.nn.Conv3d",
            "in_channels": 1,
            "out_channels": 2,
            "kernel_size": 1,
        }
        config["inferer"].update(roi_size=roi, overlap=overlap, sw_batch_size=batch)

    bundle = make_bundle(folder, trained_softmax(), change=windows)
    weights = {"weight": torch.ones(2, 1, 1, 1, 1), "bias": torch.zeros(2)}
    torch.save(weights, bundle / "models/model.pt")
    model, shares = loaded(bundle, card_of()), []
    labels = segmented(model, shapes.hu, shapes.spacing_mm, told=shares.append)
    assert not labels.any()  # both channels are alike, and of equals the first is the largest
    steps = np.diff([share for share in shares if 0.095 <= share <= 0.95 * 0.85 + 1e-9])
    assert steps.max() - steps.min() < 1e-9


def test_an_inferer_without_windows_tells_too(folder, shapes):
    def whole(config):
        config["inferer"] = {"_target_": "SimpleInferer"}

    model = loaded(make_bundle(folder, trained_softmax(), change=whole), card_of())
    shares = []
    segmented(model, shapes.hu, shapes.spacing_mm, told=shares.append)
    assert shares == sorted(shares)


# What is refused, and how


def test_a_missing_monai_says_what_to_install(folder, monkeypatch):
    ours = "segnode_models.bundle."
    for name in [n for n in sys.modules if n.startswith(ours) and n != f"{ours}model"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)
    bundle = make_bundle(folder, trained_softmax())
    with pytest.raises(ModelFailed, match=r"`setup/venv\.sh monai` in segnode") as raised:
        loaded(bundle, card_of())
    assert raised.value.code == "extra-missing"


def drop(*names: str):
    def change(config):
        for name in names:
            del config[name]

    return change


def unknown_argument(config):
    config["network_def"]["size_of_image"] = 96


def broken_reference(config):
    config["inferer"]["overlap"] = "@no_such_thing"


def unknown_class(config):
    config["network_def"]["_target_"] = "scripts.nowhere.Network"


def other_image_key(config):
    config["image_key"] = "artery"


def missing_file(config):
    config["network_def"] = "$torch.load(@bundle_root + '/models/architecture.pt')"


def errors_in_colour(config):
    config["network_def"] = {"_target_": "scripts.colour.Network"}


def prompts(config):
    config["inferer"] = {"_target_": "scripts.prompts.Prompted", "roi_size": 96}


def few_arguments(config):
    config["inferer"] = "$lambda image: image"


def no_network(config):
    config["network_def"] = {"_target_": "torch.nn.ReLU", "_mode_": "callable"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop("preprocessing", "dataset"), "has no 'preprocessing'"),
        (drop("postprocessing", "evaluator"), "has no 'postprocessing'"),
        (drop("inferer", "evaluator"), "has no 'inferer'"),
        (drop("network", "network_def", "evaluator"), "has no 'network_def'"),
        (unknown_argument, "made for 1.6.1. TypeError: .* argument 'size_of_image'"),
        (broken_reference, "'inferer' of configs/inference.json cannot be built .*no_such_thing"),
        (unknown_class, "'network_def' .* cannot be built .*scripts.nowhere.Network"),
        (missing_file, "No such file or directory: 'models/architecture.pt'"),
        (other_image_key, "loads 'artery', and the card has 'image'"),
        (no_network, "no torch module"),
    ],
)
def test_a_configuration_that_cannot_run_is_refused(folder, shapes, change, sentence):
    failed = failure(make_bundle(folder, trained_softmax(), change=change), card_of(), shapes)
    assert failed.code == "model-mismatch"
    assert re.search(sentence, failed.sentence), failed.sentence


def test_a_card_that_names_another_result_is_refused(folder, shapes):
    card = card_of(network='pred = "labels"')
    failed = failure(make_bundle(folder, trained_softmax()), card, shapes)
    assert failed.code == "model-mismatch"
    assert "works on 'pred', and the card has 'labels'" in failed.sentence


COLOUR = r"""
class Network:
    def __init__(self):
        raise ValueError(
            "Weights \x1b[1monly\x1b[0m\x07 failed (torch 2.6. or so). You have two options,\n"
            "(1) do those"
        )
"""


@pytest.mark.parametrize("program", [True, False], ids=["with model.ts", "without"])
def test_a_network_that_cannot_be_built_says_why_and_that_a_program_needs_no_building(
    folder, shapes, program
):
    bundle = make_bundle(folder, trained_softmax(), change=errors_in_colour)
    (bundle / "scripts").mkdir()
    (bundle / "scripts/colour.py").write_text(COLOUR)
    if not program:
        (bundle / "models/model.ts").unlink()
    sentence = failure(bundle, card_of(), shapes).sentence
    why = "ValueError: Weights only failed (torch 2.6. or so)."
    way_out = (
        ' The bundle\'s models/model.ts needs no building: set weights = "models/model.ts" below '
        "[network] on the card, and add the model again."
    )
    assert sentence.endswith(why + way_out * program)
    model = loaded(bundle, card_of(network=PROGRAM)) if program else None
    assert model is None or segmented(model, shapes.hu, shapes.spacing_mm).any()


PROMPTS = """
class Prompted:
    def __init__(self, roi_size):
        pass

    def __call__(self, inputs, network, point_coords, *, class_vector, labels=None, **others):
        raise AssertionError
"""


@pytest.mark.parametrize(
    ("change", "needed"),
    [
        (prompts, "'inputs', 'network', 'point_coords', 'class_vector';"),
        (few_arguments, "'image';"),
    ],
)
def test_an_inferer_that_wants_prompts_is_refused_before_its_weights_are_read(
    folder, change, needed
):
    bundle = make_bundle(folder, trained_softmax(), change=change)
    (bundle / "scripts").mkdir()
    (bundle / "scripts/prompts.py").write_text(PROMPTS)
    (bundle / "models/model.pt").unlink()
    with pytest.raises(ModelFailed, match="no prompts") as raised:
        loaded(bundle, card_of())
    assert raised.value.code == "model-mismatch"
    assert f"inferer of configs/inference.json needs {needed}" in raised.value.sentence


def test_slices_as_acquired_cannot_be_asked_for_and_are_refused(folder, shapes):
    def slice_by_slice(config):
        config["network_def"] = {
            "_target_": "torch.nn.Conv2d",
            "in_channels": 1,
            "out_channels": 2,
            "kernel_size": 1,
        }
        config["inferer"] = {"_target_": "SliceInferer", "roi_size": [32, 32], "spatial_dim": 0}

    def as_acquired(config):
        slice_by_slice(config)
        without("preprocessing", "Orientationd")(config)

    weights = {"weight": torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), "bias": torch.zeros(2)}
    for change in (slice_by_slice, as_acquired):
        bundle = make_bundle(folder / change.__name__, trained_softmax(), change=change)
        torch.save(weights, bundle / "models/model.pt")
    turned = loaded(folder / "slice_by_slice", card_of())
    assert segmented(turned, shapes.hu, shapes.spacing_mm).any()
    with pytest.raises(ModelFailed, match=r"short-axis .* cannot be asked for") as raised:
        loaded(folder / "as_acquired", card_of())
    assert raised.value.code == "model-mismatch"
    assert "add Orientationd to the preprocessing in configs/inference.json" in str(raised.value)


@pytest.mark.parametrize("name", ["inference.json", "metadata.json"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "has no configs/"),
        (b"{'single': quotes}", "cannot be read as JSON"),
        (b"\xff\xfe{}", "cannot be read as JSON"),
        (b"[1, 2]", "no table of names"),
    ],
)
def test_a_broken_configuration_file_is_named(folder, shapes, name, content, sentence):
    bundle = make_bundle(folder, trained_softmax())
    (bundle / "configs" / name).unlink()
    if content is not None:
        (bundle / "configs" / name).write_bytes(content)
    failed = failure(bundle, card_of(), shapes)
    assert failed.code == "model-mismatch"
    assert name in failed.sentence
    assert sentence in failed.sentence


class Program:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.pt", "model.ts", "model.safetensors"])
@pytest.mark.parametrize("kept", [None, 0.0, 0.5, 0.99])
def test_weights_that_are_missing_or_truncated_are_refused(folder, shapes, name, kept):
    bundle = make_bundle(folder, trained_softmax())
    weights = bundle / "models" / name
    if name.endswith("safetensors"):
        save_file(torch.load(bundle / "models/model.pt", weights_only=True), weights)
    if kept is None:
        weights.unlink()
    else:
        os.truncate(weights, int(kept * weights.stat().st_size))
    failed = failure(bundle, card_of(network=f'weights = "models/{name}"'), shapes)
    assert failed.code == "model-weights"
    assert name in failed.sentence
    assert ("is not there" in failed.sentence) == (kept is None)


def test_weights_that_hold_a_program_are_refused_and_not_run(folder, shapes, tmp_path):
    bundle = make_bundle(folder, trained_softmax())
    torch.save({"model": Program(tmp_path / "was run")}, bundle / "models/model.pt")
    failed = failure(bundle, card_of(), shapes)
    assert failed.code == "model-weights"
    assert not (tmp_path / "was run").exists()


def test_a_file_without_weights_is_refused(folder, shapes):
    bundle = make_bundle(folder, trained_softmax())
    torch.save({"epoch": 3}, bundle / "models/model.pt")
    failed = failure(bundle, card_of(), shapes)
    assert (failed.code, "holds no state dictionary" in failed.sentence) == ("model-weights", True)


def test_weights_of_another_network_are_counted(folder, shapes):
    bundle = make_bundle(folder, trained_softmax())
    state = torch.load(bundle / "models/model.pt", weights_only=True)
    first, second, third, fourth, *_ = state
    del state[first], state[second]
    state["a.b"] = state[third]
    state[fourth] = torch.zeros(7)
    torch.save(state, bundle / "models/model.pt")
    failed = failure(bundle, card_of(), shapes)
    assert failed.code == "model-mismatch"
    assert re.search(
        rf"2 of its \d+ keys are missing, 1 of the .* unexpected and 1 .*'{first}'", failed.sentence
    )


def test_a_result_on_another_grid_asks_for_invertd(folder, shapes):
    bundle = make_bundle(folder, trained_softmax(), change=without("postprocessing", "Invertd"))
    finer = shapes_phantom(SEED, shape=(24, 64, 80), spacing_mm=(6.0, 2.0, 1.6))
    failed = failure(bundle, card_of(), finer)
    assert failed.code == "model-output"
    assert "(1, 47, 64, 64)" in failed.sentence
    assert "(24, 64, 80)" in failed.sentence
    assert "add Invertd" in failed.sentence


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_give_no_result(folder, shapes, value):
    bundle = make_bundle(folder, trained_softmax())
    state = torch.load(bundle / "models/model.pt", weights_only=True)
    next(reversed(state.values()))[:] = value
    torch.save(state, bundle / "models/model.pt")
    failed = failure(bundle, card_of(), shapes)
    assert (failed.code, "not finite" in failed.sentence) == ("model-output", True)


@pytest.mark.parametrize(
    ("trained", "ending", "segments"),
    [
        (trained_softmax, ARGMAX, SOFTMAX_SEGMENTS),
        (trained_sigmoid, THRESHOLD, SIGMOID_SEGMENTS),
    ],
    ids=["channels of softmax", "channels of sigmoid"],
)
def test_probabilities_are_no_labels(folder, shapes, trained, ending, segments):
    change = without("postprocessing", "AsDiscreted")
    bundle = make_bundle(folder, trained(), ending=ending, change=change)
    failed = failure(bundle, card_of(segments), shapes)
    assert (failed.code, "AsDiscreted" in failed.sentence) == ("model-output", True)


def test_labels_that_were_interpolated_are_no_labels(folder, shapes):
    def discrete_too_early(config):
        config["postprocessing"]["transforms"][1:3] = config["postprocessing"]["transforms"][2:0:-1]

    bundle = make_bundle(folder, trained_softmax(), change=discrete_too_early)
    finer = shapes_phantom(SEED, shape=(24, 64, 80), spacing_mm=(6.0, 2.0, 1.6))
    failed = failure(bundle, card_of(), finer)
    assert (failed.code, "nearest_interp" in failed.sentence) == ("model-output", True)


@pytest.mark.parametrize("mapped", ["x * 0.5", "x - 1.0", "x * 1e9"])
def test_a_map_of_other_values_is_no_label_map(folder, shapes, mapped):
    def odd(config):
        config["postprocessing"]["transforms"].append(
            {"_target_": "Lambdad", "keys": "pred", "func": f"$lambda x: {mapped}"}
        )

    failed = failure(make_bundle(folder, trained_softmax(), change=odd), card_of(), shapes)
    assert (failed.code, "no labels" in failed.sentence) == ("model-output", True)


def test_a_label_that_the_card_does_not_name_is_refused(folder, shapes):
    first = SOFTMAX_SEGMENTS[: SOFTMAX_SEGMENTS.index("[[segments]]", 5)]
    failed = failure(make_bundle(folder, trained_softmax()), card_of(first), shapes)
    assert failed.code == "model-strange-label"
    assert "label 2, which no segment" in failed.sentence
    assert "1 Organ" in failed.sentence


def test_labels_that_a_bundle_makes_of_its_channels_are_told_where_the_card_names_channels(
    folder, shapes
):
    """As brats does: the labels are not the channels, so that adding 1 to each would mislead."""

    def one_map(config):
        combined = "$lambda x: torch.where(x[[1]] > 0, 4, torch.where(x[[0]] > 0, 2, 0))"
        config["postprocessing"]["transforms"].append(
            {"_target_": "Lambdad", "keys": "pred", "func": combined}
        )

    bundle = make_bundle(folder, trained_sigmoid(), ending=THRESHOLD, change=one_map)
    failed = failure(bundle, card_of(SIGMOID_SEGMENTS), shapes)
    assert failed.code == "model-mismatch"
    assert "'Organ' is channel 0" in failed.sentence
    assert "with 2, 4; a label need not mean what the network's channel did" in failed.sentence
    assert "see in configs/inference.json what each means" in failed.sentence


def needs_invertd(config):
    without("postprocessing", "Invertd")(config)


def needs_channels(config):
    for target in ("EnsureChannelFirstd", "Orientationd", "Spacingd"):
        without("preprocessing", target)(config)


def gives_scores(config):
    without("postprocessing", "AsDiscreted")(config)


def gives_halves(config):
    config["postprocessing"]["transforms"].append(
        {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x * 0.5"}
    )


@pytest.mark.parametrize("change", [needs_invertd, needs_channels, gives_scores, gives_halves])
def test_what_must_change_in_a_bundle_names_the_file_and_that_it_must_be_added_again(
    folder, change
):
    bundle = make_bundle(folder, trained_softmax(), change=change)
    (bundle / "configs/inference.json").rename(bundle / "configs/ours.json")
    finer = shapes_phantom(SEED, shape=(24, 64, 80), spacing_mm=(6.0, 2.0, 1.6))
    failed = failure(bundle, card_of(network='config = "configs/ours.json"'), finer)
    assert "processing in configs/ours.json" in failed.sentence
    assert failed.sentence.endswith("add the model again.")


@pytest.mark.parametrize(
    ("trained", "ending", "segments", "sentence"),
    [
        (trained_softmax, ARGMAX, SIGMOID_SEGMENTS, "'Organ' is channel 0, .* a label map"),
        (
            trained_sigmoid,
            THRESHOLD,
            SIGMOID_SEGMENTS.replace("channel = 1", "channel = 2"),
            "'Lesion' is channel 2, .* 2 channels",
        ),
    ],
    ids=["background", "too many"],
)
def test_a_card_and_a_result_that_disagree_are_refused(
    folder, shapes, trained, ending, segments, sentence
):
    bundle = make_bundle(folder, trained(), ending=ending)
    failed = failure(bundle, card_of(segments), shapes)
    assert failed.code == "model-mismatch"
    assert re.search(sentence, failed.sentence), failed.sentence


def test_a_wrong_number_of_series_names_both_numbers(folder, shapes):
    failed = failure(make_bundle(folder, trained_softmax()), card_of(needs=SERIES), shapes)
    assert failed.code == "model-channels"
    assert "takes 1 channels" in failed.sentence
    assert "made 3 of the images" in failed.sentence


def test_an_image_without_channels_asks_for_them(folder, shapes):
    def no_channels(config):
        for target in ("EnsureChannelFirstd", "Orientationd", "Spacingd"):
            without("preprocessing", target)(config)

    failed = failure(make_bundle(folder, trained_softmax(), change=no_channels), card_of(), shapes)
    assert failed.code == "model-mismatch"
    assert "(48, 64, 64)" in failed.sentence
    assert "EnsureChannelFirstd" in failed.sentence


def test_what_a_bundles_own_code_raises_stays_what_it_is(folder, shapes):
    def raising(config):
        config["postprocessing"]["transforms"].insert(
            0, {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: 1 // 0"}
        )

    model = loaded(make_bundle(folder, trained_softmax(), change=raising), card_of())
    with pytest.raises(ZeroDivisionError):
        segmented(model, shapes.hu, shapes.spacing_mm)
