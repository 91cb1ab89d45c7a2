"""A real Orthanc that serves our pages behind our filter."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from segnode_contract.ledger import Ledger

from ..conftest import free_port
from .rows import finish_job, queue_job

CONFIG = Path(__file__).parents[2] / "orthanc-config"
PLUGINS = Path("/usr/share/orthanc/plugins")
SCRIPT_NAME = "CANARY^<script>alert(1)</script>"
PASSWORD = "made-up"


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    cookies: list[str] = field(default_factory=list)
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True, kw_only=True)
class PageNode:
    port: int
    log: Path

    def ask(
        self,
        path: str,
        *,
        user: str | None = "viewer",
        password: str = PASSWORD,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request with the path exactly as it stands."""
        sent = dict(headers or {})
        if user:
            word = base64.b64encode(f"{user}:{password}".encode()).decode()
            sent["Authorization"] = f"Basic {word}"
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            link.request(method, path, body, sent)
            answer = link.getresponse()
            return Answer(
                status=answer.status,
                headers={k.lower(): v for k, v in answer.getheaders()},
                cookies=answer.headers.get_all("Set-Cookie") or [],
                body=answer.read(),
            )
        finally:
            link.close()


@pytest.fixture(scope="session")
def page_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageNode]:
    """An Orthanc with two studies, of which 1.2 has a finished job."""
    if not (PLUGINS / "libOrthancPython.so").exists():
        if os.environ.get("CI"):
            pytest.fail("orthanc-python is not installed; `make test` installs it")
        pytest.skip("orthanc-python is not installed; `make test` installs it")
    folder = tmp_path_factory.mktemp("pages")
    url = f"sqlite:///{folder}/ledger.sqlite"
    ledger = Ledger(url)
    ledger.migrate()
    queue_job(ledger, study_uid="1.2")
    finish_job(ledger)
    ledger.close()
    _images(folder / "images", "1.2", "1.9")
    node = PageNode(port=free_port(), log=folder / "orthanc.log")
    (folder / "orthanc.json").write_text(json.dumps(_settings(folder, node.port)))
    environment = os.environ | {
        "SEGNODE_CONFIG": str(CONFIG / "segnode.toml"),
        "SEGNODE_LEDGER_URL": url,
        "TEST_IMAGES": str(folder / "images"),
        "TEST_SITE": sysconfig.get_path("purelib"),
    }
    with node.log.open("w") as log:
        server = subprocess.Popen(
            ["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log, env=environment
        )
        try:
            _wait(node, server)
            yield node
        finally:
            server.terminate()
            server.wait(30)


def _wait(node: PageNode, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, node.log.read_text()
        assert time.monotonic() < deadline, node.log.read_text()
        try:
            studies = node.ask("/dicom-web/studies").body
        except OSError:
            studies = b""
        if studies.count(b"0020000D") == 2:
            return
        time.sleep(0.1)


def _images(folder: Path, *study_uids: str) -> None:
    folder.mkdir()
    for uid in study_uids:
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = CTImageStorage
        image.StudyInstanceUID, image.SeriesInstanceUID = uid, f"{uid}.3"
        image.SOPInstanceUID = f"{uid}.3.1"
        image.PatientID, image.PatientName, image.Modality = uid, SCRIPT_NAME, "CT"
        image.save_as(folder / f"{uid}.dcm", enforce_file_format=True)


def _settings(folder: Path, port: int) -> dict[str, object]:
    base = json.loads((CONFIG / "orthanc.json").read_text())
    return base | {
        "StorageDirectory": str(folder / "archive"),
        "IndexDirectory": str(folder / "archive"),
        "HttpPort": port,
        "HttpBindAddresses": ["127.0.0.1"],
        "RemoteAccessAllowed": False,
        "DicomServerEnabled": False,
        "RegisteredUsers": dict.fromkeys(("admin", "operator", "viewer", "worker"), PASSWORD),
        "PythonScript": str(Path(__file__).with_name("orthanc_script.py")),
    }
