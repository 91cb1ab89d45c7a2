"""How images are asked for: without compression, and over one connection where the archive can."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.errors import ArchiveUnavailable
from segnode_worker.archive import DicomWebArchive
from segnode_worker.multipart import body
from segnode_worker.stack import stack_series

SERIES = "/dicom-web/studies/1.2/series/3.4"


@pytest.fixture
def asked(free_port):
    """An archive that has one series, and what it was asked: headers and client's port."""
    seen = []
    _, pieces = body("b", b"an image")
    content = b"".join(pieces)

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            seen.append((self.headers, self.client_address[1]))
            there = self.path == SERIES
            said = content if there else b"there is none"
            self.send_response(200 if there else 404)
            self.send_header("Content-Type", "multipart/related; boundary=b")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", free_port()), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    yield DicomWebArchive(url, "worker", "secret", timeout_s=5), seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_images_are_asked_for_as_they_are_and_over_one_connection(asked):
    archive, seen = asked
    for _ in range(3):
        assert archive.fetch_series("1.2", "3.4") == [b"an image"]
        assert archive.fetch_series("1.2", "5.6") == []
    assert {headers["Accept-Encoding"] for headers, _ in seen} == {"identity"}
    assert len({port for _, port in seen}) == 1


def test_the_instances_of_a_series_are_known_by_their_uids(orthanc, hu):
    images = ct_series(hu, spacing_mm=(3, 1.5, 1.25), seed="listed")
    for image in images:
        orthanc.ask("/instances", as_file(image))
    archive = DicomWebArchive(orthanc.dicomweb, orthanc.user, orthanc.password)
    study_uid, series_uid = images[0].StudyInstanceUID, images[0].SeriesInstanceUID
    found = archive.instance_uids(study_uid, series_uid)
    assert sorted(found) == sorted(image.SOPInstanceUID for image in images)
    assert archive.instance_uids(study_uid, "4.5.6") == []
    assert archive.instance_uids("1.2.3", series_uid) == []


@pytest.fixture
def searched(free_port):
    """Start an archive of instances that gives a few at once, and return it."""
    servers = []

    def start(count, at_once, *, pages=True, status=200, said=None):
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                offset = int(parse_qs(urlsplit(self.path).query)["offset"][0]) if pages else 0
                uids = [f"1.{number}" for number in range(count)][offset : offset + at_once]
                found = [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in uids]
                answer = json.dumps(found).encode() if said is None else said
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", free_port()), Answer)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        servers.append((server, thread))
        return DicomWebArchive(f"http://127.0.0.1:{server.server_port}/dicom-web", "", "")

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("count", "at_once", "pages"), [(7, 3, True), (6, 3, True), (0, 3, True), (5, 5, False)]
)
def test_an_archive_may_list_a_few_instances_at_once(searched, count, at_once, pages):
    archive = searched(count, at_once, pages=pages)
    assert archive.instance_uids("1.2", "3.4") == [f"1.{number}" for number in range(count)]


@pytest.mark.parametrize("status", [204, 404])
def test_a_search_that_finds_nothing_is_no_error(searched, status):
    assert searched(0, 1, status=status, said=b"").instance_uids("1.2", "3.4") == []


@pytest.mark.parametrize(
    ("status", "said"),
    [(200, b"<html>"), (200, b"[1]"), (200, b"[{}]"), (200, b""), (400, b""), (503, b"")],
)
def test_what_is_no_list_of_instances_is_worth_another_try(searched, status, said):
    with pytest.raises(ArchiveUnavailable):
        searched(0, 1, status=status, said=said).instance_uids("1.2", "3.4")


def test_large_images_come_whole_from_an_orthanc_that_may_compress(orthanc, hu):
    large = hu.repeat(20, axis=1).repeat(20, axis=2)  # 400 kB each, in several reads
    images = ct_series(large, spacing_mm=(3, 0.1, 0.1), seed="large")
    files = [as_file(image) for image in images]
    for file in files:
        orthanc.ask("/instances", file)
    archive = DicomWebArchive(orthanc.dicomweb, orthanc.user, orthanc.password)
    found = archive.fetch_series(images[0].StudyInstanceUID, images[0].SeriesInstanceUID)
    assert stack_series(found).digest == stack_series(files).digest
