"""The worker service's hold on its model process: starts it, restarts it, kills it on request."""

from __future__ import annotations

import logging
import mmap
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from segnode_contract.settings import MODELS
from segnode_worker.sandbox import MODELS_INSIDE, sandboxed, why_not

log = logging.getLogger(__name__)

_PASSED_ON = (
    *("PATH", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "SEGNODE_DEVICE"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_TF32_OVERRIDE"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG"),
)
"""What the model process sees of our environment: no address and no password."""
_RESTART_S = 1.0
_FOLDER = "segnode-model-"
_LONGEST_LINE = 8192


def models_folder(data: Path) -> Path:
    """Return the folder of added models of a node whose data are in `data`; it is made."""
    folder = data / MODELS
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # the model process reads it under an id of its own
    return folder


class ModelService:
    """One model process, alive for as long as this object is.

    Celery's parent owns it; children made by fork reach the process through `address`, and ask
    for its end through `kill`.

    Parameters
    ----------
    program
        Arguments to Python that start it; the listening socket's number is added.
    models
        The folder of models that were added.
    memory_mb
        What models may take on their device together; 0 for what it has.
    sandbox
        Whether the process is kept in a cell, and models from elsewhere run in it alone. Where no
        cell can be made, the built-in models run without.
    reads
        Other files that the program needs.
    """

    def __init__(
        self,
        program: Sequence[str] = ("-m", "segnode_models.server"),
        *,
        models: Path | None = None,
        memory_mb: int = 0,
        sandbox: bool = True,
        reads: Sequence[Path] = (),
    ) -> None:
        self._program = program
        self._models = models.resolve() if models else None
        self._memory_mb = memory_mb
        trouble = why_not() if sandbox else "it was not wanted"
        self._reads = reads
        self._in_cell = not trouble
        self._trusted = not trouble or not sandbox
        if trouble:
            log.warning("the model process runs without sandbox", extra={"why": trouble})
        # seen by the children as well, since they are forked after
        self._starts = mmap.mmap(-1, 8)
        _sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        self.address = str(self._folder / "socket")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address)
        self._listener.listen(64)
        self._orders, self._calls = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = socket.socket(socket.AF_UNIX)
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

    def current(self) -> int:
        """Return the number of the process that runs now, counted from the first."""
        return int.from_bytes(self._starts[:8])

    def kill(self, start: int) -> None:
        """End the process of that number, from any child; another is started."""
        self._calls.send(str(start).encode())

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
        self._let_go()
        for end in (self._listener, self._orders, self._calls):
            end.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._starts[:8] = (self.current() + 1).to_bytes(8)
        self._let_go()
        fd = self._listener.fileno()
        # a cell ends with us by itself; bwrap that ends sooner leaves a half of itself for ever. It
        # is made anew each time: nodes of GPUs come and go
        around = ["/usr/bin/setpriv", "--pdeathsig", "KILL"]
        if self._in_cell:
            around = sandboxed(self._models, self._reads)
        self._lifeline, its = socket.socketpair()
        with its:
            process = subprocess.Popen(
                [*around, sys.executable, *self._program, str(fd)],
                pass_fds=[fd, its.fileno()],
                env=self._environment() | {"SEGNODE_MODEL_LIFELINE": str(its.fileno())},
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        threading.Thread(target=_pass_on, args=(process.stdout,), daemon=True).start()
        return process

    def _let_go(self) -> None:
        """End the process that was started last, should it live: killed early, bwrap leaves it."""
        with self._lifeline, suppress(OSError):
            self._lifeline.shutdown(socket.SHUT_RDWR)  # children of Celery hold this end as well

    def _environment(self) -> dict[str, str]:
        seen = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        seen |= {"PYTHONDONTWRITEBYTECODE": "1"}
        seen |= {"SEGNODE_MODEL_TRUST": str(int(self._trusted))}
        seen |= {"SEGNODE_MODEL_MEMORY_MB": str(self._memory_mb)}
        if self._models:
            seen["SEGNODE_MODELS"] = str(MODELS_INSIDE if self._in_cell else self._models)
        return seen

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
        while not self._stopping.is_set():
            if self._orders.recv(32) == str(self.current()).encode():
                self._end()

    def _end(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()


def _pass_on(said: IO[bytes]) -> None:
    """Write what the process says to our stderr, without the signs that steer a terminal.

    A terminal itself would be read by models, and believed by whoever sits before it.
    """
    with said:
        for line in iter(lambda: said.readline(_LONGEST_LINE), b""):
            text = line.decode(errors="replace").rstrip("\n")
            kept = "".join(sign if sign.isprintable() else "\ufffd" for sign in text)
            with suppress(OSError):
                os.write(2, f"{kept}\n".encode())


def _sweep() -> None:
    """Delete the folders of workers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        pid = folder.name.removeprefix(_FOLDER).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)
