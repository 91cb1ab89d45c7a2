"""TorchScript programs: weights with the network's code, loaded once their digest was checked."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from segnode_contract.errors import ModelFailed
from segnode_models.memory import lacks_memory


def load_program(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    """Load a program onto a device, ready to infer.

    Raises
    ------
    ModelFailed
        ``model-weights``, if it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            # no other way loads what users have; PyTorch names no date
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is", DeprecationWarning)
            program: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), device
            )
    except (RuntimeError, ValueError, OSError) as error:
        if lacks_memory(error):
            raise
        there = "is damaged, or no TorchScript program" if path.exists() else "is not there"
        raise ModelFailed(
            f"{path.parent.name}/{path.name} {there}; a state dictionary alone is none.",
            code="model-weights",
        ) from error
    return program.eval()
