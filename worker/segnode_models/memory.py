"""How much memory models take: measured, on the device that they run on."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "was unable to find an engine to execute this computation",
)
"""How torch says that there is not enough memory where its own class of error does not tell: out
of TorchScript, say. The last is a convolution for which no algorithm had room: that the GPU has
any was tried at the start."""
_HOST_SHARE = 0.5
"""Of the machine's memory: the rest is for worker children, archive and ledger."""
_GPU_SHARE = 0.9
"""Of what is free when we start: the rest is for CUDA itself and for fragments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes that a model was seen to take."""

    weights: int
    """For as long as it is loaded."""
    work: int
    """On top, while it runs: the most of all runs."""


class Meter(Protocol):
    """Reads one device's memory as this process uses it."""

    def budget(self) -> int:
        """Return how many bytes models may take together when nobody has said a number."""

    def limit(self, budget: int) -> None:
        """Have the device refuse more, where it can."""

    def used(self) -> int:
        """Return how many bytes this process has now."""

    def start(self) -> None:
        """Forget the peak."""

    def peak(self) -> int:
        """Return the most bytes that this process had since `start`."""

    def release(self) -> None:
        """Give back what is cached and not in use."""


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error, or its cause, says that there was not enough memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(words in str(error) for words in _WORDS)
        or (error.__cause__ is not None and lacks_memory(error.__cause__))
    )


def meter_of(device: str) -> Meter:
    """Return the meter of a torch device."""
    return _CudaMeter(device) if device.startswith("cuda") else _HostMeter()


def name_of(device: str) -> str:
    """Return what people call a torch device."""
    if not device.startswith("cuda"):
        return f"CPU ({len(os.sched_getaffinity(0))} cores)"
    import torch  # noqa: PLC0415 - as below

    return str(torch.cuda.get_device_name(device))


class _CudaMeter:
    """Memory of one GPU, by torch's own allocator."""

    def __init__(self, device: str) -> None:
        import torch  # noqa: PLC0415 - it takes more than a second, which the host's does not need

        self._cuda = torch.cuda
        self._device = torch.device(device)

    def budget(self) -> int:
        free, _ = self._cuda.mem_get_info(self._device)
        return int(_GPU_SHARE * (free + self._cuda.memory_reserved(self._device)))

    def limit(self, budget: int) -> None:
        _, total = self._cuda.mem_get_info(self._device)
        self._cuda.set_per_process_memory_fraction(min(1.0, budget / total), self._device)

    def used(self) -> int:
        return int(self._cuda.memory_allocated(self._device))

    def start(self) -> None:
        self._cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        return int(self._cuda.max_memory_allocated(self._device))

    def release(self) -> None:
        self._cuda.empty_cache()


class _HostMeter:
    """Resident memory of the process (proc(5))."""

    def budget(self) -> int:
        return int(_HOST_SHARE * _kilobytes("/proc/meminfo", "MemTotal:") * 1024)

    def limit(self, budget: int) -> None:
        """The kernel ends us when the machine has no more; the budget is for sharing."""

    def used(self) -> int:
        return _kilobytes("/proc/self/status", "VmRSS:") * 1024

    def start(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM

    def peak(self) -> int:
        return _kilobytes("/proc/self/status", "VmHWM:") * 1024

    def release(self) -> None:
        """Have the C library give back what it keeps for later; a library without keeps none."""
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(path: str, line: str) -> int:
    text = Path(path).read_text(encoding="ascii")
    return int(text[text.index(line) + len(line) :].split(maxsplit=1)[0])
