"""What the servers of a node read: settings of Orthanc, Redis and supervisor."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segnode_cli.node import CONFIG, ROOT, Node, write_secret
from segnode_worker.sandbox import gpu_nodes

SENDER = "sender"
"""Supervisor's name of the process that sends results on, where a node has destinations."""


def write_settings(node: Node, programs: Mapping[str, str], workers: int, sockets: Path) -> Path:
    """Write all three files, for their owner's eyes only, and return supervisor's.

    Parameters
    ----------
    programs
        Paths of ``Orthanc`` and ``redis-server``.
    sockets
        Folder for supervisor's socket.
    """
    write_secret(node.data / "orthanc.json", json.dumps(orthanc_settings(node), indent=2))
    write_secret(node.data / "redis.conf", redis_settings(node))
    config = node.data / "supervisord.conf"
    write_secret(config, supervisor_settings(node, programs, workers, sockets))
    return config


def orthanc_settings(node: Node) -> dict[str, Any]:
    """Return Orthanc's configuration: `orthanc-config/orthanc.json` and what this node adds.

    Orthanc up to 1.12.7 binds every address whatever it is told, and turns away by the peer's
    address: HTTP by `RemoteAccessAllowed`, DICOM by `DicomCheckModalityHost`.
    """
    settings = node.settings
    base: dict[str, Any] = json.loads((CONFIG / "orthanc.json").read_text(encoding="utf-8"))
    local = settings.listen.host in ("127.0.0.1", "::1", "localhost")
    base |= {
        "StorageDirectory": str(node.data / "orthanc"),
        "IndexDirectory": str(node.data / "orthanc"),
        "HttpPort": node.http_port,
        "HttpBindAddresses": [settings.listen.host],
        "RemoteAccessAllowed": not local,
        "RegisteredUsers": {user.name: node.passwords[user.name] for user in settings.users},
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
    if node.certificate:
        base |= {"SslEnabled": True, "SslCertificate": node.certificate}
    return base


def redis_settings(node: Node) -> str:
    """Return Redis's configuration. Loud when full, and nothing to reach without the password."""
    lines = [
        "bind 127.0.0.1",
        f"port {node.redis_port}",
        f'dir "{node.data / "redis"}"',
        f"requirepass {node.passwords['redis']}",
        "protected-mode yes",
        "appendonly yes",
        "maxmemory-policy noeviction",
        "daemonize no",
    ]
    return "\n".join(lines) + "\n"


def supervisor_settings(
    node: Node, programs: Mapping[str, str], workers: int, sockets: Path
) -> str:
    """Return supervisor's configuration. Secrets reach the processes by environment alone."""
    lanes = ",".join(sorted({route.lane for route in node.settings.routes} or {"default"}))
    celery = [program("celery"), "-A", "segnode_worker.app", "worker", "--queues", lanes]
    celery += ["--concurrency", str(workers), "--pool", "prefork", "--loglevel", "WARNING"]
    celery += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    sender = [sys.executable, "-m", "segnode_worker.sender"]
    served = zip(worker_names(), gpus() or [""], strict=True)
    data, here = _escaped(node.data), _escaped(sockets)
    user = f"user={os.getuid()}" if os.getuid() == 0 else ""
    head = f"""\
[supervisord]
nodaemon=true
silent=true
logfile={data}/logs/supervisord.log
logfile_maxbytes=1MB
pidfile={here}/supervisord.pid
childlogdir={data}/logs
umask=077
{user}
[unix_http_server]
file={here}/supervisor.sock
chmod=0600
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{here}/supervisor.sock
"""
    redis = [programs["redis-server"], f"{node.data}/redis.conf"]
    orthanc = [programs["Orthanc"], f"{node.data}/orthanc.json"]
    return head + "".join(
        (
            _program(node.data, "redis", redis, priority=10, at_once=True),
            _program(node.data, "orthanc", orthanc, priority=20, at_once=True),
            *(
                _program(
                    node.data,
                    name,
                    [*celery, "--hostname", f"{name}@%h"],
                    priority=30,
                    at_once=False,
                    gpu=gpu,
                )
                for name, gpu in served
            ),
            *(
                _program(node.data, SENDER, sender, priority=40, at_once=False)
                for _ in node.settings.destinations[:1]
            ),
        )
    )


def gpus(devices: Path = Path("/dev")) -> list[str]:
    """Return the GPUs of this machine as CUDA_VISIBLE_DEVICES names them; empty for none.

    Each gets a worker and a model process of its own. Where the variable is set it decides. CUDA
    counts the GPUs that it sees: a container's only one is 0, be it /dev/nvidia3.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    seen = [node for node in gpu_nodes(devices) if node.match("nvidia[0-9]*")]
    return [str(number) for number, _ in enumerate(seen)]


def worker_names() -> list[str]:
    """Return supervisor's names of the workers: one for each GPU, one without any."""
    return ["worker", *(f"worker-{number}" for number in range(2, len(gpus()) + 1))]


def program(name: str) -> str:
    """Return the path of a program of this venv."""
    return str(Path(sys.executable).parent / name)


def _program(
    data: Path, name: str, command: Sequence[str], *, priority: int, at_once: bool, gpu: str = ""
) -> str:
    # should supervisor itself be killed, its processes end with it
    whole = ["/usr/bin/setpriv", "--pdeathsig", "TERM", *command]
    return f"""\
[program:{name}]
command={_escaped(shlex.join(whole))}
directory={_escaped(data)}
priority={priority}
autostart={str(at_once).lower()}
{f'environment=CUDA_VISIBLE_DEVICES="{_escaped(gpu)}"' if gpu else ""}
autorestart=true
startsecs=1
startretries=20
stopsignal=TERM
stopwaitsecs=60
killasgroup=true
redirect_stderr=true
stdout_logfile={_escaped(data)}/logs/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""


def _escaped(value: object) -> str:
    return str(value).replace("%", "%%")
