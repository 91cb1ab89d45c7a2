"""A worker says what it is, what it has loaded, and how much room it has, as pages show it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import highdicom as hd
import numpy as np
import pytest

from segnode_contract.ledger import LeaseLedger, Ledger, LedgerView, WorkerLedger
from segnode_contract.settings import Limits
from segnode_models.memory import meter_of, name_of
from segnode_worker.model_client import Known, LoadedModel, ModelProcess
from segnode_worker.model_service import ModelService
from segnode_worker.spool import Spool
from segnode_worker.tasks import _children
from segnode_worker.watch import Watch, report_of

PROGRAM = str(Path(__file__).parent / "odd_models.py")
CPU = f"CPU ({len(os.sched_getaffinity(0))} cores)"


@pytest.fixture
def service() -> Iterator[ModelService]:
    service = ModelService([PROGRAM], reads=[Path(PROGRAM).parent])
    service.start()
    ModelProcess(service).models(60)
    yield service
    service.stop()


@pytest.fixture
def watch(ledger: Ledger, service: ModelService, tmp_path: Path) -> Iterator[Watch]:
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    limits = Limits(free_mb=0)
    watch = Watch(
        worker=WorkerLedger(ledger, "w"),
        leases=LeaseLedger(ledger, limits),
        spool=spool,
        service=service,
        limits=limits,
        children=lambda: 3,
    )
    watch.start()
    yield watch
    watch.stop()


def use(service: ModelService, name: str) -> None:
    process = ModelProcess(service)
    [card] = [m.card for m in process.models(60).models if m.card.name == name]
    volume = hd.Volume(np.zeros((3, 4, 5), np.int16), np.eye(4), coordinate_system="PATIENT")
    process.segment(card, name, volume, {})


def said(ledger: Ledger) -> dict[str, Any]:
    [worker] = LedgerView(ledger).workers()
    assert worker.state == "ready"
    assert worker.report is not None
    return worker.report


def soon(what: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_pages_see_within_seconds_what_a_worker_has_loaded(
    watch: Watch, ledger: Ledger, service: ModelService, tmp_path: Path
) -> None:
    report = said(ledger)
    assert report["device"] == CPU
    assert report["memory_mb"] == meter_of("cpu").budget() >> 20
    assert report["children"] == 3
    assert report["free_mb"] == pytest.approx(Spool(tmp_path).free_mb(), rel=0.2)
    assert (report["used_mb"], report["loaded"]) == (0, [])
    use(service, "tells")
    use(service, "bright")
    assert soon(lambda: len(said(ledger)["loaded"]) == 2, 4)
    loaded = said(ledger)["loaded"]
    assert [(one["model"], one["version"], one["digest"]) for one in loaded] == [
        ("tells", "1.0.0", "tells"),
        ("bright", "1.0.0", "bright"),
    ]
    assert said(ledger)["used_mb"] == sum(one["mb"] for one in loaded)


def test_a_busy_model_process_tells_what_it_has_all_the_same(service: ModelService) -> None:
    process, asked = ModelProcess(service), []
    [card] = [m.card for m in process.models(60).models if m.card.name == "counts"]
    volume = hd.Volume(np.zeros((3, 4, 5), np.int16), np.eye(4), coordinate_system="PATIENT")

    def told(fraction: float | None) -> None:
        if fraction is not None:  # it runs, and holds the device
            asked.append(process.models(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.segment(card, "counts", volume, {}, told=told)
    assert [one.model for one in asked[0].loaded] == ["counts"]


def test_a_model_process_that_is_silent_is_reported_without_its_part(
    watch: Watch,
    ledger: Ledger,
    service: ModelService,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service.address = str(tmp_path / "nowhere")
    assert soon(lambda: LedgerView(ledger).workers()[0].state == "no-model", 8)
    [worker] = LedgerView(ledger).workers()
    assert worker.report is not None
    assert set(worker.report) == {"free_mb", "children"}
    assert caplog.messages.count(worker.detail) == 1


def test_what_is_loaded_is_added_up() -> None:
    known = Known(
        models=[],
        refused={},
        device="NVIDIA H100",
        budget_mb=70_000,
        loaded=[
            LoadedModel(model="liver", version="1", digest="a" * 64, mb=300),
            LoadedModel(model="lung", version="2.1", digest="b" * 64, mb=45),
        ],
    )
    assert report_of(known, 9000, 4) == {
        "device": "NVIDIA H100",
        "memory_mb": 70_000,
        "used_mb": 345,
        "loaded": [
            {"model": "liver", "version": "1", "digest": "a" * 12, "mb": 300},
            {"model": "lung", "version": "2.1", "digest": "b" * 12, "mb": 45},
        ],
        "free_mb": 9000,
        "children": 4,
    }


def test_a_gpu_has_the_name_that_its_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert name_of("cuda:0") == "GPU of cuda:0"
    assert name_of("cpu") == CPU


@pytest.mark.parametrize(("concurrency", "children"), [(4, 4), ("auto", 0)])
def test_children_are_those_that_celery_makes(concurrency: object, children: int) -> None:
    assert _children(SimpleNamespace(concurrency=concurrency)) == children
