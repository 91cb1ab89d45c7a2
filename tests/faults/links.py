"""What stands between the servers of a test's node, and can be made to misbehave."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

from pydicom import dcmread

_JSON = "application/dicom+json"
_SILENT_S = 30.0


class ArchiveLink:
    """Forwards HTTP to Orthanc; the next store can be answered as `next_store` says.

    ======================  ====================================================================
    ``500``, ``409``        The answer, nothing stored.
    ``a700``                200 that lists the instance as failed: out of resources.
    ``0110``                200 that lists the instance as failed: processing failure.
    ``202``                 202 that lists another instance as stored, ours as out of resources.
    ``silent``              Stored, and no answer.
    ``cut after``           Stored, and the connection reset.
    ``cut body``            Half of the body handed on, then the connection reset.
    ``hold``                Half of the body handed on, the rest after `release`.
    ``other``               Stored with other pixels under the same UID, and the answer to that.
    ======================  ====================================================================
    """

    def __init__(self, orthanc_port: int) -> None:
        self.orthanc_port = orthanc_port
        self.next_store = ""
        self.cut = False
        """Every connection is dropped."""
        self.held = threading.Event()
        self.released = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.port = int(self._server.server_address[1])

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Forward inside the ``with``."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.mend()
            self._server.shutdown()
            self._server.server_close()

    def hold_next(self) -> None:
        """Stop the next store in the middle of its body."""
        self.held.clear()
        self.released.clear()
        self.next_store = "hold"

    def mend(self) -> None:
        """Behave."""
        self.next_store = ""
        self.cut = False
        self.released.set()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: that a client is killed is what this is for."""


class _Reset(Exception):
    """The connection is to be reset."""


def _handler(link: ArchiveLink) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _SILENT_S

        def do_GET(self) -> None:
            self._serve("")

        def do_POST(self) -> None:
            fault = ""
            if self.path.startswith("/dicom-web/studies"):
                fault, link.next_store = link.next_store, ""
            self._serve(fault)

        def _serve(self, fault: str) -> None:
            try:
                if link.cut:
                    raise _Reset
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._answer(fault, body)
            except (_Reset, OSError, http.client.HTTPException):
                self.close_connection = True
                with contextlib.suppress(OSError):
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.connection.shutdown(socket.SHUT_RD)

        def _answer(self, fault: str, body: bytes) -> None:
            match fault:
                case "500":
                    self._send(500, "text/plain", b"")
                case "409" | "a700" | "0110":
                    status = 409 if fault == "409" else 200
                    reason = 0x0110 if fault == "0110" else 0xA700
                    self._send(status, _JSON, _failed(body, reason))
                case "202":
                    self._send(202, _JSON, _failed(body, 0xA700, stored="1.2.3"))
                case "silent":
                    self._forward(body)
                    time.sleep(_SILENT_S)
                    raise _Reset
                case "cut after":
                    self._forward(body)
                    raise _Reset
                case "cut body":
                    self._half(body)
                    raise _Reset
                case "hold":
                    self._hold(body)
                case "other":
                    self._send(*self._forward(_other_pixels(body)))
                case _:
                    self._send(*self._forward(body))

        def _forward(self, body: bytes) -> tuple[int, str, bytes]:
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            upstream = http.client.HTTPConnection("127.0.0.1", link.orthanc_port, timeout=60)
            try:
                upstream.request(self.command, self.path, body or None, headers)
                answer = upstream.getresponse()
                return answer.status, answer.headers.get("Content-Type", ""), answer.read()
            finally:
                upstream.close()

        def _half(self, body: bytes) -> http.client.HTTPConnection:
            upstream = http.client.HTTPConnection("127.0.0.1", link.orthanc_port, timeout=60)
            upstream.putrequest(self.command, self.path, skip_host=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body[: len(body) // 2])
            return upstream

        def _hold(self, body: bytes) -> None:
            upstream = self._half(body)
            try:
                link.held.set()
                while not link.released.wait(0.02):
                    if _gone(self.connection):
                        raise _Reset
                upstream.send(body[len(body) // 2 :])
                answer = upstream.getresponse()
                kind = answer.headers.get("Content-Type", "")
                self._send(answer.status, kind, answer.read())
            finally:
                upstream.close()

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            if kind:
                self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler


def _gone(connection: socket.socket) -> bool:
    readable, _, _ = select.select([connection], [], [], 0)
    return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""


def _part(body: bytes) -> tuple[int, int]:
    """Return where the one DICOM file of a multipart body begins and ends."""
    begin = body.index(b"\r\n\r\n") + 4
    return begin, body.rindex(b"\r\n--")


def _failed(body: bytes, reason: int, stored: str = "") -> bytes:
    begin, end = _part(body)
    head = dcmread(BytesIO(body[begin:end]), stop_before_pixels=True)
    item = {
        "00081150": {"vr": "UI", "Value": [head.SOPClassUID]},
        "00081155": {"vr": "UI", "Value": [head.SOPInstanceUID]},
        "00081197": {"vr": "US", "Value": [reason]},
    }
    answer: dict[str, object] = {"00081198": {"vr": "SQ", "Value": [item]}}
    if stored:
        other = {"00081155": {"vr": "UI", "Value": [stored]}}
        answer["00081199"] = {"vr": "SQ", "Value": [other]}
    return json.dumps(answer).encode()


def _other_pixels(body: bytes) -> bytes:
    begin, end = _part(body)
    file = bytearray(body[begin:end])
    file[-1] ^= 0x10
    return body[:begin] + bytes(file) + body[end:]


class SlowLink:
    """Forwards TCP; every piece waits for `delay_s`, and nothing passes while `cut`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.delay_s = 0.0
        self.cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Forward inside the ``with``."""
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield
        finally:
            self.delay_s, self.cut = 0.0, False
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), 2)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            threading.Thread(target=self._forward, args=(near, far), daemon=True).start()

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        with near, far:
            back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
            back.start()
            self._pump(near, far)
            back.join()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                time.sleep(self.delay_s)
                while self.cut:
                    time.sleep(0.05)
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
