"""Cards that are drafted from the files of bundles and of trained nnU-Nets."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.color import CIELabColor
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as DictionaryCode

from segnode_cli.models import codes as segment_codes
from segnode_cli.models.codes import coded, colour, private_code
from segnode_cli.models.draft import LOOK, card_name, draft_card, read_facts
from segnode_contract.card import Card, parse_card
from segnode_contract.card_network import BundleNetwork, NnunetNetwork
from segnode_contract.errors import CardError, SetupError

SIDES = ("right", "left")
VERTEBRAE = [
    *("S1", *(f"L{n}" for n in range(5, 0, -1))),
    *(*(f"T{n}" for n in range(12, 0, -1)), *(f"C{n}" for n in range(7, 0, -1))),
]
TOTAL = [
    *("spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas"),
    *("adrenal_gland_right", "adrenal_gland_left", "lung_upper_lobe_left", "lung_lower_lobe_left"),
    *("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right", "esophagus"),
    *("trachea", "thyroid_gland", "small_bowel", "duodenum", "colon", "urinary_bladder"),
    *("prostate", "kidney_cyst_left", "kidney_cyst_right", "sacrum"),
    *(f"vertebrae_{name}" for name in VERTEBRAE),
    *("heart", "aorta", "pulmonary_vein", "brachiocephalic_trunk", "subclavian_artery_right"),
    *("subclavian_artery_left", "common_carotid_artery_right", "common_carotid_artery_left"),
    *("brachiocephalic_vein_left", "brachiocephalic_vein_right", "atrial_appendage_left"),
    *("superior_vena_cava", "inferior_vena_cava", "portal_vein_and_splenic_vein"),
    *("iliac_artery_left", "iliac_artery_right", "iliac_vena_left", "iliac_vena_right"),
    *(f"{bone}_{side}" for bone in ("humerus", "scapula", "clavicula") for side in SIDES),
    *(f"{bone}_{side}" for bone in ("femur", "hip") for side in SIDES),
    "spinal_cord",
    *(f"gluteus_{part}_{s}" for part in ("maximus", "medius", "minimus") for s in SIDES),
    *(f"{muscle}_{side}" for muscle in ("autochthon", "iliopsoas") for side in SIDES),
    *("brain", "skull"),
    *(f"rib_{side}_{n}" for side in SIDES for n in range(1, 13)),
    *("sternum", "costal_cartilages"),
]
"""What TotalSegmentator's network of version 2 finds."""


Make = Callable[..., Path]

LOAD, TURN, RESAMPLE, ENSURE = (
    {"_target_": name, "keys": "@key"}
    for name in ("LoadImaged", "Orientationd", "Spacingd", "EnsureTyped")
)
CONFIG: dict[str, Any] = {
    "key": "image",
    "preprocessing": {"_target_": "Compose", "transforms": [LOAD, TURN, RESAMPLE, ENSURE]},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing"},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred"},
        ],
    },
    "evaluator": {"_target_": "SupervisedEvaluator"},
    "load": {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'"},
}
"""What configs/inference.json says in the Model Zoo, without the network."""


@pytest.fixture
def bundle(tmp_path: Path) -> Make:
    """Return a maker of bundles: files as the Model Zoo has them, and changes to them."""

    def make(*, image: Any = None, pred: Any = None, config: Any = None, **metadata: Any) -> Path:
        folder = tmp_path / "spleen_ct_segmentation"
        (folder / "configs").mkdir(parents=True)
        (folder / "models").mkdir()
        told = {
            "version": "0.5.9",
            "name": "Spleen CT segmentation",
            "description": "A pre-trained model for segmentation of the spleen",
            "intended_use": "This is an example, not to be used for diagnostic purposes",
            "network_data_format": {
                "inputs": {
                    "image": {
                        "format": "hounsfield",
                        "modality": "CT",
                        "num_channels": 1,
                        "spatial_shape": [96, 96, 96],
                        "channel_def": {"0": "image"},
                    }
                    | (image or {})
                },
                "outputs": {
                    "pred": {
                        "format": "segmentation",
                        "num_channels": 2,
                        "channel_def": {"0": "background", "1": "spleen"},
                    }
                    | (pred or {})
                },
            },
        } | metadata
        (folder / "configs/metadata.json").write_text(json.dumps(told))
        (folder / "configs/inference.json").write_text(json.dumps(CONFIG | (config or {})))
        (folder / "models/model.pt").write_bytes(b"weights")
        return folder

    return make


