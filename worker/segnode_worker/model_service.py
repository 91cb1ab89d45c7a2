"""The worker service's hold on its model process: starts it, restarts it, kills it on request."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

_PASSED_ON = ("PATH", "LANG", "CUDA_VISIBLE_DEVICES", "SEGNODE_DEVICE", "OMP_NUM_THREADS")
"""What the model process sees of our environment: no address and no password."""
_RESTART_S = 1.0
_FOLDER = "segnode-model-"


class ModelService:
    """One model process, alive for as long as this object is.

    Celery's parent owns it; children made by fork reach the process through `address`, and ask
    for its end through `kill`.

    Parameters
    ----------
    program
        Arguments to Python that start it; the listening socket's number is added.
    """

    def __init__(self, program: Sequence[str] = ("-m", "segnode_models.server")) -> None:
        self._program = program
        _sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        self.address = str(self._folder / "socket")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address)
        self._listener.listen(64)
        self._orders, self._calls = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep_alive, daemon=True),
            threading.Thread(target=self._take_orders, daemon=True),
        ]

    def start(self) -> None:
        """Start the process and the threads that watch it."""
        self._process = self._spawn()
        for thread in self._threads:
            thread.start()

    def kill(self, pid: int) -> None:
        """End the model process with that id, from any child; another is started."""
        self._calls.send(str(pid).encode())

    def restart(self) -> None:
        """End the process, so that another is started."""
        self._end()

    def stop(self) -> None:
        """End the process for good."""
        self._stopping.set()
        self._end()
        self._calls.send(b"")
        for thread in self._threads:
            thread.join()
        for end in (self._listener, self._orders, self._calls):
            end.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        fd = self._listener.fileno()
        ends_with_us = ("/usr/bin/setpriv", "--pdeathsig", "KILL")
        return subprocess.Popen(
            [*ends_with_us, sys.executable, *self._program, str(fd)],
            pass_fds=[fd],
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
        )

    def _keep_alive(self) -> None:
        while not self._stopping.is_set():
            process = self._process
            if process is None or process.wait() is None or self._stopping.is_set():
                return
            log.warning("model process ended", extra={"status": process.returncode})
            while not self._stopping.wait(_RESTART_S):
                try:
                    self._process = self._spawn()
                    break
                except OSError as error:  # no memory or no process left: later, perhaps
                    log.warning("model process not started", extra={"error": error.strerror})

    def _take_orders(self) -> None:
        while order := self._orders.recv(16):
            process = self._process
            if process is not None and process.pid == int(order):
                self._end()

    def _end(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()


def _sweep() -> None:
    """Delete the folders of workers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        pid = folder.name.removeprefix(_FOLDER).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)
