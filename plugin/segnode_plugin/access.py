"""Who may do what over Orthanc's whole HTTP interface. What no row allows is refused."""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from segnode_contract.settings import Settings

log = logging.getLogger(__name__)

UID = r"[0-9.]{1,64}"
"""What stands for a UID in an address, as a regular expression."""
_ID = r"[0-9a-f]{8}(-[0-9a-f]{8}){4}"
_WORKER = ("worker",)
_PEOPLE = ("viewer", "operator", "administrator")
_OPERATOR = ("operator", "administrator")
_ADMIN = ("administrator",)
_KEY = r"[0-9a-f]{64}"
_ACTS = rf"/(jobs/[0-9a-f]+/withdraw|series/{UID}/run)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Roles that may use a method on paths that match, and what for."""

    roles: tuple[str, ...]
    method: str
    path: str
    """Regular expression for the whole path, without a slash at its end."""
    reason: str


RULES = (
    Rule(
        roles=_WORKER,
        method="GET",
        path=rf"/dicom-web/studies/{UID}(/.*)?",
        reason="WADO-RS: a job fetches its images and reads its result back.",
    ),
    Rule(
        roles=_WORKER,
        method="POST",
        path=rf"/dicom-web/studies(/{UID})?",
        reason="STOW-RS: a job stores its result.",
    ),
    Rule(
        roles=_WORKER,
        method="POST",
        path=rf"/segnode/api/pictures/{UID}/[1-3]",
        reason="A job hands over the key pictures of the result that it stored.",
    ),
    Rule(
        roles=_PEOPLE,
        method="GET",
        path=rf"/|/segnode(?!{_ACTS})(/.*)?|/ohif(/.*)?",
        reason="Pages and viewer.",
    ),
    Rule(
        roles=_OPERATOR,
        method="GET",
        path=rf"/segnode{_ACTS}",
        reason="Pages on which something is done.",
    ),
    Rule(
        roles=_PEOPLE,
        method="GET",
        path=r"/(qido|dicom-web)/(studies|series|instances)(/.*)?",
        reason="What the viewer searches and shows; not /dicom-web/servers, other archives.",
    ),
    Rule(
        roles=_ADMIN,
        method="GET",
        path=r"/app/.*|/plugins(/[^/]+)?|/(system|statistics|changes|exports)",
        reason="Orthanc Explorer's own files, and the state of Orthanc that it shows.",
    ),
    Rule(
        roles=_ADMIN,
        method="GET",
        path=r"/(patients|studies|series|instances|jobs|queries|modalities|peers)(/.*)?",
        reason="What Orthanc Explorer lists, shows and downloads.",
    ),
    Rule(
        roles=_ADMIN,
        method="POST",
        path=r"/tools/(find|lookup)",
        reason="Orthanc searches by POST; nothing changes.",
    ),
    Rule(
        roles=("monitor", *_PEOPLE),
        method="GET",
        path=r"/metrics",
        reason="Numbers for Prometheus, without identifiers.",
    ),
    Rule(
        roles=_PEOPLE,
        method="POST",
        path=r"/segnode/search",
        reason="A search by patient or accession number, which no address may hold; recorded.",
    ),
    Rule(
        roles=_OPERATOR,
        method="POST",
        path=rf"/segnode/jobs/(retry|cancel|replay)|/segnode/jobs/{_KEY}/withdraw",
        reason="What people do to jobs; recorded with who did it.",
    ),
    Rule(
        roles=_ADMIN,
        method="POST",
        path=rf"/segnode/jobs/{_KEY}/withdraw-and-delete",
        reason="A wrong result that the archive shall not keep either.",
    ),
    Rule(
        roles=_OPERATOR,
        method="POST",
        path=rf"/segnode/replay|/segnode/series/{UID}/run",
        reason="Starting what a replay shows as missing, or a model by hand.",
    ),
    Rule(
        roles=_ADMIN,
        method="DELETE",
        path=rf"/(studies|series|instances)/{_ID}",
        reason="Deleting is an administrator's explicit act, a study at most at a time.",
    ),
)
"""Nobody resets, stops, scripts or reconfigures Orthanc, sends or writes files through it, or
deletes its record of changes: those paths are in no row."""


class FilterModule(Protocol):
    """The part of the `orthanc` module that asks before it answers (plugin 4.0 to 7.1)."""

    HttpMethod: Any
    """Numbers of the methods, by name."""

    def RegisterIncomingHttpRequestFilter(self, allow: Callable[..., bool]) -> None: ...


class Access:
    """Decides on each request, by user, method, path and origin."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rules = [(rule, re.compile(rule.path)) for rule in RULES]

    def allows(self, method: str, uri: str, headers: Mapping[str, str]) -> bool:
        """Return whether the request may go on.

        Parameters
        ----------
        method
            As Orthanc will act on it, so after ``_method`` and ``X-HTTP-Method-Override``.
        uri
            Decoded, and without a query, as Orthanc gives it.
        headers
            With lower-case names; Orthanc checked the password in them before.
        """
        return self.trusts(method, headers) and self.permits(user_of(headers) or "", method, uri)

    def permits(self, user: str, method: str, uri: str) -> bool:
        """Return whether the user's role may use a method on a path."""
        role, path = self._settings.role(user), plain_path(uri)
        return path is not None and any(
            role in rule.roles and method == rule.method and pattern.fullmatch(path)
            for rule, pattern in self._rules
        )

    def trusts(self, method: str, headers: Mapping[str, str]) -> bool:
        """Return whether no page of another origin can be behind a request."""
        return not _foreign(method, headers)


def register_access(orthanc: FilterModule, settings: Settings) -> None:
    """Have Orthanc ask before it answers anything."""
    access = Access(settings)
    names = ("GET", "POST", "PUT", "DELETE")
    methods = {int(getattr(orthanc.HttpMethod, name)): name for name in names}

    def allow(uri: str, **request: Any) -> bool:
        try:
            return access.allows(methods[int(request["method"])], uri, request["headers"])
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
    """Return the path that rules look at, None where it plays tricks.

    Orthanc decodes a path once before it asks, so that what is encoded still was encoded twice.
    """
    if any(trick in uri for trick in ("%", "\\", ";", "//", "?", "#")) or not uri.isprintable():
        return None
    if any(part in (".", "..") for part in uri.split("/")):
        return None
    return uri.rstrip("/") or "/"


def _foreign(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether a page of another origin may be behind a change (RFC 6454, Fetch 3.2).

    A program sends no Origin, and may POST. A browser sends none with an ``<img>``, and Orthanc
    takes the GET of its address with ``?_method=DELETE`` for a DELETE: so that one needs our own.
    """
    if method == "GET":
        return False
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    if origin is None:
        return method != "POST"
    return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
