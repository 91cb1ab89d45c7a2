"""A node on this machine: its data folder, its ports and passwords, its processes' settings."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segnode_contract.errors import SetupError
from segnode_contract.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "orthanc-config"
VIEWER = ROOT / ".cache" / "ohif-3.13.2-1"
FREE_BYTES = 1 << 30
_PEOPLE = ("admin", "viewer", "worker")


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

    @property
    def url(self) -> str:
        """Address of Orthanc, pages and viewer."""
        scheme = "https" if self.settings.listen.certificate else "http"
        return f"{scheme}://{_reachable(self.settings.listen.host)}:{self.http_port}"

    def environment(self) -> dict[str, str]:
        """Return the variables that plugin, worker and commands read."""
        redis = f"redis://:{self.passwords['redis']}@127.0.0.1:{self.redis_port}/0"
        return {
            "SEGNODE_CONFIG": str(self.config),
            "SEGNODE_DATA": str(self.data),
            "SEGNODE_LEDGER_URL": f"sqlite:///{self.data}/ledger.sqlite",
            "SEGNODE_BROKER_URL": redis,
            "SEGNODE_ARCHIVE_URL": f"{self.url}/dicom-web",
            "SEGNODE_ARCHIVE_USER": "worker",
            "SEGNODE_ARCHIVE_PASSWORD": self.passwords["worker"],
            "SEGNODE_OHIF": str(VIEWER),
            "SEGNODE_VENV": str(ROOT / ".venv"),
            "SEGNODE_HTTP_PORT": str(self.http_port),
            "SEGNODE_DICOM_PORT": str(self.dicom_port),
            "SEGNODE_REDIS_PORT": str(self.redis_port),
            **{f"SEGNODE_PASSWORD_{name.upper()}": word for name, word in self.passwords.items()},
        }


def prepare(
    data: Path, config: Path, settings: Settings, *, http_port: int = 0, dicom_port: int = 0
) -> Node:
    """Make the data folder, choose ports, take or make passwords, and write what servers read.

    Raises
    ------
    SetupError
        If the disk is nearly full, the folder cannot be written, or a port is in use.
    """
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
    known = read_environment(data)
    names = (*_PEOPLE, "redis")
    node = Node(
        data=data.resolve(),
        config=config.resolve(),
        settings=settings,
        http_port=_port(http_port, "HTTP", known.get("SEGNODE_HTTP_PORT")),
        dicom_port=_port(dicom_port, "DICOM", known.get("SEGNODE_DICOM_PORT")),
        redis_port=_port(0, "Redis", known.get("SEGNODE_REDIS_PORT")),
        passwords={
            name: known.get(f"SEGNODE_PASSWORD_{name.upper()}") or secrets.token_urlsafe(18)
            for name in names
        },
    )
    lines = "".join(f"{key}={value}\n" for key, value in node.environment().items())
    write_secret(node.data / "environment", lines)
    write_secret(node.data / "orthanc.json", json.dumps(orthanc_settings(node), indent=2))
    write_secret(node.data / "redis.conf", redis_settings(node))
    return node


def read_environment(data: Path) -> dict[str, str]:
    """Return the variables of a node's `environment` file, nothing where there is none."""
    try:
        lines = (data / "environment").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def orthanc_settings(node: Node) -> dict[str, Any]:
    """Return Orthanc's configuration: `orthanc-config/orthanc.json` and what this node adds."""
    settings = node.settings
    base: dict[str, Any] = json.loads((CONFIG / "orthanc.json").read_text(encoding="utf-8"))
    local = settings.listen.host in ("127.0.0.1", "::1", "localhost")
    base |= {
        "StorageDirectory": str(node.data / "orthanc"),
        "IndexDirectory": str(node.data / "orthanc"),
        "HttpPort": node.http_port,
        "HttpBindAddresses": [settings.listen.host],
        "RemoteAccessAllowed": not local,
        "RegisteredUsers": {u.name: node.passwords[u.name] for u in settings.users},
        "DicomAet": settings.dicom.aet,
        "DicomPort": node.dicom_port,
        "DicomModalities": {
            f"peer{number}": {
                "AET": peer.aet,
                "Host": peer.host,
                "Port": peer.port,
                "AllowEcho": True,
                "AllowStore": True,
                "AllowFind": False,
                "AllowMove": False,
                "AllowGet": False,
            }
            for number, peer in enumerate(settings.modalities, 1)
        },
        "PythonScript": str(ROOT / "plugin" / "orthanc_entry.py"),
    }
    if settings.listen.certificate:
        base |= {"SslEnabled": True, "SslCertificate": settings.listen.certificate}
    return base


def redis_settings(node: Node) -> str:
    """Return Redis's configuration. Loud when full, and nothing to reach without the password."""
    lines = [
        "bind 127.0.0.1",
        f"port {node.redis_port}",
        f"dir {node.data / 'redis'}",
        f"requirepass {node.passwords['redis']}",
        "protected-mode yes",
        "appendonly yes",
        "maxmemory-policy noeviction",
        "daemonize no",
    ]
    return "\n".join(lines) + "\n"


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


def _port(wanted: int, what: str, before: str | None) -> int:
    if wanted:
        if not _is_free(wanted):
            raise SetupError(
                f"Port {wanted} for {what} is in use by another program; "
                f"name another, or none for a free one."
            )
        return wanted
    if before and _is_free(int(before)):
        return int(before)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host  # noqa: S104 # compared
