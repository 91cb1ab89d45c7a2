"""What counts as stored, against a real Orthanc; a server of our own for what it never answers."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import JPEGLSLossless

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.errors import ArchiveUnavailable, StoreRefused, UidCollision
from segnode_worker.archive import DicomWebArchive, confirm
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.stack import stack_series


@pytest.fixture
def archive(orthanc):
    return DicomWebArchive(orthanc.dicomweb, orthanc.user, orthanc.password)


@pytest.fixture
def stored(orthanc, hu, request):
    """A series in Orthanc, of the test's own, and its files."""
    images = ct_series(hu, spacing_mm=(3, 1.5, 1.25), seed=request.node.name)
    return put(orthanc, images)


def put(orthanc, images):
    files = [as_file(image) for image in images]
    for file in files:
        orthanc.ask("/instances", file)
    return images, files


@pytest.fixture
def result(stored, labels, card, request):
    """A result of the stored series."""
    return result_of(stored[1], labels, card, request.node.name)


def result_of(files, labels, card, key):
    identity = ResultIdentity(job_key=key, model_digest="cd" * 32, node_id="node-1")
    from segnode_contract.findings import Findings

    return b"".join(
        encode(
            stack_series(files), labels[:, ::-1], card, Findings(), identity, datetime(2026, 1, 1)
        )
    )


def test_a_series_comes_back_as_the_files_that_went_in(archive, stored):
    images, files = stored
    found = archive.fetch_series(images[0].StudyInstanceUID, images[0].SeriesInstanceUID)
    assert stack_series(found).digest == stack_series(files).digest
    assert len(found) == len(files)


def test_compressed_images_stay_compressed(archive, orthanc, hu):
    images = ct_series(hu, spacing_mm=(3, 1.5, 1.25), transfer_syntax=JPEGLSLossless)
    put(orthanc, images)
    found = archive.fetch_series(images[0].StudyInstanceUID, images[0].SeriesInstanceUID)
    assert {dcmread(BytesIO(f)).file_meta.TransferSyntaxUID for f in found} == {JPEGLSLossless}
    assert np.array_equal(stack_series(found).volume.array, hu[::-1])


def test_what_the_archive_lacks_is_none_and_no_error(archive, stored):
    study_uid = stored[0][0].StudyInstanceUID
    assert archive.fetch_series("1.2.3", "4.5.6") == []
    assert archive.fetch_series(study_uid, "4.5.6") == []
    assert archive.fetch_instance(study_uid, "4.5.6", "7.8.9") is None


def test_a_stored_result_is_confirmed_by_reading_it_back(archive, stored, result):
    study_uid = stored[0][0].StudyInstanceUID
    archive.store(study_uid, result)
    confirm(archive, study_uid, result)


def test_storing_the_same_result_twice_is_no_error(archive, stored, result):
    study_uid = stored[0][0].StudyInstanceUID
    archive.store(study_uid, result)
    archive.store(study_uid, result)
    confirm(archive, study_uid, result)


def test_a_result_that_is_not_there_is_worth_another_try(archive, stored, result):
    with pytest.raises(ArchiveUnavailable, match="does not have the result"):
        confirm(archive, stored[0][0].StudyInstanceUID, result)


def test_other_content_under_our_uid_is_a_collision_though_the_store_said_well(
    archive, stored, labels, card, request
):
    study_uid = stored[0][0].StudyInstanceUID
    key = request.node.name
    archive.store(study_uid, result_of(stored[1], labels, card, key))
    other = labels.copy()
    other[0, 4, 9, 9] = 0
    mine = result_of(stored[1], other, card, key)
    archive.store(study_uid, mine)
    with pytest.raises(UidCollision, match=r"other content under the UID 2\.25\."):
        confirm(archive, study_uid, mine)


