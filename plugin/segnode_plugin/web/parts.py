"""Scripts of others that pages load, from the folder that `setup/front.py` made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from flask import Blueprint, Response, abort, request

from segnode_plugin.web.site import Site

_TYPES = {
    "htmx.min.js": "text/javascript; charset=utf-8",
    "uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "uPlot.min.css": "text/css; charset=utf-8",
}
"""What is served, and nothing else of the folder."""
_KEPT = "private, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file, and the word by which its address changes with its content."""

    content: bytes
    version: str


def pages(site: Site) -> Blueprint:
    """Serve the parts, and give templates `part`, their addresses."""
    found = _read(site.parts) if site.parts else {}
    blueprint = Blueprint("parts", __name__, url_prefix="/segnode/static/parts")

    @blueprint.app_template_global()
    def part(name: str) -> str:
        """Return the address of a part; empty where it is not installed."""
        there = found.get(name)
        return f"/segnode/static/parts/{name}?v={there.version}" if there else ""

    @blueprint.get("/<name>")
    def file(name: str) -> Response:
        there = found.get(name)
        if there is None:
            abort(404)
        asked = request.args.get("v") == there.version
        headers = {"Cache-Control": _KEPT if asked else "no-cache"}
        return Response(there.content, content_type=_TYPES[name], headers=headers)

    return blueprint


def _read(folder: Path) -> dict[str, Part]:
    """Read the parts once: a folder that set-up replaces later shows at the next start."""
    contents = {name: (folder / name).read_bytes() for name in _TYPES if (folder / name).is_file()}
    return {
        name: Part(content=content, version=hashlib.sha256(content).hexdigest()[:16])
        for name, content in contents.items()
    }
