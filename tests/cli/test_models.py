"""`segnode models`: what is added, what is refused, and that nothing half-done stays."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pickle
import pty
import re
import subprocess
import sys
import tarfile
import tomllib
import warnings
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from segnode_cli import main
from segnode_cli.main import app
from segnode_cli.models import add, archive, inspect, show, store
from segnode_cli.models.archive import unpack
from segnode_cli.models.inspect import inspect_file, plain, runs_of, what_it_is
from segnode_contract.errors import SegnodeError, SetupError
from segnode_models.registry import offer_of
from segnode_models.trust import check_pins, pins_of

SEGNODE = str(Path(sys.executable).parent / "segnode")
README = Path(__file__).parents[2] / "README.md"

CARD = """
name = "{name}"
version = "{version}"
kind = "torchscript"
intended_use = "Tests [bold]alone[/bold]."
limitations = ["Knows phantoms alone."]
licence = "none"
memory_bytes = 1
time_limit_s = 1
[input]
modality = "{modality}"
orientation = "HPL"
min_slices = 1
spacing_mm = [1, 1, 1]
intensity = {{ per_image = true }}
[network]
patch = [32, 32, 32]
activation = "softmax"
[[segments]]
number = 1
label = "Organ"
plane = 0
value = 1
category = {{ value = "123037004", scheme = "SCT", meaning = "Body structure" }}
type = {{ value = "113343008", scheme = "SCT", meaning = "Organ" }}
colour = [36893, 37740, 30000]
"""

INFERENCE = {
    "imports": ["$import glob", "$from scripts import net"],
    "device": "$torch.device('cpu')",
    "network_def": {"_target_": "UNet", "norm": ["batch", {"_target_": "scripts.net.Norm"}]},
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "Orientationd", "keys": "image"}],
    },
    "network_def::act": {"_target_": "torch.nn.ReLU"},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, at a terminal's usual width, with every library there."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(add, "find_spec", lambda name: True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "node"


def program(*names: str) -> bytes:
    """Return what TorchScript looks like from outside."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in names or ("model/code/__torch__.py", "model/constants.pkl"):
            made.writestr(zipfile.ZipInfo(name), b"\x80\x02.")
    return file.getvalue()


def torchscript(
    folder: Path, *, name: str = "shapes", version: str = "1", modality: str = "CT"
) -> Path:
    folder.mkdir(parents=True)
    (folder / "card.toml").write_text(CARD.format(name=name, version=version, modality=modality))
    (folder / "model.ts").write_bytes(program())
    return folder


def bundle(folder: Path) -> Path:
    """Make a bundle as the Model Zoo has them."""
    for inside in ("configs", "models", "scripts/__pycache__", ".git"):
        (folder / inside).mkdir(parents=True)
    told = {
        "name": "Spleen CT segmentation",
        "version": "0.5.9",
        "network_data_format": {
            "inputs": {"image": {"modality": "CT", "num_channels": 1}},
            "outputs": {
                "pred": {
                    "format": "segmentation",
                    "channel_def": {"0": "background", "1": "spleen"},
                }
            },
        },
    }
    (folder / "configs/metadata.json").write_text(json.dumps(told))
    (folder / "configs/inference.json").write_text(json.dumps(INFERENCE))
    (folder / "models/model.pt").write_bytes(b"\x80\x02weights")
    (folder / "scripts/net.py").write_text("class Norm: ...\n")
    (folder / "scripts/__pycache__/net.cpython-311.pyc").write_bytes(b"compiled")
    (folder / ".git/config").write_text("hidden")
    (folder / "LICENSE").write_text("  Apache License\n")
    return folder


def nnunet(folder: Path, reader: str = "NibabelIOWithReorient") -> Path:
    (folder / "fold_0/validation").mkdir(parents=True)
    (folder / "fold_0/checkpoint_final.pth").write_bytes(b"\x80\x02weights")
    (folder / "fold_0/validation/patient.nii.gz").write_bytes(b"image")
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}})
    )
    network = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {"conv_op": "torch.nn.Conv3d", "norm_op": "os.system", "nonlin": None},
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }
    configurations = {
        "3d_fullres": {"architecture": network},
        "3d_cascade_fullres": {"previous_stage": "3d_lowres"},
    }
    (folder / "plans.json").write_text(
        json.dumps({"configurations": configurations, "image_reader_writer": reader})
    )
    return folder


def run(*arguments: object) -> Result:
    """Run a command on models; these are no networks, which a trial would say (`test_trial`)."""
    untried = ["--no-trial"] if arguments[0] == "add" else []
    return CliRunner().invoke(app, ["models", *map(str, arguments), *untried])


def said(result: Result) -> str:
    """Return what was printed, or the sentence of the failure, in one line."""
    if isinstance(result.exception, SegnodeError):
        return result.exception.sentence
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return " ".join(result.stderr.split())


