"""The whole road with real parts: a study arrives, a SEG lies beside it, OHIF shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
import redis
from playwright.sync_api import Browser
from pydicom import Dataset

from segnode_cli.ct_series import ct_series
from segnode_cli.jobs import view_of
from segnode_cli.node import CONFIG, Node, prepare
from segnode_cli.phantom import Phantom, chest_phantom
from segnode_cli.send import Peer, send_paths
from segnode_cli.supervise import check_programs, running
from segnode_contract.errors import SegnodeError, SetupError
from segnode_contract.job import OPEN_STATES, Stage
from segnode_contract.ledger.view import JobRow
from segnode_contract.settings import load_settings
from segnode_worker.archive import DicomWebArchive

from .browser import Viewer, logged_in, open_viewer
from .conftest import need

NAME = "CANARY^<script>alert(1)</script>"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, viewer_dist: Path) -> Iterator[Node]:
    """A node with the demo's routes, as `segnode up` starts it."""
    try:
        check_programs()
    except SetupError as error:
        need(False, error.sentence)
    config = CONFIG / "demo.toml"
    node = prepare(tmp_path_factory.mktemp("node"), config, load_settings(config))
    with running(node, 2, print):
        yield node


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return chest_phantom()


@pytest.fixture(scope="module")
def images(phantom: Phantom) -> list[Dataset]:
    return ct_series(phantom.hu, spacing_mm=phantom.spacing_mm, seed="road", patient_name=NAME)


@pytest.fixture(scope="module")
def jobs(
    node: Node, images: list[Dataset], tmp_path_factory: pytest.TempPathFactory
) -> list[JobRow]:
    """The jobs that the phantom caused, after they ended."""
    return send_and_wait(node, images, tmp_path_factory.mktemp("phantom"), count=2)


def send_and_wait(node: Node, images: list[Dataset], folder: Path, *, count: int) -> list[JobRow]:
    for number, image in enumerate(images):
        image.save_as(folder / f"{number:04}.dcm", enforce_file_format=True)
    sent = send_paths([folder], peer(node))
    assert sent.stored == len(images)
    return wait_for_jobs(node, sent.study_uids[0], count)


def peer(node: Node) -> Peer:
    return Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port)


def wait_for_jobs(node: Node, study_uid: str, count: int) -> list[JobRow]:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        with view_of(node.data) as view:
            jobs = view.jobs(study_uid=study_uid)
        if len(jobs) >= count and not any(job.state in OPEN_STATES for job in jobs):
            return jobs
        time.sleep(0.3)
    raise AssertionError(f"jobs after three minutes: {jobs}")


def ask(
    node: Node,
    path: str,
    *,
    user: str | None = "viewer",
    method: str = "GET",
    body: str | None = None,
    **headers: str,
) -> tuple[int, bytes]:
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    if user is not None:
        word = base64.b64encode(f"{user}:{node.passwords[user]}".encode()).decode()
        given["Authorization"] = f"Basic {word}"
    data = None if body is None else body.encode()
    request = urllib.request.Request(node.url + path, data, headers=given, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@contextmanager
def tab(chromium: Browser, node: Node) -> Iterator[Viewer]:
    with (
        logged_in(chromium, node.url, "viewer", node.passwords["viewer"]) as context,
        open_viewer(context, node.url) as viewer,
    ):
        yield viewer


def job_of(jobs: list[JobRow], model: str) -> JobRow:
    return next(job for job in jobs if job.model == model)


def stored_bytes(node: Node, job: JobRow) -> bytes:
    seg = next(each for each in job.objects if each.role == "SEG")
    archive = DicomWebArchive(f"{node.url}/dicom-web", "worker", node.passwords["worker"])
    data = archive.fetch_instance(job.study_uid, seg.series_uid, seg.instance_uid)
    assert data is not None
    return data


def stored_seg(node: Node, job: JobRow) -> Dataset:
    return pydicom.dcmread(BytesIO(stored_bytes(node, job)))


def test_both_models_of_the_demo_end_well(jobs: list[JobRow]) -> None:
    assert {(job.model, job.state) for job in jobs} == {
        ("ct-tissue", "done"),
        ("ct-lung-density", "done"),
    }
    for job in jobs:
        assert [stage.stage for stage in job.stages] == list(Stage)
        assert all(stage.seconds is not None for stage in job.stages)


def test_the_archive_holds_what_the_ledger_says(node: Node, jobs: list[JobRow]) -> None:
    for job in jobs:
        data = stored_bytes(node, job)
        seg = pydicom.dcmread(BytesIO(data))
        assert seg.Modality == "SEG"
        assert str(seg.PatientName) == NAME
        assert [each.role for each in job.objects] == ["SEG", "SR"]
        assert all(each.confirmed_at is not None for each in job.objects)
        assert job.objects[0].digest == hashlib.sha256(data).hexdigest()


def test_the_marker_lies_where_it_was_put(
    node: Node, jobs: list[JobRow], phantom: Phantom, images: list[Dataset]
) -> None:
    seg = stored_seg(node, job_of(jobs, "ct-tissue"))
    [bone] = [s.SegmentNumber for s in seg.SegmentSequence if s.SegmentLabel == "Bone"]
    marker = phantom.truth["marker"]
    middle = round(float(np.argwhere(marker)[:, 0].mean()))
    z = images[middle].ImagePositionPatient[2]
    [frame] = [
        number
        for number, frame in enumerate(seg.PerFrameFunctionalGroupsSequence)
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == bone
        and frame.PlanePositionSequence[0].ImagePositionPatient[2] == z
    ]
    # columns grow to the patient's left, rows to the back, as in the phantom
    assert images[middle].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    mask = seg.pixel_array[frame]
    there = marker[middle]
    assert mask[there].mean() > 0.9
    # ribs lie at the mirrored places
    assert mask[:, ::-1][there].mean() < 0.7
    assert mask[::-1][there].mean() < 0.7


def test_a_result_that_arrives_starts_no_job(node: Node, jobs: list[JobRow]) -> None:
    with view_of(node.data) as view:
        deadline = time.monotonic() + 30
        ours = {o.series_uid for job in jobs for o in job.objects}
        while time.monotonic() < deadline:
            seen = {s.series_uid: s for s in view.series(jobs[0].study_uid) if s.decided_at}
            if ours <= set(seen):
                break
            time.sleep(0.3)
        assert ours <= set(seen)
        assert len(view.jobs(study_uid=jobs[0].study_uid)) == 2
    for uid in ours:
        assert {verdict["taken"] for verdict in seen[uid].verdicts} == {False}


def test_sending_the_same_again_starts_no_job(
    node: Node, jobs: list[JobRow], images: list[Dataset], tmp_path: Path
) -> None:
    again = send_and_wait(node, images, tmp_path, count=2)
    time.sleep(node.settings.intake.quiet_s + 2)
    again = wait_for_jobs(node, jobs[0].study_uid, 2)
    assert {job.key for job in again} == {job.key for job in jobs}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/segnode/",
        "/segnode/health",
        "/ohif/",
        "/qido/studies",
        "/dicom-web/studies",
        "/system",
        "/instances",
        "/app/explorer.html",
        "/tools/reset",
    ],
)
def test_nothing_answers_without_a_password(node: Node, path: str) -> None:
    assert ask(node, path, user=None)[0] == 401


