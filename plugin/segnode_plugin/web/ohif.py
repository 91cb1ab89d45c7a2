"""The OHIF viewer at /ohif/, from the folder that `setup/ohif.py` made."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from flask import Blueprint, Response, abort
from werkzeug.security import safe_join

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".webapp": "application/x-web-app-manifest+json",
    ".woff2": "font/woff2",
    ".xml": "application/xml",
}
"""Our own list: the system's differ by machine, and with `nosniff` a wrong one is fatal."""

_NAMED_BY_CONTENT = re.compile(r"(^|\.)[0-9a-f]{16}\.(js|wasm|woff2)$")

_HEADERS = {
    # the browser itself refuses any address but ours, whatever a script of the viewer asks for;
    # unsafe-eval: its codecs are WebAssembly, and its SEG reader (ndarray) compiles functions
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    # together they give the viewer SharedArrayBuffer
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def ohif_pages(dist: Path, config_js: Path) -> Blueprint:
    """Serve the viewer below /ohif/.

    Parameters
    ----------
    dist
        The patched build.
    config_js
        The viewer's settings. The parts of our extension lie beside it, ``ohif-*.js`` for
        ``ohif.js``; all are served as one script, /ohif/app-config.js.
    """
    pages = Blueprint("ohif", __name__, url_prefix="/ohif")

    @pages.get("/app-config.js")
    def config() -> Response:
        mime = _TYPES[".js"]
        headers = {"Cache-Control": "no-store"}
        return Response(_one_script(config_js), content_type=mime, headers=headers)

    # Orthanc gives /ohif/ as /ohif
    @pages.get("/", defaults={"name": ""}, strict_slashes=False)
    @pages.get("/<path:name>")
    def file(name: str) -> Response:
        found = safe_join(str(dist), name)
        if found is None:
            abort(404)
        if name and Path(found).is_file():
            return _file(Path(found), _cache_control(name))
        if PurePosixPath(name).suffix:
            abort(404)
        # /ohif/viewer and the like are places within the one page
        return _file(dist / "index.html", "no-store")

    @pages.after_request
    def guard(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    return pages


def _one_script(config_js: Path) -> str:
    """Return the extension's parts and the settings as one function, whose names stay within."""
    parts = sorted(config_js.parent.glob(f"{config_js.stem}-*.js"))
    body = "\n".join(part.read_text() for part in (*parts, config_js))
    return f"(function () {{\n'use strict';\n{body}}})();\n"


def _cache_control(name: str) -> str:
    """Return for how long a browser may keep a file; bundles carry a digest in their name."""
    if _NAMED_BY_CONTENT.search(name):
        return "private, max-age=31536000, immutable"
    return "no-store" if name.endswith(".html") else "no-cache"


def _file(path: Path, cache_control: str) -> Response:
    mime = _TYPES.get(path.suffix, "application/octet-stream")
    headers = {"Cache-Control": cache_control}
    return Response(path.read_bytes(), content_type=mime, headers=headers)
