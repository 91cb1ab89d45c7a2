"""Kind nnunet: folders that nnU-Net's own code trained, against nnU-Net's own predictor."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import shutil
import sys
import threading
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import highdicom as hd
import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from numpy.typing import NDArray

from segnode_contract.card import Card, parse_card
from segnode_contract.errors import ModelFailed, UnsuitableSeries
from segnode_contract.findings import Findings
from segnode_models.model import InputVolume, Stopped
from segnode_models.nnunet.model import NnunetModel
from segnode_models.nnunet.predictor import Predictor
from segnode_worker.volume import for_model

from .nnunet_folder import (
    LABELS,
    REGIONS,
    Dataset,
    TrainedNnunets,
    label_map,
    trained_nnunets,
    write_nifti,
)
from .trained import Triple, card_toml, shapes_phantom

SEED = 3
"""Of a phantom that no network has seen."""
TIES = 2e-5
"""Share of voxels in which two scores may be equal once they are rounded."""
Segments = tuple[tuple[int, str, int, int, int], ...]
"""Number, label, plane, value and channel of each."""
OF_LABELS = ((1, "Low", 0, 1, 1), (2, "High", 0, 2, 2), (3, "Rod", 1, 1, 3))
OF_REGIONS = ((1, "Organ", 0, 1, 0), (2, "Lesion", 1, 1, 1), (3, "Rod", 0, 2, 2))
_UNET = "dynamic_network_architectures.architectures.unet"
TWO_SERIES = """
[[input.series]]
role = "first"
[[input.series]]
role = "second"
"""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained() -> TrainedNnunets:
    return trained_nnunets()


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    """A copy to spoil, of labels."""
    return Path(shutil.copytree(trained.labels, tmp_path / "shapes"))


def card_of(
    segments: Segments,
    *,
    folds: str = '"0"',
    network: str = "",
    needs: str = "",
) -> Card:
    tables = "".join(
        f"""
[[segments]]
number = {number}
label = "{label}"
plane = {plane}
value = {value}
channel = {channel}
category = {{ value = "85756007", scheme = "SCT", meaning = "Tissue" }}
type = {{ value = "85756007", scheme = "SCT", meaning = "Tissue" }}
colour = [{number}, 2, 3]
"""
        for number, label, plane, value, channel in segments
    )
    network = f"folds = [{folds}]\n{network}"
    text = card_toml(kind="nnunet", needs=needs, network=network, segments=tables)
    return parse_card(text, where="card.toml")


def loaded(folder: Path, card: Card) -> NnunetModel:
    return NnunetModel(card, card.network, folder, torch.device("cpu"))


def segmented(
    model: NnunetModel,
    hu: NDArray[Any],
    spacing_mm: Triple,
    *,
    others: dict[str, NDArray[np.float32]] | None = None,
    told: Callable[[float], None] = lambda share: None,
) -> NDArray[np.uint8]:
    """Return the label planes of an image that nobody may write to."""
    hu.flags.writeable = False
    volume = InputVolume(hu=hu, spacing_mm=spacing_mm, attributes={}, others=others or {})
    labels = np.zeros((model.card.planes, *hu.shape), np.uint8)
    assert model.segment(volume, labels, told) == Findings()
    return labels


def as_map(card: Card, planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return one label map as nnU-Net writes it, where the later of two regions stands."""
    found = np.zeros(planes.shape[1:], np.uint8)
    for number, segment in enumerate(card.segments, 1):
        found[planes[segment.plane] == segment.value] = number
    return found


@pytest.fixture
def tool(tmp_path) -> Callable[..., NDArray[np.uint8]]:
    """nnU-Net's own predictor, on NIfTI files and back."""

    def tool(
        folder: Path,
        *images: Path,
        folds: tuple[int | str, ...] = (0,),
        mirroring: bool = True,
        step: float = 0.5,
    ) -> NDArray[np.uint8]:
        # its search for a trainer imports what needs torchvision
        primus = "nnunetv2.training.nnUNetTrainer.primus.primus_trainers"
        with (
            warnings.catch_warnings(),
            redirect_stdout(None),
            mock.patch.dict(sys.modules, {primus: types.ModuleType(primus)}),
        ):
            warnings.simplefilter("ignore")
            predictor = nnUNetPredictor(
                tile_step_size=step,
                use_mirroring=mirroring,
                device=torch.device("cpu"),
                allow_tqdm=False,
            )
            predictor.initialize_from_trained_model_folder(str(folder), folds)
            given = [[str(path) for path in images]]
            predictor.predict_from_files_sequential(given, [str(tmp_path / "found")])
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "found.nii.gz")))

    return tool


