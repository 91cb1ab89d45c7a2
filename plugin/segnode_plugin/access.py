"""Who may do what over Orthanc's whole HTTP interface. What no row allows is refused."""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from segnode_contract.settings import Settings

log = logging.getLogger(__name__)

_UID = r"[0-9.]{1,64}"
_ID = r"[0-9a-f]{8}(-[0-9a-f]{8}){4}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Roles that may use methods on paths that match."""

    roles: tuple[str, ...]
    methods: tuple[str, ...]
    path: str
    """Regular expression for the whole path."""


_PEOPLE = ("viewer", "administrator")
_ADMIN = ("administrator",)

RULES = (
    # the worker fetches images and stores results, by DICOMweb alone
    Rule(roles=("worker",), methods=("GET",), path=rf"/dicom-web/studies/{_UID}(/.*)?"),
    Rule(roles=("worker",), methods=("POST",), path=rf"/dicom-web/studies(/{_UID})?"),
    # people look at images and pages
    Rule(roles=_PEOPLE, methods=("GET",), path=r"/"),
    Rule(roles=_PEOPLE, methods=("GET",), path=r"/(ohif|qido|segnode|dicom-web)(/.*)?"),
    # the administrator's Orthanc Explorer, which reads much and finds by POST
    Rule(roles=_ADMIN, methods=("GET",), path=r"/app/.*"),
    Rule(
        roles=_ADMIN,
        methods=("GET",),
        path=r"/(patients|studies|series|instances|statistics|system|changes|jobs|queries"
        r"|modalities|peers|plugins|exports)(/(?!export).*)?",
    ),
    Rule(roles=_ADMIN, methods=("POST",), path=r"/tools/(find|lookup)"),
    # deleting is an administrator's explicit act, one resource at a time
    Rule(roles=_ADMIN, methods=("DELETE",), path=rf"/(patients|studies|series|instances)/{_ID}"),
)

_METHODS = {1: "GET", 2: "POST", 3: "DELETE", 4: "PUT"}
_SAFE = ("GET", "HEAD")


class Access:
    """Decides on each request, by user, method, path and origin."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rules = [(rule, re.compile(rule.path)) for rule in RULES]

    def allows(self, method: str, uri: str, headers: Mapping[str, str]) -> bool:
        """Return whether the request may go on.

        `headers` have lower-case names; Orthanc checked the password in them before.
        """
        role = self._settings.role(user_of(headers) or "")
        path = plain_path(uri)
        if role is None or path is None or _foreign(method, headers):
            return False
        return any(
            role in rule.roles and method in rule.methods and pattern.fullmatch(path)
            for rule, pattern in self._rules
        )


def register_access(orthanc: Any, settings: Settings) -> None:
    """Have Orthanc ask before it answers anything."""
    access = Access(settings)

    def allow(uri: str, **request: Any) -> bool:
        try:
            method = _METHODS[int(request["method"])]
            return access.allows(method, uri, request["headers"])
        except Exception as error:  # Orthanc's callback: whatever goes wrong, the answer is no
            log.error("filter failed", extra={"error": type(error).__name__})
            return False

    orthanc.RegisterIncomingHttpRequestFilter(allow)


def user_of(headers: Mapping[str, str]) -> str | None:
    """Return the user name in the Basic authorization (RFC 7617), None where there is none."""
    scheme, _, word = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(word.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    user, colon, _ = text.partition(":")
    return user if colon else None


def plain_path(uri: str) -> str | None:
    """Return the path that rules look at, None where it plays tricks."""
    path = uri.split("?", 1)[0]
    for _ in range(2):
        path = unquote(path)
    if "%" in path or "\\" in path or ";" in path or "//" in path:
        return None
    if any(part in (".", "..") for part in path.split("/")) or not path.isprintable():
        return None
    return path.rstrip("/") or "/"


def _foreign(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether a page of another origin asks for a change (Fetch standard 3.2, RFC 6454)."""
    if method in _SAFE:
        return False
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")
