"""QIDO-RS at /qido/: what a viewer asks, in the form that this Orthanc's DICOMweb understands.

DICOMweb 1.20 and older take a query's arguments as they stand in the address, undecoded, so that
an encoded comma or caret finds nothing. Here they are decoded once, checked, and handed on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote

from flask import Blueprint, Response, request

from segnode_plugin.access import UID

_RESOURCE = re.compile(
    rf"(studies|series|instances|studies/{UID}/(series|instances)"
    rf"|studies/{UID}/series/{UID}/instances)"
)
"""The resources of PS3.18 table 10.6.1-1."""

_KEY = re.compile(r"[0-9A-Za-z.]{1,128}")
"""A keyword, a tag, a path of them, or a parameter such as ``limit`` (PS3.18 8.3.4)."""

_BREAKS_OUT = re.compile(r"[&#\x00-\x1f\x7f]")
"""What could end the value within an undecoded address."""


def qido_shim(
    rest_get: Callable[[str], bytes], *, refusal: type[Exception], decodes: Callable[[], bool]
) -> Blueprint:
    """Forward searches to Orthanc's DICOMweb plugin.

    Parameters
    ----------
    rest_get
        ``orthanc.RestApiGetAfterPlugins``.
    refusal
        What `rest_get` raises: ``orthanc.OrthancException``.
    decodes
        Whether this Orthanc decodes the arguments of an address itself (1.13 does).
    """
    shim = Blueprint("qido", __name__, url_prefix="/qido")

    @shim.get("/<path:resource>")
    def search(resource: str) -> Response:
        if not _RESOURCE.fullmatch(resource):
            return _sentence("There is nothing to search at this address.", 404)
        pairs = _one_field_each(list(request.args.items(multi=True)))
        if not all(_may_pass(key, value, decodes()) for key, value in pairs):
            return _sentence("A search term holds a character that cannot be searched for.", 400)
        try:
            found = rest_get(_address(resource, pairs, decodes()))
        except refusal:
            return _sentence("Orthanc refused the search; check the names of its terms.", 400)
        answer = Response(found, content_type="application/dicom+json")
        answer.headers["Cache-Control"] = "no-store"
        return answer

    return shim


def _one_field_each(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Split lists of ``includefield``, which an older DICOMweb takes one by one only."""
    return [
        (key, part)
        for key, value in pairs
        for part in (value.split(",") if key.lower() == "includefield" else [value])
        if part
    ]


def _may_pass(key: str, value: str, decodes: bool) -> bool:
    return bool(_KEY.fullmatch(key)) and (decodes or not _BREAKS_OUT.search(value))


def _address(resource: str, pairs: list[tuple[str, str]], decodes: bool) -> str:
    query = "&".join(f"{key}={quote(value, safe='') if decodes else value}" for key, value in pairs)
    return f"/dicom-web/{resource}" + (f"?{query}" if query else "")


def _sentence(text: str, status: int) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(text, status=status, content_type="text/plain; charset=utf-8", headers=headers)