@pytest.fixture
def nifti(tmp_path) -> Callable[[NDArray[Any], Triple], Path]:
    def nifti(array: NDArray[Any], spacing_mm: Triple) -> Path:
        path = tmp_path / "image_0000.nii.gz"
        write_nifti(array, spacing_mm, path)
        return path

    return nifti


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Labels that exclude each other, or regions that overlap."""

    dataset: Dataset
    segments: Segments
    fold: int | str

    @property
    def folds(self) -> tuple[int | str, ...]:
        return (self.fold,)

    def card(self, network: str = "") -> Card:
        return card_of(self.segments, folds=f'"{self.fold}"', network=network)

    def folder(self, trained: TrainedNnunets) -> Path:
        return trained.labels if self.dataset is LABELS else trained.regions


LABEL_KIND = Kind(dataset=LABELS, segments=OF_LABELS, fold=0)
REGION_KIND = Kind(dataset=REGIONS, segments=OF_REGIONS, fold="all")
KINDS = pytest.mark.parametrize("kind", [LABEL_KIND, REGION_KIND], ids=["labels", "regions"])


@KINDS
def test_an_unseen_phantom_is_segmented(trained, dice, kind):
    shapes = kind.dataset.phantom(SEED)
    card = kind.card("step = 1.0")
    planes = segmented(loaded(kind.folder(trained), card), shapes.hu, kind.dataset.spacing_mm)
    truth = label_map(kind.dataset, shapes)
    masks = [truth == 1, truth == 2, truth == 3]
    if kind is REGION_KIND:
        masks = [shapes.organ, shapes.lesion, shapes.rod]
    for segment, mask in zip(card.segments, masks, strict=True):
        found = planes[segment.plane] == segment.value
        assert dice(found, mask) >= 0.9, segment.label


def test_regions_overlap(trained):
    shapes = REGIONS.phantom(SEED)
    model = loaded(trained.regions, REGION_KIND.card("mirroring = false"))
    organ_and_rod, lesion = segmented(model, shapes.hu, REGIONS.spacing_mm)
    assert (organ_and_rod[lesion == 1] == 1).mean() > 0.9


@KINDS
def test_on_the_grid_of_training_labels_are_nnunets_own(trained, tool, nifti, kind):
    shapes, card = kind.dataset.phantom(SEED), kind.card("mirroring = false")
    planes = segmented(loaded(kind.folder(trained), card), shapes.hu, kind.dataset.spacing_mm)
    image = nifti(shapes.hu, kind.dataset.spacing_mm)
    own = tool(kind.folder(trained), image, folds=kind.folds, mirroring=False)
    assert len(np.unique(own)) == 4
    np.testing.assert_array_equal(as_map(card, planes), own)


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [((66, 91, 98), (2.2, 1.4, 1.3)), ((36, 43, 43), (4.0, 3.0, 3.0))],
    ids=["finer", "coarser"],
)
@KINDS
def test_on_other_grids_labels_are_nnunets_own_but_for_ties(
    trained, tool, nifti, kind, shape, spacing_mm
):
    """nnU-Net rounds interpolated scores to 16 bits, which makes two equal in a few voxels."""
    shapes = shapes_phantom(SEED, shape=shape, spacing_mm=spacing_mm)
    card = kind.card("mirroring = false")
    planes = segmented(loaded(kind.folder(trained), card), shapes.hu, spacing_mm)
    image = nifti(shapes.hu, spacing_mm)
    own = tool(kind.folder(trained), image, folds=kind.folds, mirroring=False)
    assert np.count_nonzero(as_map(card, planes) != own) <= TIES * own.size


def test_between_thick_slices_scores_are_interpolated_as_nnunet_can_be_told_to(
    trained, folder, tool, nifti
):
    """Slices over three times as thick as pixels: nnU-Net's plans take the nearest one's scores.

    That alone is the difference: told to interpolate there as well, nnU-Net gives the same.
    """
    shape, spacing_mm = (36, 107, 107), (4.0, 1.2, 1.2)
    shapes = shapes_phantom(SEED, shape=shape, spacing_mm=spacing_mm)
    card, image = LABEL_KIND.card(), nifti(shapes.hu, spacing_mm)
    found = as_map(card, segmented(loaded(trained.labels, card), shapes.hu, spacing_mm))
    as_planned = tool(trained.labels, image)
    assert 0 < np.count_nonzero(found != as_planned) < 0.05 * np.count_nonzero(as_planned)
    with edited(folder / "plans.json") as plans:
        planned = plans["configurations"]["3d_fullres"]
        planned["resampling_fn_probabilities_kwargs"]["force_separate_z"] = False
    assert np.count_nonzero(found != tool(folder, image)) <= TIES * found.size


def test_labels_go_back_unmixed_where_the_card_says_nearest(trained, folder, tool, nifti):
    shape, spacing_mm = (66, 91, 98), (2.2, 1.4, 1.3)
    shapes = shapes_phantom(SEED, shape=shape, spacing_mm=spacing_mm)
    card, image = LABEL_KIND.card('back = "nearest"'), nifti(shapes.hu, spacing_mm)
    found = as_map(card, segmented(loaded(trained.labels, card), shapes.hu, spacing_mm))
    with edited(folder / "plans.json") as plans:
        plans["configurations"]["3d_fullres"] |= {
            "resampling_fn_probabilities": "resample_torch_fornnunet",
            "resampling_fn_probabilities_kwargs": {
                "force_separate_z": True,
                "mode": "nearest-exact",
            },
        }
    np.testing.assert_array_equal(found, tool(folder, image))
    assert np.any(found != tool(trained.labels, image))


def test_a_card_in_har_is_for_networks_that_saw_canonical_nifti(trained, tool, nifti, tmp_path):
    """TotalSegmentator turns images to RAS+ before nnU-Net, whose readers take (z, y, x)."""
    shapes = LABELS.phantom(SEED)
    path = nifti(shapes.hu, LABELS.spacing_mm)
    canonical = tmp_path / "canonical_0000.nii.gz"
    nibabel.save(nibabel.as_closest_canonical(nibabel.load(path)), canonical)
    own = tool(trained.labels, canonical)

    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]], affine[3, 3] = LABELS.spacing_mm, 1
    acquired = hd.Volume(shapes.hu, affine, coordinate_system="PATIENT")
    turned = for_model(acquired, "HAR")
    for reader, file in (
        (SimpleITKIO, canonical),
        (NibabelIO, canonical),
        (SimpleITKIOWithReorient, path),
        (NibabelIOWithReorient, path),
    ):
        read, known = reader().read_images([str(file)])
        np.testing.assert_array_equal(turned.array, read[0])
        assert known["spacing"] == pytest.approx(turned.spacing)

    card = LABEL_KIND.card()
    planes = segmented(loaded(trained.labels, card), turned.array, turned.spacing)
    np.testing.assert_array_equal(as_map(card, planes), own)


def test_in_another_orientation_the_network_takes_one_half_for_the_other(trained, dice):
    shapes = LABELS.phantom(SEED)
    turned = np.ascontiguousarray(shapes.hu[..., ::-1])
    planes = segmented(loaded(trained.labels, LABEL_KIND.card()), turned, LABELS.spacing_mm)
    truth = label_map(LABELS, shapes)[..., ::-1]
    assert dice(planes[0] == 1, truth == 2) > 0.8
    assert dice(planes[0] == 1, truth == 1) < 0.2


def test_folds_are_averaged_as_nnunet_does(trained, tool, nifti):
    shapes = LABELS.phantom(SEED)
    card = card_of(OF_LABELS, folds='"0", "1"')
    found = as_map(card, segmented(loaded(trained.labels, card), shapes.hu, LABELS.spacing_mm))
    image = nifti(shapes.hu, LABELS.spacing_mm)
    np.testing.assert_array_equal(found, tool(trained.labels, image, folds=(0, 1)))
    assert np.any(found != tool(trained.labels, image, folds=(0,)))


def test_mirroring_and_step_are_the_cards(trained, tool, nifti):
    shapes = REGIONS.phantom(SEED)
    image = nifti(shapes.hu, REGIONS.spacing_mm)
    found = []
    for mirroring, step in ((False, 0.5), (False, 1.0), (True, 1.0)):
        card = REGION_KIND.card(f"mirroring = {str(mirroring).lower()}\nstep = {step}")
        planes = segmented(loaded(trained.regions, card), shapes.hu, REGIONS.spacing_mm)
        own = tool(trained.regions, image, folds=("all",), mirroring=mirroring, step=step)
        found.append(as_map(card, planes))
        np.testing.assert_array_equal(found[-1], own)
    assert np.any(found[0] != found[1])
    assert np.any(found[1] != found[2])


def test_what_nnunet_cuts_off_comes_back_empty(trained, tool, nifti):
    hu = np.pad(REGIONS.phantom(SEED).hu, ((5, 1), (0, 7), (3, 2)))
    card = REGION_KIND.card("mirroring = false")
    planes = segmented(loaded(trained.regions, card), hu, REGIONS.spacing_mm)
    own = tool(trained.regions, nifti(hu, REGIONS.spacing_mm), folds=("all",), mirroring=False)
    np.testing.assert_array_equal(as_map(card, planes), own)
    assert planes[:, 5:-1, :-7, 3:-2].any()


def test_a_volume_that_was_prepared_before_the_models_turn_gives_the_same(trained):
    shapes = REGIONS.phantom(SEED)
    model = loaded(trained.regions, REGION_KIND.card("mirroring = false"))
    hu = np.pad(shapes.hu, ((5, 1), (0, 7), (3, 2)))
    expected = segmented(model, hu, REGIONS.spacing_mm)
    volume = InputVolume(hu=hu, spacing_mm=REGIONS.spacing_mm, attributes={})
    early = replace(volume, prepared=model.preparation(volume))
    model.preparation = None  # is not asked again
    labels = np.zeros_like(expected)
    model.segment(early, labels, lambda _: None)
    np.testing.assert_array_equal(labels, expected)


def test_a_network_of_two_dimensions_runs(folder, tool, nifti):
    with edited(folder / "plans.json") as plans:
        planned = json.loads(json.dumps(plans["configurations"]["3d_fullres"]))
        planned |= {"patch_size": [40, 40], "spacing": planned["spacing"][1:]}
        planned["architecture"]["arch_kwargs"] |= {
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "kernel_sizes": [[3, 3]] * 3,
            "strides": [[1, 1], [2, 2], [2, 2]],
        }
        plans["configurations"]["2d"] = planned
    draw_weights(folder, configuration="2d")
    assert_as_nnunet(folder, tool, nifti)


def test_several_series_are_channels_in_the_cards_order(folder, tool, nifti, tmp_path):
    with edited(folder / "plans.json") as plans:
        planned = plans["configurations"]["3d_fullres"]
        planned |= {"normalization_schemes": ["CTNormalization"] * 2}
        planned |= {"use_mask_for_norm": [False, False]}
        seen = plans["foreground_intensity_properties_per_channel"]
        seen["1"] = seen["0"]
    with edited(folder / "dataset.json") as dataset:
        dataset["channel_names"] = {"0": "CT", "1": "CT"}
    draw_weights(folder, channels=2)
    first, second = LABELS.phantom(SEED).hu, LABELS.phantom(SEED + 1).hu
    other = tmp_path / "image_0001.nii.gz"
    write_nifti(second, LABELS.spacing_mm, other)
    card = card_of(OF_LABELS, needs=TWO_SERIES)
    others = {"second": second.astype(np.float32)}
    planes = segmented(loaded(folder, card), first, LABELS.spacing_mm, others=others)
    own = tool(folder, nifti(first, LABELS.spacing_mm), other)
    np.testing.assert_array_equal(as_map(card, planes), own)


def test_plans_and_checkpoints_of_older_releases_give_the_same(trained, folder):
    """As TotalSegmentator's weights are: NumPy's old names, and plans without an architecture."""
    with edited(folder / "plans.json") as plans:
        planned = plans["configurations"]["3d_fullres"]
        built = planned.pop("architecture")["arch_kwargs"]
        planned |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": built["features_per_stage"][0],
            "unet_max_num_features": 320,
            "n_conv_per_stage_encoder": built["n_conv_per_stage"],
            "n_conv_per_stage_decoder": built["n_conv_per_stage_decoder"],
            "num_pool_per_axis": [2, 2, 2],
            "pool_op_kernel_sizes": built["strides"],
            "conv_kernel_sizes": built["kernel_sizes"],
        }
    path = folder / "fold_0/checkpoint_final.pth"
    with rewritten(path) as held:
        held["_best_ema"] = np.float64(0.5)
    new = path.with_suffix(".new")
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(new, "w") as written:
        for name in given.namelist():
            written.writestr(name, given.read(name).replace(b"numpy._core", b"numpy.core"))
    assert b"numpy.core" in new.read_bytes()
    new.replace(path)
    shapes = LABELS.phantom(SEED)
    first, second = (
        segmented(loaded(where, LABEL_KIND.card()), shapes.hu, LABELS.spacing_mm)
        for where in (folder, trained.labels)
    )
    np.testing.assert_array_equal(first, second)


def test_a_stop_comes_through_and_leaves_nothing_behind(trained):
    shapes = REGIONS.phantom(SEED)
    model = loaded(trained.regions, REGION_KIND.card("mirroring = false"))
    whole = segmented(model, shapes.hu, REGIONS.spacing_mm)
    before, cores = threading.enumerate(), torch.get_num_threads()
    for calls in (1, 10, 21):  # before the first patch, between patches, while labels are written
        left = iter(range(calls - 1))

        def told(share: float, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Stopped

        with pytest.raises(Stopped):
            segmented(model, shapes.hu, REGIONS.spacing_mm, told=told)
        assert threading.enumerate() == before
        assert torch.get_num_threads() == cores
    again = segmented(model, shapes.hu, REGIONS.spacing_mm)
    np.testing.assert_array_equal(again, whole)


def test_progress_is_told_at_each_view_of_a_patch(trained):
    shares: list[float] = []
    shapes = REGIONS.phantom(SEED)
    model = loaded(trained.regions, REGION_KIND.card("step = 1.0"))
    segmented(model, shapes.hu, REGIONS.spacing_mm, told=shares.append)
    assert (shares[0], shares[-1]) == (0, 1)
    assert shares == sorted(shares)
    patches = 2 * 2 * 2  # columns first: 43, 72 and 64 voxels in patches of 32, 40 and 40
    views = shares[2:-1]
    assert len(views) == patches * 8
    assert len(set(views)) == patches


def test_nothing_is_printed_written_or_started(trained, capfd):
    kept = {path: path.read_bytes() for path in trained.labels.rglob("*") if path.is_file()}
    shapes = LABELS.phantom(SEED)
    segmented(loaded(trained.labels, LABEL_KIND.card("step = 1.0")), shapes.hu, LABELS.spacing_mm)
    assert capfd.readouterr() == ("", "")
    assert multiprocessing.active_children() == []
    assert kept == {path: path.read_bytes() for path in trained.labels.rglob("*") if path.is_file()}


class Pickled:
    """Makes an unpickler call something."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.called