@pytest.fixture
def nnunet(tmp_path: Path) -> Make:
    """Return a maker of trained nnU-Net folders, with changes to dataset.json."""

    def make(
        *,
        folds: tuple[str, ...] = ("0",),
        trained: str = "nnUNetTrainer__nnUNetPlans__3d_fullres",
        plans: Any = None,
        **dataset: Any,
    ) -> Path:
        folder = tmp_path / "Dataset291_TotalSegmentator_part1" / trained
        for fold in folds:
            (folder / f"fold_{fold}").mkdir(parents=True)
            (folder / f"fold_{fold}/checkpoint_final.pth").write_bytes(b"weights")
        told = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}} | dataset
        (folder / "dataset.json").write_text(json.dumps(told))
        planned = {"configurations": {"3d_fullres": {}}, "image_reader_writer": "SimpleITKIO"}
        (folder / "plans.json").write_text(json.dumps(planned | (plans or {})))
        return folder

    return make


def drafted(folder: Path, *, orientation: str = "") -> Card:
    """Return the card, with its orientation looked up where no file tells it."""
    text = draft_card(folder, folder.name).text
    if orientation:
        assert 'orientation = "unknown"' in text
        text = text.replace('orientation = "unknown"', f'orientation = "{orientation}"')
    return parse_card(text, where="draft")


def doubts(folder: Path) -> str:
    return "\n".join(line for _, line in draft_card(folder, folder.name).doubts())


def test_a_bundle_gives_a_card(bundle: Make) -> None:
    folder = bundle()
    (folder / "LICENSE").write_text("\n\n      Apache License\n   Version 2.0\n")
    card = drafted(folder)
    assert (card.name, card.version, card.kind) == (
        "spleen-ct-segmentation",
        "0.5.9",
        "monai-bundle",
    )
    assert card.intended_use == (
        "A pre-trained model for segmentation of the spleen. This is an example, not to be used "
        "for diagnostic purposes."
    )
    assert (card.licence, card.modality, card.orientation) == ("Apache License", "CT", "HAR")
    assert "nobody has checked the model on images of this node" in card.limitations[0]
    assert card.network == BundleNetwork(
        config="configs/inference.json", weights="models/model.pt", image="image", pred="pred"
    )
    [spleen] = card.segments
    assert (spleen.label, spleen.plane, spleen.value, spleen.channel) == ("Spleen", 0, 1, 1)
    assert (spleen.type.value, spleen.type.meaning) == ("78961009", "Spleen")
    assert card.memory_bytes >= 2_000_000_000


def test_what_a_bundle_does_not_tell_is_left_to_people(bundle: Make) -> None:
    folder = bundle(
        config={"preprocessing": [LOAD, RESAMPLE]},
        version=None,
        description=None,
        intended_use=3,
        image={"modality": "none"},
        pred={"num_channels": 3, "channel_def": None},
    )
    card = drafted(folder, orientation="RAH")
    assert (card.modality, card.licence, card.version) == ("unknown", "unknown", "1")
    assert [segment.label for segment in card.segments] == ["Label 1", "Label 2"]
    said = doubts(folder)
    for line in ("modality", "licence", "version", "intended_use", "orientation", "label", "type"):
        assert f"\n{line} = " in f"\n{said}"


def test_channels_without_background_may_overlap_and_need_a_plane_each(bundle: Make) -> None:
    names = {"0": "Tumor core", "1": "Whole tumor", "2": "Edema"}
    card = drafted(
        bundle(
            image={
                "modality": "MRI",
                "num_channels": 4,
                "channel_def": {"0": "T1c", "1": "T1", "2": "T2", "3": "FLAIR"},
            },
            pred={"num_channels": 3, "channel_def": names},
        )
    )
    assert [(s.plane, s.value, s.channel) for s in card.segments] == [
        (0, 1, 0),
        (1, 1, 1),
        (2, 1, 2),
    ]
    assert [s.type.scheme for s in card.segments] == ["99SEGNODE", "99SEGNODE", "SCT"]
    assert card.modality == "MR"
    assert [one.role for one in card.inputs] == ["t1c", "t1", "t2", "flair"]


