"""The device that models run on: tried before it is taken, and set to give the same each time."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from textwrap import shorten

from segnode_models.shelf import HOST

UNUSED = "This machine has a GPU that the model process cannot use"
"""So begins what is said of it."""
_NO_GPU = (
    f"{UNUSED}, so that models run on the CPU: "
    "{why} See whether nvidia-smi works, whether this build of torch fits the driver and the GPU, "
    "and whether /dev/nvidia-uvm was there when the worker started."
)


def chosen_device(wanted: str) -> tuple[str, str]:
    """Return the torch device that models run on, and why it is not the GPU that is there.

    Parameters
    ----------
    wanted
        ``auto``, or a torch device.
    """
    hidden = wanted == "auto" and os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}
    if hidden or not wanted.startswith(("auto", "cuda")):
        return (HOST if hidden else wanted), ""
    device = "cuda:0" if wanted in {"auto", "cuda"} else wanted
    why = _trouble_of(device)
    if not why:
        return device, ""
    nodes = chain(Path("/dev").glob("nvidia[0-9]*"), Path("/proc/driver/nvidia").glob("version"))
    there = wanted != "auto" or any(nodes)
    return HOST, _NO_GPU.format(why=why) if there else ""


def answers(device: str) -> bool:
    """Return whether a device can be used still: some errors leave CUDA lost to a whole process."""
    if not device.startswith("cuda"):
        return True
    import torch  # noqa: PLC0415 - it takes more than a second, which tests' models need not spend

    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def _trouble_of(device: str) -> str:
    """Return why a GPU does not do as little as a convolution, by its driver or torch, say.

    One that torch's libraries are too new for is there for torch, and fails only then.
    """
    import torch  # noqa: PLC0415 - as above

    _give_the_same_each_time()
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.set_device(device)
        seen = torch.ones((1, 1, 8, 8, 8), device=device)
        float(torch.nn.functional.conv3d(seen, seen[..., :3, :3, :3]).sum())
    except Exception as error:  # torch has no class for it: a missing driver, a build without CUDA
        said = str(error).strip().splitlines() or [type(error).__name__]
        return shorten(said[0].rstrip("."), 300, placeholder=" …") + "."
    return ""


def _give_the_same_each_time() -> None:
    """Have a GPU compute in full single precision, by the same steps for the same input."""
    import torch  # noqa: PLC0415 - as above

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    # TF32 has no more bits than half precision; by its newer name, `cudnn.flags` would raise
    torch.backends.cudnn.allow_tf32 = False
    # a TorchScript program would get other kernels at its third run than at its first
    torch._C._jit_override_can_fuse_on_gpu(False)
