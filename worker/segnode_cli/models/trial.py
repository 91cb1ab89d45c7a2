"""The trial of a new model: it runs once, on a made-up volume, before it takes its place."""

from __future__ import annotations

import time
from pathlib import Path

import highdicom as hd
import numpy as np

from segnode_cli.ct_series import ct_volume
from segnode_cli.models.inspect import plain
from segnode_cli.show import say
from segnode_contract.card import Card
from segnode_contract.errors import (
    MemoryExhausted,
    ModelBusy,
    ModelTimeLimit,
    OutOfMemory,
    SegnodeError,
    SetupError,
)
from segnode_models.registry import ListedModel, offer_of
from segnode_worker.model_client import ModelProcess, Told
from segnode_worker.model_service import ModelService
from segnode_worker.sandbox import why_not
from segnode_worker.volume import for_model

_START_S = 60.0
_LIMIT_S = 60.0
_SHAPE = (32, 64, 64)
_SPACING_MM = (3.0, 3.0, 3.0)
_VALUES = {"CT": (-1000, 40, 300)}
"""Of air, of a body and of something bright in it."""
_OTHER_VALUES = (0, 300, 900)
_WHOLE = ("CT", "MR")
"""Modalities whose values are mostly whole numbers."""
_NOISE = 10.0


class _TooLong(Exception):
    """The trial ends here."""


def try_model(models: Path, name: str) -> str:
    """Run a model once in the cell, and return why it could not be tried; empty where it ran.

    Parameters
    ----------
    models
        A folder of models that holds it.

    Raises
    ------
    SetupError
        If it gives no result, with its reason and its code.
    """
    listed = offer_of(models).named(name)
    card = listed.card
    if card.builds_on:
        return f"it builds on the result of {card.builds_on}."
    if trouble := why_not():
        return f"no cell can be made here for it: {trouble}."
    say(f"Running it once on a made-up volume, for {_LIMIT_S:g} s at most …")
    try:
        _run(models, listed)
    except _TooLong:
        return f"it took longer than {_LIMIT_S:g} s."
    except (OutOfMemory, MemoryExhausted):
        return "there was not enough memory for it."
    except SegnodeError as error:
        sentence = plain(error.sentence, 1000)
        if isinstance(error, ModelTimeLimit | ModelBusy) or error.code == "model-needs-gpu":
            return sentence
        raise SetupError(
            f"{name} gave no result on a made-up volume, so nothing was added: {sentence} Where "
            "only the made-up volume does not suit the model, say --no-trial.",
            code=error.code,
        ) from error
    return ""


def _run(models: Path, listed: ListedModel) -> None:
    volume = _made_up(listed.card)
    # a worker may be at work on the same device
    service = ModelService(models=models, memory_mb=max(1, listed.card.memory_bytes >> 20))
    service.start()
    try:
        process = ModelProcess(service)
        process.models(_START_S)  # says so where the process itself does not come up
        process.segment(
            listed.card,
            listed.digest,
            volume,
            {"ContrastBolus": "no"},
            others={one.role: volume.array.astype(np.float32) for one in listed.card.inputs[1:]},
            told=_no_longer_than(_LIMIT_S),
        )
    finally:
        service.stop()


def _no_longer_than(seconds: float) -> Told:
    until = time.monotonic() + seconds

    def told(fraction: float | None) -> None:
        if time.monotonic() > until:
            raise _TooLong

    return told


def _made_up(card: Card) -> hd.Volume:
    """Return a body in air with something bright in it, in the card's orientation."""
    shape = (max(_SHAPE[0], card.min_slices), *_SHAPE[1:])
    z, y, x = (
        (index - (count - 1) / 2) * mm
        for index, count, mm in zip(np.indices(shape), shape, _SPACING_MM, strict=True)
    )
    air, body, bright = _VALUES.get(card.modality, _OTHER_VALUES)
    values = np.where(np.hypot(x / 80, y / 60) < 1, body, air).astype(np.float64)
    values[np.hypot(np.hypot(x - 20, y), z) < 24] = bright
    values += np.abs(np.random.default_rng(0).normal(0, _NOISE, shape))
    kind = np.int16 if card.modality in _WHOLE else np.float32
    return for_model(ct_volume(values.astype(kind), spacing_mm=_SPACING_MM), card.orientation)
