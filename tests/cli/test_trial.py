"""`segnode models add` runs a model once, in its cell, before it takes its place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from segnode_cli.main import app
from segnode_cli.models import trial
from segnode_models.registry import builtin_models, offer_of
from segnode_worker.sandbox import why_not

from ..models.trained import SOFTMAX_SEGMENTS, card_toml
from .test_models import changed, names, said

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no cell can be made here: {why_not()}")

SEGNODE = str(Path(sys.executable).parent / "segnode")
TWO_SERIES = """
[[input.series]]
role = "t1"
[[input.series]]
role = "flair"
optional = true
"""


class Fails(nn.Module):
    """A network that does well on nothing, and not on images, or not on those of one series."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, seen: Tensor) -> Tensor:
        scores = torch.zeros(1, 3, 32, 32, 32)
        if bool(seen.abs().sum() == 0):
            return scores
        if self.how == "NaN" or (self.how == "one series" and bool(seen[:, 1].abs().sum() == 0)):
            return scores / 0
        if self.how == "one series":
            return scores
        if self.how == "memory":
            return torch.zeros(1 << 50)
        while bool(scores.sum() == 0):  # for ever
            scores = scores * 2
        return scores


def network(folder: Path, module: nn.Module | None = None, needs: str = "") -> Path:
    """Write a network as users have it, by default one that runs; its card names two segments."""
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        torch.jit.script(module or nn.Conv3d(1, 3, 1)).save(str(folder / "model.ts"))
    text = card_toml(
        kind="torchscript",
        needs=f"spacing_mm = [3, 3, 3]\nintensity = {{ per_image = true }}\n{needs}",
        network='patch = [32, 32, 32]\nactivation = "softmax"',
        segments=SOFTMAX_SEGMENTS,
    )
    (folder / "card.toml").write_text(text)
    return folder


def add(folder: Path, data: Path, *more: str) -> Result:
    arguments = ["models", "add", str(folder), "--data", str(data), "--yes", *more]
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "node"


def test_a_network_that_runs_is_added(tmp_path: Path, data: Path) -> None:
    result = add(network(tmp_path / "good"), data)
    assert result.exit_code == 0, said(result)
    assert "Running it once on a made-up volume" in said(result)
    assert "not tried" not in said(result)
    assert names(data) == ["shapes", "shapes.pins.json"]
    assert offer_of(data / "models").named("shapes")
    assert (data / "models/shapes").stat().st_mode & 0o777 == 0o555


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.Conv3d(1, 2, 1), "'Rod' in channel 2; the network gives channels 0 to 1."),
        (Fails("NaN"), "NaN"),
    ],
    ids=["too few channels", "no numbers"],
)
def test_a_network_that_gives_no_result_is_not_added_unless_no_trial_is_wanted(
    tmp_path: Path, data: Path, module: nn.Module, why: str
) -> None:
    bad = network(tmp_path / "bad", module)
    result = add(bad, data)
    assert result.exit_code == 1
    assert "shapes gave no result on a made-up volume, so nothing was added" in said(result)
    assert why in said(result)
    assert names(data) == []
    result = add(bad, data, "--no-trial")
    assert result.exit_code == 0
    assert "It was not tried: --no-trial was said." in said(result)
    assert names(data) == ["shapes", "shapes.pins.json"]


def test_a_model_stays_whose_successor_fails(tmp_path: Path, data: Path) -> None:
    add(network(tmp_path / "good"), data, "--no-trial")
    before = offer_of(data / "models").named("shapes").digest
    assert add(network(tmp_path / "bad", nn.Conv3d(1, 2, 1)), data).exit_code == 1
    assert offer_of(data / "models").named("shapes").digest == before


