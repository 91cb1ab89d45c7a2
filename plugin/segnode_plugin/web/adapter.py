"""From Orthanc's REST callbacks to WSGI (PEP 3333) and back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from typing import Any
from urllib.parse import quote

from werkzeug.datastructures import Headers
from werkzeug.test import run_wsgi_app

from segnode_plugin.access import user_of

log = logging.getLogger(__name__)

_PROBE = "/segnode-probe"
_SENT = "%2C"

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


class Adapter:
    """Serves WSGI applications through Orthanc's own port.

    Parameters
    ----------
    orthanc
        The module of that name.
    """

    def __init__(self, orthanc: Any) -> None:
        self._orthanc = orthanc
        self._probed = threading.Lock()
        self._decodes: bool | None = None
        self._seen: str | None = None

    def register(self, app: Application, prefixes: Iterable[str]) -> None:
        """Answer everything below `prefixes` by `app`."""
        self._orthanc.RegisterRestCallback(_PROBE, self._answer_probe)

        def answer(output: Any, uri: str, **request: Any) -> None:
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

    def _answer_probe(self, output: Any, uri: str, **request: Any) -> None:
        self._seen = request["get"].get("x")
        output.AnswerBuffer(b"{}", "application/json")

    def _to_the_pages(self, output: Any, uri: str, **request: Any) -> None:
        output.Redirect("segnode/")

    def _answer(self, app: Application, output: Any, uri: str, request: Mapping[str, Any]) -> None:
        try:
            environ = self._environ(uri, request)
            body, status, headers = run_wsgi_app(app, environ, buffered=True)
            _send(output, b"".join(body), int(status.split(" ", 1)[0]), headers)
        except Exception as error:  # Orthanc's callback: nothing may fall through to its log
            # the text may quote what a DICOM file says
            log.error("page failed", extra={"error": type(error).__name__})
            _send_status(output, 500, b"segnode failed to make this page.")

    def _environ(self, uri: str, request: Mapping[str, Any]) -> dict[str, Any]:
        headers: Mapping[str, str] = request.get("headers", {})
        body: bytes | str = request.get("body") or b""
        body = body.encode() if isinstance(body, str) else body
        host = headers.get("host", "127.0.0.1")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": request["method"],
            "SCRIPT_NAME": "",
            # PEP 3333 wants bytes as latin-1
            "PATH_INFO": uri.encode().decode("latin-1"),
            "QUERY_STRING": self._query(request.get("get") or {}),
            "SERVER_NAME": host.rsplit(":", 1)[0],
            "SERVER_PORT": host.rsplit(":", 1)[1] if ":" in host else "80",
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
            if name not in ("content-type", "content-length", "authorization"):
                environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
        return environ

    def _query(self, arguments: Mapping[str, str]) -> str:
        # repeated keys are lost before we see them: Orthanc gives a dictionary
        if self.decodes():
            pairs = [(quote(key, safe=""), quote(v, safe="")) for key, v in arguments.items()]
        else:
            pairs = list(arguments.items())
        return "&".join(f"{key}={value}" for key, value in pairs)


def _send(output: Any, body: bytes, status: int, headers: Headers) -> None:
    content_type = headers.get("Content-Type", "application/octet-stream")
    for name, value in headers:
        if name not in ("Content-Type", "Content-Length", "Location"):
            output.SetHttpHeader(name, value)
    if status == 200:
        output.AnswerBuffer(body, content_type)
    elif status in (301, 302, 307, 308):
        # Orthanc's own redirect is 301 or 307 by version
        output.Redirect(headers["Location"].lstrip("/"))
    else:
        output.SetHttpHeader("Content-Type", content_type)
        _send_status(output, status, body)


class _Nowhere:
    """Where WSGI applications write errors; ours log by themselves."""

    def write(self, text: str) -> None: ...
    def flush(self) -> None: ...


def _send_status(output: Any, status: int, body: bytes) -> None:
    output.SendHttpStatus(status, body.decode(), len(body))