@pytest.mark.parametrize("key", ["logging", "network_weights", "_best_ema"])
def test_a_checkpoint_that_runs_a_program_is_refused_unopened(folder, tmp_path, key):
    canary = tmp_path / "canary"
    with rewritten(folder / "fold_0/checkpoint_final.pth") as held:
        held[key] = Pickled(os.mkdir, str(canary))
    refused(folder, "model-weights", r"holds posix\.mkdir, which is no weight")
    assert not canary.exists()


def test_a_checkpoint_with_an_array_is_refused(folder):
    with rewritten(folder / "fold_0/checkpoint_final.pth") as held:
        held["logging"] = np.zeros(3)
    refused(folder, "model-weights", "numpy.*which is no weight")


def test_a_truncated_checkpoint_is_refused(folder):
    path = folder / "fold_0/checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(folder, "model-weights", r"fold_0/checkpoint_final\.pth cannot be read")


@pytest.mark.parametrize(
    "content",
    [b"", b"no weights", pickle.dumps({"network_weights": {}})],
    ids=["empty", "text", "pickle"],
)
def test_what_is_no_checkpoint_is_refused(folder, content):
    (folder / "fold_0/checkpoint_final.pth").write_bytes(content)
    refused(folder, "model-weights", "cannot be read")


@pytest.mark.parametrize("key", ["network_weights", "trainer_name", "init_args"])
def test_a_checkpoint_without_its_parts_is_refused(folder, key):
    with rewritten(folder / "fold_0/checkpoint_final.pth") as held:
        del held[key]
    refused(folder, "model-weights", "not one of nnU-Net v2")