def names(data: Path) -> list[str]:
    return sorted(path.name for path in (data / "models").iterdir() if path.name != ".lock")


def added(data: Path) -> dict[str, str]:
    """Return the digest of what the node has, by name, without what is built in."""
    offer = offer_of(data / "models")
    assert not offer.refused
    found = {one.card.name: one.digest for one in offer.models.values()}
    return {name: found[name] for name in found if not name.startswith("ct-")}


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- add


def test_a_bundle_runs_after_two_commands(tmp_path: Path, data: Path) -> None:
    brought = bundle(tmp_path / "spleen_ct_segmentation")
    first = run("add", brought, "--data", data)
    assert first.exit_code == 1
    assert f"one was drafted from its files: {brought}/card.toml" in said(first)
    assert "look at this" in said(first)
    assert names(data) == []
    second = run("add", brought, "--data", data, "--yes")
    assert second.exit_code == 0, said(second)
    assert list(added(data)) == ["spleen-ct-segmentation"]
    kept = tree(data / "models/spleen-ct-segmentation")
    brought_files = {
        name: content
        for name, content in tree(brought).items()
        if ".git" not in name and "__pycache__" not in name
    }
    assert kept == brought_files


def test_an_nnunet_in_an_archive_runs_after_two_commands(tmp_path: Path, data: Path) -> None:
    nnunet(tmp_path / "Dataset003_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres")
    archive = tmp_path / "liver.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        made.add(tmp_path / "Dataset003_Liver", "Dataset003_Liver")
    first = run("add", archive, "--data", data)
    assert first.exit_code == 1
    assert "with --card liver-3d-fullres.card.toml" in said(first)
    second = run("add", archive, "--card", "liver-3d-fullres.card.toml", "--data", data, "--yes")
    assert second.exit_code == 0, said(second)
    assert list(added(data)) == ["liver-3d-fullres"]
    assert sorted(tree(data / "models/liver-3d-fullres")) == [
        *("card.toml", "dataset.json", "fold_0/checkpoint_final.pth", "plans.json")
    ]
    assert "1 files that the card does not need" in said(second)


def test_what_is_shown_names_every_file_and_what_it_may_execute(tmp_path: Path, data: Path) -> None:
    brought = bundle(tmp_path / "spleen")
    run("add", brought, "--data", data)
    shown = run("add", brought, "--data", data, "--yes").stderr
    for path, digest in pins_of(data / "models/spleen-ct-segmentation").files.items():
        assert path in shown
        assert digest[:12] in shown
    assert pins_of(data / "models/spleen-ct-segmentation").digest in shown
    line = " ".join(shown.split())
    assert "3 expressions and 5 classes" in line
    for part in ("scripts.net.Norm", "Python code", "loads as weights only", "Apache License"):
        assert part in line
    assert "nobody has checked the model" in line


def test_names_and_texts_of_a_model_cannot_steer_the_terminal(tmp_path: Path, data: Path) -> None:
    brought = torchscript(tmp_path / "shapes")
    text = (brought / "card.toml").read_text()
    (brought / "card.toml").write_text(
        text.replace(
            'licence = "none"', 'licence = "[red]x[/red] \\u001b[2J\\u202e\\u0007 end"'
        ).replace('label = "Organ"', 'label = "[red]Organ[/red]"')
    )
    (brought / "LICENSE.[bold]txt").touch()
    result = run("add", brought, "--data", data, "--yes")
    assert "[red]x[/red] [2J end" in said(result)
    assert "Tests [bold]alone[/bold]." in said(result)
    one = run("show", "shapes", "--data", data)
    assert "[red]Organ[/red]" in said(one)
    assert "LICENSE.[bold]txt" in said(one)
    shown = result.stderr + one.stderr + run("list", "--data", data).stderr
    assert not set("\x1b\x07\u202e") & set(shown)


def test_a_wrong_card_is_quoted_without_what_steers_a_terminal(tmp_path: Path, data: Path) -> None:
    brought = torchscript(tmp_path / "shapes")
    with (brought / "card.toml").open("a") as card:
        card.write('"\\u001b[2Jevil" = 1\n')
    result = run("add", brought, "--data", data, "--yes")
    assert "unknown line ' [2Jevil'" in said(result)


def test_files_of_a_model_are_read_only_for_all(tmp_path: Path, data: Path) -> None:
    run("add", torchscript(tmp_path / "shapes"), "--data", data, "--yes")
    folder = data / "models/shapes"
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {0o444}
    assert folder.stat().st_mode & 0o777 == 0o555
    assert folder.parent.stat().st_mode & 0o777 == 0o755
    assert data.stat().st_mode & 0o777 == 0o700


