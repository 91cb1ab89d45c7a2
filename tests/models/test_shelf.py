"""Models stay warm as far as memory allows, and the one used longest ago goes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from segnode_models.memory import lacks_memory
from segnode_models.registry import ListedModel, builtin_models
from segnode_models.shelf import Shelf

MB = 1 << 20
CARD = builtin_models()[0].card


class Device:
    """Memory that models take as they say; it counts what is loaded."""

    def __init__(self) -> None:
        self.bytes = 0
        self.free = 100 * MB
        self.limits: list[int] = []
        self.most = 0
        self.loads: list[str] = []

    def budget(self) -> int:
        return self.free

    def limit(self, budget: int) -> None:
        self.limits.append(budget)

    def used(self) -> int:
        return self.bytes

    def start(self) -> None:
        self.most = self.bytes

    def peak(self) -> int:
        return self.most

    def release(self) -> None: ...

    def model(self, name: str, *, weights_mb: int, says_mb: int) -> ListedModel:
        card = replace(CARD, name=name, memory_bytes=says_mb * MB)

        def load(where: str) -> Weights:
            self.loads.append(name)
            return Weights(self, weights_mb * MB)

        return ListedModel(card=card, digest=name, load=load)


class Weights:
    """A model that does nothing but take memory for as long as it lives."""

    card = CARD

    def __init__(self, device: Device, size: int) -> None:
        self._device, self._size = device, size
        device.bytes += size

    def segment(self, *_: object) -> None: ...

    def __del__(self) -> None:
        self._device.bytes -= self._size


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def shelf(device: Device) -> Shelf:
    return Shelf("cpu", 100 * MB, device)


def _work(shelf: Shelf, device: Device, listed: ListedModel, mb: int) -> None:
    shelf.take(listed)
    with shelf.measuring(listed):
        device.most = device.bytes + mb * MB


def test_a_model_is_loaded_once(shelf: Shelf, device: Device) -> None:
    liver = device.model("liver", weights_mb=10, says_mb=20)
    assert shelf.take(liver) is shelf.take(liver)
    assert device.loads == ["liver"]


def test_the_one_used_longest_ago_makes_room(shelf: Shelf, device: Device) -> None:
    liver = device.model("liver", weights_mb=40, says_mb=40)
    lung = device.model("lung", weights_mb=40, says_mb=40)
    shelf.take(liver)
    shelf.take(lung)
    shelf.take(liver)  # the lung is now the one used longest ago
    shelf.take(device.model("brain", weights_mb=30, says_mb=60))
    assert set(shelf.loaded) == {"liver", "brain"}
    assert device.bytes == 70 * MB


def test_what_was_measured_counts_and_not_what_the_card_says(shelf: Shelf, device: Device) -> None:
    modest = device.model("modest", weights_mb=10, says_mb=90)
    greedy = device.model("greedy", weights_mb=10, says_mb=10)
    _work(shelf, device, modest, 5)
    _work(shelf, device, greedy, 85)  # 10 for weights and 85 for work: no room for another 10
    assert shelf.loaded["modest"].work == 5 * MB
    shelf.take(modest)
    assert set(shelf.loaded) == {"modest", "greedy"}  # it needs 15, not the 90 of its card
    shelf.take(greedy)
    assert set(shelf.loaded) == {"greedy"}


def test_a_model_larger_than_the_budget_is_tried_alone(shelf: Shelf, device: Device) -> None:
    shelf.take(device.model("liver", weights_mb=10, says_mb=10))
    shelf.take(device.model("huge", weights_mb=10, says_mb=1000))
    assert set(shelf.loaded) == {"huge"}


def test_others_leave_where_one_wants_all(shelf: Shelf, device: Device) -> None:
    liver = device.model("liver", weights_mb=10, says_mb=10)
    shelf.take(liver)
    assert not shelf.keep_only(liver)
    shelf.take(device.model("lung", weights_mb=10, says_mb=10))
    assert shelf.keep_only(liver)
    assert set(shelf.loaded) == {"liver"}
    assert device.bytes == 10 * MB


def test_a_shelf_tells_what_stands_on_it_and_what_that_takes(shelf: Shelf, device: Device) -> None:
    for name, weights_mb in (("liver", 10), ("lung", 20), ("liver", 10)):
        shelf.take(device.model(name, weights_mb=weights_mb, says_mb=weights_mb))
    said = [(one.name, one.version, one.digest, one.weights // MB) for one in shelf.standing()]
    assert said == [("lung", CARD.version, "lung", 20), ("liver", CARD.version, "liver", 10)]
    assert shelf.budget == 100 * MB


def test_the_budget_is_measured_again_while_no_model_is_loaded(device: Device) -> None:
    shelf = Shelf("cpu", meter=device)
    device.free = 200 * MB  # a process that had been killed gave its memory back only now
    shelf.take(device.model("liver", weights_mb=10, says_mb=10))
    device.free = 300 * MB
    shelf.take(device.model("lung", weights_mb=10, says_mb=10))
    assert device.limits == [100 * MB, 200 * MB]
    assert shelf.budget == 200 * MB


def test_a_budget_that_was_given_stays(shelf: Shelf, device: Device) -> None:
    device.free = 200 * MB
    shelf.take(device.model("liver", weights_mb=10, says_mb=10))
    assert shelf.budget == 100 * MB


def test_a_model_that_lacked_memory_as_it_was_loaded_is_gone_when_it_is_tried_alone(
    shelf: Shelf, device: Device
) -> None:
    seen: list[int] = []

    def load(where: str) -> Weights:
        seen.append(device.bytes)
        weights = Weights(device, 40 * MB)
        if len(seen) == 1:
            raise MemoryError
        return weights

    shelf.take(device.model("lung", weights_mb=10, says_mb=10))
    shelf.take(replace(device.model("liver", weights_mb=40, says_mb=40), load=load))
    assert seen == [10 * MB, 0]
    assert set(shelf.loaded) == {"liver"}


def _caused_by(cause: Exception) -> Exception:
    error = ValueError("The model failed.")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("wrapped", [lambda error: error, _caused_by])
@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA driver error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_what_torch_says_of_too_little_memory_is_known(
    words: str, wrapped: Callable[[Exception], Exception]
) -> None:
    assert lacks_memory(wrapped(RuntimeError(words)))
    assert not lacks_memory(wrapped(RuntimeError("CUDA error: device-side assert triggered")))


def test_the_hosts_meter_sees_what_is_taken() -> None:
    from segnode_models.memory import meter_of

    meter = meter_of("cpu")
    before = meter.used()
    meter.start()
    block = bytearray(b"x" * (64 * MB))
    assert meter.used() - before > 60 * MB
    del block
    assert meter.peak() - before > 60 * MB
    assert meter.budget() > 256 * MB


def test_weights_that_take_what_the_heap_kept_are_measured_all_the_same(device: Device) -> None:
    def blocks() -> list[NDArray[np.float64]]:
        return [np.ones(8000) for _ in range(2000)]  # 128 MB, each too small for a map of its own

    class Blocks(Weights):
        def __init__(self, device: Device) -> None:
            super().__init__(device, 0)
            self.blocks = blocks()

    listed = replace(device.model("liver", weights_mb=0, says_mb=0), load=lambda _: Blocks(device))
    shelf = Shelf("cpu", 1000 * MB)
    garbage = blocks()
    on_top = np.ones(8000)
    del garbage
    shelf.take(listed)
    assert shelf.loaded["liver"].weights > 110 * MB
    del on_top
