"""The sliding window that streams, against MONAI's, which keeps everything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from segnode_contract.errors import ModelFailed
from segnode_models import windows
from segnode_models.model import Stopped
from segnode_models.windows import Pace, Windows, slide

GPU = ["cuda:0"] if torch.cuda.is_available() else []
needs_gpu = pytest.mark.skipif(not GPU, reason="there is no CUDA device")


@pytest.fixture(params=["cpu", *GPU])
def device(request) -> torch.device:
    torch.set_num_threads(1)
    return torch.device(request.param)


def network_of(channels: int = 3, inputs: int = 1) -> nn.Module:
    """Return a network whose scores depend on where in the patch a voxel lies."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [
            nn.Conv3d(inputs, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv3d(4, channels, 5, padding=2),
        ]
        return nn.Sequential(*layers).eval()


def noise(channels: int, *shape: int) -> Tensor:
    return torch.randn((channels, *shape), generator=torch.Generator().manual_seed(1))


def scores_of(network, values: Tensor, how: Windows, device: torch.device, **more) -> list[Tensor]:
    taken: list[Tensor] = []
    settings = {"half": False, "take": taken.append, "told": lambda _: None, **more}
    slide(network, values, how, device=device, **settings)
    return taken


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize(
    ("shape", "patch", "overlap"),
    [
        ((40, 30, 26), (16, 16, 16), 0.25),
        ((40, 30, 26), (16, 12, 20), 0.5),
        ((33, 31, 29), (8, 16, 24), 0.7),
        ((50, 20, 20), (7, 9, 20), 0.0),
        ((16, 16, 16), (16, 16, 16), 0.5),
        ((9, 10, 11), (16, 16, 16), 0.25),
        ((40, 11, 9), (16, 16, 16), 0.25),
        ((5, 40, 33), (16, 16, 17), 0.6),
        ((12, 12, 12), (4, 4, 4), 0.99),
        ((1, 1, 1), (4, 4, 4), 0.25),
    ],
)
def test_scores_and_labels_are_those_of_monai(device, shape, patch, overlap, blend):
    network, values = network_of(inputs=2).to(device), noise(2, *shape).to(device)
    how = Windows(patch=patch, overlap=overlap, blend=blend)
    found = torch.cat(scores_of(network, values, how, device), dim=1)
    with torch.inference_mode():
        (expected,) = sliding_window_inference(
            values[None], patch, 1, network, overlap=overlap, mode=blend
        )
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(found.argmax(0), expected.argmax(0))


def test_a_volume_on_the_host_is_shown_to_the_device_window_by_window(device):
    network, values = network_of().to(device), noise(1, 20, 12, 12)
    how = Windows(patch=(8, 8, 8), overlap=0.5, blend="gaussian")
    found = torch.cat(scores_of(network, values, how, device), dim=1)
    assert found.device.type == device.type
    expected = torch.cat(scores_of(network, values.to(device), how, device), dim=1)
    assert torch.equal(found, expected)


def test_sums_are_kept_of_as_many_slices_as_a_window_has(device, monkeypatch):
    monkeypatch.setattr(windows, "_CHUNK_BYTES", 4 * 6 * 20 * 22 * 2)
    made: list[tuple[int, ...]] = []
    zeros = torch.zeros

    def spy(shape, **how) -> Tensor:
        made.append(tuple(shape))
        return zeros(shape, **how)

    monkeypatch.setattr(torch, "zeros", spy)
    how = Windows(patch=(8, 16, 16), overlap=0.25, blend="gaussian")
    taken = scores_of(network_of(5).to(device), noise(1, 100, 20, 22), how, device)
    assert made == [(5, 8, 20, 22), (8, 20, 22)]
    assert {tuple(one.shape[2:]) for one in taken} == {(20, 22)}
    assert max(one.shape[1] for one in taken) == 2
    assert sum(one.shape[1] for one in taken) == 100