def test_one_channel_that_is_a_mask_is_label_1_of_the_result(bundle: Make) -> None:
    labels = pytest.importorskip("segnode_models.bundle.labels")
    folder = bundle(pred={"num_channels": 1, "channel_def": {"0": "lesion"}})
    card = drafted(folder)
    [lesion] = card.segments
    assert (lesion.label, lesion.plane, lesion.value, lesion.channel) == ("Lesion", 0, 1, 1)
    assert "1 is the segment, 0 is background" in draft_card(folder, "x").text
    mask = np.arange(8).reshape(1, 2, 2, 2) % 2
    found = np.zeros((1, 2, 2, 2), np.uint8)
    result = pytest.importorskip("torch").from_numpy(mask)
    labels.write_labels(result, card, found, lambda done: None)
    assert np.array_equal(found, mask)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": {"spatial_shape": [256, 256]}}, "2-dimensional images"),
        ({"pred": {"format": "dict"}}, "no segmentation: by its configs/metadata.json .* 'dict'"),
        (
            {"image": {"num_channels": 3, "channel_def": {"0": "a", "1": "b"}}},
            "one image of 3 channels, of which .* names 2",
        ),
        ({"pred": {"channel_def": {"0": "background"}}}, "names nothing that it finds"),
        ({"pred": {"channel_def": {"0": "background", "256": "x"}}}, "label 256; labels go up to"),
        ({"network_data_format": []}, "does not say what the model gives"),
        (
            {"config": {"preprocessing": [{"_target_": "LoadImaged", "keys": ["vein", "@key"]}]}},
            "loads several images, by the keys vein, image; only bundles that load one image",
        ),
        (
            {"config": {"evaluator": {"_target_": "scripts.evaluator.Vista3dEvaluator"}}},
            r"runs by its own evaluator, scripts\.evaluator\.Vista3dEvaluator, which segnode does",
        ),
    ],
)
def test_a_bundle_that_no_volume_fits_is_refused(bundle: Make, changes: Any, said: str) -> None:
    folder = bundle(**changes)
    with pytest.raises(SetupError, match=said):
        draft_card(folder, folder.name)


@pytest.mark.parametrize("weights", ["models/model.ts", "models/model.safetensors"])
def test_a_bundle_may_hold_its_weights_in_other_forms(bundle: Make, weights: str) -> None:
    folder = bundle()
    (folder / "models/model.pt").rename(folder / weights)
    network = drafted(folder).network
    assert isinstance(network, BundleNetwork)
    assert network.weights == weights


@pytest.mark.parametrize("name", ["large_files.yml", "large_files.yaml"])
def test_a_bundle_without_weights_says_where_they_are_told_of(bundle: Make, name: str) -> None:
    folder = bundle()
    (folder / "models/model.pt").unlink()
    (folder / name).touch()
    with pytest.raises(SetupError, match=rf"no weights: no models/model\.pt \({name} says"):
        draft_card(folder, folder.name)


SWITCH = {"path": "$@bundle_root + '/models/' + @name", "name": "$'a.pt' if @fine else 'b.pt'"}


@pytest.mark.parametrize(
    ("load_path", "there", "weights", "doubt"),
    [
        ("$@bundle_root + '/models/tuned.pt'", ["model.pt", "tuned.pt"], "models/tuned.pt", ""),
        ("$@folder + '/tuned.pt'", ["other.pt", "tuned.pt"], "models/tuned.pt", ""),
        ("@path", ["b.pt"], "models/b.pt", "loads a.pt or b.pt, by a switch"),
        ("models/tuned.pt", ["model.pt"], "models/model.pt", "loads models/tuned.pt, which is not"),
        (f"{'肝' * 99}.pt", ["model.pt"], "models/model.pt", "loads 肝"),
        ("models/model.pt", ["low.pt"], "models/low.pt", "inference.json does not name it"),
        ("", ["model.ts", "other.pt"], "models/model.ts", ""),
        ("", ["a.pt", "b.pt"], "unknown", "one of models/a.pt, models/b.pt"),
    ],
    ids=["named", "in parts", "switch", "renamed", "too long", "only one", "not named", "several"],
)
def test_weights_are_those_that_the_configuration_loads_or_a_line_to_look_at(
    bundle: Make, load_path: str, there: list[str], weights: str, doubt: str
) -> None:
    config = {"load": {"load_path": load_path}, "folder": "$@bundle_root + '/models'"} | SWITCH
    folder = bundle(config=config)
    (folder / "models/model.pt").unlink()
    for name in there:
        (folder / "models" / name).touch()
    network = drafted(folder).network
    assert isinstance(network, BundleNetwork)
    assert network.weights == weights
    marked = [line for line in doubts(folder).splitlines() if line.startswith("weights")]
    assert bool(marked) == bool(doubt)
    assert doubt in "".join(marked)


