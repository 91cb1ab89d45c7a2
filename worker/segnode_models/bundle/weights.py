"""Weights of a bundle: a state dictionary for the network of its configuration.

Nothing here unpickles freely: safetensors holds tensors alone, and `torch.load` is told to take
nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Module

from segnode_contract.errors import ModelFailed

_WRAPPERS = ("model", "state_dict", "network")
"""Keys under which training programs save a state dictionary."""


def load_state(network: Module, path: Path) -> None:
    """Load a state dictionary into `network`; every key must fit.

    Raises
    ------
    ModelFailed
        ``model-weights``, if it cannot be read; ``model-mismatch``, if it does not fit.
    """
    state = _state(path)
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shared = (key for key in wanted if key in state)
    reshaped = [key for key in shared if _shape(wanted[key]) != _shape(state[key])]
    if missing or unexpected or reshaped:
        raise ModelFailed(
            f"The weights {path.name} do not fit the bundle's network: {len(missing)} of its "
            f"{len(wanted)} keys are missing, {len(unexpected)} of the weights' {len(state)} are "
            f"unexpected and {len(reshaped)} have another shape, first "
            f"'{[*missing, *unexpected, *reshaped][0]}'; take configuration and weights of one "
            "version.",
            code="model-mismatch",
        )
    network.load_state_dict(dict(state))


def _state(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unreadable(
            path, "it is damaged, or holds more than tensors; save its state dictionary alone."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, SafetensorError) as error:
        raise _unreadable(path, "is it whole?") from error
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        raise _unreadable(path, "it holds no state dictionary.")
    return state


def _shape(value: object) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None


def _unreadable(path: Path, why: str) -> ModelFailed:
    there = "cannot be read as weights" if path.exists() else "is not there"
    return ModelFailed(f"The file {path.name} {there}: {why}", code="model-weights")