@pytest.mark.parametrize(
    ("user", "method", "path", "status"),
    [
        ("viewer", "GET", "/segnode/", 200),
        ("viewer", "GET", "/qido/studies", 200),
        ("viewer", "GET", "/system", 403),
        ("viewer", "DELETE", "/changes", 403),
        ("worker", "GET", "/segnode/", 403),
        ("worker", "GET", "/dicom-web/studies", 403),
        ("admin", "GET", "/system", 200),
        ("admin", "POST", "/tools/reset", 403),
        ("admin", "POST", "/tools/execute-script", 403),
        ("admin", "DELETE", "/changes", 403),
        ("admin", "GET", "/segnode/%2e%2e/tools/reset", 403),
    ],
)
def test_each_user_may_do_what_its_role_says(
    node: Node, user: str, method: str, path: str, status: int
) -> None:
    assert ask(node, path, user=user, method=method)[0] == status


def test_a_page_of_another_origin_changes_nothing(node: Node) -> None:
    find = {"user": "admin", "method": "POST"}
    assert ask(node, "/tools/find", Origin="http://evil.example", **find)[0] == 403
    assert ask(node, "/tools/find", Sec_Fetch_Site="cross-site", **find)[0] == 403
    assert ask(node, "/tools/find", **find)[0] != 403


def test_an_unknown_ae_title_is_refused(node: Node, images: list[Dataset]) -> None:
    from pynetdicom import AE

    stranger = AE(ae_title="STRANGER")
    stranger.add_requested_context(images[0].SOPClassUID)
    link = stranger.associate("127.0.0.1", node.dicom_port, ae_title="SEGNODE")
    stored = link.send_c_store(images[0]) if link.is_established else None
    if link.is_established:
        link.release()
    assert stored is None or "Status" not in stored or stored.Status != 0


def test_a_hostile_name_is_shown_as_text(node: Node, jobs: list[JobRow]) -> None:
    for path in ("/segnode/jobs", f"/segnode/jobs/{jobs[0].key}"):
        status, page = ask(node, path)
        assert status == 200
        assert b"<script>" not in page
        assert b"CANARY^&lt;script&gt;" in page


def test_no_name_leaves_the_archive(node: Node, jobs: list[JobRow]) -> None:
    places = [*(node.data / "logs").iterdir(), *node.data.glob("ledger.sqlite*")]
    places += [file for file in (node.data / "redis").rglob("*") if file.is_file()]
    assert len(places) >= 4
    assert [place.name for place in places if b"CANARY" in place.read_bytes()] == []