def test_names_of_segments_are_found_in_label_def_as_well(bundle: Make) -> None:
    named = {"channel_def": None, "label_def": {"0": "background", "1": "liver"}}
    folder = bundle(pred=named)
    assert [segment.label for segment in drafted(folder).segments] == ["Liver"]
    assert "label" not in doubts(folder)


def test_a_bundle_may_make_channels_of_its_one_image(bundle: Make) -> None:
    folder = bundle(image={"num_channels": 3})
    assert drafted(folder).inputs == ()
    assert "the bundle must make 3 channels of one image" in doubts(folder)


LAMBDA = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x * 4"}


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (LAMBDA, "Lambdad"),
        (LAMBDA | {"keys": ["@key", "$monai.utils.CommonKeys.PRED"]}, "Lambdad"),
        (LAMBDA | {"keys": "@key"}, ""),
        (LAMBDA | {"keys": "$['pred']"}, "Lambdad"),
        (LAMBDA | {"keys": ["@key", "$@key[:0] + 'pred'"]}, "Lambdad"),
        (LAMBDA | {"keys": "@made"}, "Lambdad"),
        (LAMBDA | {"keys": "%other.json::key"}, "Lambdad"),
        (LAMBDA | {"keys": ["@key", "@nowhere"]}, "Lambdad"),
        (LAMBDA | {"keys": ["image"] * 1000 + ["pred"]}, "Lambdad"),
        (LAMBDA | {"keys": "$monai.utils.enums.CommonKeys.PRED.value"}, "Lambdad"),
        (LAMBDA | {"keys": "$monai.utils.enums.CommonKeys.IMAGE.value"}, ""),
        ({"_target_": ["Invertd"], "keys": "pred"}, "a step"),
        ("@nothing + " * 500 + "@more", "@nothing + "),
        (LAMBDA | {"_disabled_": True}, ""),
        (LAMBDA | {"_disabled_": "$not @load"}, "Lambdad"),
        ({"_target_": "scripts.mine.Invertd", "keys": "pred"}, "scripts.mine.Invertd"),
        ({"_target_": "scripts.mine.Merge", "key": "pred"}, "scripts.mine.Merge"),
        ({"_target_": "monai.transforms.FillHolesD", "keys": "pred"}, ""),
        ("$monai.transforms.Lambdad('pred', lambda x: 4 * x)", "$monai.transforms.Lambdad"),
        ("@more", "Lambdad"),
        ("$@more + @nothing", "Lambdad"),
    ],
)
def test_a_step_that_may_change_labels_marks_every_segment(
    bundle: Make, step: Any, said: str
) -> None:
    steps = [*CONFIG["postprocessing"]["transforms"], step]
    config = {
        "postprocessing": {"_target_": "Compose", "transforms": steps},
        "more": [LAMBDA],
        "nothing": [],
        "made": "$['pred']",
    }
    names = {"0": "Tumor core", "1": "Whole tumor", "2": "肝臓"}
    folder = bundle(pred={"channel_def": names}, config=config)
    marked = [line for line in doubts(folder).splitlines() if line.startswith("label")]
    wanted = "configs/inference.json changes labels after the network; what they mean stands there"
    assert len([line for line in marked if wanted in line]) == (3 if said else 0)
    assert all(said in line for line in marked)
    assert "the model says 肝臓" in marked[-1]
    assert len(drafted(folder).segments) == 3


@pytest.mark.parametrize("change", [{"_disabled_": True}, {"keys": "label"}, {"keys": "$[@key]"}])
def test_a_bundle_that_does_not_resample_says_so(bundle: Make, change: Any) -> None:
    folder = bundle(config={"preprocessing": [LOAD, TURN, RESAMPLE | change]})
    assert "let the route take only those with the spacing, and the preparation" in doubts(folder)
    assert "does not bring images to the spacing" in drafted(folder).limitations[1]