def test_slices_are_handed_on_before_the_next_windows_are_seen(device):
    network = network_of().to(device)
    events: list[str] = []

    def seen(patch: Tensor) -> Tensor:
        events.append("seen")
        return network(patch)

    how = Windows(patch=(8, 8, 8), overlap=0.0, blend="constant")
    values = noise(1, 16, 8, 16)
    scores_of(seen, values, how, device, take=lambda scores: events.append("taken"))
    assert events == ["seen", "seen", "taken", "seen", "seen", "taken"]


def test_what_was_handed_on_is_nobody_elses(device):
    how = Windows(patch=(8, 8, 8), overlap=0.5, blend="gaussian")
    network, values = network_of().to(device), noise(1, 24, 8, 8)
    expected = torch.cat(scores_of(network, values, how, device), dim=1)
    found: list[Tensor] = []

    def spoil(scores: Tensor) -> None:
        found.append(scores.clone())
        scores.fill_(float("nan"))

    scores_of(network, values, how, device, take=spoil)
    assert torch.equal(torch.cat(found, dim=1), expected)


@pytest.mark.parametrize(
    ("kind", "room", "where"),
    [("cpu", 0.0, "cpu"), ("cuda", 1e4, "cpu"), ("cuda", 1e9, "cuda")],
    ids=["one memory", "too little on the GPU", "enough on the GPU"],
)
def test_sums_go_to_the_host_where_the_device_lacks_room(monkeypatch, kind, room, where):
    if kind == "cuda":
        monkeypatch.setattr(windows, "_room", lambda device: room)
    made: list[str] = []

    def spy(shape, *, device) -> Tensor:
        made.append(device.type)
        return torch.empty(0)

    monkeypatch.setattr(torch, "zeros", spy)
    windows._Sums(10, 20, 20, _OnDevice(kind))
    assert made == [where, where]


class _OnDevice:
    """Weights of a window of 8 slices that say where they are, whether there is a GPU or not."""

    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind)

    def __len__(self) -> int:
        return 8

    def to(self, device: torch.device) -> _OnDevice:
        return _OnDevice(device.type)


@needs_gpu
def test_sums_on_the_host_give_the_same(monkeypatch):
    device = torch.device("cuda:0")
    network, values = network_of().to(device), noise(1, 40, 30, 20)
    how = Windows(patch=(16, 16, 16), overlap=0.5, blend="gaussian")
    expected = torch.cat(scores_of(network, values, how, device), dim=1)
    monkeypatch.setattr(windows, "_room", lambda device: 0.0)
    found = torch.cat(scores_of(network, values, how, device), dim=1)
    assert found.device.type == "cuda"
    assert torch.allclose(found, expected, atol=1e-5)


@needs_gpu
def test_room_on_a_gpu_is_part_of_what_is_free():
    _, total = torch.cuda.mem_get_info()
    assert 0 < windows._room(torch.device("cuda:0")) < total
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        assert windows._room(torch.device("cuda:0")) < 0.01 * total
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_half_precision_runs_only_when_it_is_asked_for(device):
    kinds: list[torch.dtype] = []
    network = network_of().to(device)

    def seen(patch: Tensor) -> Tensor:
        scores = network(patch)
        kinds.append(scores.dtype)
        return scores

    how = Windows(patch=(8, 8, 8), overlap=0.25, blend="constant")
    values = noise(1, 8, 8, 8)
    (full,) = scores_of(seen, values, how, device)
    (half,) = scores_of(seen, values, how, device, half=True)
    assert kinds == [torch.float32, torch.float16 if device.type == "cuda" else torch.bfloat16]
    assert half.dtype == torch.float32
    assert torch.allclose(half, full, atol=0.05)
    assert not torch.equal(half, full)


def test_no_gradient_is_recorded(device):
    (found,) = scores_of(
        network_of().to(device),
        noise(1, 8, 8, 8),
        Windows(patch=(8, 8, 8), overlap=0.25, blend="constant"),
        device,
    )
    assert not found.requires_grad


