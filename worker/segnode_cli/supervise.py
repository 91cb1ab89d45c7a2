"""The processes of a node, kept alive by supervisor: Redis, Orthanc with the plugin, the worker."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from segnode_cli.node import Node
from segnode_contract.errors import SegnodeError, SetupError
from segnode_contract.ledger import IntakeLedger, Ledger

ORTHANC = ("Orthanc", "/usr/sbin/Orthanc")
REDIS = ("redis-server", "/usr/bin/redis-server")
PLUGINS = (
    Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"),
    Path("/usr/share/orthanc/plugins/libOrthancPython.so"),
)
_CURE = "as root: apt-get install orthanc orthanc-python orthanc-dicomweb redis-server"
_START_S = 90.0


@contextmanager
def running(node: Node, workers: int, say: Callable[[str], None]) -> Iterator[None]:
    """Keep a node up inside the ``with``; nothing of it is left behind.

    Raises
    ------
    SetupError
        If a program is missing, the node runs already, or a process does not come up.
    """
    programs = check_programs()
    with _only_one(node.data), _socket_folder(node.data) as sockets:
        config = node.data / "supervisord.conf"
        config.write_text(_supervisor_settings(node, programs, workers, sockets), encoding="utf-8")
        environment = {**os.environ, **node.environment(), "TCP_NODELAY": "1"}
        supervisord = subprocess.Popen(
            # it ends with us, however we end
            ["/usr/bin/setpriv", "--pdeathsig", "TERM", _bin("supervisord"), "-c", str(config)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            say("starting Redis")
            _await(node, supervisord, "redis", lambda: _redis_answers(node))
            say("starting Orthanc with the plugin")
            _await(node, supervisord, "orthanc", lambda: _pages_answer(node))
            say("starting the worker and its model process")
            started = time.time()
            ctl = [_bin("supervisorctl"), "-c", str(config), "start", "worker"]
            subprocess.run(ctl, check=False, capture_output=True)
            _await(node, supervisord, "worker", lambda: _models_announced(node, started))
            yield
        finally:
            say("ending the node")
            supervisord.terminate()
            supervisord.wait(120)


def check_programs() -> dict[str, str]:
    """Return the paths of Orthanc and Redis.

    Raises
    ------
    SetupError
        Naming what is not installed.
    """
    found = {}
    for name, usual in (ORTHANC, REDIS):
        path = shutil.which(name) or (usual if Path(usual).exists() else None)
        if path is None:
            raise SetupError(f"{name} is not installed; {_CURE}.")
        found[name] = path
    for plugin in PLUGINS:
        if not plugin.exists():
            raise SetupError(f"Orthanc's plugin {plugin} is not installed; {_CURE}.")
    return found


def _supervisor_settings(node: Node, programs: dict[str, str], workers: int, sockets: Path) -> str:
    lanes = ",".join(sorted({route.lane for route in node.settings.routes} or {"default"}))
    celery = [_bin("celery"), "-A", "segnode_worker.app", "worker", "--queues", lanes]
    celery += ["--concurrency", str(workers), "--pool", "prefork", "--loglevel", "WARNING"]
    celery += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    user = f"user={os.getuid()}" if os.getuid() == 0 else ""
    data = node.data
    head = f"""\
[supervisord]
nodaemon=true
silent=true
logfile={data}/logs/supervisord.log
logfile_maxbytes=1MB
pidfile={sockets}/supervisord.pid
childlogdir={data}/logs
umask=077
{user}
[unix_http_server]
file={sockets}/supervisor.sock
chmod=0600
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{sockets}/supervisor.sock
"""
    return head + "".join(
        (
            _program(data, "redis", [programs["redis-server"], f"{data}/redis.conf"], 10, True),
            _program(data, "orthanc", [programs["Orthanc"], f"{data}/orthanc.json"], 20, True),
            _program(data, "worker", celery, 30, False),
        )
    )


def _program(data: Path, name: str, command: list[str], priority: int, at_once: bool) -> str:
    return f"""\
[program:{name}]
command={" ".join(command)}
directory={data}
priority={priority}
autostart={str(at_once).lower()}
autorestart=true
startsecs=1
stopsignal=TERM
stopwaitsecs=60
killasgroup=true
redirect_stderr=true
stdout_logfile={data}/logs/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""


def _bin(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _await(
    node: Node, supervisord: subprocess.Popen[bytes], name: str, up: Callable[[], bool]
) -> None:
    deadline = time.monotonic() + _START_S
    while not up():
        if supervisord.poll() is not None or time.monotonic() > deadline:
            log = node.data / "logs" / f"{name}.log"
            raise SetupError(
                f"The process '{name}' did not come up within {_START_S:.0f} s. The end of its "
                f"log {log}:\n{_tail(log)}"
            )
        time.sleep(0.2)


def _tail(log: Path, lines: int = 8) -> str:
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "(it wrote nothing)"
    return "\n".join(text.splitlines()[-lines:])


def _redis_answers(node: Node) -> bool:
    client = redis.Redis.from_url(node.environment()["SEGNODE_BROKER_URL"])
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def _pages_answer(node: Node) -> bool:
    word = b64encode(f"viewer:{node.passwords['viewer']}".encode()).decode()
    request = urllib.request.Request(  # noqa: S310 # our own address, http or https
        f"{node.url}/segnode/health", headers={"Authorization": f"Basic {word}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310 # as above
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _models_announced(node: Node, since: float) -> bool:
    try:
        ledger = Ledger.open(node.environment()["SEGNODE_LEDGER_URL"])
        try:
            models = IntakeLedger(ledger).models()
        finally:
            ledger.close()
    except SegnodeError:
        return False
    return bool(models) and all(m.announced_at >= since - 1 for m in models.values())


@contextmanager
def _only_one(data: Path) -> Iterator[None]:
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SetupError(
                f"A node runs already on {data}; end it first, or name another folder with --data."
            ) from error
        yield


@contextmanager
def _socket_folder(data: Path) -> Iterator[Path]:
    # sun_path(7) holds 108 bytes
    if len(str(data)) < 80:
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="segnode-") as short:
        yield Path(short)