def test_a_bundle_that_resamples_says_nothing_of_it(bundle: Make) -> None:
    folder = bundle()
    assert "spacing" not in doubts(folder)
    assert len(drafted(folder).limitations) == 1


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff"])
def test_a_configuration_that_cannot_be_read_is_refused(bundle: Make, text: str) -> None:
    folder = bundle()
    (folder / "configs/inference.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SetupError, match=r"configs/inference\.json cannot be read"):
        draft_card(folder, folder.name)


@pytest.mark.parametrize("part", ["@a", "$@a + @b", ["@b"], {"_target_": "Compose"}, 3, None])
def test_references_that_lead_nowhere_end(bundle: Make, part: Any) -> None:
    loops = {"a": ["@b", "@a"], "b": "@a", "key": "@key", "load": {"load_path": "@load#load_path"}}
    folder = bundle(config={"preprocessing": part, "postprocessing": part} | loops)
    assert read_facts(folder, "x").orientation == ""


def test_a_small_configuration_takes_little_memory(bundle: Make) -> None:
    paths = {"load": {"load_path": "@a" * 2000}, "a": "z" * 200_000}
    folder = bundle(config=paths)
    tracemalloc.start()
    try:
        read_facts(folder, "x")
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("line", ["_disabled_", "_target_", "keys"])
def test_what_yaml_repeats_by_name_is_not_written_out(bundle: Make, line: str) -> None:
    pytest.importorskip("yaml")
    folder = bundle()
    (folder / "configs/inference.json").unlink()
    nested = [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 7)]
    step = {"_target_": "Lambdad", "keys": "pred"} | {line: "*a6"}
    written = ", ".join(f"{key}: {value}" for key, value in step.items())
    text = "\n".join(["a0: &a0 [x]", *nested, f"postprocessing: [{{{written}}}]"])
    (folder / "configs/inference.yaml").write_text(text)
    tracemalloc.start()
    try:
        said = doubts(folder)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert "changes labels after the network" in said


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"name": "\xff'])
def test_metadata_that_cannot_be_read_is_refused(bundle: Make, text: str) -> None:
    folder = bundle()
    (folder / "configs/metadata.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SetupError, match=r"configs/metadata\.json is not JSON"):
        draft_card(folder, folder.name)


def test_a_folder_of_neither_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="neither a MONAI bundle"):
        draft_card(tmp_path, "mine")


def test_a_folder_of_several_models_names_them(nnunet: Make) -> None:
    nnunet()
    folder = nnunet(trained="nnUNetTrainer__nnUNetPlans__2d").parent
    with pytest.raises(SetupError, match=r"holds 2 models, .*__2d, .*__3d_fullres"):
        draft_card(folder, folder.name)


def test_totalsegmentators_117_labels_give_a_card(nnunet: Make) -> None:
    labels = {"background": 0} | {name: number for number, name in enumerate(TOTAL, 1)}
    card = drafted(nnunet(labels=labels), orientation="HAR")
    assert len(card.segments) == len(TOTAL) == 117
    assert card.planes == 1
    assert (
        [s.value for s in card.segments] == [s.channel for s in card.segments] == [*range(1, 118)]
    )
    assert len({s.colour for s in card.segments}) == 117
    by_name = dict(zip(TOTAL, card.segments, strict=True))
    unknown = {name for name, s in by_name.items() if s.type.scheme != "SCT"}
    assert unknown == {
        *("vertebrae_S1", "portal_vein_and_splenic_vein"),
        *(f"gluteus_{part}_{s}" for part in ("maximus", "medius", "minimus") for s in SIDES),
        *(f"{muscle}_{side}" for muscle in ("autochthon", "iliopsoas") for side in SIDES),
    }
    # values from SNOMED CT's browser, as others use them for these labels
    for name, value, side in (
        ("liver", "10200004", None),
        ("kidney_right", "64033007", "24028007"),
        ("kidney_left", "64033007", "7771000"),
        ("adrenal_gland_left", "23451007", "7771000"),
        ("lung_upper_lobe_left", "45653009", "7771000"),
        ("lung_middle_lobe_right", "72481006", None),
        ("subclavian_artery_right", "29700009", None),
        ("subclavian_artery_left", "85235006", None),
        ("vertebrae_C1", "14806007", None),
        ("vertebrae_T11", "12989004", None),
        ("rib_left_7", "113197003", "7771000"),
        ("iliac_vena_left", "244411005", "7771000"),
        ("kidney_cyst_left", "367643001", "7771000"),
        ("urinary_bladder", "89837001", None),
    ):
        segment = by_name[name]
        assert segment.type.value == value, name
        assert [m.value for m in segment.modifiers] == ([side] if side else []), name


