"""Whether the node's servers answer, and what troubles it: looked at where no page waits for it."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from typing import Any, Protocol

import redis

from segnode_contract.errors import LedgerUnavailable
from segnode_contract.ledger import Ledger
from segnode_contract.ledger.node_state import read_state
from segnode_contract.settings import Connections, Settings
from segnode_contract.troubles import SPACE_LOW, Trouble, troubles
from segnode_plugin.alerting import free_mb_of
from segnode_plugin.reaching import NoRedirect, reason_of

_EVERY_S = 5.0
_JUDGES_S = 10.0
_PATIENCE_S = 2.0
_LOGIN_WANTED = 401


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How one part of the node was when it was last looked at."""

    name: str
    good: bool
    words: str
    """What was seen; where it is not good, with what to do."""
    trouble: str = ""
    """Name of the trouble that says the same."""
    since: float = 0.0
    """Since when it is good, or is not: seconds since 1970, by this machine's clock."""


Probe = Callable[[], Reading]
Judge = Callable[[], tuple[Trouble, ...]]


class System(Protocol):
    """Says what Orthanc it is. `OrthancArchive` in service."""

    def get(self, uri: str) -> Any: ...


class Servers:
    """What was seen last; `tick` is to be called from a thread of its own.

    Parameters
    ----------
    judge
        Says what is wrong with the node as a whole.
    """

    def __init__(self, probes: Sequence[Probe], judge: Judge = tuple) -> None:
        self._probes = probes
        self._judge = judge
        self._looked = self._judged = float("-inf")
        self.readings: tuple[Reading, ...] = ()
        self.troubles: tuple[Trouble, ...] = ()

    def tick(self) -> None:
        """Look again, five seconds after the last time, and judge after ten."""
        if time.monotonic() - self._looked < _EVERY_S:
            return
        self._looked = time.monotonic()
        before = {reading.name: reading for reading in self.readings}
        seen = [probe() for probe in self._probes]
        self.readings = tuple(_dated(reading, before.get(reading.name)) for reading in seen)
        if self._looked - self._judged >= _JUDGES_S:
            self._judged = self._looked
            with suppress(LedgerUnavailable):  # without the ledger no page is shown
                self.troubles = self._judge()


def _dated(reading: Reading, before: Reading | None) -> Reading:
    lasts = before is not None and before.good == reading.good
    return replace(reading, since=before.since if before and lasts else time.time())


def servers_of(
    ledger: Ledger,
    settings: Settings,
    connections: Connections | None,
    archive: System | None = None,
) -> Servers:
    """Return the servers of a node, not looked at yet.

    Parameters
    ----------
    connections
        None where only the ledger is known.
    archive
        The archive that we run in; without one, its address is asked.
    """

    def judge(free_mb: float | None = None) -> tuple[Trouble, ...]:
        return troubles(read_state(ledger, settings.background, free_mb), settings.alerts)

    if connections is None:
        return Servers([], judge)
    room = free_mb_of(connections.data)

    def orthanc() -> Reading:
        if archive is not None:
            return _within(archive)
        return _beyond(connections.archive_url, connections.archive_certificate)

    return Servers(
        [
            orthanc,
            lambda: _broker(connections.broker_url),
            lambda: _disk(room(), settings.alerts.free_mb),
        ],
        lambda: judge(room()),
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
        handlers: list[urllib.request.BaseHandler] = [NoRedirect()]
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
        said = (
            f"It does not answer ({reason_of(error)}): is Orthanc running? `segnode up` starts it."
        )
        return Reading(name="Archive", good=False, words=said)
    return Reading(name="Archive", good=True, words="answers")


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
        said = f"It does not answer ({reason_of(error)}). {said}"
        return Reading(name="Redis", good=False, words=said)
    finally:
        client.close()
    return Reading(name="Redis", good=True, words="answers")


def _disk(free_mb: float | None, wanted_mb: int) -> Reading:
    if free_mb is None:
        said = "It cannot be read; SEGNODE_DATA names it."
        return Reading(name="Data folder", good=False, words=said)
    free = f"{_gb(free_mb)} free"
    if free_mb < wanted_mb:
        said = f"{free}, {_gb(wanted_mb)} are wanted: make room."
        return Reading(name="Data folder", good=False, words=said, trouble=SPACE_LOW)
    return Reading(name="Data folder", good=True, words=free)


def _gb(mb: float) -> str:
    gb = mb / 1024
    return f"{gb:.1f} GB" if gb < 10 else f"{gb:.0f} GB"
