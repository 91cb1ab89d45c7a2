"""A real Orthanc that serves the viewer, and nothing else of segnode."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom import Dataset

ROOT = Path(__file__).parents[2]
PLUGINS = Path("/usr/share/orthanc/plugins")


@dataclass(frozen=True, kw_only=True)
class ViewerNode:
    base_url: str
    user: str
    password: str
    overlays: Path
    """What the ledger answers; while it is absent, the answer is an error."""

    def upload(self, instance: Dataset) -> None:
        """Store one instance."""
        body = BytesIO()
        instance.save_as(body, enforce_file_format=True)
        self.get("/instances", body.getvalue())

    def get(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.base_url + path, data=body)
        login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            content: bytes = answer.read()
        return content

    def say(self, overlays: list[dict[str, str]] | None, hidden: Sequence[str] = ()) -> None:
        """Make the ledger answer so; None makes it fail."""
        if overlays is None:
            self.overlays.unlink(missing_ok=True)
            return
        written = self.overlays.with_suffix(".new")
        written.write_text(json.dumps({"overlays": overlays, "hidden": [*hidden]}))
        written.replace(self.overlays)


@contextmanager
def running_node(folder: Path, dist: Path, port: int) -> Iterator[ViewerNode]:
    """Run Orthanc on a port of the loopback until the block ends."""
    node = ViewerNode(
        base_url=f"http://127.0.0.1:{port}",
        user="viewer",
        password="made-up",
        overlays=folder / "overlays.json",
    )
    settings = folder / "orthanc.json"
    settings.write_text(json.dumps(_settings(folder, port, node)))
    environment = os.environ | {
        "VIEWER_SITE": sysconfig.get_path("purelib"),
        "VIEWER_DIST": str(dist),
        "VIEWER_JS": str(ROOT / "orthanc-config" / "ohif.js"),
        "VIEWER_OVERLAYS": str(node.overlays),
    }
    with (folder / "orthanc.log").open("w") as log:
        orthanc = subprocess.Popen(["Orthanc", settings], env=environment, stderr=log, stdout=log)
    try:
        _wait_for(node, orthanc, folder / "orthanc.log")
        yield node
    finally:
        orthanc.terminate()
        orthanc.wait(30)


def _wait_for(node: ViewerNode, orthanc: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        try:
            node.get("/ohif/app-config.js")
            return
        except (urllib.error.URLError, ConnectionError):
            if orthanc.poll() is not None:
                break
            time.sleep(0.1)
    raise AssertionError(f"Orthanc did not start:\n{log.read_text()[-2000:]}")


def _settings(folder: Path, port: int, node: ViewerNode) -> dict[str, object]:
    return {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": port,
        "HttpBindAddresses": ["127.0.0.1"],
        "HttpThreadsCount": 50,
        "HttpCompressionEnabled": True,
        "KeepAlive": True,
        "TcpNoDelay": True,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {node.user: node.password},
        "Plugins": [str(PLUGINS / f"libOrthanc{name}.so") for name in ("DicomWeb", "Python")],
        "PythonScript": str(Path(__file__).with_name("viewer_plugin.py")),
        "DicomWeb": {
            "Enable": True,
            "Root": "/dicom-web/",
            "StudiesMetadata": "MainDicomTags",
            "SeriesMetadata": "Full",
        },
    }
