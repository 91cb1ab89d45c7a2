"""A node on this machine: its data folder, its ports, its passwords."""

from __future__ import annotations

import os
import random
import re
import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from segnode_contract.alerts import SMTP_LOGIN, WEBHOOK_TOKEN
from segnode_contract.errors import SettingsError, SetupError
from segnode_contract.settings import NEEDED_ROLES, Settings

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "orthanc-config"
VIEWER = ROOT / ".cache" / "ohif"
PARTS = ROOT / ".cache" / "front"
FREE_BYTES = 1 << 30
_USER_NAME = re.compile(r"[a-z][a-z0-9_]*")
_BROKER = "redis"
_PORTS = range(15000, 32000)
"""Below those that the kernel gives to outgoing connections, which might hold one at a restart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Where a node on this machine keeps its things, and where it listens."""

    data: Path
    config: Path
    settings: Settings
    http_port: int
    dicom_port: int
    redis_port: int
    passwords: Mapping[str, str]
    logins: Mapping[str, str] = field(default_factory=dict)
    """Variables with what destinations, mail server and webhook ask for."""

    @property
    def url(self) -> str:
        """Address of Orthanc, pages and viewer."""
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{_reachable(self.settings.listen.host)}:{self.http_port}"

    @property
    def certificate(self) -> str:
        """Path of the PEM file with certificate and key; empty for plain HTTP."""
        given = self.settings.listen.certificate
        return str(Path(given).resolve()) if given else ""

    def login(self, role: str) -> tuple[str, str]:
        """Return name and password of the first user with a role."""
        name = next(user.name for user in self.settings.users if user.role == role)
        return name, self.passwords[name]

    def environment(self) -> dict[str, str]:
        """Return the variables that plugin, worker and sender read; no password of a person at this
        node is among them."""
        redis = f"redis://:{self.passwords[_BROKER]}@127.0.0.1:{self.redis_port}/0"
        user, password = self.login("worker")
        return {
            "SEGNODE_CONFIG": str(self.config),
            "SEGNODE_DATA": str(self.data),
            "SEGNODE_LEDGER_URL": f"sqlite:///{self.data}/ledger.sqlite",
            "SEGNODE_BROKER_URL": redis,
            "SEGNODE_ARCHIVE_URL": f"{self.url}/dicom-web",
            "SEGNODE_ARCHIVE_USER": user,
            "SEGNODE_ARCHIVE_PASSWORD": password,
            "SEGNODE_ARCHIVE_CERTIFICATE": self.certificate,
            "SEGNODE_OHIF": str(VIEWER),
            "SEGNODE_PARTS": str(PARTS),
            "SEGNODE_VENV": str(ROOT / ".venv"),
            "SEGNODE_HTTP_PORT": str(self.http_port),
            "SEGNODE_DICOM_PORT": str(self.dicom_port),
            "SEGNODE_REDIS_PORT": str(self.redis_port),
            **self.logins,
        }


def prepare(
    data: Path, config: Path, settings: Settings, *, http_port: int = 0, dicom_port: int = 0
) -> Node:
    """Make the data folder, choose ports, take the passwords of last time or make new ones.

    Raises
    ------
    SettingsError
        If a role has no user, a user's name cannot be part of a variable's name, or there is no
        such certificate.
    SetupError
        If the disk is nearly full, the folder cannot be written, or a port is in use.
    """
    _check_users(settings)
    certificate = settings.listen.certificate
    if certificate and not Path(certificate).is_file():
        raise SettingsError(f"[listen] certificate names {certificate}, which is no file.")
    _make_folders(data)
    known = read_environment(data)
    node = Node(
        data=data.resolve(),
        config=config.resolve(),
        settings=settings,
        http_port=_port(http_port, "HTTP", known.get("SEGNODE_HTTP_PORT")),
        dicom_port=_port(dicom_port, "DICOM", known.get("SEGNODE_DICOM_PORT")),
        redis_port=_port(0, "Redis", known.get("SEGNODE_REDIS_PORT")),
        passwords={
            name: known.get(_variable(name)) or secrets.token_urlsafe(18)
            for name in (*(user.name for user in settings.users), _BROKER)
        },
        logins=_logins(settings, known),
    )
    if node.http_port == node.dicom_port:
        raise SetupError(f"HTTP and DICOM cannot both have port {http_port}; name another for one.")
    return node


