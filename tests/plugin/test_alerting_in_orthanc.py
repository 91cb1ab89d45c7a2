"""The plugin in a real Orthanc tells people, by the TLS of the interpreter embedded there."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from segnode_contract.ledger import Ledger, schema

from ..conftest import free_port
from .conftest import CONFIG, PASSWORD, PLUGINS
from .receivers import MailServer, mail_server, self_signed, tls_with
from .rows import queue_job

ROOT = Path(__file__).parents[2]


@pytest.fixture
def told(tmp_path: Path) -> Iterator[MailServer]:
    """A mail server, while an Orthanc starts in whose ledger a job is dead."""
    if not (PLUGINS / "libOrthancPython.so").exists():
        if os.environ.get("CI"):
            pytest.fail("orthanc-python is not installed; `make test` installs it")
        pytest.skip("orthanc-python is not installed; `make test` installs it")
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    ledger.migrate()
    queue_job(ledger)
    with ledger.write() as connection:
        connection.execute(update(schema.job).values(state="dead", error_code="internal"))
    ledger.close()
    certificate = self_signed(tmp_path)
    with mail_server(starttls=tls_with(certificate), password="a-secret") as mail:
        settings = _settings(tmp_path, certificate, mail.port)
        log = (tmp_path / "orthanc.log").open("w")
        server = subprocess.Popen(
            ["Orthanc", str(settings)], stdout=log, stderr=log, env=_environment(tmp_path)
        )
        try:
            yield mail
        finally:
            server.terminate()
            server.wait(30)
            log.close()


def _settings(folder: Path, authority: Path, port: int) -> Path:
    alerts = f"""
email_to = ["it@hospital.example"]
email_from = "segnode@hospital.example"
smtp_host = "127.0.0.1"
smtp_port = {port}
certificate = "{authority}"
"""
    demo = (CONFIG / "demo.toml").read_text()
    (folder / "segnode.toml").write_text(f"{demo}\n[alerts]{alerts}")
    base = json.loads((CONFIG / "orthanc.json").read_text())
    base |= {
        "StorageDirectory": str(folder / "archive"),
        "IndexDirectory": str(folder / "archive"),
        "HttpPort": free_port(),
        "HttpBindAddresses": ["127.0.0.1"],
        "RemoteAccessAllowed": False,
        "DicomServerEnabled": False,
        "RegisteredUsers": {"admin": PASSWORD},
        "PythonScript": str(ROOT / "plugin" / "orthanc_entry.py"),
    }
    (folder / "orthanc.json").write_text(json.dumps(base))
    return folder / "orthanc.json"


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "SEGNODE_CONFIG": str(folder / "segnode.toml"),
        "SEGNODE_DATA": str(folder),
        "SEGNODE_LEDGER_URL": f"sqlite:///{folder}/ledger.sqlite",
        "SEGNODE_BROKER_URL": f"redis://127.0.0.1:{free_port()}/0",
        "SEGNODE_ARCHIVE_URL": "http://127.0.0.1:1/dicom-web",
        "SEGNODE_ARCHIVE_USER": "worker",
        "SEGNODE_ARCHIVE_PASSWORD": PASSWORD,
        "SEGNODE_VENV": str(ROOT / ".venv"),
        "SEGNODE_SMTP_USER": "node",
        "SEGNODE_SMTP_PASSWORD": "a-secret",
    }


def test_orthanc_tells_of_a_dead_job_by_encrypted_mail(told: MailServer, tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    while not told.mails:
        assert time.monotonic() < deadline, (tmp_path / "orthanc.log").read_text()
        time.sleep(0.2)
    assert told.encrypted == [True]
    assert "1 job is dead: 1 by internal (such as 00000001eeee)" in told.text()
    log = (tmp_path / "orthanc.log").read_text()
    assert "alert told" in log
    assert "a-secret" not in log