def test_progress_is_the_share_of_windows_and_grows_to_one(device):
    fractions: list[float] = []
    how = Windows(patch=(8, 8, 8), overlap=0.0, blend="constant")
    values = noise(1, 16, 8, 16)
    scores_of(network_of().to(device), values, how, device, told=fractions.append)
    assert fractions == sorted(fractions)
    assert set(fractions) == {0.25, 0.5, 0.75, 1.0}


def test_a_job_that_is_not_wanted_any_more_stops_after_the_window(device):
    seen: list[Tensor] = []

    def network(patch: Tensor) -> Tensor:
        seen.append(patch)
        return patch

    def told(fraction: float) -> None:
        raise Stopped

    how = Windows(patch=(8, 8, 8), overlap=0.0, blend="constant")
    with pytest.raises(Stopped):
        scores_of(network, noise(1, 16, 16, 16), how, device, told=told)
    assert len(seen) == 1


def test_no_more_than_two_windows_wait_for_a_gpu(monkeypatch):
    given: list[Done] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: Done(given.append))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    pace = Pace(torch.device("cuda:0"))
    for _ in range(5):
        pace.keep()
    assert [one.awaited for one in given] == [True, True, True, False, False]


def test_each_window_keeps_the_pace(device, monkeypatch):
    kept: list[torch.device] = []
    monkeypatch.setattr(Pace, "keep", lambda pace: kept.append(pace._device))
    how = Windows(patch=(8, 8, 8), overlap=0.0, blend="constant")
    scores_of(network_of().to(device), noise(1, 16, 8, 16), how, device)
    assert kept == [device] * 4


class Done:
    """What a GPU says when it has come so far."""

    def __init__(self, given: Callable[[Done], None]) -> None:
        self._given, self.awaited = given, False

    def record(self, stream: object) -> None:
        self._given(self)

    def synchronize(self) -> None:
        self.awaited = True


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        (lambda patch: [patch], "model-output", "a list"),
        (lambda patch: None, "model-output", "a NoneType"),
        (lambda patch: patch[:, :0], "model-output", r"\[1, 0, 8, 8, 8\]"),
        (lambda patch: patch.long(), "model-output", "int64"),
        (lambda patch: patch[..., :4], "model-mismatch", r"\[1, 1, 8, 8, 4\]"),
        (lambda patch: patch[0], "model-mismatch", r"\[1, 8, 8, 8\]"),
        (lambda patch: torch.cat([patch] * 2), "model-mismatch", r"\[2, 1, 8, 8, 8\]"),
    ],
    ids=["list", "nothing", "no channel", "integers", "smaller space", "no batch", "two of it"],
)
def test_what_is_no_score_for_each_voxel_is_refused(device, wrong, code, words):
    how = Windows(patch=(8, 8, 8), overlap=0.25, blend="constant")
    with pytest.raises(ModelFailed, match=words) as failure:
        scores_of(wrong, noise(1, 8, 8, 8), how, device)
    assert failure.value.code == code


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers_are_refused_with_their_count(device, bad):
    def network(patch: Tensor) -> Tensor:
        scores = patch.repeat(1, 3, 1, 1, 1)
        scores[0, 1, 2, 3, :2] = bad
        return scores

    how = Windows(patch=(8, 8, 8), overlap=0.25, blend="gaussian")
    with pytest.raises(ModelFailed, match="in 2 voxels of 8 slices") as failure:
        scores_of(network, noise(1, 8, 8, 8), how, device)
    assert failure.value.code == "model-output"


def test_large_numbers_are_numbers(device):
    how = Windows(patch=(8, 8, 8), overlap=0.25, blend="constant")
    (found,) = scores_of(
        lambda patch: patch.repeat(1, 3, 1, 1, 1) * 0 + 3e38, noise(1, 8, 8, 8), how, device
    )
    assert (found == 3e38).all()
