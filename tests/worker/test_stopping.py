"""A model tells how far it is, and stops when nobody wants its result any more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from segnode_contract.job import Stage
from segnode_worker.model_client import KnownModel, ModelProcess
from segnode_worker.model_service import ModelService

PROGRAM = Path(__file__).parent / "odd_models.py"


class Cancelled(Exception):
    pass


class Strict:
    """A service that remembers when it was told to end its process."""

    def __init__(self, service: ModelService) -> None:
        self.address, self.current, self._kill = service.address, service.current, service.kill
        self.orders: list[float] = []

    def kill(self, start: int) -> None:
        self.orders.append(time.monotonic())
        self._kill(start)


@pytest.fixture
def service() -> Iterator[ModelService]:
    service = ModelService([str(PROGRAM)], reads=[PROGRAM.parent])
    service.start()
    yield service
    service.stop()


@pytest.fixture
def process(service: ModelService) -> ModelProcess:
    return ModelProcess(service)


@pytest.fixture
def volume() -> hd.Volume:
    return hd.Volume(np.full((3, 4, 5), 40, np.int16), np.eye(4), coordinate_system="PATIENT")


def _model(process: ModelProcess, name: str) -> KnownModel:
    return next(m for m in process.models(60).models if m.card.name == name)


def test_progress_comes_while_the_model_runs(process: ModelProcess, volume: hd.Volume) -> None:
    heard: list[float] = []

    def told(fraction: float | None) -> None:
        if fraction is not None:
            heard.append(fraction)
        if len(heard) > 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        process.segment(_model(process, "counts").card, "counts", volume, {}, told=told)
    assert heard == sorted(heard)
    assert heard[-1] > heard[0]


def test_a_model_that_obeys_stops_and_its_process_stays(
    service: ModelService, process: ModelProcess, volume: hd.Volume
) -> None:
    before = service.current()
    with pytest.raises(Cancelled):
        process.segment(_model(process, "counts").card, "counts", volume, {}, told=_refuse)
    assert service.current() == before
    labels, _ = process.segment(_model(process, "bright").card, "bright", volume, {})
    assert labels.any()


def test_a_model_that_does_not_listen_is_ended_within_two_seconds(
    service: ModelService, process: ModelProcess, volume: hd.Volume
) -> None:
    strict = Strict(service)
    card = _model(process, "hangs").card
    began = time.monotonic()
    with pytest.raises(Cancelled):
        ModelProcess(strict).segment(card, "hangs", volume, {}, told=_refuse)
    [ordered] = strict.orders
    assert ordered - began < 2.0 + 0.5  # the turn and half a second until it is first heard
    labels, _ = process.segment(_model(process, "bright").card, "bright", volume, {})
    assert labels.any()


def test_waiting_for_the_turn_is_timed_apart_from_the_model(
    process: ModelProcess, volume: hd.Volume
) -> None:
    stages: list[Stage] = []

    def stage(which: Stage):
        stages.append(which)
        return _nothing()

    process.segment(_model(process, "bright").card, "bright", volume, {}, stage=stage)
    assert stages == [Stage.TURN, Stage.INFER]


def test_models_that_are_refused_are_named_with_the_reason(process: ModelProcess) -> None:
    assert process.models(60).refused == {"foreign": "It is not trusted."}


def _refuse(fraction: float | None) -> None:
    raise Cancelled


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