def test_a_fold_that_is_not_there_is_refused(folder):
    card = card_of(OF_LABELS, folds='"0", "4"')
    refused(folder, "model-weights", r"fold_4/checkpoint_final\.pth is not there", card)


def test_weights_of_another_network_are_refused(folder):
    with rewritten(folder / "fold_0/checkpoint_final.pth") as held:
        held["network_weights"].popitem()
    refused(folder, "model-mismatch", "weights do not fit")


@pytest.mark.parametrize("name", ["Mine", "nnUNetTrainer.x", "np", "", "../mine"])
def test_a_trainer_from_elsewhere_is_refused_unimported(folder, tmp_path, monkeypatch, name):
    canary = tmp_path / "canary"
    (tmp_path / "mine.py").write_text(
        "import os\nfrom nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        f"os.mkdir({str(canary)!r})\nclass Mine(nnUNetTrainer): pass\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    with rewritten(folder / "fold_0/checkpoint_final.pth") as held:
        held["trainer_name"] = name
    refused(folder, "model-mismatch", "no trainer of nnunetv2")
    assert not canary.exists()


FOREIGN = {
    "network_class_name": [
        f"{_UNET}.nn.Conv3d",
        "os.mkdir",
        "torch.nn.Linear",
        3,
        f"{_UNET}.np.load",
        f"{_UNET}.Nothing",
    ],
    "nonlin": ["os.mkdir", "torch.nn.parallel.distributed.os.mkdir", "torch.nn.Nothing", 3],
    "unasked": ["os.mkdir"],
    "preprocessor_name": ["load_json", "Path", "Nothing"],
    "normalization_schemes": [["np"], ["Nothing"]],
    "resampling_fn_data": ["recursive_find_python_class", "deepcopy", "Nothing"],
    "resampling_fn_seg": ["resize"],
    "label_manager": ["time", "Nothing"],
}


@pytest.mark.parametrize(
    ("key", "name"), [(key, name) for key, names in FOREIGN.items() for name in names], ids=str
)
def test_plans_that_name_other_code_are_refused_and_nothing_is_called(folder, tmp_path, key, name):
    canary = tmp_path / "canary"
    with edited(folder / "plans.json") as plans:
        planned = plans["configurations"]["3d_fullres"]
        built = planned["architecture"]
        if key == "network_class_name":
            built[key] = name
        elif key in {"nonlin", "unasked"}:
            built["arch_kwargs"] |= {key: name, "nonlin_kwargs": {"path": str(canary)}}
        else:
            {"label_manager": plans}.get(key, planned)[key] = name
    refused(
        folder, "model-mismatch", "plans.json.*never taken from data|nnU-Net does not understand"
    )
    assert not canary.exists()


def test_the_second_stage_of_a_cascade_is_refused(folder):
    with edited(folder / "plans.json") as plans:
        plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    refused(folder, "model-mismatch", "second stage of a cascade.*3d_lowres")


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_folder_without_its_files_is_refused(folder, name, content):
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    refused(folder, "model-mismatch", re.escape(name))


def test_a_configuration_that_the_plans_lack_is_refused(folder):
    with rewritten(folder / "fold_0/checkpoint_final.pth") as held:
        held["init_args"]["configuration"] = "3d_huge"
    refused(folder, "model-mismatch", "3d_huge")


def test_a_card_with_a_label_that_the_network_lacks_is_refused(folder):
    card = card_of((*OF_LABELS, (4, "Spleen", 1, 2, 4)))
    sentence = "'Spleen' is channel 4.*it has 1 organ, low columns, 2 organ, high columns, 3 rod"
    refused(folder, "model-mismatch", sentence, card)


def test_a_card_without_a_label_that_the_network_gives_is_refused(folder):
    refused(folder, "model-strange-label", "gives 3 'rod'", card_of(OF_LABELS[:2]))


@pytest.mark.parametrize(
    ("segments", "code"),
    [
        (OF_REGIONS[:2], "model-strange-label"),
        ((*OF_REGIONS, (4, "Spleen", 1, 2, 3)), "model-mismatch"),
    ],
)
def test_a_card_with_other_regions_is_refused(trained, segments, code):
    refused(trained.regions, code, "dataset.json", card_of(segments, folds='"all"'))


def test_a_card_with_another_number_of_series_is_refused(folder):
    card = card_of(OF_LABELS, needs=TWO_SERIES)
    refused(folder, "model-channels", "1 in dataset.json and 2 in the card", card)


def test_a_card_in_another_orientation_than_that_of_training_is_refused(folder):
    with edited(folder / "plans.json") as plans:
        plans["image_reader_writer"] = "NibabelIOWithReorient"
    refused(folder, "model-mismatch", "RAS, which a card calls HAR.*has orientation HPL")
    card = parse_card(LABEL_KIND.card().source.replace('"HPL"', '"HAR"'), where="card.toml")
    assert loaded(folder, card).card.orientation == "HAR"


def test_a_volume_thinner_than_a_voxel_of_the_network_is_refused(trained):
    model = loaded(trained.labels, LABEL_KIND.card())
    with pytest.raises(UnsuitableSeries, match=r"1\.2 mm thick.*3\.0 mm"):
        segmented(model, np.zeros((2, 64, 64), np.int16), (0.6, 2.0, 2.0))


def test_a_network_that_gives_nan_is_told(folder):
    with rewritten(folder / "fold_0/checkpoint_final.pth") as held:
        next(iter(held["network_weights"].values())).fill_(float("nan"))
    model = loaded(folder, LABEL_KIND.card("step = 1.0"))
    with pytest.raises(ModelFailed, match="NaN or infinity") as error:
        segmented(model, LABELS.phantom(SEED).hu, LABELS.spacing_mm)
    assert error.value.code == "model-output"


class NoRoom:
    """A predictor on a GPU that has no room for sums."""

    device = torch.device("cuda:0")

    def __init__(self, error: Exception) -> None:
        self._error = error

    def _summed(self, data: torch.Tensor, _: object, home: torch.device) -> torch.Tensor:
        if home.type == "cuda":
            raise self._error
        return data


def test_sums_go_to_the_host_where_the_gpu_has_no_room_and_other_errors_are_passed_on():
    sums = Predictor._internal_predict_sliding_window_return_logits
    data = torch.zeros(1)
    no_engine = "GET was unable to find an engine to execute this computation"
    for words in ("CUDA out of memory", no_engine):
        assert sums(NoRoom(RuntimeError(words)), data, []) is data
    with pytest.raises(RuntimeError, match="illegal"):
        sums(NoRoom(RuntimeError("CUDA error: an illegal memory access")), data, [])


def test_without_nnunetv2_the_extra_is_named(folder, monkeypatch):
    for name in list(sys.modules):
        if name.startswith(("nnunetv2", "segnode_models.nnunet.plans")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    refused(folder, "extra-missing", "`setup/venv.sh nnunet` in segnode's checkout")


def refused(folder: Path, code: str, sentence: str, card: Card | None = None) -> None:
    with pytest.raises(ModelFailed, match=sentence) as error:
        loaded(folder, card or LABEL_KIND.card())
    assert error.value.code == code


def assert_as_nnunet(folder: Path, tool: Any, nifti: Any) -> None:
    shapes, card = LABELS.phantom(SEED), LABEL_KIND.card()
    planes = segmented(loaded(folder, card), shapes.hu, LABELS.spacing_mm)
    own = tool(folder, nifti(shapes.hu, LABELS.spacing_mm))
    assert len(np.unique(own)) > 1
    np.testing.assert_array_equal(as_map(card, planes), own)


def draw_weights(folder: Path, *, configuration: str = "3d_fullres", channels: int = 1) -> None:
    """Put random weights into fold 0, for a network as `plans.json` has it now."""
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    built = plans["configurations"][configuration]["architecture"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = get_network_from_plans(
            built["network_class_name"],
            built["arch_kwargs"],
            built["_kw_requires_import"],
            channels,
            len(LABELS.labels),
            deep_supervision=False,
        )
    with rewritten(folder / "fold_0/checkpoint_final.pth") as held:
        held["network_weights"] = network.state_dict()
        held["init_args"]["configuration"] = configuration


@contextmanager
def edited(path: Path) -> Iterator[dict[str, Any]]:
    """Change a JSON file."""
    data = json.loads(path.read_text(encoding="utf-8"))
    yield data
    path.write_text(json.dumps(data), encoding="utf-8")


@contextmanager
def rewritten(path: Path) -> Iterator[dict[str, Any]]:
    """Change a checkpoint of our own."""
    held = torch.load(path, weights_only=False)
    yield held
    torch.save(held, path)