def test_an_nnunet_gives_a_card(nnunet: Make) -> None:
    folder = nnunet(folds=("0", "2", "all"), licence="Apache 2.0")
    card = drafted(folder, orientation="HPL")
    assert (card.name, card.kind) == ("totalsegmentator-part1-3d-fullres", "nnunet")
    assert (card.licence, card.modality) == ("Apache 2.0", "CT")
    assert card.network == NnunetNetwork(
        folds=("0", "2"),
        checkpoint="checkpoint_final.pth",
        mirroring=True,
        step=0.5,
        back="linear",
    )
    assert "Research: segmentation of Liver" in card.intended_use


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", None])
def test_an_orientation_that_no_file_tells_is_asked_for(nnunet: Make, reader: str | None) -> None:
    # what a data set wants of planning counts for nothing once there are plans
    folder = nnunet(
        plans={"image_reader_writer": reader}, overwrite_image_reader_writer="NibabelIOWithReorient"
    )
    assert 'orientation = "unknown"  # look at this: nibabel.aff2axcodes' in doubts(folder)
    with pytest.raises(CardError, match=r"input\.orientation is 'unknown'"):
        drafted(folder)


@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_a_reader_that_reorients_tells_the_orientation(nnunet: Make, reader: str) -> None:
    folder = nnunet(plans={"image_reader_writer": reader})
    assert drafted(folder).orientation == "HAR"
    assert "orientation" not in doubts(folder)


@pytest.mark.parametrize(
    ("codes", "orientation"),
    [(("L", "P", "S"), "HPL"), (("R", "A", "S"), "HAR"), (("L", "A", "S"), "HAL")],
)
def test_what_the_draft_says_of_nibabel_gives_the_axes_that_nnunet_sees(
    tmp_path: Path, codes: tuple[str, ...], orientation: str
) -> None:
    nibabel = pytest.importorskip("nibabel")
    readers = pytest.importorskip("nnunetv2.imageio.nibabel_reader_writer")
    ornt = nibabel.orientations.axcodes2ornt(codes)
    image = nibabel.Nifti1Image(
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        nibabel.orientations.inv_ornt_aff(ornt, (2, 3, 4)),
    )
    path = tmp_path / "case.nii.gz"
    nibabel.save(image, path)
    said = "".join(reversed(nibabel.aff2axcodes(nibabel.load(path).affine)))
    assert said.replace("S", "H").replace("I", "F") == orientation
    [seen], _ = readers.NibabelIO().read_images([str(path)])
    assert np.array_equal(seen, image.get_fdata().transpose())


@pytest.mark.parametrize(
    ("config", "turns"),
    [
        ({"preprocessing": {"_target_": "Compose", "transforms": [LOAD, TURN]}}, True),
        ({"preprocessing": {"_target_": "Compose", "transforms": "$@a + @b"}, "b": [TURN]}, True),
        ({"preprocessing": [TURN | {"_target_": "monai.transforms.OrientationDict"}]}, True),
        ({"preprocessing": [TURN | {"keys": ["label", "$monai.utils.CommonKeys.IMAGE"]}]}, True),
        ({"preprocessing": [TURN | {"keys": "label"}]}, False),
        ({"preprocessing": [TURN | {"keys": "$[@key]"}]}, False),
        ({"preprocessing": [{"_target_": "Orientation"}]}, False),
        ({"preprocessing": "$@a if @c else @b", "a": [LOAD], "b": [TURN]}, False),
        ({"preprocessing": [CONFIG["preprocessing"] | {"_disabled_": "$@a"}]}, False),
        ({"preprocessing": None, "dataset": {"transform": [TURN]}}, True),
        ({"preprocessing": [TURN | {"_disabled_": True}]}, False),
        ({"preprocessing": [TURN | {"_disabled_": "$@a"}]}, False),
        ({"preprocessing": [TURN | {"_target_": "scripts.mine.Orientationd"}]}, False),
        ({"description": "Orientationd is left to you", "preprocessing": [RESAMPLE]}, False),
        ({"preprocessing": [LOAD], "training": {"transforms": [TURN]}}, False),
    ],
)
def test_a_bundle_that_turns_its_images_takes_any_orientation(
    bundle: Make, config: Any, turns: bool
) -> None:
    folder = bundle(config=config)
    assert read_facts(folder, "spleen").orientation == ("HAR" if turns else "")


