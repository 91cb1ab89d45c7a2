"""A node with a certificate that nobody vouches for: worker and pages reach it by HTTPS alone."""

from __future__ import annotations

import base64
import json
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from segnode_cli.ct_series import ct_series
from segnode_cli.node import CONFIG, Node, prepare
from segnode_cli.phantom import chest_phantom
from segnode_cli.supervise import check_programs, running
from segnode_contract.errors import SetupError
from segnode_contract.settings import load_settings
from segnode_worker.archive import trust_in

from ..conftest import free_port
from .conftest import need
from .test_road import send_and_wait

_NO_HTTPS = (
    "Orthanc 1.10.1 and 1.12.7 of Debian serve no HTTPS: their libcivetweb looks for libssl.so, "
    "which comes with libssl-dev only, and with it ends by SIGSEGV at the first request, for it "
    "calls a function that OpenSSL 3 lacks"
)

_NO_SERVER = 255

_OPENSSL = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def unable(folder: Path) -> bool:
    """Whether this Orthanc cannot serve HTTPS."""
    try:
        orthanc = check_programs()["Orthanc"]
    except SetupError as error:
        need(False, error.sentence)
    return ends_with_https(orthanc, folder, self_signed(folder, "pacs.example"))


@pytest.fixture(scope="module")
def prepared(folder: Path, unable: bool) -> Node:
    """The demo's node, with a certificate that names another host."""
    config = folder / "segnode.toml"
    demo = (CONFIG / "demo.toml").read_text()
    config.write_text(demo.replace('certificate = ""', f'certificate = "{folder}/node.pem"'))
    return prepare(folder / "data", config, load_settings(config))


@pytest.fixture(scope="module")
def node(prepared: Node, unable: bool) -> Iterator[Node]:
    if unable:
        pytest.skip(_NO_HTTPS)
    with running(prepared, 1, print):
        yield prepared


def self_signed(folder: Path, host: str) -> Path:
    """Make one PEM file of a certificate and its key."""
    key, certificate, both = (folder / name for name in ("key.pem", "certificate.pem", "node.pem"))
    subprocess.run(
        [*_OPENSSL, "-subj", f"/CN={host}", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    both.write_text(certificate.read_text() + key.read_text())
    return both


def ends_with_https(orthanc: str, folder: Path, certificate: Path) -> bool:
    """Return whether Orthanc alone, without plugins, ends at the start or the first request."""
    archive, port = str(folder / "probe"), free_port()
    settings = {
        "StorageDirectory": archive,
        "IndexDirectory": archive,
        "HttpPort": port,
        "DicomServerEnabled": False,
        "SslEnabled": True,
        "SslCertificate": str(certificate),
    }
    (folder / "probe.json").write_text(json.dumps(settings))
    with (folder / "probe.log").open("w") as log:
        server = subprocess.Popen([orthanc, str(folder / "probe.json")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while server.poll() is None and time.monotonic() < deadline:
            if answers(f"https://127.0.0.1:{port}/system", certificate):
                return False
            time.sleep(0.1)
    finally:
        server.terminate()
        server.wait(30)
    said = (folder / "probe.log").read_text()
    assert server.returncode in (-signal.SIGSEGV, _NO_SERVER, 0), said
    # it says so of the port whatever keeps its HTTP server from starting
    assert server.returncode != _NO_SERVER or "privileged or already in use" in said, said
    return server.returncode != 0


def answers(url: str, certificate: Path) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5, context=trust_in(str(certificate))).close()
    except OSError:
        return False
    return True


def page(node: Node, path: str, trust: ssl.SSLContext | None) -> tuple[int, bytes]:
    word = base64.b64encode(f"viewer:{node.passwords['viewer']}".encode()).decode()
    request = urllib.request.Request(node.url + path, headers={"Authorization": f"Basic {word}"})
    with urllib.request.urlopen(request, timeout=30, context=trust) as answer:
        return int(answer.status), answer.read()


def test_a_job_is_done_and_shown_by_https_alone(node: Node, tmp_path: Path) -> None:
    phantom = chest_phantom()
    images = ct_series(phantom.hu[:60], spacing_mm=phantom.spacing_mm, seed="tls")
    jobs = send_and_wait(node, images, tmp_path, count=2)
    assert [(job.state, job.error_sentence) for job in jobs] == [("done", None)] * 2
    assert node.url.startswith("https://")
    status, shown = page(node, f"/segnode/jobs/{jobs[0].key}", trust_in(node.certificate))
    assert status == 200
    assert b"done" in shown
    assert page(node, "/ohif/", trust_in(node.certificate))[0] == 200


def test_who_does_not_know_the_certificate_turns_away(node: Node) -> None:
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        page(node, "/segnode/", None)


def test_nothing_answers_without_tls(node: Node) -> None:
    with pytest.raises((OSError, urllib.error.HTTPError)):
        urllib.request.urlopen(node.url.replace("https", "http", 1) + "/segnode/", timeout=10)


def test_an_orthanc_that_cannot_serve_https_is_named_with_a_cure(
    prepared: Node, unable: bool
) -> None:
    if not unable:
        pytest.skip("this Orthanc serves HTTPS")
    with (
        pytest.raises(SetupError, match=r"cannot serve HTTPS.*put a proxy with TLS in front"),
        running(prepared, 1, print),
    ):
        pass
