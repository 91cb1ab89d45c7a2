"""From an odd series to a SEG, by a network that wants another grid: where dcmqi and ITK see it."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from segnode_cli.ct_series import as_file, ct_series, ct_volume
from segnode_contract.card import Card, parse_card
from segnode_contract.findings import Findings
from segnode_models.kinds import load_network
from segnode_models.model import InputVolume, Model
from segnode_worker.inputs import Fetched
from segnode_worker.result import make_result
from segnode_worker.segmentation import ResultIdentity
from segnode_worker.spool import in_memory

from .bundle import make_bundle
from .trained import (
    PATCH,
    SOFTMAX_SEGMENTS,
    SPACING_MM,
    Shapes,
    card_toml,
    shapes_phantom,
    trained_softmax,
)

SEGIMAGE2ITKIMAGE = Path(sys.executable).with_name("segimage2itkimage")
SHAPE, FINE_MM = (60, 96, 80), (2.4, 1.35, 1.6)
"""An anisotropic grid over the extent that the networks know; theirs is 3 x 2 x 2 mm."""
ORGAN, ROD = 1, 2
_INTENSITY = "intensity = { clip = [-200, 400], scale = [0, 1] }"


class InProcess:
    """Runs one loaded model as the model process does, without the process."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def segment(
        self, card: Card, digest: str, volume: hd.Volume, attributes: dict[str, str], **_: object
    ) -> tuple[np.ndarray, Findings]:
        labels = np.zeros((card.planes, *volume.spatial_shape), np.uint8)
        spacing = tuple(float(mm) for mm in volume.spacing)
        given = InputVolume(
            hu=np.ascontiguousarray(volume.array),
            spacing_mm=(spacing[0], spacing[1], spacing[2]),
            attributes=attributes,
        )
        return labels, self._model.segment(given, labels, lambda _: None)


@pytest.fixture(scope="module")
def by_card(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("by-card")
    (folder / "model.ts").write_bytes(trained_softmax().torchscript.read_bytes())
    text = card_toml(
        kind="torchscript",
        needs=f"spacing_mm = {list(SPACING_MM)}\n{_INTENSITY}",
        network=f'patch = {list(PATCH)}\noverlap = 0.5\nactivation = "softmax"',
        segments=SOFTMAX_SEGMENTS,
    )
    torch.set_num_threads(1)
    return load_network(parse_card(text, where="test"), folder, "cpu")


@pytest.fixture(scope="module")
def as_bundle(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = make_bundle(tmp_path_factory.mktemp("bundle") / "shapes", trained_softmax())
    text = card_toml(kind="monai-bundle", needs="", network="", segments=SOFTMAX_SEGMENTS)
    return load_network(parse_card(text, where="test"), folder, "cpu")


@pytest.fixture(params=["by_card", "as_bundle"])
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def phantom() -> Shapes:
    return shapes_phantom(41, shape=SHAPE, spacing_mm=FINE_MM)


def turned(a: float, b: float, c: float) -> np.ndarray:
    """Return a rotation about the patient's axes, left, posterior and head in turn, in degrees."""
    a, b, c = np.radians((a, b, c))
    about_left = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    about_posterior = [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
    about_head = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    return np.array(about_left) @ np.array(about_posterior) @ np.array(about_head)


@pytest.mark.parametrize(
    ("orientation", "rotation"),
    [
        ("HPL", None),
        ("FPL", None),
        ("HAR", None),
        ("PFL", None),
        ("RFP", None),
        ("HPL", turned(11, -7, 20)),
        ("PFL", turned(20, 8, -13)),
    ],
    ids=["axial", "head first", "prone", "coronal", "sagittal", "oblique", "oblique coronal"],
)
def test_what_the_network_finds_lies_where_it_is_in_the_patient(
    model: Model,
    phantom: Shapes,
    orientation: str,
    rotation: np.ndarray | None,
    tmp_path: Path,
) -> None:
    images = ct_series(
        phantom.hu, spacing_mm=FINE_MM, rotation=rotation, orientation=orientation, seed="way"
    )
    random.Random(3).shuffle(images)
    made = make_result(
        Fetched(files=[as_file(image) for image in images]),
        card=model.card,
        models=InProcess(model),
        identity=ResultIdentity(job_key="ab" * 32, model_digest="cd" * 32, node_id="n"),
        made_at=datetime(2026, 2, 3),
        stage=lambda _: nullcontext(),
        keep=in_memory,
    )
    to_lps = ct_volume(phantom.hu, spacing_mm=FINE_MM, rotation=rotation).affine
    seen = seen_by_itk(made.objects[0].data, tmp_path)
    for number, truth in ((ORGAN, phantom.organ & ~phantom.rod), (ROD, phantom.rod)):
        mask, place = seen[number]
        assert mask.sum() == pytest.approx(truth.sum(), rel=0.06)
        centre = np.argwhere(truth).mean(axis=0)
        expected = to_lps[:3, :3] @ centre + to_lps[:3, 3]
        found = place(np.argwhere(mask).mean(axis=0))
        # half a voxel of the network's own grid, along its shortest edge
        assert np.linalg.norm(found - expected) < min(SPACING_MM) / 2


Place = Callable[[np.ndarray], np.ndarray]


def seen_by_itk(data: bytes, folder: Path) -> dict[int, tuple[np.ndarray, Place]]:
    """Return the mask of each segment, and what takes its indices to LPS millimetres."""
    path = folder / "seg.dcm"
    path.write_bytes(data)
    command = [SEGIMAGE2ITKIMAGE, "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd"]
    subprocess.run(command, check=True, capture_output=True)
    found: dict[int, tuple[np.ndarray, Place]] = {}
    for file in folder.glob("*.nrrd"):
        image = sitk.ReadImage(str(file))
        values = sitk.GetArrayFromImage(image)
        for number in np.unique(values[values > 0]):
            found[int(number)] = (values == number, place_in(image))
    return found


def place_in(image: sitk.Image) -> Place:
    def place(index: np.ndarray) -> np.ndarray:
        point = image.TransformContinuousIndexToPhysicalPoint([float(n) for n in index[::-1]])
        return np.array(point)

    return place