def test_redis_asks_for_a_password(node: Node) -> None:
    with (
        redis.Redis(host="127.0.0.1", port=node.redis_port) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_passwords_stand_in_no_process_list_and_no_open_file(node: Node) -> None:
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    for word in node.passwords.values():
        assert word not in shown
    for name in ("environment", "orthanc.json", "redis.conf"):
        assert (node.data / name).stat().st_mode & 0o077 == 0


def test_ohif_shows_the_first_routes_overlay_at_once(
    node: Node, jobs: list[JobRow], chromium: Browser
) -> None:
    with tab(chromium, node) as viewer:
        viewer.open_study(jobs[0].study_uid)
        viewer.wait_for_overlay()
        viewer.screenshot("road-phantom")
        names = [name.split(" ", 1)[1] for name in viewer.segment_names()]
        assert names[:5] == [
            "Body in field of view",
            "Gas and lung within the body",
            "Adipose tissue",
            "Lean soft tissue",
            "Bone",
        ]
        # the second route's is listed below it, and off
        assert names[5:7] == ["Right lung", "Left lung"]
        assert viewer.marks() == ["AI, unverified, research use\nct-tissue 1.0.0"]
        assert viewer.external == []
        assert viewer.failed == []


def test_a_real_ct_goes_the_whole_road(node: Node, shared_data: Path, chromium: Browser) -> None:
    folder = shared_data / "ts-ct-built" / "dicom"
    sent = send_paths([folder], peer(node))
    jobs = wait_for_jobs(node, sent.study_uids[0], 2)
    assert {job.state for job in jobs} == {"done"}
    tissue = job_of(jobs, "ct-tissue")
    assert tissue.findings is not None
    measured = tissue.findings["measurements"]
    volumes = {m["segment"]: m["value"] for m in measured if m["name"] == "Volume"}
    assert volumes[1] == pytest.approx(24000, abs=500)
    with tab(chromium, node) as viewer:
        viewer.open_study(jobs[0].study_uid)
        viewer.wait_for_overlay()
        viewer.screenshot("road-real")
        assert viewer.failed == []


def test_a_tilted_ct_with_gaps_is_taken_as_far_as_its_models_take_it(
    node: Node, shared_data: Path
) -> None:
    sent = send_paths([shared_data / "qact-ge-tilt"], peer(node))
    jobs = wait_for_jobs(node, sent.study_uids[0], 2)
    tissue, density = job_of(jobs, "ct-tissue"), job_of(jobs, "ct-lung-density")
    assert tissue.state == "done"
    assert tissue.findings is not None
    assert "18.5 degrees" in tissue.findings["limitations"][0]
    assert (density.state, density.error_code) == ("failed", "missing-slice")
    assert "7.00 mm" in (density.error_sentence or "")


def test_files_give_the_same_result_without_a_server(
    node: Node, jobs: list[JobRow], images: list[Dataset], tmp_path: Path
) -> None:
    for number, image in enumerate(images):
        image.save_as(tmp_path / f"{number:04}.dcm", enforce_file_format=True)
    segnode, out = str(Path(sys.executable).parent / "segnode"), tmp_path / "out"
    command = [segnode, "segment", tmp_path, "--model", "ct-tissue", "--out", out]
    subprocess.run(command, check=True, capture_output=True)
    job = job_of(jobs, "ct-tissue")
    made = {path.stem: pydicom.dcmread(path) for path in out.iterdir()}
    assert made.keys() == {each.instance_uid for each in job.objects}
    [seg] = [each for each in made.values() if each.Modality == "SEG"]
    theirs = stored_seg(node, job)
    assert seg.SeriesInstanceUID == theirs.SeriesInstanceUID
    assert seg.PixelData == theirs.PixelData
    assert seg.PerFrameFunctionalGroupsSequence == theirs.PerFrameFunctionalGroupsSequence
    assert [s.TrackingUID for s in seg.SegmentSequence] == [
        s.TrackingUID for s in theirs.SegmentSequence
    ]


def test_the_worker_comes_back_without_ending_the_others(
    node: Node, phantom: Phantom, tmp_path: Path
) -> None:
    ctl = [str(Path(sys.executable).parent / "supervisorctl"), "-c"]
    ctl.append(str(node.data / "supervisord.conf"))

    def pids() -> dict[str, str]:
        names = ("redis", "orthanc", "worker")
        asked = {
            name: subprocess.run([*ctl, "pid", name], capture_output=True, check=True)
            for name in names
        }
        return {name: done.stdout.decode().strip() for name, done in asked.items()}

    before = pids()
    subprocess.run(["kill", "-9", before["worker"]], check=True)
    images = ct_series(phantom.hu[:60], spacing_mm=phantom.spacing_mm, seed="after")
    jobs = send_and_wait(node, images, tmp_path, count=2)
    assert {job.state for job in jobs} == {"done"}
    after = pids()
    assert after["worker"] != before["worker"]
    assert (after["redis"], after["orthanc"]) == (before["redis"], before["orthanc"])


def test_a_second_node_on_the_same_folder_is_refused(node: Node) -> None:
    with pytest.raises(SegnodeError, match="runs already"), running(node, 1, print):
        pass


def test_the_ledger_reads_as_json(node: Node, jobs: list[JobRow]) -> None:
    segnode = str(Path(sys.executable).parent / "segnode")
    shown = subprocess.run(
        [segnode, "jobs", "--json", "--data", str(node.data)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert {job["key"] for job in json.loads(shown.stdout)} >= {job.key for job in jobs}
