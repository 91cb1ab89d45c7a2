"""Results are sent on to a second Orthanc and to storescp, by C-STORE and by STOW-RS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from segnode_cli.ct_series import ct_series
from segnode_cli.jobs import view_of
from segnode_cli.node import CONFIG, Node
from segnode_cli.phantom import chest_phantom
from segnode_cli.send import send_paths
from segnode_contract.job import OPEN_STATES
from segnode_contract.ledger.view import DeliveryRow, JobRow

from ..conftest import free_port
from ..worker.peers import classes, only, received, storescp
from .conftest import whole_node
from .test_road import NAME, ask, peer

WITHIN_S = 120.0
USER, PASSWORD = "node", "a password of the other archive"
PLUGINS = Path("/usr/share/orthanc/plugins")
SEG = "Segmentation Storage"
CT = "CT Image Storage"


class Second:
    """An Orthanc that is none of ours: up or down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.http, self.dicom = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http}"

    @contextmanager
    def up(self) -> Iterator[None]:
        settings = {
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "HttpPort": self.http,
            "DicomAet": "SECOND",
            "DicomPort": self.dicom,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowEcho": True,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
            "DicomWeb": {"Enable": True},
        }
        self.folder.mkdir(exist_ok=True)
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        with (self.folder / "log").open("w") as log:
            server = subprocess.Popen(
                ["/usr/sbin/Orthanc", self.folder / "orthanc.json"],
                stdout=log,
                stderr=log,
                env={**os.environ, "TCP_NODELAY": "1"},
            )
        try:
            wait_for(self._answers, "the second Orthanc")
            yield
        finally:
            server.terminate()
            server.wait(30)

    def ask(self, path: str) -> Any:
        word = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request = urllib.request.Request(
            self.url + path, headers={"Authorization": f"Basic {word}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def series(self) -> dict[str, int]:
        """Return how many instances each series has."""
        found = self.ask("/series?expand")
        return {one["MainDicomTags"]["SeriesInstanceUID"]: len(one["Instances"]) for one in found}

    def _answers(self) -> bool:
        try:
            return bool(self.ask("/system"))
        except (urllib.error.URLError, OSError):
            return False


def wait_for(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, f"waited {WITHIN_S:g} s for {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Second:
    return Second(tmp_path_factory.mktemp("second"))


@pytest.fixture(scope="module")
def picky(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Folder and port of a storescp that takes CT images alone."""
    return tmp_path_factory.mktemp("picky"), free_port()


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, second: Second, picky: tuple[Path, int]
) -> Iterator[Node]:
    demo = (CONFIG / "demo.toml").read_text().replace("lease_s = 60 ", "lease_s = 10 ")
    demo = demo.replace("[limits]", "[limits]\nback_off_s = [0.5]")
    words = f"""
[[destinations]]
name = "by_dicom"
aet = "SECOND"
host = "127.0.0.1"
port = {second.dicom}
models = ["ct-tissue"]

[[destinations]]
name = "by_web"
url = "{second.url}/dicom-web"
images = true
models = ["ct-lung-density"]

[[destinations]]
name = "picky"
aet = "PICKY"
host = "127.0.0.1"
port = {picky[1]}
images = true
models = ["ct-tissue"]
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGNODE_DESTINATION_BY_WEB_USER", USER)
        patch.setenv("SEGNODE_DESTINATION_BY_WEB_PASSWORD", PASSWORD)
        with whole_node(tmp_path_factory.mktemp("sending"), demo + words, 2) as node:
            yield node


@pytest.fixture(scope="module")
def jobs(node: Node, tmp_path_factory: pytest.TempPathFactory) -> dict[str, JobRow]:
    """The jobs of a phantom, done while nobody whom they are to be sent to is up."""
    return sent_in(node, tmp_path_factory.mktemp("phantom"), "destinations")


def phantom(seed: str) -> list[Dataset]:
    body = chest_phantom()
    return ct_series(body.hu, spacing_mm=body.spacing_mm, seed=seed, patient_name=NAME)


def sent_in(node: Node, folder: Path, seed: str) -> dict[str, JobRow]:
    for number, image in enumerate(phantom(seed)):
        image.save_as(folder / f"{number:04}.dcm", enforce_file_format=True)
    [study_uid] = send_paths([folder], peer(node)).study_uids

    def found() -> list[JobRow]:
        with view_of(node.data) as view:
            return view.jobs(study_uid=study_uid)

    wait_for(lambda: len(found()) == 2 and not any(j.state in OPEN_STATES for j in found()), "jobs")
    assert {job.state for job in found()} == {"done"}
    return {job.model: job for job in found()}


def delivery(node: Node, job: JobRow, to: str) -> DeliveryRow:
    with view_of(node.data) as view:
        return next(one for one in view.deliveries(job.key) if one.destination == to)


def awaited(node: Node, job: JobRow, to: str, state: str) -> DeliveryRow:
    wait_for(lambda: delivery(node, job, to).state == state, f"{to} to be {state}")
    return delivery(node, job, to)


def segnode(node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "segnode"), *arguments, "--data", str(node.data)]
    wide = {**os.environ, "COLUMNS": "400"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=wide)


def tried_again(node: Node, job: JobRow, to: str) -> bool:
    return delivery(node, job, to).attempts > 1


def test_a_destination_that_is_away_is_tried_until_it_is_there(
    node: Node, jobs: dict[str, JobRow], second: Second
) -> None:
    tissue, lung = jobs["ct-tissue"], jobs["ct-lung-density"]
    for job, to in ((tissue, "by_dicom"), (lung, "by_web")):
        wait_for(partial(tried_again, node, job, to), f"tries of {to}")
        found = delivery(node, job, to)
        assert (found.state in ("waiting", "sending"), found.error_code) == (
            True,
            "peer-unavailable",
        )
    page = ask(node, f"/segnode/jobs/{tissue.key}")[1].decode()
    assert "by_dicom" in page
    assert f"SECOND at 127.0.0.1:{second.dicom} does not answer" in page
    with second.up():
        by_dicom, by_web = (
            awaited(node, job, to, "done") for job, to in ((tissue, "by_dicom"), (lung, "by_web"))
        )
        results = {each.series_uid: 1 for job in (tissue, lung) for each in job.objects}
        assert second.series() == results | {lung.series_uids[0]: len(phantom(""))}
    assert by_dicom.objects == len(tissue.objects)
    assert by_web.objects == len(phantom("")) + len(lung.objects)


def said_within_s(seconds: float, node: Node, words: str) -> None:
    """Wait for words on the first page, which looks for troubles each ten seconds."""
    end = time.monotonic() + seconds
    while words not in ask(node, "/segnode/")[1].decode():
        assert time.monotonic() < end, f"not on the first page: {words}"
        time.sleep(0.5)


def test_a_refused_sop_class_is_named_until_the_peer_takes_it(
    node: Node, jobs: dict[str, JobRow], picky: tuple[Path, int], tmp_path: Path
) -> None:
    inbox, port = picky
    job = jobs["ct-tissue"]
    with storescp(inbox, *only(tmp_path, "CTImageStorage"), port=port):
        found = awaited(node, job, "picky", "failed")
        assert found.error_code == "sop-class-refused"
        assert f"PICKY at 127.0.0.1:{port} does not accept {SEG}" in (found.error_sentence or "")
        assert found.objects == len(phantom(""))
    assert set(classes(received(inbox))) == {CT}
    assert len(received(inbox)) == len(phantom(""))
    said_within_s(20, node, "1 delivery to other archives failed")
    assert "1 delivery to other archives failed" in segnode(node, "jobs").stderr
    assert "sop-class-refused" in segnode(node, "deliveries").stderr
    with storescp(inbox, port=port):
        assert segnode(node, "retry", job.key[:12]).returncode == 0
        sent = awaited(node, job, "picky", "done")
        assert sent.objects == len(phantom("")) + len(job.objects)
    assert classes(received(inbox)).count(SEG) == 1
    assert "picky: done" in segnode(node, "job", job.key[:12]).stderr


def test_a_sender_that_is_killed_loses_nothing(
    node: Node, second: Second, picky: tuple[Path, int], tmp_path: Path
) -> None:
    ctl = [str(Path(sys.executable).parent / "supervisorctl"), "-c"]
    ctl += [str(node.data / "supervisord.conf"), "pid", "sender"]
    folder = tmp_path / "images"
    folder.mkdir()
    job = sent_in(node, folder, "killed")["ct-tissue"]
    before = len(received(picky[0]))
    with storescp(picky[0], "--sleep-after", "1", port=picky[1]):
        wait_for(lambda: len(list(picky[0].iterdir())) > before + 1, "two images")
        pid = int(subprocess.run(ctl, capture_output=True, check=True).stdout)
        os.kill(pid, signal.SIGKILL)
    with second.up(), storescp(picky[0], port=picky[1]):
        awaited(node, job, "by_dicom", "done")
        assert second.series()[job.objects[0].series_uid] == 1
        sent = awaited(node, job, "picky", "done")
        assert sent.objects == len(phantom("")) + len(job.objects)
    assert int(subprocess.run(ctl, capture_output=True, check=True).stdout) != pid
    assert len(received(picky[0])) == before + len(phantom("")) + len(job.objects)


def test_the_doctor_asks_each_destination(
    node: Node, second: Second, picky: tuple[Path, int]
) -> None:
    with second.up():
        done = segnode(node, "doctor")
    assert (
        f"SECOND at 127.0.0.1:{second.dicom} takes results, but none whose form is LABELMAP"
        in done.stderr
    )
    assert f"{second.url}/dicom-web answers" in done.stderr
    assert f"PICKY at 127.0.0.1:{picky[1]} does not answer" in done.stderr
    assert done.returncode == 1


def test_neither_password_nor_name_is_told(node: Node, jobs: dict[str, JobRow]) -> None:
    places = [*(node.data / "logs").iterdir(), *node.data.glob("ledger.sqlite*")]
    assert "sender.log" in {place.name for place in places}
    for word in (b"CANARY", PASSWORD.encode()):
        assert [place.name for place in places if word in place.read_bytes()] == []
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert PASSWORD not in shown