def test_regions_get_a_plane_each_in_the_order_of_channels(nnunet: Make) -> None:
    labels = {"background": 0, "organ": [1, 2], "lesion": 2, "rod": [3], "ignore": 4}
    card = drafted(nnunet(labels=labels, regions_class_order=[1, 2, 3]), orientation="HPL")
    assert [(s.label, s.plane, s.value, s.channel) for s in card.segments] == [
        ("Organ", 0, 1, 0),
        ("Lesion", 1, 1, 1),
        ("Rod", 2, 1, 2),
    ]


def test_several_channels_become_roles_with_their_modality(nnunet: Make) -> None:
    names = {"1": "PET (SUV)", "0": "CT", "2": "CT", "3": "心臓"}
    card = drafted(nnunet(channel_names=names), orientation="HPL")
    assert card.modality == "CT"
    assert [one.role for one in card.inputs] == ["ct", "pet_suv", "ct_2", "image"]
    assert [one.modality for one in card.inputs] == ["CT", "PT", "CT", "CT"]
    assert all(one.role.isidentifier() for one in card.inputs)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}}, "another number of them"),
        ({"labels": {"background": 0, "a": "1"}}, "label of 'a' is no number"),
        ({"labels": {"background": 0, "a": 256}}, "label 256"),
        ({"labels": []}, "names nothing that it finds"),
        ({"channel_names": None}, "names no channels"),
        ({"folds": ("x",)}, "no trained fold"),
        (
            {
                "trained": "nnUNetTrainer__nnUNetPlans__cascade",
                "plans": {"configurations": {"cascade": {"previous_stage": "3d_lowres"}}},
            },
            "second stage of a cascade",
        ),
    ],
)
def test_an_nnunet_that_cannot_run_here_is_refused(nnunet: Make, changes: Any, said: str) -> None:
    folder = nnunet(**changes)
    with pytest.raises(SetupError, match=said):
        draft_card(folder, folder.name)


HOSTILE = '[red]"\'\\\n\r[input]\nmodality = "MR"\x1b[2J\x07\x9b\u202e\u2028"""\x00 # look'


def test_a_name_that_results_cannot_hold_gets_another_and_a_line_to_look_at(nnunet: Make) -> None:
    folder = nnunet(labels={"background": 0, "große_Gefäße": 1, "肝臓": 2})
    vessels, liver = drafted(folder, orientation="HPL").segments
    assert (vessels.label, liver.label) == ("Große Gefäße", "Segment 2")
    assert liver.type.meaning == "Segment 2"
    assert 'label = "Segment 2"  # look at this: the model says 肝臓; ' in doubts(folder)


def test_hostile_texts_stay_texts(bundle: Make) -> None:
    folder = bundle(
        name=HOSTILE,
        version=HOSTILE,
        description=HOSTILE,
        license=HOSTILE,
        pred={"channel_def": {"0": "background", "1": HOSTILE, "2": "a\\b", "3": HOSTILE * 50}},
    )
    (folder / "LICENSE").write_text(HOSTILE)
    text = draft_card(folder, HOSTILE).text
    assert text.isprintable() is False  # by its line ends alone:
    assert text.replace("\n", "").isprintable()
    card = parse_card(text, where="draft")
    assert card.modality == "CT"
    assert set(card.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert all(segment.type.scheme == "99SEGNODE" for segment in card.segments)
    for segment in card.segments:
        assert 0 < len(segment.label) <= 64
        assert "\\" not in segment.label
        assert 0 < len(segment.type.value) <= 16
        assert len(segment.type.meaning) <= 64


def test_lines_to_look_at_have_the_numbers_that_an_editor_shows(bundle: Make) -> None:
    draft = draft_card(bundle(version=None), "spleen")
    lines = draft.text.splitlines()
    assert draft.doubts()
    for number, line in draft.doubts():
        assert lines[number - 1].strip() == line
        assert LOOK in line


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Spleen CT segmentation", "spleen-ct-segmentation"),
        ("  ___ ", "model"),
        ("Lungenflügel", "lungenflugel"),
        ("x" * 48, "x" * 48),
        ("心臓", "model"),
    ],
)
def test_a_title_becomes_a_name(title: str, name: str) -> None:
    assert card_name(title) == name


