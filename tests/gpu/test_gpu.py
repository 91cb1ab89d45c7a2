"""What only a GPU can show, with a table of figures: make gpu

Neither Orthanc nor Redis is needed, and of packages torch, numpy, scipy, pydicom, highdicom and
pytest alone, with bubblewrap for the cell:

    python -m pytest -s -p no:cacheprovider -c /dev/null --confcutdir=tests/gpu tests/gpu

Where segnode is not installed, a .pth file with the paths of plugin/ and worker/ among the
interpreter's packages stands for it: the model process finds them too. SEGNODE_DEVICE=cpu tries
the tests themselves, in small, on a machine without a GPU.
"""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segnode_cli.phantom import chest_phantom
from segnode_contract.card import Card, parse_card
from segnode_contract.card_network import TorchScriptNetwork
from segnode_contract.errors import MemoryExhausted, OutOfMemory, PermanentError
from segnode_contract.job import Stage
from segnode_models import windows
from segnode_models.device import chosen_device
from segnode_models.model import InputVolume, Model
from segnode_models.registry import ListedModel, builtin_models
from segnode_models.shelf import Shelf
from segnode_models.torchscript import TorchScriptModel
from segnode_models.trust import pins_of, write_pins
from segnode_worker.model_client import KnownModel, ModelProcess
from segnode_worker.model_service import ModelService
from segnode_worker.sandbox import why_not

DEVICE = os.environ.get("SEGNODE_DEVICE", "cuda:0")
GPU = DEVICE != "cpu"
if GPU and not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)
on_gpu = pytest.mark.skipif(not GPU, reason="this is a trial without a GPU")

MB = 1 << 20
SHAPE = (300, 512, 512) if GPU else (40, 96, 96)
PATCH, GRID_MM = ((64, 96, 96), (3, 1.5, 1.5)) if GPU else ((16, 32, 32), (12, 8, 8))
LARGE_PATCH, FINE_MM = ((128, 256, 256), (1, 0.7, 0.7)) if GPU else (PATCH, GRID_MM)
Row = Callable[[str, str], None]
Image = tuple[NDArray[np.int16], tuple[float, float, float]]

CARD = """
name = "{name}"
version = "1"
kind = "torchscript"
intended_use = "Tests."
limitations = ["Not for use."]
licence = "AGPL-3.0-or-later"
memory_bytes = 200_000_000
cpu = {cpu}
time_limit_s = 300
{half}
[input]
modality = "CT"
orientation = "HPL"
min_slices = 1
spacing_mm = {mm}
intensity = {{ clip = [-1000, 1000], scale = [-1, 1] }}
[network]
weights = "model.ts"
patch = {patch}
overlap = 0.5
activation = "softmax"
"""
SEGMENT = """
[[segments]]
number = {n}
label = "Segment {n}"
plane = 0
value = {n}
channel = {n}
category = {{ value = "123037004", scheme = "SCT", meaning = "Body structure" }}
type = {{ value = "113343008", scheme = "SCT", meaning = "Organ" }}
colour = [{colour}, 37740, 30000]
"""


class Network(nn.Module):
    """A small U-Net; of transposed convolutions cuDNN has algorithms that vary."""

    def __init__(self, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv3d(1, width, 3, padding=1),
            nn.BatchNorm3d(width),
            nn.PReLU(),
            nn.Conv3d(width, 2 * width, 3, stride=2, padding=1),
            nn.PReLU(),
        )
        self.up = nn.ConvTranspose3d(2 * width, width, 3, stride=2, padding=1, output_padding=1)
        self.last = nn.Conv3d(width, channels, 3, padding=1)

    def forward(self, seen: Tensor) -> Tensor:
        return self.last(torch.relu(self.up(self.down(seen))))


class Lost(nn.Module):
    """Looks behind the end of a tensor, after which CUDA answers nothing to its process."""

    def forward(self, seen: Tensor) -> Tensor:
        behind = torch.full([1], 7, dtype=torch.long, device=seen.device)
        return seen.index_select(1, behind).repeat(1, 3, 1, 1, 1)


def card_toml(
    name: str = "one",
    *,
    cpu: bool = True,
    half: bool = False,
    channels: int = 3,
    patch: tuple[int, ...] = PATCH,
    mm: tuple[float, ...] = GRID_MM,
) -> str:
    checked = 'half_precision_checked = "Tests."' if half else ""
    says = {"cpu": str(cpu).lower(), "half": checked, "patch": list(patch), "mm": list(mm)}
    segments = [SEGMENT.format(n=n, colour=20000 + 200 * n) for n in range(1, channels)]
    return CARD.format(name=name, **says) + "".join(segments)


