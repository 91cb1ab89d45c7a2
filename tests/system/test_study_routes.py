"""One job for a study as scanners really send it: in pieces, twice, corrected, changed in place."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from segnode_cli.ct_series import ct_series
from segnode_cli.jobs import ledger_of, view_of
from segnode_cli.node import CONFIG, Node
from segnode_cli.phantom import chest_phantom
from segnode_cli.send import send_paths
from segnode_contract.ledger.overlays import study_overlays
from segnode_contract.ledger.view import JobRow

from .conftest import whole_node
from .test_road import ask, peer

ROUTES = """
[[priorities]]
priority = "stat"
where.any = [
  { attribute = "RequestedProcedurePriority", one_of = ["STAT", "HIGH"] },
  { attribute = "StudyPriorityID", equals = "HIGH" },
]

[[routes]]
name = "best"
model = "ct-tissue"
modality = "CT"
trigger = "study"
prefer = ["thin_slices", "soft_kernel", "most_images"]

[[routes]]
name = "lung on trial"
model = "ct-lung-density"
modality = "CT"
shadow = true
trigger = "study"
prefer = ["thin_slices"]
where = { fact = "coverage_mm", at_least = 100 }
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    demo = (CONFIG / "demo.toml").read_text()
    words = demo[: demo.index("[[routes]]")].replace("[intake]", "[intake]\nstudy_quiet_s = 4")
    with whole_node(tmp_path_factory.mktemp("study"), words + ROUTES, 2) as node:
        yield node


def hu() -> NDArray[np.int16]:
    return chest_phantom().hu[:40, ::4, ::4]


def visit(seed: str) -> dict[str, list[Dataset]]:
    """Make what one visit leaves, series by series."""
    z, y, x = chest_phantom().spacing_mm
    made: dict[str, list[Dataset]] = {}
    for number, (words, kernel, image_type, values, mm) in enumerate(
        [
            ("Topogram", "T20f", ["ORIGINAL", "PRIMARY", "LOCALIZER"], hu()[:1], z),
            ("Thorax 6.0", "B31f", ["ORIGINAL", "PRIMARY", "AXIAL"], hu()[::2], 2 * z),
            ("Thorax 3.0 lung", "B70f", ["ORIGINAL", "PRIMARY", "AXIAL"], hu(), z),
            ("Thorax 3.0", "B31f", ["ORIGINAL", "PRIMARY", "AXIAL"], hu(), z),
            ("Thorax MPR", "B31f", ["DERIVED", "SECONDARY", "MPR"], hu(), z / 2),
            ("Dose report", "", ["DERIVED", "SECONDARY", "OTHER"], hu()[:1], z),
        ],
        1,
    ):
        series = ct_series(values, spacing_mm=(mm, 4 * y, 4 * x), seed=f"{seed} {number}")
        for image in series:
            image.SeriesNumber, image.SeriesDescription = number, words
            image.ImageType, image.ConvolutionKernel = image_type, kernel
        made[words] = series
    study_uid = made["Topogram"][0].StudyInstanceUID
    for image in every(made):
        image.StudyInstanceUID = study_uid
    return made


def every(made: dict[str, list[Dataset]]) -> list[Dataset]:
    return [image for series in made.values() for image in series]


def give(node: Node, images: list[Dataset], folder: Path) -> str:
    folder.mkdir()
    for number, image in enumerate(images):
        image.save_as(folder / f"{number:04}.dcm", enforce_file_format=True)
    [study_uid] = send_paths([folder], peer(node)).study_uids
    return study_uid


def valid(node: Node, study_uid: str) -> dict[str, JobRow]:
    """Return the jobs that count, by model."""
    with view_of(node.data) as view:
        jobs = view.jobs(study_uid=study_uid)
    counting = [job for job in jobs if job.state != "superseded"]
    assert len({job.model for job in counting}) == len(counting), jobs
    return {job.model: job for job in counting}