def test_titles_that_are_cut_stay_apart() -> None:
    titles = [f"TotalSegmentator total 3mm 1559subj 3d_fullres {end}" for end in ("ResEncL", "x")]
    names = [card_name(title) for title in titles]
    assert len(set(names)) == 2
    assert all(re.fullmatch(r"totalsegmentator-total-[a-z0-9-]{25}", name) for name in names)


@pytest.mark.parametrize(
    ("trained", "more"),
    [
        ("nnUNetTrainer__nnUNetPlans__3d_fullres", ""),
        ("nnUNetTrainer__nnUNetResEncUNetLPlans__3d_fullres", "-resencunetl"),
        ("nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres", "-nomirroring"),
    ],
)
def test_plans_and_trainers_of_one_data_set_get_names_of_their_own(
    nnunet: Make, trained: str, more: str
) -> None:
    folder = nnunet(trained=trained)
    name = draft_card(folder, folder.name).name
    assert name == f"totalsegmentator-part1-3d-fullres{more}"


KEYWORDS = [
    *(*segment_codes._SINGLE, *segment_codes._PAIRED),
    *(*segment_codes._TISSUES, *segment_codes._ABNORMAL, *segment_codes._SAME_NAME.values()),
]


@pytest.mark.parametrize("keyword", sorted(set(KEYWORDS)))
def test_every_code_is_in_the_dictionary_and_means_its_words(keyword: str) -> None:
    entry = getattr(codes.SCT, keyword)
    assert isinstance(entry, DictionaryCode)
    assert entry.scheme_designator == "SCT"
    found = coded(keyword)
    assert found is not None
    assert found.type.value == entry.value
    meant = {"AdiposeTissue": "fat", "RadiusBone": "radius"}.get(keyword, entry.meaning)
    words = segment_codes._key(segment_codes._words(meant))
    assert words in (segment_codes._key(segment_codes._words(keyword)), ("fat",), ("radius",))


@pytest.mark.parametrize(
    "name", ["kidney_right", "Right kidney", "KidneyRight", "right-Kidney", "Kidney, right"]
)
def test_spellings_of_one_name_have_one_code(name: str) -> None:
    assert coded(name) == coded("kidney right") != coded("kidney left")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "left",
            "left liver",
            "left right kidney",
            "Left Kideny",
            "tumor core",
            "Whole tumor",
        ),
        *("rib_left_13", "not liver", "liver liver", "kidney and liver", "peripheral zone", "PZ"),
        *("lung_vessels", "vertebrae_L6", "liver segment 4", "心臓", "tumor of the foot"),
    ],
)
def test_a_name_that_is_not_known_whole_gets_no_code(name: str) -> None:
    assert coded(name) is None


def test_names_without_a_code_get_one_of_their_own() -> None:
    names = ["tumor core", "portal_vein_and_splenic_vein", "portal_vein_and_others", "心臓", "脳"]
    values = [private_code(name, name).type.value for name in names]
    assert values[0] == "TUMOR_CORE"
    assert len(set(values)) == len(values)
    assert all(0 < len(value) <= 16 for value in values)


def test_colours_are_bright_and_differ() -> None:
    assert colour(1) == colour(1)
    shown = [CIELabColor.from_dicom_value(colour(number)) for number in range(1, 256)]
    assert len({one.to_rgb() for one in shown}) == 255
    assert all(one.l_star >= 45 for one in shown)
    apart = [
        sum((a - b) ** 2 for a, b in zip(one.lab, other.lab, strict=True)) ** 0.5
        for one, other in combinations(shown[:20], 2)
    ]
    assert min(apart) > 12  # 2.3 is just seen side by side


def test_weights_count_for_the_need_of_memory(nnunet: Make) -> None:
    folder = nnunet()
    with (folder / "fold_0/checkpoint_final.pth").open("wb") as file:
        file.truncate(1_000_000_000)
    assert read_facts(folder, "x").weights_bytes == 1_000_000_000
    assert drafted(folder, orientation="HPL").memory_bytes == 5_000_000_000
