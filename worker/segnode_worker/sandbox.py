"""The model process's cell: no network, no other files or processes.

bubblewrap makes it, out of Linux namespaces (namespaces(7)). Models from elsewhere are programs;
what they can reach is the folder of models and the libraries, both read-only, the GPU, a temporary
folder in memory, the socket to the worker, and each other. Where the worker is root, the process
has a user id of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

MODELS_INSIDE = Path("/models")
"""Where the folder of models stands inside."""
TEMPORARY = "/tmp"  # noqa: S108 # a file system of its own, in memory, inside
_USER = 61790
"""An id out of those that are never given to people or services (systemd's DynamicUser)."""
_GPU = ("nvidia*", "dri", "kfd")
_TEMPORARY_BYTES = 2 << 30
_PROCESSES = 4096
"""Processes and threads of its user id."""
_LINKED = ("lib", "lib64", "bin", "sbin")
_TRY_S = 20.0


def sandboxed(models: Path | None, reads: Sequence[Path] = ()) -> list[str]:
    """Return the arguments that come before a program to run it inside.

    Parameters
    ----------
    models
        The folder of models, seen as `MODELS_INSIDE`.
    reads
        What else it may read, beside Python, its packages and ours.
    """
    command = ["bwrap", "--die-with-parent", "--new-session"]
    command += ["--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--hostname", "segnode-model"]
    # before what is bound, which may lie in one of these folders
    command += ["--proc", "/proc", "--dev", "/dev"]
    for folder in (TEMPORARY, "/dev/shm"):  # noqa: S108 # as above
        command += ["--perms", "1777", "--size", str(_TEMPORARY_BYTES), "--tmpfs", folder]
    bound = _read_only(reads)
    for parent in sorted({parent for path in bound for parent in path.parents[:-1]}):
        command += ["--perms", "0755", "--dir", str(parent)]
    for path in bound:
        command += ["--ro-bind", str(path), str(path)]
    for name in _LINKED:
        path = Path("/", name)
        if path.is_symlink():
            command += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            command += ["--ro-bind", str(path), str(path)]
    for name in ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime"):
        command += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    devices = gpu_nodes()
    for device in devices:
        command += ["--dev-bind-try", str(device), str(device)]
    if devices:  # CUDA looks there for where a GPU is plugged in
        command += ["--ro-bind", "/sys", "/sys"]
    if models is not None:
        command += ["--ro-bind", str(models), str(MODELS_INSIDE)]
    command += ["--chdir", TEMPORARY, "--setenv", "HOME", TEMPORARY]
    command += ["--setenv", "USER", "segnode"]  # libraries ask, and no list of users is there
    limits = ["/usr/bin/prlimit", f"--nproc={_PROCESSES}", "--core=0"]
    if os.getuid() != 0:
        return [*command, "--unshare-user", "--cap-drop", "ALL", "--", *limits]
    become = ["/usr/bin/setpriv", f"--reuid={_USER}", f"--regid={_USER}", _groups(devices)]
    return [*command, "--", *limits, *become, "--bounding-set=-all", "--no-new-privs"]


def gpu_nodes(
    devices: Path = Path("/dev"), driver: Path = Path("/proc/driver/nvidia")
) -> list[Path]:
    """Return the device nodes of GPUs; those of NVIDIA are made where they are not there yet.

    CUDA has them made by a program that becomes root, when it first wants them, which nothing in
    the cell can.
    """
    if (driver / "version").exists() and not (devices / "nvidia-uvm").exists():
        cards = [f"-c={minor}" for minor, _ in enumerate((driver / "gpus").glob("*"))]
        # with -u the numbers are those of nvidia-uvm; 255 is nvidiactl
        for wanted in (["-c=255", *cards], ["-u", "-c=0"]):
            with suppress(OSError, subprocess.TimeoutExpired):
                made = ["nvidia-modprobe", *wanted]
                subprocess.run(made, capture_output=True, timeout=_TRY_S, check=False)
    return [node for pattern in _GPU for node in sorted(devices.glob(pattern))]


def _groups(devices: Sequence[Path]) -> str:
    """Return setpriv's option for the groups that alone may open the GPUs, ``video`` say."""
    nodes = [node for one in devices for node in (one.iterdir() if one.is_dir() else [one])]
    found = set()
    for node in nodes:
        with suppress(FileNotFoundError):  # it may vanish, which bwrap bears as well
            state = node.stat()
            closed = state.st_mode & 0o006 != 0o006
            if closed and state.st_mode & 0o060 == 0o060 and state.st_gid != 0:
                found.add(str(state.st_gid))
    return f"--groups={','.join(sorted(found))}" if found else "--clear-groups"


def why_not() -> str:
    """Return why no sandbox can be made on this machine; empty where one can."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed (as root: apt-get install bubblewrap)"
    try:
        tried = subprocess.run(
            [*sandboxed(None), sys.executable, "-c", "import segnode_models"],
            capture_output=True,
            timeout=_TRY_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not run ({type(error).__name__})"
    if tried.returncode == 0:
        return ""
    said = tried.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else f"bubblewrap ended with {tried.returncode}"


def _read_only(reads: Sequence[Path]) -> list[Path]:
    """Return what is bound: the interpreter, its packages, and where our two packages stand."""
    ours = [find_spec(name) for name in ("segnode_models", "segnode_contract")]
    packages = [Path(spec.origin).parents[1] for spec in ours if spec and spec.origin]
    prefixes = [Path(sys.prefix), Path(sys.base_prefix), Path("/usr")]
    found: list[Path] = []
    for path in [*prefixes, *packages, *reads]:
        if not any(path.is_relative_to(known) for known in found):
            found.append(path)
    return found