def wait_until(node: Node, study_uid: str, holds: Callable[[dict[str, JobRow]], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds(valid(node, study_uid)):
        assert time.monotonic() < deadline, valid(node, study_uid)
        time.sleep(0.3)


def tissue(node: Node, study_uid: str) -> JobRow:
    """Wait for the job that is stored."""

    def ended(jobs: dict[str, JobRow]) -> bool:
        return "ct-tissue" in jobs and jobs["ct-tissue"].state in ("done", "failed", "dead")

    wait_until(node, study_uid, ended)
    return valid(node, study_uid)["ct-tissue"]


def settled(node: Node) -> None:
    """Wait until intake had the time to decide on everything."""
    time.sleep(12)


def segs(node: Node, study_uid: str) -> list[str]:
    """Return the series of the SEGs that the archive holds of a study."""
    status, answer = ask(node, f"/dicom-web/studies/{study_uid}/series?Modality=SEG")
    assert status == 200
    return [item["0020000E"]["Value"][0] for item in json.loads(answer or b"[]")]


def delete_series(node: Node, series_uid: str) -> None:
    _, found = ask(node, "/tools/lookup", user="admin", method="POST", body=series_uid)
    [orthanc_id] = [item["ID"] for item in json.loads(found)]
    status, _ = ask(node, f"/series/{orthanc_id}", user="admin", method="DELETE", Origin=node.url)
    assert status == 200


def test_six_series_in_three_pieces_give_one_job_on_the_right_one(
    node: Node, tmp_path: Path
) -> None:
    made = visit("pieces")
    best = made["Thorax 3.0"]
    study_uid = give(node, made["Topogram"] + made["Thorax 6.0"], tmp_path / "first")
    wait_until(node, study_uid, lambda jobs: "ct-tissue" in jobs)
    coarse = valid(node, study_uid)["ct-tissue"]
    assert coarse.series_uids == (made["Thorax 6.0"][0].SeriesInstanceUID,)
    give(node, best[:15] + made["Thorax MPR"] + made["Dose report"], tmp_path / "second")
    give(node, best[15:] + made["Thorax 3.0 lung"], tmp_path / "third")
    wait_until(
        node,
        study_uid,
        lambda jobs: (
            jobs["ct-tissue"].state == "done"
            and jobs["ct-tissue"].instance_count == len(best)
            and jobs["ct-lung-density"].state == "done"
        ),
    )
    jobs = valid(node, study_uid)
    assert jobs["ct-tissue"].series_uids == (best[0].SeriesInstanceUID,)
    with ledger_of(node.data) as ledger:
        overlays = study_overlays(ledger, study_uid).overlays
    assert [one.series_uid for one in overlays] == [best[0].SeriesInstanceUID]

    # sent once more, the study changes nothing
    before = jobs
    give(node, every(made), tmp_path / "again")
    settled(node)
    assert valid(node, study_uid) == before

    # the model on trial was measured, and its result is nowhere
    trial = jobs["ct-lung-density"]
    assert trial.shadow
    assert trial.findings is not None
    assert trial.findings["measurements"]
    assert trial.objects == ()
    made_by_tissue = {
        each.series_uid
        for job in all_jobs(node, study_uid)
        for each in job.objects
        if job.model == "ct-tissue" and each.role == "SEG"
    }
    assert set(segs(node, study_uid)) == made_by_tissue


def all_jobs(node: Node, study_uid: str) -> list[JobRow]:
    with view_of(node.data) as view:
        return view.jobs(study_uid=study_uid)


@pytest.mark.parametrize("uid", ["2.25.0", "2.25." + "9" * 38], ids=["lower UID", "higher UID"])
def test_a_corrected_study_under_new_uids_is_new_content(
    node: Node, tmp_path: Path, uid: str
) -> None:
    series = visit(f"corrected as {uid}")["Thorax 3.0"]
    study_uid = give(node, series, tmp_path / "wrong")
    first = tissue(node, study_uid)
    for image in series:
        image.SeriesInstanceUID, image.SOPInstanceUID = uid, generate_uid()
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    give(node, series, tmp_path / "right")
    # the study holds the wrong images too, until somebody deletes them: what came later counts
    wait_until(node, study_uid, lambda jobs: jobs["ct-tissue"].series_uids == (uid,))
    right = tissue(node, study_uid)
    assert right.state == "done"
    states = {job.series_uids: job.state for job in all_jobs(node, study_uid) if not job.shadow}
    assert states == {first.series_uids: "superseded", (uid,): "done"}


def test_other_pixels_under_known_uids_are_reported_and_no_overlay_is_shown(
    node: Node, tmp_path: Path
) -> None:
    series = visit("changed")["Thorax 3.0"]
    study_uid = give(node, series, tmp_path / "first")
    first = tissue(node, study_uid)
    assert first.state == "done"
    for image in series[10:20]:
        image.PixelData = bytes(len(image.PixelData))
    delete_series(node, series[0].SeriesInstanceUID)
    give(node, series, tmp_path / "second")
    wait_until(node, study_uid, lambda jobs: jobs["ct-tissue"].state == "failed")
    failed = valid(node, study_uid)["ct-tissue"]
    assert failed.key == first.key
    assert failed.error_code == "images-changed"
    with ledger_of(node.data) as ledger:
        assert study_overlays(ledger, study_uid).overlays == ()
    [kept] = segs(node, study_uid)
    assert kept == first.objects[0].series_uid


@pytest.mark.parametrize(
    ("keyword", "value"), [("RequestedProcedurePriority", "STAT"), ("StudyPriorityID", "HIGH")]
)
def test_priority_comes_from_the_images(
    node: Node, tmp_path: Path, keyword: str, value: str
) -> None:
    series = visit(f"urgent {keyword}")["Thorax 6.0"]
    for image in series:
        setattr(image, keyword, value)
    study_uid = give(node, series, tmp_path / "urgent")
    assert tissue(node, study_uid).priority == "stat"


def test_the_result_lies_on_the_chosen_images(node: Node, tmp_path: Path) -> None:
    made = visit("proof")
    study_uid = give(node, every(made), tmp_path / "all")
    one, _ = tissue(node, study_uid).objects
    status, answer = ask(
        node,
        f"/dicom-web/studies/{study_uid}/series/{one.series_uid}/instances/{one.instance_uid}",
        user="worker",
        Accept='multipart/related; type="application/dicom"',
    )
    assert status == 200
    seg = dcmread(BytesIO(answer[answer.index(b"\r\n\r\n") + 4 :]), force=True)
    [referenced] = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == made["Thorax 3.0"][0].SeriesInstanceUID
