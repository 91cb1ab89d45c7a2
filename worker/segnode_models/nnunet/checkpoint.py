"""Checkpoints of nnU-Net: weights, among a training's log and settings.

They are pickles, and nothing here unpickles freely: torch takes tensors and plain Python values
alone, and of NumPy only the numbers in which nnU-Net keeps its log.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segnode_contract.errors import ModelFailed

_SCALAR: Callable[..., Any] = np.float64().__reduce__()[0]  # type: ignore[assignment] # it is one
_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # its name before NumPy 2
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
]
_BROKEN = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError),
    *(AssertionError, struct.error, pickle.UnpicklingError),
)
"""What torch raises at files that are damaged or something else; it has no class for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What inference needs of a checkpoint."""

    weights: Mapping[str, Tensor]
    """State dictionary of the network, on the CPU."""
    trainer: str
    """Name of the class that trained it, which also builds the network."""
    configuration: str
    """Of the plans: ``3d_fullres`` say."""
    mirror_axes: tuple[int, ...]
    """Axes, of those of a patch, along which training showed images mirrored; empty for none."""


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint that nnU-Net's trainer wrote.

    Raises
    ------
    ModelFailed
        ``model-weights``, if it cannot be read or holds anything but weights, numbers and texts.
    """
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise ModelFailed(
            f"The checkpoint {where} is not there; correct 'folds' or 'checkpoint' in the card.",
            code="model-weights",
        )
    held = _read(path, where)
    match held:
        case {
            "network_weights": dict() as weights,
            "trainer_name": str() as trainer,
            "init_args": {"configuration": str() as configuration},
        } if weights and all(isinstance(value, Tensor) for value in weights.values()):
            return Checkpoint(
                # copied: the file stays mapped for what is left behind, the optimizer's state
                weights={str(name): value.clone() for name, value in weights.items()},
                trainer=trainer,
                configuration=configuration,
                mirror_axes=tuple(held.get("inference_allowed_mirroring_axes") or ()),
            )
    raise ModelFailed(
        f"The checkpoint {where} is not one of nnU-Net v2: weights, trainer or configuration are "
        "missing in it.",
        code="model-weights",
    )


def _read(path: Path, where: str) -> Any:
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            strange = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            if not strange:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _BROKEN as error:
        raise ModelFailed(
            f"The checkpoint {where} cannot be read as weights: it is damaged, or no file of "
            "torch.save; copy it again.",
            code="model-weights",
        ) from error
    raise ModelFailed(
        f"The checkpoint {where} holds {', '.join(sorted(strange))}, which is no weight; it may "
        "run a program when it is opened, so nothing of it was loaded.",
        code="model-weights",
    )
