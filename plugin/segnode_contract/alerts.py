"""Who is told, and by what, when the node needs somebody; and of what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from segnode_contract.errors import SettingsError
from segnode_contract.spelling import hint
from segnode_contract.workers import SILENT_S

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SMTP_LOGIN = ("SEGNODE_SMTP_USER", "SEGNODE_SMTP_PASSWORD")
"""Variables with user and password of the mail server."""
WEBHOOK_TOKEN = "SEGNODE_WEBHOOK_TOKEN"  # noqa: S105 # the variable's name

_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_LAST_PORT = 65535
# what any mail server takes, and no line break: it stands in a header
_ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9.-]+")
_HOST = re.compile(r"[A-Za-z0-9.:_-]+")
_SHORTEST_QUIET_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """Nobody is told of anything without `email_to` or `webhook`."""

    email_to: tuple[str, ...] = ()
    email_from: str = ""
    smtp_host: str = ""
    smtp_port: int = 0
    """0 for that which goes with `smtp_tls`: 587, 465 or 25."""
    smtp_tls: str = "starttls"
    """``starttls``, ``tls`` from the first byte on, or ``none``."""
    insecure: bool = False
    """Whether e-mail may go to another machine without encryption."""
    webhook: str = ""
    certificate: str = ""
    """PEM file of an authority to trust beside the public ones."""
    quiet_s: float = 3600.0
    """The same alert is told again after this long, not before."""
    backlog_s: float = 1800.0
    """How long a job may wait; 0 for as long as it likes."""
    worker_lost_s: float = 180.0
    """How long a worker may be silent; 0 for as long as it likes."""
    free_mb: int = 4096
    """What must be free for the node's data and for each worker's results; 0 for nothing."""

    @property
    def port(self) -> int:
        """The mail server's port."""
        return self.smtp_port or _PORTS[self.smtp_tls]

    def secrets(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return those variables with user, password and token that are set and needed.

        Raises
        ------
        SettingsError
            If a user has no password, or the reverse; or if either is to go unencrypted to another
            machine.
        """
        names = (*(SMTP_LOGIN if self.email_to else ()), *([WEBHOOK_TOKEN] if self.webhook else ()))
        found = {name: environ[name] for name in names if environ.get(name)}
        _check_secrets(self, found)
        return found


def check_alerts(alerts: Alerts) -> None:
    """Refuse what cannot be meant.

    Raises
    ------
    SettingsError
        Naming the key.
    """
    _check_mail(alerts)
    if alerts.webhook:
        _check_webhook(alerts.webhook)
    if alerts.certificate and not Path(alerts.certificate).is_absolute():
        raise SettingsError(
            f"[alerts] certificate is '{alerts.certificate}'; a whole path is needed, from / on."
        )
    for name in ("backlog_s", "worker_lost_s", "free_mb"):
        if getattr(alerts, name) < 0:
            raise SettingsError(
                f"[alerts] {name} is {getattr(alerts, name):g}; it cannot be negative, and 0 is "
                "for no alert of this kind."
            )
    if alerts.quiet_s < _SHORTEST_QUIET_S:
        raise SettingsError(
            f"[alerts] quiet_s is {alerts.quiet_s:g}; {_SHORTEST_QUIET_S:g} is the least, so that "
            "one fault does not send a thousand."
        )
    if 0 < alerts.worker_lost_s < SILENT_S:
        raise SettingsError(
            f"[alerts] worker_lost_s is {alerts.worker_lost_s:g}; {SILENT_S:g} is the least, "
            "since a worker whose model process is silent speaks each 20 s only, and a busy one "
            "may be late; 0 is for no alert of this kind."
        )


def _check_mail(alerts: Alerts) -> None:
    if alerts.smtp_tls not in _PORTS:
        raise SettingsError(
            f"[alerts] smtp_tls is '{alerts.smtp_tls}'; it must be one of "
            f"{', '.join(_PORTS)}{hint(alerts.smtp_tls, _PORTS)}."
        )
    if not 0 <= alerts.smtp_port <= _LAST_PORT:
        raise SettingsError(
            f"[alerts] smtp_port is {alerts.smtp_port}; ports go from 1 to {_LAST_PORT}, and 0 is "
            "the usual one."
        )
    needed = ("email_to", "email_from", "smtp_host")
    given = [name for name in needed if getattr(alerts, name)]
    if not given:
        return
    lacking = next((name for name in needed if name not in given), None)
    if lacking:
        raise SettingsError(
            f"[alerts] has '{given[0]}' and no '{lacking}'; e-mail needs {', '.join(needed)}."
        )
    for address in (*alerts.email_to, alerts.email_from):
        if not _ADDRESS.fullmatch(address):
            key = "email_from" if address == alerts.email_from else "email_to"
            raise SettingsError(
                f"[alerts] {key} holds {address!r}; an address is needed, as somebody@example.org."
            )
    if not _HOST.fullmatch(alerts.smtp_host):
        raise SettingsError(
            f"[alerts] smtp_host is {alerts.smtp_host!r}; the name or address of a machine is "
            "needed, with its port in smtp_port."
        )
    if alerts.smtp_tls == "none" and alerts.smtp_host not in LOOPBACK and not alerts.insecure:
        raise SettingsError(
            f"[alerts] smtp_tls is 'none' and smtp_host {alerts.smtp_host}, another machine; use "
            "'starttls' or 'tls', or say insecure = true if you accept that others can read it."
        )


def _check_webhook(url: str) -> None:
    # not quoted whole: the path of a chat service's webhook is its password
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    plain = not re.search(r"[\x00-\x20\x7f-\U0010ffff]", url)
    safe = host and (parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK))
    if not (plain and safe and parts.username is None):
        raise SettingsError(
            "[alerts] webhook is no https:// address (or http:// of this machine) without blanks "
            f"and without a password before its host; {WEBHOOK_TOKEN} holds one."
        )


def _check_secrets(alerts: Alerts, found: Mapping[str, str]) -> None:
    given = [name for name in SMTP_LOGIN if name in found]
    if len(given) == 1:
        lacking = next(name for name in SMTP_LOGIN if name not in found)
        raise SettingsError(
            f"The environment variable {given[0]} is set and {lacking} is not; the mail server "
            f"{alerts.smtp_host} needs both, or neither."
        )
    if given and alerts.smtp_tls == "none" and alerts.smtp_host not in LOOPBACK:
        raise SettingsError(
            f"{SMTP_LOGIN[1]} would go to {alerts.smtp_host} unencrypted; set [alerts] smtp_tls to "
            "'starttls' or 'tls', or take the variable away."
        )
    for name, value in found.items():
        if not (value.isascii() and value.isprintable()):
            raise SettingsError(f"{name} holds more than printable ASCII; copy it once more.")
