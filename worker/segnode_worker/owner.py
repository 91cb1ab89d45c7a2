"""Whose lease it is: a name for a worker child that tells whether its process still lives."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def host() -> str:
    """Return this machine's name, as it begins every name made here.

    With the kernel's boot and the namespace of process ids: machines and containers may share a
    name, and only within these does a process id tell whether a process lives.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    space = Path("/proc/self/ns/pid").stat().st_ino
    return f"{socket.gethostname().replace('/', '-')}-{boot}-{space:x}"


def worker_name(parent: int) -> str:
    """Return the name of the worker whose parent process is `parent`."""
    return f"{host()}/{parent}"


def child_name() -> str:
    """Return the name of this worker child: host, parent, process id and its start.

    With the start, a later process that was given the same id is not taken for it.
    """
    return f"{worker_name(os.getppid())}/{os.getpid()}/{_started(os.getpid())}"


def process_of(name: str) -> int:
    """Return the process id in the name of a child."""
    return int(name.rsplit("/", 2)[1])


def parent_of(name: str) -> int:
    """Return the process id of the parent in the name of a child."""
    return int(name.rsplit("/", 3)[1])


def lives(name: str) -> bool:
    """Return whether the child of that name is a process of this machine."""
    pid, start = name.rsplit("/", 2)[1:]
    return _started(int(pid)) == start


def end_with_parent() -> None:
    """Have the kernel end this process when its parent dies, however that happens (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _started(pid: int) -> str:
    """Return the start of a process in ticks since boot, nothing where there is none (proc(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    state, *rest = stat.rpartition(")")[2].split()
    return "" if state == "Z" else rest[18]
