"""Models from elsewhere on a real node: added while it runs, on arriving studies, cancelled."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread

from segnode_cli.ct_series import ct_series
from segnode_cli.jobs import view_of
from segnode_cli.node import CONFIG, Node
from segnode_cli.send import send_paths
from segnode_contract.ledger.view import Job
from segnode_worker.archive import DicomWebArchive
from segnode_worker.sandbox import why_not

from ..models.bundle import make_bundle
from ..models.trained import (
    PATCH,
    SOFTMAX_SEGMENTS,
    Shapes,
    card_toml,
    shapes_phantom,
    trained_softmax,
)
from .conftest import whole_node
from .test_road import peer

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no cell can be made here: {why_not()}")

SEGNODE = str(Path(sys.executable).parent / "segnode")
ROUTES = "".join(
    f"""
[[routes]]
name = "{model}"
model = "{model}"
modality = "CT"
where = {{ attribute = "SeriesDescription", contains = "{model}" }}
"""
    for model in ("by-card", "as-bundle", "slow")
)
CARD_INPUT = "spacing_mm = [3, 2, 2]\nintensity = { clip = [-200, 400], scale = [0, 1] }"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    demo = (CONFIG / "demo.toml").read_text()
    words = demo[: demo.index("[[routes]]")]
    with whole_node(tmp_path_factory.mktemp("added"), words + ROUTES, 2) as node:
        yield node


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders as a user has them, each with its card."""
    folder = tmp_path_factory.mktemp("brought")
    trained = trained_softmax()
    for name, overlap in (("by-card", 0.25), ("slow", 0.96)):
        (folder / name).mkdir()
        (folder / name / "model.ts").write_bytes(trained.torchscript.read_bytes())
        network = f'patch = {list(PATCH)}\noverlap = {overlap}\nactivation = "softmax"'
        text = card_toml(
            kind="torchscript", needs=CARD_INPUT, network=network, segments=SOFTMAX_SEGMENTS
        )
        write_card(folder / name, text)
    make_bundle(folder / "as-bundle", trained)
    text = card_toml(kind="monai-bundle", needs="", network="", segments=SOFTMAX_SEGMENTS)
    write_card(folder / "as-bundle", text)
    return folder


def write_card(folder: Path, text: str) -> None:
    text = text.replace('name = "shapes"', f'name = "{folder.name}"')
    (folder / "card.toml").write_text(text.replace("time_limit_s = 60", "time_limit_s = 600"))


def add(node: Node, folder: Path, *more: str) -> None:
    """Add a model as the README says."""
    command = [SEGNODE, "models", "add", str(folder), "--data", str(node.data), "--yes", *more]
    subprocess.run(command, check=True)


def give(node: Node, folder: Path, model: str, shapes: Shapes) -> str:
    folder.mkdir(parents=True)
    series = ct_series(shapes.hu, spacing_mm=shapes.spacing_mm, seed=f"{time.time_ns()}")
    for number, image in enumerate(series):
        image.SeriesDescription = f"for {model}"
        image.save_as(folder / f"{number:04}.dcm", enforce_file_format=True)
    [study_uid] = send_paths([folder], peer(node)).study_uids
    return study_uid


def wait_for(node: Node, study_uid: str, holds: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with view_of(node.data) as view:
            jobs = view.jobs(study_uid=study_uid)
            job = view.job(jobs[0].key) if jobs else None
        if job is not None and holds(job):
            return job
        time.sleep(0.1)
    raise AssertionError(f"not within two minutes: {job}")


def found(node: Node, job: Job) -> dict[str, np.ndarray]:
    """Read the stored SEG back: masks by label, on the phantom's grid (slices from the feet)."""
    archive = DicomWebArchive(f"{node.url}/dicom-web", "worker", node.passwords["worker"])
    made, _ = job.row.objects
    data = archive.fetch_instance(job.row.study_uid, made.series_uid, made.instance_uid)
    assert data is not None
    seg = hd.seg.Segmentation.from_dataset(dcmread(BytesIO(data)))
    sources = archive.fetch_series(job.row.study_uid, job.row.series_uids[0])
    images = [dcmread(BytesIO(source), stop_before_pixels=True) for source in sources]
    images.sort(key=lambda image: image.ImagePositionPatient[2])
    masks = seg.get_pixels_by_source_instance(
        [image.SOPInstanceUID for image in images], assert_missing_frames_are_empty=True
    )
    labels = {item.SegmentLabel: item.SegmentNumber - 1 for item in seg.SegmentSequence}
    return {label: masks[..., number] > 0 for label, number in labels.items()}


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize("model", ["by-card", "as-bundle"])
def test_a_model_added_while_the_node_runs_segments_the_next_study(
    node: Node, brought: Path, tmp_path: Path, model: str
) -> None:
    add(node, brought / model)
    shapes = shapes_phantom(31, shape=(60, 70, 80), spacing_mm=(2.4, 1.9, 1.6))
    study_uid = give(node, tmp_path / "images", model, shapes)
    job = wait_for(node, study_uid, lambda job: job.row.state in ("done", "failed", "dead"))
    assert job.row.state == "done", job.row.error_sentence
    masks = found(node, job)
    assert dice(masks["Organ"], shapes.organ & ~shapes.rod) > 0.9
    assert dice(masks["Rod"], shapes.rod) > 0.9
    assert job.row.findings is not None
    voxel_ml = np.prod(shapes.spacing_mm) / 1000
    measured = job.row.findings["measurements"]
    volumes = {m["segment"]: m["value"] for m in measured if m["name"] == "Volume"}
    assert volumes[2] == pytest.approx(masks["Rod"].sum() * voxel_ml)


def test_a_long_inference_tells_its_progress_and_is_cancelled(
    node: Node, brought: Path, tmp_path: Path
) -> None:
    add(node, brought / "slow", "--no-trial")
    study_uid = give(node, tmp_path / "images", "slow", shapes_phantom(32, shape=(96, 96, 96)))
    job = wait_for(node, study_uid, lambda job: bool(job.row.progress))
    further = job.row.progress or 0
    job = wait_for(node, study_uid, lambda job: (job.row.progress or 0) > further)
    command = [SEGNODE, "cancel", job.row.key, "--data", str(node.data)]
    subprocess.run(command, check=True)
    job = wait_for(node, study_uid, lambda job: job.runs[-1].peak_mb is not None)
    assert job.row.state == "cancelled"
    assert [run.outcome for run in job.runs] == ["cancelled"]
    assert job.row.objects == ()
    # the model stopped: another job has its turn, in the process that stayed
    study_uid = give(node, tmp_path / "others", "by-card", shapes_phantom(33))
    job = wait_for(node, study_uid, lambda job: job.row.state in ("done", "failed", "dead"))
    assert job.row.state == "done", job.row.error_sentence


def test_a_changed_weight_file_is_refused_and_said_on_the_first_page(
    node: Node, brought: Path, tmp_path: Path
) -> None:
    weights = node.data / "models/by-card/model.ts"
    kept = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(kept + b" ")
    try:
        said = subprocess.run(
            [SEGNODE, "models", "list", "--data", str(node.data)],
            capture_output=True,
            text=True,
            check=True,
        )
        told = " ".join((said.stdout + said.stderr).split())
        assert "by-card is refused" in told
        assert "by-card/model.ts is not the file that was added" in told
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with view_of(node.data) as view:
                [worker] = view.workers()
            if "by-card/model.ts is not the file that was added" in worker.detail:
                break
            time.sleep(0.5)
        else:
            raise AssertionError(worker)
    finally:
        weights.write_bytes(kept)
