"""The processes of a node, kept alive by supervisor: Redis, Orthanc with the plugin, the worker."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from segnode_cli.health import pages_answer, redis_answers, workers_answer
from segnode_cli.node import Node, keep
from segnode_cli.servers import SENDER, program, worker_names, write_settings
from segnode_contract.errors import SetupError

ORTHANC = ("Orthanc", "/usr/sbin/Orthanc")
REDIS = ("redis-server", "/usr/bin/redis-server")
PLUGINS = (
    Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"),
    Path("/usr/share/orthanc/plugins/libOrthancPython.so"),
)
_CURE = "as root: apt-get install orthanc orthanc-python orthanc-dicomweb redis-server"
_START_S = 90.0
_TLS = (
    "The Orthanc of Debian 12 and 13 cannot serve HTTPS: its web server library does not work with "
    "OpenSSL 3, whatever its log says of the port. Leave [listen] certificate empty and put a "
    "proxy with TLS in front, or use an Orthanc from elsewhere. "
)
_ENDED = ("BACKOFF", "EXITED", "FATAL")
_LONGEST_SOCKET = 90  # sun_path of unix(7) holds 108 bytes, and supervisor adds its process id


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised:
    """A node's supervisord, and what it says of its processes."""

    process: subprocess.Popen[bytes]
    socket: Path
    logs: Path

    def alive(self) -> bool:
        """Return whether the node is looked after still: not when supervisord was killed."""
        return self.process.poll() is None

    def start(self, name: str) -> None:
        """Start a process that was not to start by itself."""
        with self._asking() as ask:
            ask.startProcess(name, False)

    def await_answer(self, name: str, answers: Callable[[], bool], cure: str = "") -> None:
        """Wait until a process answers.

        Raises
        ------
        SetupError
            If it ends meanwhile, or stays silent; with the end of its log.
        """
        log = self.logs / f"{name}.log"
        deadline = time.monotonic() + _START_S
        began = 0
        while not answers():
            state, at = self._state(name)
            if not self.alive() or state in _ENDED or (began and at != began):
                raise SetupError(
                    f"The process '{name}' ended as it started. {cure}{_last_words(log)}"
                )
            began = began or at
            if time.monotonic() > deadline:
                raise SetupError(
                    f"'{name}' is silent for {_START_S:.0f} s. {cure}{_last_words(log)}"
                )
            time.sleep(0.2)

    def runs(self, name: str) -> bool:
        """Return whether a process has stayed up since it was started."""
        return self._state(name)[0] == "RUNNING"

    def _state(self, name: str) -> tuple[str, int]:
        """Return supervisor's word for a process, and when it was last started (Unix seconds)."""
        try:
            with self._asking() as ask:
                info = ask.getProcessInfo(name)
        except OSError:  # its socket is not there yet
            return "", 0
        return str(info["statename"]), int(info["start"])

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        transport = SupervisorTransport(serverurl=f"unix://{self.socket}")
        with closing(transport):
            yield ServerProxy("http://127.0.0.1", transport=transport).supervisor


@contextmanager
def running(node: Node, workers: int, say: Callable[[str], None]) -> Iterator[Supervised]:
    """Keep a node up inside the ``with``; nothing of it is left behind.

    Raises
    ------
    SetupError
        If a program is missing, the node runs already, or a process does not come up.
    """
    programs = check_programs()
    with _only_one(node.data) as lock, _socket_folder(node.data) as sockets:
        keep(node)
        config = write_settings(node, programs, workers, sockets)
        with _supervisord(node, config, lock, sockets, say) as supervised:
            say("starting Redis")
            supervised.await_answer("redis", lambda: redis_answers(node))
            say("starting Orthanc with the plugin")
            cure = _TLS if node.certificate else ""
            supervised.await_answer("orthanc", lambda: pages_answer(node), cure)
            say("starting the worker and its model process")
            started = time.time()
            names = worker_names()
            for name in names:
                supervised.start(name)
            for number, name in enumerate(names, 1):
                supervised.await_answer(name, partial(workers_answer, node, started, number))
            if node.settings.destinations:
                say("starting the sender")
                supervised.start(SENDER)
                supervised.await_answer(SENDER, lambda: supervised.runs(SENDER))
            yield supervised


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


@contextmanager
def _supervisord(
    node: Node, config: Path, lock: int, sockets: Path, say: Callable[[str], None]
) -> Iterator[Supervised]:
    process = subprocess.Popen(
        # it ends with us, however we end
        ["/usr/bin/setpriv", "--pdeathsig", "TERM", program("supervisord"), "-c", str(config)],
        env={**os.environ, **node.environment(), "TCP_NODELAY": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        # with the lock's descriptor: the folder is free when the last process has ended
        pass_fds=[lock],
    )
    try:
        yield Supervised(
            process=process, socket=sockets / "supervisor.sock", logs=node.data / "logs"
        )
    finally:
        say("ending the node")
        process.terminate()
        process.wait()


@contextmanager
def _only_one(data: Path) -> Iterator[int]:
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SetupError(
                f"A node runs already on {data}; end it first, or name another folder with --data."
            ) from error
        yield lock.fileno()


@contextmanager
def _socket_folder(data: Path) -> Iterator[Path]:
    if len(os.fsencode(data / "supervisor.sock")) < _LONGEST_SOCKET:
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="segnode-") as short:
        yield Path(short)


def _last_words(log: Path, lines: int = 8) -> str:
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"It wrote no log {log}."
    return f"The end of its log {log}:\n" + "\n".join(text.splitlines()[-lines:])
