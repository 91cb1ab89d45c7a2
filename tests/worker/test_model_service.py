"""The model process ends with its service, however that ends, and sees what a GPU needs."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from segnode_worker import sandbox
from segnode_worker.model_service import ModelService
from segnode_worker.sandbox import why_not

needs_cell = pytest.mark.skipif(bool(why_not()), reason=f"no cell can be made here: {why_not()}")

SERVICE = """
import os, signal, sys, time
from pathlib import Path
from segnode_worker.model_client import ModelProcess
from segnode_worker.model_service import ModelService

service = ModelService(models=Path(sys.argv[1]))
"""
EARLY = """
for milliseconds in range(0, 20, 2):
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        service.start()
        os.write(tell, b".")
        time.sleep(600)
    os.read(ready, 1)
    time.sleep(milliseconds / 1000)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""
UP = """
service.start()
ModelProcess(service).models(60)
os.kill(os.getpid(), signal.SIGKILL)
"""
FOLLOWED = """
first = service._spawn()
os.dup(service._lifeline.fileno())  # as a child made by fork has it
second = service._spawn()
first.wait(60)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Path]:
    """A folder of models, by which cells are told from those of other tests."""
    yield tmp_path
    for process in cells(tmp_path):
        os.kill(process, signal.SIGKILL)


def cells(models: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"bwrap" and os.fsencode(models) in words:
            found.append(int(process.name))
    return found


@needs_cell
@pytest.mark.parametrize(
    ("story", "status"),
    [(EARLY, 0), (UP, -signal.SIGKILL), (FOLLOWED, -signal.SIGKILL)],
    ids=["as it starts", "when it is up", "after another was started"],
)
def test_no_cell_outlives_a_worker_that_is_killed(models: Path, story: str, status: int) -> None:
    command = [sys.executable, "-c", SERVICE + story, str(models)]
    assert subprocess.run(command, timeout=120, check=False).returncode == status
    deadline = time.monotonic() + 60
    while cells(models) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert cells(models) == []


def answer_of(service: ModelService, start: int) -> str:
    """Return what the process of that number sends to who connects."""
    deadline = time.monotonic() + 60
    while service.current() < start and time.monotonic() < deadline:
        time.sleep(0.05)
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(60)
        link.connect(service.address)
        return link.makefile().read()


def says(expression: str) -> list[str]:
    """Return a program that answers who connects with the value of an expression."""
    return [
        "-c",
        "import os, socket, sys\n"
        "listener = socket.socket(fileno=int(sys.argv[-1]))\n"
        f"while True: listener.accept()[0].sendall(str({expression}).encode())",
    ]


@needs_cell
def test_a_gpu_that_comes_later_is_in_the_next_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "nvidia0"
    node.touch()
    service = ModelService(says(f"{str(node)!r} in open('/proc/self/mounts').read()"))
    service.start()
    try:
        assert answer_of(service, 1) == "False"
        monkeypatch.setattr(sandbox, "gpu_nodes", lambda: [node, tmp_path / "vanished"])
        service.restart()
        assert answer_of(service, 2) == "True"
    finally:
        service.stop()


def test_the_environment_says_which_gpu_and_where_its_libraries_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = {
        "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "1",
        "NVIDIA_TF32_OVERRIDE": "0",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    service = ModelService(says(f"[os.environ.get(name) for name in {list(wanted)}]"))
    service.start()
    try:
        assert answer_of(service, 1) == str(list(wanted.values()))
    finally:
        service.stop()


SPEAKS = r"""
import os, time
print("terminals:", [n for n in range(64) if os.isatty(n)], "\x1b]0;owned\x07", flush=True)
time.sleep(600)
"""
BESIDE = """
import sys, time
from segnode_worker.model_service import ModelService

service = ModelService(["-c", sys.argv[1]])
service.start()
time.sleep(3)
service.stop()
"""


def test_a_model_neither_reads_the_terminal_nor_steers_it() -> None:
    try:
        ours, its = pty.openpty()
    except OSError:
        pytest.skip("no pseudo-terminal can be had here: /dev/pts is not mounted")
    command = [sys.executable, "-c", BESIDE, SPEAKS]
    subprocess.run(command, stdin=its, stdout=its, stderr=its, check=True)
    os.close(its)
    said = os.read(ours, 65536)
    os.close(ours)
    assert b"terminals: []" in said
    assert b"\x1b" not in said
