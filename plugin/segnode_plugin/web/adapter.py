"""From Orthanc's REST callbacks to WSGI (PEP 3333) and back.

Orthanc 1.10.1 itself answers HEAD and OPTIONS, with 404; it gives the arguments of an address as a
dictionary, in which repeated keys are lost, and with GET alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from werkzeug.datastructures import Headers
from werkzeug.test import run_wsgi_app

from segnode_plugin.access import user_of

log = logging.getLogger(__name__)

_PROBE = "/segnode-probe"
_SENT = "%2C"

_NOT_HANDED_ON = ("authorization", "content-length", "content-type", "if-range", "range")
"""Headers that WSGI names otherwise, or that no answer of ours may depend on: Orthanc sends a part
of a file (206) as text only."""

_STATUS = {301: 302, 308: 307, 401: 403}
"""Orthanc drops the connection at 308, which it does not know, and at what it wants sent otherwise:
301 and 401. The login is its own."""

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


class RestModule(Protocol):
    """The part of the `orthanc` module that serves HTTP (plugin 4.0 to 7.1)."""

    def RegisterRestCallback(self, pattern: str, answer: Callable[..., None]) -> None: ...
    def RestApiGetAfterPlugins(self, uri: str) -> bytes: ...


class RestOutput(Protocol):
    """What a REST callback answers with."""

    def AnswerBuffer(self, body: bytes, content_type: str) -> None: ...
    def SendHttpStatus(self, status: int, *body: bytes | str | int) -> None: ...
    def SendMethodNotAllowed(self, allowed: str) -> None: ...
    def SetHttpHeader(self, name: str, value: str) -> None: ...
    def Redirect(self, path: str) -> None: ...


class Adapter:
    """Serves WSGI applications through Orthanc's own port."""

    def __init__(self, orthanc: RestModule) -> None:
        self._orthanc = orthanc
        self._probed = threading.Lock()
        self._decodes: bool | None = None
        self._seen: str | None = None

    def register(self, app: Application, prefixes: Iterable[str]) -> None:
        """Answer everything below `prefixes` by `app`, and send ``/`` to the pages."""
        self._orthanc.RegisterRestCallback(_PROBE, self._answer_probe)

        def answer(output: RestOutput, uri: str, **request: Any) -> None:
            self._answer(app, output, uri, request)

        for prefix in prefixes:
            self._orthanc.RegisterRestCallback(f"{prefix}(/.*)?", answer)
        self._orthanc.RegisterRestCallback("/", self._to_the_pages)

    def decodes(self) -> bool:
        """Return whether this Orthanc decodes the arguments of an address itself.

        Orthanc 1.13 does, 1.12 and older do not; a request to ourselves tells, not the version.
        """
        with self._probed:
            if self._decodes is None:
                self._orthanc.RestApiGetAfterPlugins(f"{_PROBE}?x={_SENT}")
                self._decodes = self._seen != _SENT
            return self._decodes

    def _answer_probe(self, output: RestOutput, uri: str, **request: Any) -> None:
        self._seen = request["get"].get("x")
        output.AnswerBuffer(b"{}", "application/json")

    def _to_the_pages(self, output: RestOutput, uri: str, **request: Any) -> None:
        output.Redirect("segnode/")

    def _answer(
        self, app: Application, output: RestOutput, uri: str, request: Mapping[str, Any]
    ) -> None:
        try:
            environ = self._environ(uri, request)
            body, status, headers = run_wsgi_app(app, environ, buffered=True)
            _send(output, b"".join(body), int(status.split(" ", 1)[0]), headers)
        except Exception as error:  # Orthanc's callback: nothing may fall through to its log
            # the text may quote what a DICOM file says
            log.error("page failed", extra={"error": type(error).__name__})
            plain = Headers({"Content-Type": "text/plain", "Cache-Control": "no-store"})
            _send(output, b"segnode failed to make this page; its log names the error.", 500, plain)

    def _environ(self, uri: str, request: Mapping[str, Any]) -> dict[str, Any]:
        headers: Mapping[str, str] = request.get("headers", {})
        body: bytes = request.get("body") or b""
        host = urlsplit("//" + headers.get("host", ""))
        environ: dict[str, Any] = {
            "REQUEST_METHOD": request["method"],
            "SCRIPT_NAME": "",
            "PATH_INFO": _as_wsgi(uri),
            "QUERY_STRING": _as_wsgi(self._query(request.get("get") or {})),
            "SERVER_NAME": host.hostname or "localhost",
            "SERVER_PORT": str(host.port or 80),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_TYPE": headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "REMOTE_USER": user_of(headers) or "",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(body),
            "wsgi.errors": _Nowhere(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in headers.items():
            if name not in _NOT_HANDED_ON:
                environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
        return environ

    def _query(self, arguments: Mapping[str, str]) -> str:
        if self.decodes():
            pairs = [(quote(key, safe=""), quote(v, safe="")) for key, v in arguments.items()]
        else:
            pairs = list(arguments.items())
        return "&".join(f"{key}={value}" for key, value in pairs)


def _as_wsgi(text: str) -> str:
    # PEP 3333 wants bytes as latin-1
    return text.encode().decode("latin-1")


def _send(output: RestOutput, body: bytes, status: int, headers: Headers) -> None:
    content_type = headers.get("Content-Type", "application/octet-stream")
    for name, value in headers:
        if name == "Location":
            output.SetHttpHeader(name, _without_host(value))
        elif name not in ("Allow", "Content-Type", "Content-Length"):
            output.SetHttpHeader(name, value)
    if status == 200:
        output.AnswerBuffer(body, content_type)
    elif status == 405:
        output.SendMethodNotAllowed(headers["Allow"])
    else:
        output.SetHttpHeader("Content-Type", content_type)
        _send_status(output, _STATUS.get(status, status), body)


def _send_status(output: RestOutput, status: int, body: bytes) -> None:
    try:
        output.SendHttpStatus(status, body)
    except TypeError:  # plugin 4.0 wants text and its size
        output.SendHttpStatus(status, body.decode(), len(body))


def _without_host(location: str) -> str:
    # only the browser knows by which scheme and host it reached us (RFC 9110 10.2.2)
    return urlsplit(location)._replace(scheme="", netloc="").geturl()


class _Nowhere:
    """Where WSGI applications write errors; ours log by themselves."""

    def write(self, text: str) -> None: ...
    def flush(self) -> None: ...