def save(network: nn.Module, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        torch.jit.script(network.eval()).save(str(folder / "model.ts"))
    return folder


def network_of(seed: int, **how: int) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network(**how)


def loaded(folder: Path, toml: str, device: str = DEVICE) -> TorchScriptModel:
    card = parse_card(toml, where="card.toml")
    assert isinstance(card.network, TorchScriptNetwork)
    return TorchScriptModel(card, card.network, folder, torch.device(device))


def run(model: Model, image: Image) -> tuple[NDArray[np.uint8], float]:
    """Return labels, and seconds."""
    hu, spacing_mm = image
    labels = np.zeros((model.card.planes, *hu.shape), np.uint8)
    began = time.perf_counter()
    model.segment(InputVolume(hu=hu, spacing_mm=spacing_mm, attributes={}), labels, lambda _: None)
    return labels, time.perf_counter() - began


def differing(labels: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """Return how many voxels differ, as a share of those that have a label."""
    return float((labels != others).sum() / max(1, (others > 0).sum()))


def volume_of(image: Image) -> hd.Volume:
    hu, spacing_mm = image
    return hd.Volume(hu, np.diag([*spacing_mm, 1.0]), coordinate_system="PATIENT")


@pytest.fixture(scope="session")
def row() -> Iterator[Row]:
    """Takes a row of the table that is printed at the end."""
    rows: dict[str, str] = {}
    yield rows.__setitem__
    width = max(map(len, rows), default=0)
    print("\n\n" + "\n".join(f"{name:{width}}  {figures}" for name, figures in rows.items()))


@pytest.fixture(scope="session", autouse=True)
def device(row: Row) -> None:
    """Set this process as the model process sets itself."""
    chosen, why = chosen_device(DEVICE)
    assert chosen == DEVICE, why
    name = torch.cuda.get_device_name(DEVICE) if GPU else "CPU"
    row("device", f"{name}, torch {torch.__version__}")


@pytest.fixture(scope="session")
def image() -> Image:
    phantom = chest_phantom()
    taken = [np.arange(n) * had // n for n, had in zip(SHAPE, phantom.hu.shape, strict=True)]
    sides = zip(phantom.spacing_mm, phantom.hu.shape, SHAPE, strict=True)
    slices_mm, rows_mm, columns_mm = (mm * had / n for mm, had, n in sides)
    return np.ascontiguousarray(phantom.hu[np.ix_(*taken)]), (slices_mm, rows_mm, columns_mm)


@pytest.fixture(scope="session")
def part(image: Image) -> Image:
    """Fewer slices, for what a CPU does beside."""
    return image[0][100:160] if GPU else image[0], image[1]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    models.chmod(0o755)
    large = {"patch": LARGE_PATCH, "mm": FINE_MM}
    for network, toml in (
        (network_of(1), card_toml("one")),
        (network_of(2, width=32), card_toml("large", **large)),
        (network_of(2, width=32), card_toml("large-alone", cpu=False, **large)),
        (Lost(), card_toml("lost", cpu=False)),
    ):
        name = parse_card(toml, where="card.toml").name
        (save(network, models / name) / "card.toml").write_text(toml)
        write_pins(models, name, pins_of(models / name))
    return models


@contextmanager
def serving(models: Path, memory_mb: int = 0) -> Iterator[tuple[ModelService, ModelProcess]]:
    service = ModelService(models=models, memory_mb=memory_mb)
    service.start()
    try:
        yield service, ModelProcess(service)
    finally:
        service.stop()


def known(process: ModelProcess, name: str) -> KnownModel:
    return next(model for model in process.models(120).models if model.card.name == name)


def test_the_model_process_has_the_gpu_in_its_cell_and_the_next_one_gives_the_same(
    models: Path, part: Image, row: Row
) -> None:
    budgets, found = list[int](), list[NDArray[np.uint8]]()
    for _ in range(2):
        with serving(models) as (_service, process):
            says = process.models(120)
            assert "(GPU)" not in says.refused, says.refused["(GPU)"]
            assert not GPU or says.device == torch.cuda.get_device_name(DEVICE)
            one = known(process, "one")
            found.append(process.segment(one.card, one.digest, volume_of(part), {})[0])
            budgets.append(process.models(120).budget_mb)
    row("cell", why_not() or "bubblewrap")
    row("budget, after a kill", f"{budgets[0]} MB, {budgets[1]} MB")
    assert found[0].any()
    assert np.array_equal(*found)
    assert budgets[1] > 0.9 * budgets[0]


@pytest.mark.parametrize("listed", builtin_models(), ids=lambda listed: listed.card.name)
def test_built_in_models_find_the_same_on_a_gpu(
    listed: ListedModel, image: Image, row: Row
) -> None:
    expected, cpu_s = run(listed.load("cpu"), image)
    model = listed.load(DEVICE)
    first, _ = run(model, image)
    again, gpu_s = run(model, image)
    off = differing(again, expected)
    row(f"{listed.card.name}: CPU, GPU, differ", f"{cpu_s:.2f} s, {gpu_s:.2f} s, {off:.1e}")
    assert np.array_equal(first, again)
    assert off < 1e-4


def test_a_network_finds_the_same_each_time_and_nearly_that_of_a_cpu(
    models: Path, part: Image, row: Row
) -> None:
    expected, _ = run(loaded(models / "one", card_toml(), "cpu"), part)
    for half, most in ((False, 1e-3), (True, 5e-2)):
        model = loaded(models / "one", card_toml(half=half))
        first, *others = (run(model, part)[0] for _ in range(4))
        off = differing(first, expected)
        row(f"{'float16' if half else 'float32'}: differ from CPU's float32", f"{off:.1e}")
        assert all(np.array_equal(first, one) for one in others)
        assert off < most


@on_gpu
def test_sums_on_the_host_give_what_sums_on_the_device_give(
    models: Path, part: Image, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(models / "one", card_toml())
    run(model, part)
    here, here_s = run(model, part)
    monkeypatch.setattr(windows, "_room", lambda device: 0.0)
    there, there_s = run(model, part)
    off = differing(there, here)
    row("sums: device, host, differ", f"{here_s:.2f} s, {there_s:.2f} s, {off:.1e}")
    assert off < 1e-4


def test_scores_of_many_channels_never_stand_on_the_grid_of_the_images(
    tmp_path: Path, image: Image, row: Row
) -> None:
    channels = 104 if GPU else 4
    folder = save(network_of(3, channels=channels, width=8), tmp_path)
    model = loaded(folder, card_toml(channels=channels))
    run(model, image)
    whole = 4 * channels * image[0].size
    gc.collect()
    if GPU:
        torch.cuda.reset_peak_memory_stats(DEVICE)
    _, seconds = run(model, image)
    peak = torch.cuda.max_memory_allocated(DEVICE) if GPU else 0
    row(
        f"{channels} channels: time, peak, scores on the images' grid",
        f"{seconds:.2f} s, {peak // MB} MB, {whole // MB} MB",
    )
    assert peak < whole / 4


@on_gpu
def test_memory_is_shared_and_comes_back_by_cudas_own_figures(row: Row) -> None:
    class Held:
        def __init__(self, card: Card) -> None:
            self.card = card
            self.weights = torch.ones(300 * MB, dtype=torch.uint8, device=DEVICE)

        def segment(self, *_: object) -> None: ...

    def free() -> int:
        return torch.cuda.mem_get_info(DEVICE)[0]

    card = parse_card(card_toml().replace("200_000_000", "300_000_000"), where="card.toml")
    a, b, c = (ListedModel(card=card, digest=n, load=lambda _: Held(card)) for n in "abc")
    gc.collect()
    torch.cuda.empty_cache()
    before, held = free(), torch.cuda.memory_allocated(DEVICE)
    shelf = Shelf(DEVICE, 800 * MB)
    try:
        for listed in (a, b):
            shelf.take(listed)
            with shelf.measuring(listed):
                torch.ones(150 * MB, dtype=torch.uint8, device=DEVICE)
        assert shelf.loaded["a"].weights == 300 * MB
        assert shelf.loaded["a"].work == 150 * MB
        two = before - free()
        shelf.take(a)
        shelf.take(c)
        assert set(shelf.loaded) == {"a", "c"}
        three = before - free()
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(800 * MB, dtype=torch.uint8, device=DEVICE)
        shelf.keep_only(a)
        one = before - free()
        figures = ", ".join(f"{taken // MB} MB" for taken in (two, three, one))
        row("models of 300 MB: two, a third for one, one", figures)
        assert 300 * MB <= one < 400 * MB
        assert 600 * MB <= three < 800 * MB
        assert torch.cuda.memory_allocated(DEVICE) - held == 300 * MB
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)


@on_gpu
def test_too_little_memory_of_the_gpu_is_named_and_the_cpu_used_where_the_card_allows_it(
    models: Path, part: Image, row: Row
) -> None:
    few = volume_of((part[0][:20, 192:320, 192:320], part[1]))  # one window
    with serving(models, memory_mb=600) as (service, process):
        large, alone = known(process, "large"), known(process, "large-alone")
        start = service.current()
        with pytest.raises(OutOfMemory, match="tried on the CPU"):
            process.segment(large.card, large.digest, few, {})
        began = time.perf_counter()
        process.segment(large.card, large.digest, few, {}, on_cpu=True)
        row("what had no room on the GPU, on the CPU", f"{time.perf_counter() - began:.1f} s")
        with pytest.raises(MemoryExhausted):
            process.segment(alone.card, alone.digest, few, {})
        one = known(process, "one")
        labels, _ = process.segment(one.card, one.digest, volume_of(part), {})
        assert labels.any()
        assert service.current() == start


@on_gpu
def test_a_job_that_loses_the_gpu_ends_the_process_and_the_next_one_has_another(
    models: Path, part: Image
) -> None:
    with serving(models) as (service, process):
        lost, one = known(process, "lost"), known(process, "one")
        start = service.current()
        with pytest.raises(PermanentError):
            process.segment(lost.card, lost.digest, volume_of(part), {})
        labels, _ = process.segment(one.card, one.digest, volume_of(part), {})
        assert labels.any()
        assert service.current() == start + 1


def test_a_gpu_is_fed_while_jobs_wait(models: Path, image: Image, row: Row) -> None:
    spans: list[tuple[float, float]] = []

    @contextmanager
    def stage(which: Stage) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if which is Stage.INFER:
            spans.append((began, time.perf_counter()))

    with serving(models) as (_, process), ThreadPoolExecutor(3) as children:
        large = known(process, "large")
        process.segment(large.card, large.digest, volume_of(image), {})

        def job(_: int) -> NDArray[np.uint8]:
            copy = volume_of((image[0].copy(), image[1]))
            return process.segment(large.card, large.digest, copy, {}, stage=stage)[0]

        with utilisation() as busy:
            first, *others = children.map(job, range(21))
    assert all(np.array_equal(first, one) for one in others)
    spans.sort()
    whole = spans[-1][1] - spans[0][0]
    idle = sum(max(0.0, after[0] - before[1]) for before, after in pairwise(spans)) / whole
    nvml = f"{statistics.mean(busy):.0f} %" if busy else "unknown"
    row(
        "21 jobs, 3 children: each, idle between, busy by NVML",
        f"{whole / len(spans):.2f} s, {idle:.1%}, {nvml}",
    )
    assert idle < 0.05 or not GPU


@contextmanager
def utilisation() -> Iterator[list[int]]:
    """Give the shares of time in which a kernel ran, percent, as nvidia-smi has them of NVML."""
    shares: list[int] = []
    if not GPU or not shutil.which("nvidia-smi"):
        yield shares
        return
    uuid = f"GPU-{torch.cuda.get_device_properties(DEVICE).uuid}"
    what = [f"--id={uuid}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    asks = ["nvidia-smi", *what, "--loop-ms=200"]
    with subprocess.Popen(asks, stdout=subprocess.PIPE, text=True) as asked:
        yield shares
        asked.terminate()
        shares += [int(line) for line in asked.communicate()[0].split() if line.isdigit()]


def test_a_job_that_is_cancelled_ends_within_two_seconds_and_models_stay_warm(
    models: Path, image: Image, row: Row
) -> None:
    class Enough(Exception):
        pass

    stopped: list[float] = []

    def told(fraction: float | None) -> None:
        if fraction is not None and fraction > 0.1:
            stopped.append(time.perf_counter())
            raise Enough

    took: list[float] = []
    with serving(models) as (service, process):
        large = known(process, "large")
        start = service.current()
        for _ in range(3):
            with pytest.raises(Enough):
                process.segment(large.card, large.digest, volume_of(image), {}, told=told)
            took.append(time.perf_counter() - stopped[-1])
        assert service.current() == start or not GPU
    row("cancelled: ended after, at most", f"{max(took):.2f} s")
    assert max(took) < 2
