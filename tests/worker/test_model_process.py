"""The model process outlives what its models do, and a job learns what happened."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from segnode_contract.card import Card
from segnode_contract.errors import (
    MemoryExhausted,
    ModelProcessDied,
    ModelTimeLimit,
    OutOfMemory,
    PermanentError,
)
from segnode_worker.model_client import ModelProcess
from segnode_worker.model_service import ModelService

PROGRAM = str(Path(__file__).parent / "odd_models.py")


@pytest.fixture(scope="module")
def service() -> Iterator[ModelService]:
    service = ModelService([PROGRAM], reads=[Path(PROGRAM).parent])
    service.start()
    yield service
    service.stop()


class Forgetful:
    """A service whose orders get lost."""

    def __init__(self, service: ModelService) -> None:
        self.address, self.current = service.address, service.current
        self.orders: list[int] = []

    def kill(self, start: int) -> None:
        self.orders.append(start)


@pytest.fixture
def process(service: ModelService) -> ModelProcess:
    return ModelProcess(service)


@pytest.fixture
def cards(process: ModelProcess) -> dict[str, Card]:
    return {model.card.name: model.card for model in process.models(60).models}


@pytest.fixture
def volume() -> hd.Volume:
    voxels = np.full((3, 4, 5), -1000, np.int16)
    voxels[1, 2, 3] = 40
    return hd.Volume(voxels, np.eye(4), coordinate_system="PATIENT")


def test_labels_come_back_on_the_grid_of_the_volume(
    process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    labels, _ = process.segment(cards["bright"], "bright", volume, {})
    assert labels.shape == (1, 3, 4, 5)
    assert np.argwhere(labels).tolist() == [[0, 1, 2, 3]]
    assert labels.max() == 7


def test_float_volumes_travel_too(
    process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    halves = volume.with_array(volume.array.astype(np.float32) + 0.5)
    labels, _ = process.segment(cards["bright"], "bright", halves, {})
    assert labels.sum() == 7


def test_other_series_and_a_result_travel_beside_the_volume(
    process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    late = volume.array.astype(np.float32)
    late[0, 1, 2] += 100
    prior = np.zeros((2, 3, 4, 5), np.uint8)
    prior[1, 2, 0, 4] = 3
    both = {"others": {"first": late * 0, "late": late}, "prior": prior}
    labels, _ = process.segment(cards["compares"], "compares", volume, {}, **both)
    assert np.argwhere(labels).tolist() == [[0, 0, 1, 2]]
    labels, _ = process.segment(cards["builds on"], "builds on", volume, {}, **both)
    assert np.argwhere(labels).tolist() == [[0, 2, 0, 4]]


def test_a_hung_model_is_ended_and_the_next_job_is_served(
    process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    with pytest.raises(ModelTimeLimit, match="longer than the 1 s"):
        process.segment(cards["hangs"], "hangs", volume, {})
    labels, _ = process.segment(cards["bright"], "bright", volume, {})
    assert labels.any()


def test_a_dying_model_process_is_named_and_started_anew(
    process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    with pytest.raises(ModelProcessDied, match="in the middle of the job"):
        process.segment(cards["dies"], "dies", volume, {})
    labels, _ = process.segment(cards["bright"], "bright", volume, {})
    assert labels.any()


def test_a_models_exception_is_coded_and_its_text_stays_inside(
    process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    with pytest.raises(PermanentError) as raised:
        process.segment(cards["raises"], "raises", volume, {})
    assert raised.value.code == "model-failed"
    assert "RuntimeError" in raised.value.sentence
    assert "DOE" not in raised.value.sentence


@pytest.mark.parametrize(
    ("name", "code"), [("truncated", "model-weights"), ("explodes", "model-failed")]
)
def test_a_model_that_cannot_be_loaded_fails_its_job_and_no_other(
    process: ModelProcess, cards: dict[str, Card], volume: hd.Volume, name: str, code: str
) -> None:
    with pytest.raises(PermanentError) as raised:
        process.segment(cards[name], name, volume, {})
    assert raised.value.code == code
    assert "DOE" not in raised.value.sentence
    labels, _ = process.segment(cards["bright"], "bright", volume, {})
    assert labels.any()


def test_a_model_that_dies_as_it_is_loaded_is_named_at_once(
    service: ModelService, process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    before = service.current()
    with pytest.raises(ModelProcessDied, match="in the middle of the job"):
        process.segment(cards["expires"], "expires", volume, {})
    labels, _ = process.segment(cards["bright"], "bright", volume, {})
    assert labels.any()
    assert service.current() == before + 1


def test_an_unknown_digest_is_refused(
    process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    with pytest.raises(PermanentError, match="its bright has bright") as raised:
        process.segment(cards["bright"], "unheard", volume, {})
    assert raised.value.code == "unknown-model"


def test_a_job_of_a_model_that_is_refused_says_why(
    process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    foreign = replace(cards["bright"], name="foreign")
    with pytest.raises(PermanentError, match="It is not trusted") as raised:
        process.segment(foreign, "foreign", volume, {})
    assert raised.value.code == "model-untrusted"


def test_without_a_gpu_the_cards_that_allow_it_alone_run_on_the_cpu(volume: hd.Volume) -> None:
    service = ModelService([PROGRAM, "cpu"], reads=[Path(PROGRAM).parent])
    service.start()
    try:
        process = ModelProcess(service)
        known = process.models(60)
        cards = {model.card.name: model.card for model in known.models}
        assert set(cards) == {"bright", "is greedy"}
        labels, _ = process.segment(cards["bright"], "bright", volume, {})
        assert labels.any()
        assert "its card says cpu = false" in known.refused["counts"]
        assert known.refused["(GPU)"] == "The driver is too old."
        with pytest.raises(PermanentError, match="its card says cpu = false") as raised:
            process.segment(replace(cards["bright"], name="counts"), "counts", volume, {})
        assert raised.value.code == "model-needs-gpu"
    finally:
        service.stop()


def test_a_failure_that_leaves_the_gpu_lost_ends_the_process(volume: hd.Volume) -> None:
    service = ModelService([PROGRAM, "lost"], reads=[Path(PROGRAM).parent])
    service.start()
    try:
        process = ModelProcess(service)
        cards = {model.card.name: model.card for model in process.models(60).models}
        with pytest.raises(PermanentError, match="stopped with RuntimeError"):
            process.segment(cards["raises"], "raises", volume, {})
        labels, _ = process.segment(cards["bright"], "bright", volume, {})
        assert labels.any()
        assert service.current() == 2
    finally:
        service.stop()


def test_a_model_prepares_its_volume_while_another_has_its_turn(
    process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    def prepared_at() -> float:
        _, findings = process.segment(cards["prepares"], "prepares", volume, {})
        return float(findings.withheld[0].reason)

    assert prepared_at() == 0  # it was not loaded yet
    counting, enough = threading.Event(), threading.Event()

    def told(fraction: float | None) -> None:
        counting.set()
        if enough.is_set():
            raise InterruptedError

    def count() -> None:
        with suppress(InterruptedError):
            process.segment(
                replace(cards["counts"], time_limit_s=60), "counts", volume, {}, told=told
            )

    with ThreadPoolExecutor(2) as pool:
        pool.submit(count)
        assert counting.wait(30)
        waiting = pool.submit(prepared_at)
        time.sleep(0.5)
        over = time.monotonic()
        enough.set()
        assert 0 < waiting.result(30) < over


def test_the_process_sees_no_address_and_no_password(
    monkeypatch: pytest.MonkeyPatch, volume: hd.Volume
) -> None:
    monkeypatch.setenv("SEGNODE_ARCHIVE_PASSWORD", "secret")
    monkeypatch.setenv("SEGNODE_LEDGER_URL", "sqlite://")
    service = ModelService([PROGRAM], reads=[Path(PROGRAM).parent])
    service.start()
    try:
        process = ModelProcess(service)
        card = next(m.card for m in process.models(60).models if m.card.name == "tells")
        _, findings = process.segment(card, "tells", volume, {})
    finally:
        service.stop()
    assert findings.withheld[0].reason == ""


def test_too_little_memory_is_named(
    process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    with pytest.raises(MemoryExhausted, match=r"not enough memory for \[3, 4, 5\]") as raised:
        process.segment(cards["is greedy"], "is greedy", volume, {})
    assert "DOE" not in raised.value.sentence


def test_a_model_that_may_run_on_the_cpu_is_tried_there_once(
    process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    with pytest.raises(OutOfMemory, match="tried on the CPU"):
        process.segment(cards["is greedy"], "fat", volume, {})
    labels, _ = process.segment(cards["is greedy"], "fat", volume, {}, on_cpu=True)
    assert labels.any()


def test_a_model_that_hangs_after_its_child_died_holds_nobody_for_ever(
    service: ModelService, process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    forgetful = Forgetful(service)
    with pytest.raises(ModelTimeLimit):
        ModelProcess(forgetful).segment(cards["hangs"], "hangs", volume, {})
    labels, _ = process.segment(cards["bright"], "bright", volume, {})
    assert labels.any()
    assert forgetful.orders == [service.current() - 1]


def test_a_late_order_does_not_end_the_next_process(
    service: ModelService, process: ModelProcess, cards: dict[str, Card], volume: hd.Volume
) -> None:
    service.kill(service.current() - 1)
    service.kill(-1)
    labels, _ = process.segment(cards["bright"], "bright", volume, {})
    assert labels.any()


def test_the_models_log_says_what_happened_to_which(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o755)  # for the model process, which is another user
    (tmp_path / "changed.pins.json").write_text('{"files": {"card.toml": "00"}}')
    service = ModelService(models=tmp_path)
    service.start()
    try:
        ModelProcess(service).models(60)
    finally:
        service.stop()
    assert "WARNING model refused model=changed code=" in capfd.readouterr().err