def test_equal_content_in_other_bytes_is_confirmed(archive, stored, result):
    study_uid = stored[0][0].StudyInstanceUID
    rewritten = dcmread(BytesIO(result))
    rewritten.file_meta.ImplementationVersionName = "ANOTHER"
    archive.store(study_uid, as_file(rewritten))
    confirm(archive, study_uid, result)


def test_a_result_for_another_study_is_refused_with_the_archives_reason(archive, stored, result):
    with pytest.raises(StoreRefused, match=r"answered 4\d\d and did not store"):
        archive.store("1.2.3", result)


def test_a_wrong_password_names_its_cure(orthanc, stored, result):
    stranger = DicomWebArchive(orthanc.dicomweb, "worker", "wrong")
    study_uid, series_uid = stored[0][0].StudyInstanceUID, stored[0][0].SeriesInstanceUID
    for ask in (
        lambda: stranger.fetch_series(study_uid, series_uid),
        lambda: stranger.store(study_uid, result),
    ):
        with pytest.raises(ArchiveUnavailable, match="password") as refused:
            ask()
        assert refused.value.code == "archive-password"
        assert "wrong" not in refused.value.sentence


def test_an_archive_that_is_down_is_worth_another_try(free_port, made):
    archive = DicomWebArchive(f"http://127.0.0.1:{free_port()}/dicom-web", "worker", "secret")
    with pytest.raises(ArchiveUnavailable, match="does not answer"):
        archive.fetch_series("1.2", "3.4")
    with pytest.raises(ArchiveUnavailable, match="does not answer"):
        archive.store("1.2", made.data)


def test_an_address_without_dicomweb_names_its_cure(orthanc, stored):
    archive = DicomWebArchive(f"{orthanc.url}/app", orthanc.user, orthanc.password)
    assert archive.fetch_series("1.2", "3.4") == []


@pytest.fixture
def odd(free_port):
    """Start a server that gives one answer to everything, and return an archive at it."""
    servers = []

    def start(status, body=b"", headers=(), timeout_s=5, certificate="", trusted=""):
        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                seen.append(self.command)
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if status is None:
                    released.wait(20)
                    return
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                if not any(name == "Content-Length" for name, _ in headers):
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = True

            do_POST = do_GET

            def log_message(self, *args):
                pass

        seen, released = [], threading.Event()
        server = ThreadingHTTPServer(("127.0.0.1", free_port()), Answer)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.handle_error = lambda *_: None  # a handshake that is broken off
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        servers.append((server, thread, released))
        scheme = "https" if certificate else "http"
        url = f"{scheme}://127.0.0.1:{server.server_port}/dicom-web"
        archive = DicomWebArchive(url, "worker", "secret", timeout_s=timeout_s, certificate=trusted)
        return archive, seen

    yield start
    for server, thread, released in servers:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_in_trouble_is_worth_another_try(odd, made, status):
    archive, _ = odd(status, b"no")
    with pytest.raises(ArchiveUnavailable, match=str(status)):
        archive.fetch_series("1.2", "3.4")
    with pytest.raises(ArchiveUnavailable, match=str(status)):
        archive.store("1.2", made.data)


def test_a_silent_server_is_worth_another_try_and_a_store_is_sent_once(odd, made):
    archive, seen = odd(None, timeout_s=0.3)
    with pytest.raises(ArchiveUnavailable, match="does not answer"):
        archive.store("1.2", made.data)
    assert seen == ["POST"]


