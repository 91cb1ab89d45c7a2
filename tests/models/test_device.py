"""A GPU is tried before it is taken, and is set to give the same each time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from segnode_models import device
from segnode_models.device import answers, chosen_device

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put torch back as it was."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    deterministic, tf32 = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.allow_tf32 = tf32
    torch._C._jit_override_can_fuse_on_gpu(True)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_a_gpu_that_works_is_taken_by_its_number(
    monkeypatch: pytest.MonkeyPatch, wanted: str, chosen: str
) -> None:
    monkeypatch.setattr(device, "_trouble_of", lambda _: "")
    assert chosen_device(wanted) == (chosen, "")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_was_hidden_is_not_taken(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    monkeypatch.setattr(device, "_trouble_of", lambda _: "")
    assert chosen_device("auto") == ("cpu", "")


@without_gpu
def test_a_gpu_that_does_not_work_is_left_with_the_reason() -> None:
    assert chosen_device("auto") == ("cpu", "")  # there is none to speak of
    chosen, why = chosen_device("cuda:0")
    assert chosen == "cpu"
    assert "models run on the CPU: " in why
    assert "CUDA" in why.partition("CPU: ")[2]


def test_a_gpu_computes_in_full_precision_by_the_same_steps() -> None:
    device._trouble_of("cuda:0")
    assert torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.conv.fp32_precision in {"none", "ieee"}
    with torch.backends.cudnn.flags(enabled=True):
        pass  # a model's own code may use it


def test_a_gpu_that_fails_whatever_it_is_asked_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: str) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert not answers("cuda:0")
    assert answers("cpu")