def test_a_newer_version_replaces_the_older_one(tmp_path: Path, data: Path) -> None:
    run("add", torchscript(tmp_path / "one"), "--data", data, "--yes")
    before, files = added(data)["shapes"], pins_of(data / "models/shapes").digest
    (tmp_path / "two").mkdir()
    newer = torchscript(tmp_path / "two/shapes", version="2")
    result = run("add", newer, "--data", data, "--yes")
    assert f"is there already, SHA-256 {files[:12]} …; this one replaces it" in said(result)
    assert added(data)["shapes"] != before
    assert names(data) == ["shapes", "shapes.pins.json"]


def test_identical_files_are_not_asked_about_and_not_added_twice(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = torchscript(tmp_path / "shapes")
    run("add", brought, "--data", data, "--yes")
    monkeypatch.setattr(add, "agreed", pytest.fail)
    again = run("add", brought, "--data", data)
    assert again.exit_code == 0
    assert "is there already, with the same files" in said(again)
    assert "is added" not in said(again)


def test_identical_files_mend_what_was_changed_since(tmp_path: Path, data: Path) -> None:
    brought = torchscript(tmp_path / "shapes")
    run("add", brought, "--data", data, "--yes")
    (data / "models/shapes/model.ts").chmod(0o644)
    (data / "models/shapes/model.ts").write_bytes(b"damaged")
    again = run("add", brought, "--data", data, "--yes")
    assert "is added" in said(again)
    assert list(added(data)) == ["shapes"]


def test_the_data_folder_of_a_worker_is_the_variable_that_it_reads(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGNODE_DATA", str(data))
    result = run("add", torchscript(tmp_path / "shapes"), "--yes")
    assert result.exit_code == 0, said(result)
    assert f"in {data}/models/shapes" in said(result)
    assert list(added(data)) == ["shapes"]
    assert list(Path().iterdir()) == []
    assert "shapes" in said(run("list"))
    other = tmp_path / "other"
    run("add", tmp_path / "shapes", "--yes", "--data", other)
    assert list(added(other)) == ["shapes"]


@pytest.mark.parametrize("theirs", ["environment", "spool", ""])
def test_a_folder_that_is_no_nodes_is_named(tmp_path: Path, theirs: str) -> None:
    folder = Path("data/node")  # by default, below where the user stands
    folder.mkdir(parents=True)
    if theirs == "spool":
        (folder / theirs).mkdir()
    elif theirs:
        (folder / theirs).write_text("SEGNODE_HTTP_PORT=1\n")
    brought = torchscript(tmp_path / "shapes")
    for _ in ("new", "there already"):
        told = said(run("add", brought, "--yes"))
        assert f"in {folder.resolve()}/models/shapes" in told
        assert (f"No node has its data in {folder.resolve()}" in told) is (not theirs)


def test_the_demo_does_not_take_a_real_nodes_data_folder(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setenv("SEGNODE_DATA", str(data))
    monkeypatch.setattr(main, "run_demo", lambda folder, *_, **__: taken.append(folder))
    monkeypatch.setattr(main, "run_node", lambda folder, *_, **__: taken.append(folder))
    for command in ("demo", "up"):
        assert CliRunner().invoke(app, [command]).exit_code == 0
    assert taken == [main.DEMO_DATA, data]


def test_a_card_whose_orientation_nobody_looked_up_is_refused(tmp_path: Path, data: Path) -> None:
    brought = nnunet(tmp_path / "liver", reader="SimpleITKIO")
    run("add", brought, "--data", data)
    result = run("add", brought, "--data", data, "--yes")
    assert "input.orientation is 'unknown'" in said(result)
    assert names(data) == []
    changed('orientation = "unknown"', 'orientation = "HPL"')(brought)
    assert run("add", brought, "--data", data, "--yes").exit_code == 0


@pytest.mark.parametrize("inside", [True, False])
def test_the_folder_one_stands_in_has_its_name(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    trained = nnunet(tmp_path / "Dataset003_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres")
    monkeypatch.chdir(trained if inside else trained.parent)
    run("add", "." if inside else trained.name, "--data", data)
    assert 'name = "liver-3d-fullres"' in (trained / "card.toml").read_text()


def test_the_second_stage_of_a_cascade_is_refused_from_inside_too(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(
        nnunet(tmp_path / "Dataset003_Liver/nnUNetTrainer__nnUNetPlans__3d_cascade_fullres")
    )
    assert "is the second stage of a cascade" in said(run("add", ".", "--data", data))


def test_the_card_in_the_readme_adds_a_network_as_it_stands(tmp_path: Path, data: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    [block] = [block for block in blocks if "[network]" in block]
    brought = torchscript(tmp_path / "spleen")
    (brought / "card.toml").write_text(block)
    result = run("add", brought, "--data", data, "--yes")
    assert result.exit_code == 0, said(result)
    assert json.loads(run("show", "spleen-unet", "--json", "--data", data).stdout)["cpu"] is True


def test_what_is_said_to_install_extras_does() -> None:
    told = README.read_text(encoding="utf-8")
    extras = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {*re.findall(r"setup/venv\.sh (\w+)", told), *(one for _, one in add._EXTRAS.values())}
    assert {"monai", "nnunet", "worker"} <= named <= {*extras}
    # nobody publishes segnode there, and anybody might
    assert "segnode[" not in told


def test_an_older_version_is_put_back_when_the_newer_one_fails(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", torchscript(tmp_path / "one"), "--data", data, "--yes")
    before = added(data)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_pins", full)
    result = run("add", torchscript(tmp_path / "two", version="2"), "--data", data, "--yes")
    assert isinstance(result.exception, OSError)
    assert added(data) == before
    result = run("add", torchscript(tmp_path / "3", name="other"), "--data", data, "--yes")
    assert isinstance(result.exception, OSError)
    assert names(data) == ["shapes", "shapes.pins.json"]


def test_files_that_change_while_the_question_waits_are_not_those_that_are_added(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = torchscript(tmp_path / "shapes")

    def change(question: str) -> bool:
        (brought / "model.ts").write_bytes(b"evil")
        return True

    monkeypatch.setattr(add, "agreed", change)
    result = run("add", brought, "--data", data)
    kept = check_pins(data / "models", "shapes")
    assert (data / "models/shapes/model.ts").read_bytes() == program()
    assert kept.digest in result.stderr


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stop_at_the_question_leaves_nothing(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def stopped(question: str) -> bool:
        raise stop(1)

    monkeypatch.setattr(add, "agreed", stopped)
    assert run("add", torchscript(tmp_path / "shapes"), "--data", data).exit_code != 0
    assert names(data) == []


def test_what_a_killed_command_left_makes_room_before_the_next_one_works(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = data / "models/.work-abc/inside"
    left.mkdir(parents=True)
    (left / "weights").touch(0o444)
    left.chmod(0o555)
    seen = []
    monkeypatch.setattr(add, "agreed", lambda question: seen.append(left.exists()) or True)
    assert run("add", torchscript(tmp_path / "shapes"), "--data", data).exit_code == 0
    assert seen == [False]
    assert names(data) == ["shapes", "shapes.pins.json"]


def test_two_commands_do_not_change_one_folder(tmp_path: Path, data: Path) -> None:
    (data / "models").mkdir(parents=True)
    with (data / "models/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run("add", torchscript(tmp_path / "shapes"), "--data", data, "--yes")
    assert "Another `segnode models` command is at work" in said(result)


def test_nobody_to_ask_is_said_after_all_was_shown(tmp_path: Path, data: Path) -> None:
    result = run("add", torchscript(tmp_path / "shapes"), "--data", data)
    assert "no terminal to ask at; read what is shown, then say --yes" in said(result)
    assert "TorchScript program" in result.stderr
    assert names(data) == []


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_one_question_is_asked_at_a_terminal(
    tmp_path: Path, data: Path, answer: str, code: int
) -> None:
    brought = torchscript(tmp_path / "shapes")
    try:
        ours, theirs = pty.openpty()
    except OSError:
        pytest.skip("no pseudo-terminal can be had here: /dev/pts is not mounted")
    with os.fdopen(ours, "r+b", buffering=0) as terminal:
        process = subprocess.Popen(
            [SEGNODE, "models", "add", brought, "--data", data, "--no-trial"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        shown = b""
        while b"[y/N]" not in shown:
            shown += terminal.read(10_000)
        terminal.write(answer.encode() + b"\n")
        try:
            while more := terminal.read(10_000):
                shown += more
        except OSError:  # the other end is closed
            pass
        assert process.wait() == code
    assert b"Add it, and let it run in the sandbox? [y/N]" in shown
    assert shown.count(b"[y/N]") == 1
    assert ("shapes" in added(data)) is (code == 0)


def without_weights(folder: Path) -> None:
    (folder / "model.ts").unlink()


def with_link(folder: Path) -> None:
    (folder / "model.ts").rename(folder.parent / "elsewhere")
    (folder / "model.ts").symlink_to(folder.parent / "elsewhere")


def with_plain_weights(folder: Path) -> None:
    (folder / "model.ts").write_bytes(b"\x80\x02weights")


def changed(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / "card.toml").read_text()
        assert old in text
        (folder / "card.toml").write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without_weights, r"shapes/card.toml needs 'model\.ts', which is not in shapes"),
        (with_link, r"'model\.ts' in shapes is a link"),
        (with_plain_weights, r"'model\.ts' is no TorchScript program, but pickle"),
        (changed('"shapes"', '"ct-tissue"'), "the name is 'ct-tissue'"),
        (changed('"shapes"', '"../shapes"'), r"the name is '\.\./shapes'"),
        (changed('"shapes"', '"Shapes"'), "the name is 'Shapes'"),
        (changed('"shapes"', f'"{"x" * 49}"'), "the name is 'xxx"),
        (changed('"CT"', '"unknown"'), r"input\.modality is 'unknown'"),
        (changed('"torchscript"', '"builtin"'), "kind is builtin, which cannot be added"),
        (changed('licence = "none"', ""), "has no line 'licence'"),
    ],
)
def test_a_model_that_cannot_be_added_is_refused(
    tmp_path: Path, data: Path, change: Callable[[Path], None], sentence: str
) -> None:
    brought = torchscript(tmp_path / "shapes")
    change(brought)
    result = run("add", brought, "--data", data, "--yes")
    assert result.exit_code == 1
    assert re.search(sentence, said(result))
    assert names(data) == []


@pytest.mark.parametrize(
    ("make", "extra"), [(bundle, "monai"), (nnunet, "nnunet")], ids=["bundle", "nnunet"]
)
def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], Path],
    extra: str,
) -> None:
    brought = make(tmp_path / "brought")
    run("add", brought, "--data", data)
    monkeypatch.setattr(add, "find_spec", lambda name: None)
    result = run("add", brought, "--data", data, "--yes")
    assert f"`setup/venv.sh {extra}` in segnode's checkout installs it" in said(result)
    assert isinstance(result.exception, SetupError)
    assert result.exception.code == "extra-missing"


@pytest.mark.parametrize("name", ["x\x1b[2J.py", "a\u202eb.py"])
def test_a_file_with_a_name_that_lies_is_refused(tmp_path: Path, data: Path, name: str) -> None:
    brought = bundle(tmp_path / "brought")
    run("add", brought, "--data", data)
    (brought / "scripts" / name).touch()
    result = run("add", brought, "--data", data, "--yes")
    assert "is no name for a file" in said(result)
    assert said(result).isprintable()


def test_a_linked_folder_is_refused(tmp_path: Path, data: Path) -> None:
    brought = nnunet(tmp_path / "brought")
    run("add", brought, "--data", data)
    (brought / "fold_0").rename(tmp_path / "elsewhere")
    (brought / "fold_0").symlink_to(tmp_path / "elsewhere")
    result = run("add", brought, "--data", data, "--yes")
    assert "'fold_0/checkpoint_final.pth' in brought is a link" in said(result)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path, "does not exist"),
        (lambda path: path.write_bytes(program()) and path, "is one file; a model is a folder"),
        (lambda path: path.mkdir() or path, "neither a MONAI bundle"),
    ],
    ids=["nothing", "a file", "an empty folder"],
)
def test_what_is_no_model_is_refused(
    tmp_path: Path, data: Path, make: Callable[[Path], Any], sentence: str
) -> None:
    make(tmp_path / "model.ts")
    assert sentence in said(run("add", tmp_path / "model.ts", "--data", data, "--yes"))


def test_a_draft_does_not_overwrite_another(tmp_path: Path, data: Path) -> None:
    archive = tmp_path / "spleen.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for name, content in tree(bundle(tmp_path / "spleen")).items():
            made.writestr(f"spleen/{name}", content)
    run("add", archive, "--data", data)
    draft = Path("spleen-ct-segmentation.card.toml")
    draft.write_text("mended by hand")
    result = run("add", archive, "--data", data)
    assert "say the same command again with --card spleen-ct-segmentation.card.toml" in said(result)
    assert draft.read_text() == "mended by hand"


# --- list, show, remove


def test_the_list_has_what_was_added_and_why_others_are_refused(tmp_path: Path, data: Path) -> None:
    run("add", torchscript(tmp_path / "one"), "--data", data, "--yes")
    run("add", torchscript(tmp_path / "two", name="broken"), "--data", data, "--yes")
    (data / "models/broken").chmod(0o755)
    (data / "models/broken/more.py").touch()
    listed = {one["name"]: one for one in json.loads(run("list", "--json", "--data", data).stdout)}
    assert set(listed) == {"ct-tissue", "ct-lung-density", "shapes", "broken"}
    assert listed["shapes"]["digest"] == added_digest(data, "shapes")
    assert "broken/more.py was not there" in listed["broken"]["refused"]
    assert listed["broken"]["code"] == "model-untrusted"
    shown = said(run("list", "--data", data))
    assert "broken is refused: broken/more.py was not there" in shown
    assert "shapes" in shown
    assert "broken/more.py was not there" in said(run("show", "broken", "--data", data))


def test_the_list_cuts_no_name_in_a_narrow_terminal(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the word that a route needs."""
    monkeypatch.setenv("COLUMNS", "40")
    name = "totalsegmentator-total-3mm-1559subj-3d-fullres-x"
    run("add", torchscript(tmp_path / "one", name=name), "--data", data, "--yes")
    assert f"{name} 1, torchscript, " in run("list", "--data", data).stderr


def added_digest(data: Path, name: str) -> str:
    models = offer_of(data / "models").models.values()
    return next(one.digest for one in models if one.card.name == name)


def test_a_model_is_shown_whole(tmp_path: Path, data: Path) -> None:
    run("add", torchscript(tmp_path / "one"), "--data", data, "--yes")
    shown = said(run("show", "shapes", "--data", data))
    for part in ("Knows phantoms alone", "Organ (113343008 SCT)", "TorchScript program", "HPL"):
        assert part in shown
    assert added_digest(data, "shapes") in shown
    told = json.loads(run("show", "shapes", "--json", "--data", data).stdout)
    assert [file["path"] for file in told["files"]] == ["card.toml", "model.ts"]
    builtin = said(run("show", "ct-tissue", "--data", data))
    assert "Adipose tissue" in builtin
    assert "20 to 250000 ml" in builtin


def test_an_unknown_model_is_answered_with_those_that_there_are(data: Path) -> None:
    assert "there are ct-lung-density, ct-tissue" in said(run("show", "ct-soul", "--data", data))
    assert "No model 'ct-soul' was added" in said(run("remove", "ct-soul", "--data", data))
    assert "ct-tissue is built in" in said(run("remove", "ct-tissue", "--data", data, "--yes"))


def test_a_model_is_removed_whole_once_agreed(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", torchscript(tmp_path / "one"), "--data", data, "--yes")
    assert "no terminal to ask at" in said(run("remove", "shapes", "--data", data))
    monkeypatch.setattr(show, "agreed", lambda question: False)
    assert run("remove", "shapes", "--data", data).exit_code == 1
    assert names(data) == ["shapes", "shapes.pins.json"]
    assert run("remove", "shapes", "--data", data, "--yes").exit_code == 0
    assert names(data) == []


# --- what files are


def test_real_files_of_torch_are_told_apart(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    network = torch.nn.Linear(2, 2)
    torch.save(network.state_dict(), tmp_path / "new.pt")
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        torch.jit.script(network).save(str(tmp_path / "program.pt"))
        torch.jit.trace(network, torch.zeros(1, 2)).save(str(tmp_path / "traced.ts"))
    what = {path.name: what_it_is(path, path.name) for path in tmp_path.glob("*.*")}
    assert what == {
        "new.pt": "pickle: loads as weights only",
        "old.pth": "pickle: loads as weights only",
        "weights.safetensors": "weights, tensors only",
        "program.pt": "TorchScript program",
        "traced.ts": "TorchScript program",
    }


def test_a_program_that_begins_as_something_else_is_shown_as_what_it_is(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    file = tmp_path / "model.ts"
    file.write_text("Weights alone, nothing to look at.\n")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "plain.ts"))
        with zipfile.ZipFile(tmp_path / "plain.ts") as plain, zipfile.ZipFile(file, "a") as made:
            for info in plain.infolist():
                made.writestr(info.filename, plain.read(info))
        torch.jit.load(str(file))  # torch takes it
    assert what_it_is(file, "model.ts") == "TorchScript program"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("net.py", b"import os", "Python code"),
        ("net.pyc", b"\xa7\r\r\n", "compiled program"),
        ("net.txt", b"\x7fELF\x02", "compiled program"),
        ("weights.json", pickle.dumps([]), "pickle: loads as weights only"),
        ("README.md", "Größe".encode(), "text"),
        ("image.nii", b"\x00\x01", "data"),
        ("image.gz", b"\x1f\x8b\x08", "data"),
        ("a.json", b"{", "configuration that cannot be read here: may run anything"),
        ("a.json", b"[" * 100_000, "configuration that cannot be read here: may run anything"),
        ("a.json", b'{"a": ["$"]}', "configuration: runs 1 expression"),
        ("a.json", b'{"a": "cost: 3 $"}', "configuration: runs nothing"),
        ("broken.ts", b"PK\x03\x04", "damaged archive"),
        ("model.pt", program("model/code/net.py"), "TorchScript program"),
        ("model.pt", program("model/constants.pkl"), "TorchScript program"),
        ("model.pt", program("model/data.pkl"), "pickle: loads as weights only"),
        ("model.pt", program("model/data"), "archive"),
    ],
)
def test_a_file_is_what_its_content_says(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    (tmp_path / name).write_bytes(content)
    file = inspect_file(tmp_path, name, "0" * 64)
    assert file.what == what
    harmless = ("pickle", "text", "data", "archive", "configuration: runs nothing")
    assert file.executes is (not what.startswith(harmless))


def test_yaml_is_read_as_json_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "a.yaml").write_text(
        "imports: [$import os]\nx: &x {_target_: os.system}\ny: *x\nz: !!python/name:os.system\n"
    )
    assert what_it_is(tmp_path / "a.yaml", "a.yaml").startswith("configuration that cannot")
    (tmp_path / "a.yaml").write_text("imports: [$import os]\nx: &x {_target_: os.system}\ny: *x\n")
    assert what_it_is(tmp_path / "a.yaml", "a.yaml") == (
        "configuration: runs 1 expression and 1 class, of which outside MONAI, torch and nnU-Net: "
        "os.system; imports os"
    )
    monkeypatch.setattr(inspect, "find_spec", lambda name: None)
    assert what_it_is(tmp_path / "a.yaml", "a.yaml").startswith("configuration that cannot")


@pytest.mark.parametrize(
    ("document", "foreign"),
    [
        ({"_target_": "UNet"}, ()),
        ({"_target_": "monai.networks.nets.UNet"}, ()),
        ({"_target_": "os.system"}, ("os.system",)),
        ({"_target_": "eval"}, ("eval",)),
        ({"_target_": "os"}, ("os",)),
        ({"_target_": "monaix.Net"}, ("monaix.Net",)),
        ({"_target_": "$__import__('os').system"}, ("$__import__('os').system",)),
        ({"_target_": "@network#cls"}, ("@network#cls",)),
        ({"network_def::_target_": "os.system"}, ("os.system",)),
        ({"+network_def#_target_": "os.system"}, ("os.system",)),
        ([[{"a": {"b": [{"_target_": "os.system"}]}}]], ("os.system",)),
        ({"network_class_name": "os.system"}, ("os.system",)),
        (
            {"arch_kwargs": {"conv_op": "os.system"}, "_kw_requires_import": ["conv_op", 3]},
            ("os.system",),
        ),
    ],
)
def test_a_class_from_elsewhere_is_found_wherever_it_hides(
    document: Any, foreign: tuple[str, ...]
) -> None:
    assert runs_of(document).foreign == foreign


def test_a_bare_name_that_monai_does_not_have_is_pythons() -> None:
    """What makes bare names of Python's own foreign: MONAI calls them."""
    if find_spec("monai") is None:
        pytest.skip("MONAI is not installed; `setup/venv.sh monai`")
    from monai.bundle import ConfigParser

    parser = ConfigParser({"x": {"_target_": "len", "_mode_": "callable"}})
    assert parser.get_parsed_content("x") is len


def test_texts_become_one_line_that_steers_nothing() -> None:
    assert plain("a\r\n\tb\x1b[31m\x00\u202e\u2028\ud800c") == "a b [31m c"
    assert plain("x" * 500, 10) == "xxxxxxxxx…"
    assert plain("Lungenflügel 心臓") == "Lungenflügel 心臓"


# --- archives


def zipped(path: Path, files: dict[str, bytes], **information: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name that is there twice
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            for name, content in files.items():
                made.writestr(name, content)
    return path


def tarred(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as made:
        for member, content in members:
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder in a folder, so that what climbs out of it is seen."""
    (tmp_path / "out/room").mkdir(parents=True)
    return tmp_path / "out/room"


def refused(archive: Path, room: Path, words: str, **limits: int) -> None:
    """Check that an archive is refused, and that not one file was written."""
    with pytest.raises(SetupError, match=words) as caught:
        unpack(archive, room, **limits)
    assert caught.value.sentence.isprintable()
    assert tree(room.parent) == {}


ESCAPES = [
    *("../evil", "a/../../evil", "/evil", "//evil", "a/..", "..", "a\\..\\..\\evil", "C:/evil"),
    *("x\x1b[31m", "a\u202eb", "line\nfeed", "x" * 300, "/".join(["long"] * 300)),
]


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_names_that_leave_the_folder_are_refused(
    tmp_path: Path, room: Path, name: str, ending: str
) -> None:
    path = tmp_path / f"model.{ending}"
    if ending == "zip":
        zipped(path, {"card.toml": b"", name: b"evil"})
    else:
        tarred(path, (member("card.toml"), b""), (member(name), b"evil"))
    refused(path, room, "leaves the folder or is no name")


@pytest.mark.parametrize(
    "info",
    [
        member("link", tarfile.SYMTYPE, "/etc"),
        member("link", tarfile.SYMTYPE, "card.toml"),
        member("link", tarfile.LNKTYPE, "card.toml"),
        member("pipe", tarfile.FIFOTYPE),
        member("disk", tarfile.BLKTYPE),
        member("console", tarfile.CHRTYPE),
        member("sparse", tarfile.GNUTYPE_SPARSE),
    ],
    ids=["link out", "link in", "hard link", "pipe", "block device", "device", "sparse"],
)
def test_links_and_devices_in_a_tar_are_refused(
    tmp_path: Path, room: Path, info: tarfile.TarInfo
) -> None:
    archive = tarred(tmp_path / "model.tar", (member("card.toml"), b"x"), (info, b""))
    refused(archive, room, "is a link or no plain file")


def test_a_link_in_a_zip_is_refused(tmp_path: Path, room: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as made:
        made.writestr("card.toml", b"")
        made.writestr(info, "/etc/passwd")
    refused(tmp_path / "model.zip", room, "'link', which is a link")


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [("a", "a", "'a' twice"), ("a", "./a", "'a' twice"), ("a", "a/b", "as a file and as a folder")],
)
@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_one_path_is_not_written_twice(
    tmp_path: Path, room: Path, first: str, second: str, words: str, ending: str
) -> None:
    path = tmp_path / f"model.{ending}"
    if ending == "zip":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with zipfile.ZipFile(path, "w") as made:
                made.writestr(first, b"1")
                made.writestr(second, b"2")
    else:
        tarred(path, (member(first), b"1"), (member(second), b"2"))
    refused(path, room, words)


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
def test_a_bomb_is_refused_before_it_fills_the_disk(
    tmp_path: Path, room: Path, ending: str
) -> None:
    path, zeros = tmp_path / f"bomb.{ending}", bytes(50_000_000)
    if ending == "zip":
        zipped(path, {"zeros": zeros})
    else:
        tarred(path, (member("zeros"), zeros))
    assert path.stat().st_size < 100_000
    with pytest.raises(SetupError, match="unpacks to more than"):
        unpack(path, room)
    assert sum(map(len, tree(room).values())) < 22_000_000


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_limits_count_what_comes_out(tmp_path: Path, room: Path, ending: str) -> None:
    path = tmp_path / f"model.{ending}"
    if ending == "zip":
        zipped(path, {f"{n}": os.urandom(1000) for n in range(20)})
    else:
        tarred(path, *((member(f"{n}"), os.urandom(1000)) for n in range(20)))
    refused(path, room, "holds more than 19 files", most_files=19)
    with pytest.raises(SetupError, match="unpacks to more than"):
        unpack(path, room, most_bytes=19_000)
    assert sum(map(len, tree(room).values())) <= 19_000


def test_a_zip_that_states_a_small_size_does_not_get_a_larger_one(
    tmp_path: Path, room: Path
) -> None:
    path = zipped(tmp_path / "liar.zip", {"zeros": bytes(3_000_000)})
    content = path.read_bytes().replace((3_000_000).to_bytes(4, "little"), b"\x10\0\0\0")
    path.write_bytes(content)
    with pytest.raises(SetupError, match="damaged"):
        unpack(path, room)
    assert sum(map(len, tree(room).values())) <= 16


def test_a_tar_header_of_any_size_is_not_taken_into_memory(tmp_path: Path, room: Path) -> None:
    archive = tarred(
        tmp_path / "model.tar.gz", (member("./PaxHeaders", tarfile.XHDTYPE), bytes(20_000_000))
    )
    refused(archive, room, "has a header of 20000256 bytes|has a header of 20000")


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_archive_is_refused(tmp_path: Path, room: Path, ending: str, damage: str) -> None:
    path = tmp_path / f"model.{ending}"
    if ending == "zip":
        zipped(path, {"weights": os.urandom(100_000)})
    else:
        tarred(path, (member("weights"), os.urandom(100_000)))
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:50_000], "text": b"no archive" * 100, "empty": b""}[damage])
    with pytest.raises(SetupError, match="cannot be unpacked: it is damaged"):
        unpack(path, room)


def test_an_encrypted_zip_is_refused(tmp_path: Path, room: Path) -> None:
    path = zipped(tmp_path / "model.zip", {"weights": b"x"})
    content = bytearray(path.read_bytes())
    content[6] |= 1  # of the local header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # of the directory
    path.write_bytes(content)
    with pytest.raises(SetupError, match="damaged, encrypted"):
        unpack(path, room)


def test_an_archive_without_files_is_refused(tmp_path: Path, room: Path) -> None:
    refused(zipped(tmp_path / "model.zip", {"a/": b""}), room, "holds no files")


@pytest.mark.parametrize("ending", ["zip", "ZIP", "tar", "tar.gz", "tgz"])
def test_a_sound_archive_is_added_without_its_top_folder(
    tmp_path: Path, data: Path, ending: str
) -> None:
    files = {
        f"./top/{name}": content for name, content in tree(torchscript(tmp_path / "one")).items()
    }
    files |= {"__MACOSX/top/._model.ts": b"what a Mac leaves", "top/.DS_Store": b"and this"}
    path = tmp_path / f"model.{ending}"
    if ending.lower() == "zip":
        zipped(path, {"top/": b""} | files)
    else:
        tarred(path, *((member(name), content) for name, content in files.items()))
    result = run("add", path, "--data", data, "--yes")
    assert result.exit_code == 0, said(result)
    assert tree(data / "models/shapes") == tree(tmp_path / "one")
    assert names(data) == ["shapes", "shapes.pins.json"]


def test_a_disk_that_is_nearly_full_stops_unpacking(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "model.zip", {"weights": os.urandom(100_000)})
    monkeypatch.setattr(archive, "_KEEP_FREE", 1 << 60)
    with pytest.raises(SetupError, match="more than the disk has"):
        unpack(path, room)
    assert b"".join(tree(room).values()) == b""