def answer_of(**sequences):
    tags = {"stored": "00081199", "failed": "00081198"}
    answer = {}
    for name, items in sequences.items():
        answer[tags[name]] = {
            "vr": "SQ",
            "Value": [
                {"00081155": {"vr": "UI", "Value": [uid]}}
                | ({"00081197": {"vr": "US", "Value": [reason]}} if reason else {})
                for uid, reason in items
            ],
        }
    return json.dumps(answer).encode()


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (b"", ArchiveUnavailable, "did not say what it stored"),
        (b"<html>", ArchiveUnavailable, "did not say what it stored"),
        (b"[1]", ArchiveUnavailable, "did not say what it stored"),
        (b"{}", ArchiveUnavailable, "without a reason"),
        (answer_of(failed=[]), ArchiveUnavailable, "whether its disk is full"),
        (answer_of(stored=[("1.2.3", None)]), ArchiveUnavailable, "without a reason"),
        (answer_of(failed=[("OURS", 0x0110)]), StoreRefused, "for the reason 0110H"),
        (answer_of(failed=[("OURS", 0x0111)]), StoreRefused, "for the reason 0111H"),
    ],
)
def test_an_answer_of_200_is_no_success_without_our_uid(odd, made, body, error, words):
    uid = dcmread(BytesIO(made.data)).SOPInstanceUID.encode()
    archive, _ = odd(200, body.replace(b"OURS", uid))
    with pytest.raises(error, match=words):
        archive.store("1.2", made.data)


def test_a_full_archive_is_worth_another_try(odd, made):
    uid = str(dcmread(BytesIO(made.data)).SOPInstanceUID)
    archive, _ = odd(409, answer_of(failed=[(uid, 0xA700)]))
    with pytest.raises(ArchiveUnavailable, match="A700H"):
        archive.store("1.2", made.data)


def test_an_answer_of_400_is_success_when_it_lists_our_uid(odd, made):
    uid = str(dcmread(BytesIO(made.data)).SOPInstanceUID)
    archive, _ = odd(400, answer_of(stored=[(uid, None)]))
    archive.store("1.2", made.data)


def test_a_redirect_is_not_followed(odd, made):
    archive, seen = odd(302, headers=[("Location", "http://127.0.0.1:1/")])
    with pytest.raises(ArchiveUnavailable, match="redirect"):
        archive.fetch_series("1.2", "3.4")
    with pytest.raises(ArchiveUnavailable, match="redirect"):
        archive.store("1.2", made.data)
    assert seen == ["GET", "POST"]


@pytest.mark.parametrize(
    ("kind", "body", "length"),
    [
        ("multipart/related; boundary=b", b"--b\r\nX: y\r\n\r\nhalf an ima", 500),
        ("multipart/related; boundary=b", b"--b\r\nX: y\r\n\r\nan image\r\n--b\r\nX: y", None),
        ("multipart/related; boundary=b", b"", None),
        ("text/html", b"<html>", None),
        ("multipart/related", b"--b", None),
    ],
)
def test_an_answer_that_breaks_off_is_worth_another_try(odd, kind, body, length):
    headers = [("Content-Type", kind)]
    if length:
        headers.append(("Content-Length", str(length)))
    archive, _ = odd(200, body, headers)
    with pytest.raises(ArchiveUnavailable):
        archive.fetch_series("1.2", "3.4")


_SELF_SIGNED = [
    "openssl",
    "req",
    "-x509",
    "-newkey",
    "rsa:2048",
    "-nodes",
    "-days",
    "1",
    "-subj",
    "/CN=pacs.example",
]


@pytest.fixture
def certificates(tmp_path):
    """Two self-signed certificates with their keys, for a name that nothing here has."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made = []
    for name in ("ours", "strangers"):
        pem, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        subprocess.run(
            [*_SELF_SIGNED, "-keyout", key, "-out", pem],
            check=True,
            capture_output=True,
        )
        pem.write_text(pem.read_text() + key.read_text())
        made.append(str(pem))
    return made


@pytest.mark.parametrize(
    ("given", "taken"), [("ours", True), ("strangers", False), ("none", False)]
)
def test_an_archive_is_known_by_its_own_certificate_alone(odd, certificates, given, taken):
    trusted = dict(zip(("ours", "strangers"), certificates, strict=True)).get(given, "")
    archive, _ = odd(404, certificate=certificates[0], trusted=trusted)
    if taken:
        assert archive.fetch_series("1.2", "1.2.3") == []
    else:
        with pytest.raises(ArchiveUnavailable, match="certificate is not the one"):
            archive.fetch_series("1.2", "1.2.3")
