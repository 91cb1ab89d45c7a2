"""How images are asked for: without compression, and over one connection where the archive can."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from segnode_cli.ct_series import as_file, ct_series
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


def test_large_images_come_whole_from_an_orthanc_that_may_compress(orthanc, hu):
    large = hu.repeat(20, axis=1).repeat(20, axis=2)  # 400 kB each, in several reads
    images = ct_series(large, spacing_mm=(3, 0.1, 0.1), seed="large")
    files = [as_file(image) for image in images]
    for file in files:
        orthanc.ask("/instances", file)
    archive = DicomWebArchive(orthanc.dicomweb, orthanc.user, orthanc.password)
    found = archive.fetch_series(images[0].StudyInstanceUID, images[0].SeriesInstanceUID)
    assert stack_series(found).digest == stack_series(files).digest
