"""What the worker's tests share: a phantom with a marker, a card, and a real Orthanc."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.card import Card, parse_card
from segnode_contract.findings import Findings
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.stack import Stack, stack_series

SPACING_MM = (3.0, 1.5, 1.25)
ORTHANC = Path("/usr/sbin/Orthanc")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")

_CARD = """
name = "test-tissue"
version = "1.2"
kind = "builtin"
intended_use = "Tests."
limitations = ["It knows a phantom only."]
licence = "AGPL-3.0-or-later"
memory_bytes = 1000000
time_limit_s = 10
[input]
modality = "CT"
orientation = "HPL"
min_slices = 3
"""
_SEGMENTS = [  # label, plane, value, type, modifier
    ("Body", 0, 1, ("38266002", "Entire body"), None),
    ("Right lung", 1, 1, ("39607008", "Lung"), ("24028007", "Right")),
    ("Left lung", 1, 2, ("39607008", "Lung"), ("7771000", "Left")),
    ("Bone", 1, 3, ("272673000", "Bone"), None),
    ("Air", 1, 4, ("15158005", "Air"), None),
]


@pytest.fixture(scope="session")
def card() -> Card:
    """A model of five segments in two planes, the first of which overlaps the others."""
    text = _CARD
    for number, (label, plane, value, kind, modifier) in enumerate(_SEGMENTS, 1):
        text += f'[[segments]]\nnumber = {number}\nlabel = "{label}"\nplane = {plane}\n'
        text += f"value = {value}\ncolour = [{number}0000, 40000, 30000]\n"
        text += (
            'category = {value = "91723000", scheme = "SCT", meaning = "Anatomical structure"}\n'
        )
        text += f'type = {{value = "{kind[0]}", scheme = "SCT", meaning = "{kind[1]}"}}\n'
        if modifier:
            text += f'[[segments.modifiers]]\nvalue = "{modifier[0]}"\nscheme = "SCT"\n'
            text += f'meaning = "{modifier[1]}"\n'
    return parse_card(text, where="a test's card")


@pytest.fixture(scope="session")
def hu() -> NDArray[np.int16]:
    """Towards head, posterior and left: a marker of 1000 HU, off the middle of a body of 40 HU.

    No two slices of the body are alike.
    """
    values = np.full((9, 20, 26), -1000, np.int16)
    for number in range(1, 8):
        values[number, 3:17, 4 : 14 + number] = 40
    values[5:7, 4:7, 15:20] = 1000
    return values


@pytest.fixture(scope="session")
def labels(hu: NDArray[np.int16]) -> NDArray[np.uint8]:
    """What a perfect model gives for `hu`, on its grid; nothing is labelled Air."""
    planes = np.zeros((2, *hu.shape), np.uint8)
    planes[0] = hu > -500
    planes[1][3:5, 6:12, 5:10] = 1
    planes[1][3:6, 6:12, 14:20] = 2
    planes[1][hu == 1000] = 3
    return planes


@pytest.fixture(scope="session")
def identity() -> ResultIdentity:
    return ResultIdentity(job_key="ab" * 32, model_digest="cd" * 32, node_id="node-1")


@pytest.fixture
def series(hu: NDArray[np.int16]) -> list[Dataset]:
    """The phantom as an axial series from the feet up."""
    return ct_series(hu, spacing_mm=SPACING_MM, seed="phantom")


@pytest.fixture
def stack(series: list[Dataset]) -> Stack:
    return stack_series([as_file(image) for image in series])


@dataclass(frozen=True)
class Made:
    """A result with all that it was made from; its series runs head first, so grids differ."""

    data: bytes
    stack: Stack
    labels: NDArray[np.uint8]
    card: Card
    findings: Findings


@pytest.fixture
def made(stack: Stack, labels: NDArray[np.uint8], card: Card, identity: ResultIdentity) -> Made:
    on_slices = labels[:, ::-1]  # the stack runs towards the feet, the labels towards the head
    findings = Findings()
    data = b"".join(
        encode(stack, on_slices, card, findings, identity, datetime(2026, 2, 3, 4, 5, 6))
    )
    return Made(data, stack, on_slices, card, findings)


@dataclass(frozen=True)
class RunningOrthanc:
    url: str
    user: str
    password: str

    def ask(self, path: str, data: bytes | None = None) -> bytes:
        """Ask Orthanc's own API."""
        login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request = urllib.request.Request(
            self.url + path, data, headers={"Authorization": f"Basic {login}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture(scope="session")
def orthanc(
    tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Iterator[RunningOrthanc]:
    """An Orthanc of our own with DICOMweb and a login."""
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), free_port()) as running:
        yield running


@contextmanager
def running_orthanc(folder: Path, port: int, **more: object) -> Iterator[RunningOrthanc]:
    """Run an Orthanc with its files in `folder`, and `more` settings."""
    if not (ORTHANC.exists() and DICOMWEB.exists()):
        if os.environ.get("CI"):
            pytest.fail("Orthanc is not installed; `make test` installs it")
        pytest.skip("Orthanc is not installed; `make test` installs it")
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"worker": "secret"},
        "Plugins": [str(DICOMWEB)],
        "DicomWeb": {"Enable": True},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings | more))
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([ORTHANC, folder / "orthanc.json"], stdout=log, stderr=log)
    running = RunningOrthanc(f"http://127.0.0.1:{port}", "worker", "secret")
    try:
        _wait_for(running)
        yield running
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


def _wait_for(orthanc: RunningOrthanc) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            orthanc.ask("/system")
            return
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