def keep(node: Node) -> None:
    """Note ports and passwords, for next time and for the other commands.

    Only for who holds the folder: a second node must not overwrite the first one's.
    """
    kept = node.environment() | {_variable(name): word for name, word in node.passwords.items()}
    write_secret(node.data / "environment", "".join(f"{k}={v}\n" for k, v in kept.items()))


def read_environment(data: Path) -> dict[str, str]:
    """Return the variables of a node's `environment` file, nothing where there is none."""
    try:
        lines = (data / "environment").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def node_variables(data: Path) -> dict[str, str]:
    """Return the variables of the node in `data`.

    Raises
    ------
    SetupError
        If there is no node.
    """
    known = read_environment(data)
    if not known:
        raise SetupError(f"There is no node in {data}; start one with `segnode up`, or say --data.")
    return known


def password_in(variables: Mapping[str, str], user: str) -> str:
    """Return a user's password; empty where the variables hold none."""
    return variables.get(_variable(user), "")


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner reads."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise SetupError(f"{path} cannot be written: {error.strerror}.") from error


def _check_users(settings: Settings) -> None:
    for role in NEEDED_ROLES:
        if not any(user.role == role for user in settings.users):
            raise SettingsError(f"No [[users]] entry has the role '{role}'; a node needs one.")
    for user in settings.users:
        if not _USER_NAME.fullmatch(user.name) or user.name == _BROKER:
            raise SettingsError(
                f"A user cannot be called '{user.name}': small letters, digits and _ make a name, "
                f"and {_BROKER} is taken."
            )


def _make_folders(data: Path) -> None:
    try:
        data.mkdir(parents=True, exist_ok=True)
        data.chmod(0o700)
        for name in ("orthanc", "redis", "logs"):
            (data / name).mkdir(exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"The data folder {data} cannot be made ({error.strerror}); name another with --data."
        ) from error
    free = shutil.disk_usage(data).free
    if free < FREE_BYTES:
        raise SetupError(
            f"The disk of {data} has {free >> 20} MB left, {FREE_BYTES >> 20} MB are needed; "
            "make room, or name a folder on another disk with --data."
        )


def _logins(settings: Settings, known: Mapping[str, str]) -> dict[str, str]:
    """Return what destinations, mail server and webhook ask for: this shell's, or last time's."""
    found: dict[str, str] = {}
    for destination in settings.destinations:
        given = os.environ if any(map(os.environ.get, destination.variables)) else known
        destination.login(given)  # one without the other is no login
        found |= {name: given[name] for name in destination.variables if given.get(name)}
    for names in (SMTP_LOGIN, (WEBHOOK_TOKEN,)):
        given = os.environ if any(map(os.environ.get, names)) else known
        found |= settings.alerts.secrets({name: given.get(name, "") for name in names})
    return found


def _variable(name: str) -> str:
    return f"SEGNODE_PASSWORD_{name.upper()}"


def _port(wanted: int, what: str, before: str | None) -> int:
    if wanted:
        trouble = _trouble_with(wanted)
        if trouble:
            raise SetupError(
                f"Port {wanted} for {what} {trouble}; name another, or none for a free one."
            )
        return wanted
    if before and not _trouble_with(int(before)):
        return int(before)
    return next(port for port in _shuffled_ports() if not _trouble_with(port))


def _shuffled_ports() -> list[int]:
    return random.sample(_PORTS, len(_PORTS))


def _trouble_with(port: int) -> str | None:
    """Return what speaks against a port; all addresses are tried, as Orthanc takes them all."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except PermissionError:
            return "is for root alone"
        except OSError:
            return "is in use by another program"
    return None


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::", "::1", "localhost") else host  # noqa: S104 # compared