def without_gpu(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("SEGNODE_DEVICE", "cpu")
    changed("cpu = true", "cpu = false")(folder)


def without_cell(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trial, "why_not", lambda: "bubblewrap is not installed")


def on_another(folder: Path, patch: pytest.MonkeyPatch) -> None:
    changed("[input]", '[input]\nbuilds_on = "ct-tissue"')(folder)


def in_no_time(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trial, "_LIMIT_S", 0.0)


def in_a_second(folder: Path, patch: pytest.MonkeyPatch) -> None:
    changed("time_limit_s = 60", "time_limit_s = 1")(folder)


def as_it_is(folder: Path, patch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize(
    ("where", "how", "why"),
    [
        (without_gpu, "", "needs a GPU"),
        (without_cell, "", "no cell can be made here for it: bubblewrap is not installed."),
        (on_another, "", "it builds on the result of ct-tissue."),
        (in_no_time, "", "it took longer than 0 s."),
        (in_a_second, "time", "ran longer than the 1 s that its card allows"),
        (as_it_is, "memory", "there was not enough memory for it."),
    ],
)
def test_a_model_that_cannot_be_tried_here_is_added_and_this_is_said(
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Callable[[Path, pytest.MonkeyPatch], None],
    how: str,
    why: str,
) -> None:
    brought = network(tmp_path / "shapes", Fails(how) if how else None)
    where(brought, monkeypatch)
    result = add(brought, data)
    assert result.exit_code == 0, said(result)
    assert "It was not tried: " in said(result)
    assert why in said(result)
    assert names(data) == ["shapes", "shapes.pins.json"]


def test_a_model_of_several_series_gets_them_all_and_its_roles_are_named(
    tmp_path: Path, data: Path
) -> None:
    brought = network(tmp_path / "two", Fails("one series"), TWO_SERIES)
    changed('"CT"', '"MR"')(brought)
    result = add(brought, data)
    assert result.exit_code == 0, said(result)
    assert "not tried" not in said(result)
    assert "line in 'series' for each role: t1, flair (may be missing)." in said(result)


def test_lines_of_the_card_that_nobody_decided_are_counted(tmp_path: Path, data: Path) -> None:
    brought = network(tmp_path / "shapes")
    changed('licence = "', '# look at this: whether you may\nlicence = "')(brought)
    left = said(add(brought, data, "--no-trial"))
    assert "Lines of shapes/card.toml still marked with 'look at this': 1; the first is l" in left
    changed("cpu = true", "cpu = true  # look at this: is it so")(brought)
    left = said(add(brought, data, "--no-trial"))
    assert "still marked with 'look at this': 2; the first is line 7." in left


@pytest.mark.parametrize(
    ("orientation", "modality", "shape", "kind"),
    [
        ("HPL", "CT", (40, 64, 64), "int16"),
        ("RAH", "MR", (64, 64, 40), "int16"),
        ("AFL", "PT", (64, 40, 64), "float32"),
    ],
)
def test_the_made_up_volume_is_one_that_the_card_asks_for(
    orientation: str, modality: str, shape: tuple[int, ...], kind: str
) -> None:
    card = replace(
        builtin_models()[0].card, orientation=orientation, modality=modality, min_slices=40
    )
    volume = trial._made_up(card)
    assert volume.array.shape == shape
    assert volume.array.dtype == kind
    assert volume.array.std() > 100
    assert "".join(one.value for one in volume.get_closest_patient_orientation()) == orientation


def test_ctrl_c_in_the_trial_leaves_nothing(tmp_path: Path, data: Path) -> None:
    brought = network(tmp_path / "shapes", Fails("time"))
    # a shell that started these tests in the background had SIGINT ignored
    command = ["/usr/bin/env", "--default-signal=INT", SEGNODE, "models", "add", str(brought)]
    with tempfile.TemporaryDirectory() as temporary:
        adding = subprocess.Popen(
            [*command, "--data", str(data), "--yes"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": temporary},
            start_new_session=True,
        )
        assert adding.stderr is not None
        for line in adding.stderr:
            if "model process started" in line:
                break
        assert [path.name for path in Path(temporary).iterdir()] != []
        os.killpg(adding.pid, signal.SIGINT)  # as a terminal does
        adding.stderr.read()  # until the model process, which has it too, has ended
        adding.stderr.close()
        assert adding.wait(60) != 0
        assert list(Path(temporary).iterdir()) == []
    assert names(data) == []
