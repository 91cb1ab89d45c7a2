"""Whether the servers of the node answer: asked in the background, so that no page waits for it."""

from __future__ import annotations

import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

import redis

from segnode_contract.settings import Connections, Limits

_EVERY_S = 5.0
_PATIENCE_S = 2.0
_LOGIN_WANTED = 401


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How one part of the node was when it was last looked at."""

    name: str
    good: bool
    words: str
    """What was seen; where it is not good, with what to do."""
    since: float = 0.0
    """Since when it is good, or is not: seconds since 1970, by this machine's clock."""


Probe = Callable[[], Reading]


class System(Protocol):
    """Says what Orthanc it is. `OrthancArchive` in service."""

    def get(self, uri: str) -> Any: ...


class Health:
    """What the probes saw last; `tick` is to be called from a thread of its own."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self._probes = probes
        self._looked = float("-inf")
        self.readings: tuple[Reading, ...] = ()

    def tick(self) -> None:
        """Look again, five seconds after the last time."""
        if time.monotonic() - self._looked < _EVERY_S:
            return
        self._looked = time.monotonic()
        before = {reading.name: reading for reading in self.readings}
        seen = [probe() for probe in self._probes]
        self.readings = tuple(_dated(reading, before.get(reading.name)) for reading in seen)


def _dated(reading: Reading, before: Reading | None) -> Reading:
    lasts = before is not None and before.good == reading.good
    return replace(reading, since=before.since if before and lasts else time.time())


def health_of(connections: Connections, limits: Limits, archive: System | None = None) -> Health:
    """Return the health of a node, not looked at yet.

    Parameters
    ----------
    archive
        The archive that we run in; without one, its address is asked.
    """

    def orthanc() -> Reading:
        if archive is not None:
            return _within(archive)
        return _beyond(connections.archive_url, connections.archive_certificate)

    return Health(
        [
            orthanc,
            lambda: _broker(connections.broker_url),
            lambda: _disk(connections.data, limits.free_mb),
        ]
    )


def _within(archive: System) -> Reading:
    try:
        version = (archive.get("/system") or {}).get("Version", "")
    except Exception as error:  # whatever Orthanc's plugin interface raises: its index is away, say
        said = f"It fails ({type(error).__name__}): see Orthanc's log."
        return Reading(name="Archive", good=False, words=said)
    return Reading(name="Archive", good=True, words=f"Orthanc {version}".strip())


def _beyond(url: str, certificate: str) -> Reading:
    """Ask the archive without a login: that it wants one says that it is up."""
    root = url.removesuffix("/").removesuffix("/dicom-web")
    try:
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if certificate:
            trust = ssl.create_default_context(cafile=certificate)
            trust.check_hostname = False  # it is known by itself, whatever name it bears
            handlers.append(urllib.request.HTTPSHandler(context=trust))
        opener = urllib.request.build_opener(*handlers)
        with opener.open(f"{root}/system", timeout=_PATIENCE_S):
            pass
    except urllib.error.HTTPError as error:
        if error.code != _LOGIN_WANTED:
            said = f"It answers {error.code}: see Orthanc's log."
            return Reading(name="Archive", good=False, words=said)
    except (OSError, HTTPException, ValueError) as error:
        said = f"It does not answer ({_reason(error)}): is Orthanc running? `segnode up` starts it."
        return Reading(name="Archive", good=False, words=said)
    return Reading(name="Archive", good=True, words="answers")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None  # where it leads is not what was configured


def _reason(error: BaseException) -> str:
    """Return what the system said; never an address, which may hold a password."""
    cause: BaseException | None = error
    while cause is not None:
        reason = getattr(cause, "reason", None)
        cause = reason if isinstance(reason, BaseException) else cause
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def _broker(url: str) -> Reading:
    said = "Jobs wait in the ledger until it does, none is lost; start Redis again."
    try:
        client = redis.Redis.from_url(
            url, socket_connect_timeout=_PATIENCE_S, socket_timeout=_PATIENCE_S
        )
    except ValueError:
        said = "SEGNODE_BROKER_URL is no address of a Redis."
        return Reading(name="Redis", good=False, words=said)
    try:
        client.ping()
    except redis.AuthenticationError:
        said = f"It does not take the password in SEGNODE_BROKER_URL. {said}"
        return Reading(name="Redis", good=False, words=said)
    except redis.RedisError as error:
        said = f"It does not answer ({_reason(error)}). {said}"
        return Reading(name="Redis", good=False, words=said)
    finally:
        client.close()
    return Reading(name="Redis", good=True, words="answers")


def _disk(folder: Path, wanted_mb: int) -> Reading:
    try:
        free_mb = shutil.disk_usage(folder).free >> 20
    except OSError as error:
        said = f"The data folder cannot be read: {error.strerror}."
        return Reading(name="Data folder", good=False, words=said)
    free = f"{_gb(free_mb)} free"
    if free_mb < wanted_mb:
        said = f"{free}, {_gb(wanted_mb)} are wanted: make room."
        return Reading(name="Data folder", good=False, words=said)
    return Reading(name="Data folder", good=True, words=free)


def _gb(mb: int) -> str:
    gb = mb / 1024
    return f"{gb:.1f} GB" if gb < 10 else f"{gb:.0f} GB"
