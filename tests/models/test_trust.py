"""Pins: whatever is not what an administrator added is refused, with its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from segnode_contract.errors import ModelUntrusted
from segnode_models import trust
from segnode_models.registry import offer_of
from segnode_models.trust import Pins, check_pins, pinned_models, pins_of, write_pins

CARD = """
name = "shapes"
version = "1"
kind = "torchscript"
intended_use = "Tests."
limitations = ["Knows phantoms alone."]
licence = "none"
memory_bytes = 1
time_limit_s = 1
[input]
modality = "CT"
orientation = "HPL"
min_slices = 1
spacing_mm = [1, 1, 1]
intensity = { per_image = true }
[network]
patch = [32, 32, 32]
activation = "softmax"
[[segments]]
number = 1
label = "Organ"
plane = 0
value = 1
category = { value = "123037004", scheme = "SCT", meaning = "Body structure" }
type = { value = "113343008", scheme = "SCT", meaning = "Organ" }
colour = [36893, 37740, 30000]
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of models, with `shapes` added."""
    folder = tmp_path / "shapes"
    (folder / "weights").mkdir(parents=True)
    (folder / "card.toml").write_text(CARD)
    (folder / "weights/model.ts").write_bytes(b"weights")
    write_pins(tmp_path, "shapes", pins_of(folder))
    return tmp_path


def test_a_model_as_it_was_added_is_offered(models: Path) -> None:
    assert check_pins(models, "shapes") == pins_of(models / "shapes")
    offer = offer_of(models)
    assert "shapes" in {one.card.name for one in offer.models.values()}
    assert not offer.refused


def change(folder: Path) -> None:
    (folder / "weights/model.ts").write_bytes(b"Weights")


def add(folder: Path) -> None:
    (folder / "weights/.more").touch()


def remove(folder: Path) -> None:
    (folder / "weights/model.ts").unlink()


def link(folder: Path) -> None:
    whole = folder / "weights/model.ts"
    whole.rename(folder.parent / "elsewhere")
    whole.symlink_to(folder.parent / "elsewhere")


def link_folder(folder: Path) -> None:
    (folder / "weights").rename(folder.parent / "elsewhere")
    (folder / "weights").symlink_to(folder.parent / "elsewhere")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "weights/pipe")


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (change, "shapes/weights/model.ts is not the file that was added"),
        (add, "shapes/weights/.more was not there"),
        (remove, "shapes/weights/model.ts is missing"),
        (link, "shapes/weights/model.ts is a link"),
        (link_folder, "shapes/weights is a link"),
        (pipe, "shapes/weights/pipe is a link or no plain file"),
    ],
    ids=["changed", "new", "missing", "link", "linked folder", "pipe"],
)
def test_a_file_that_differs_is_refused_by_name(models: Path, act, said: str) -> None:
    act(models / "shapes")
    with pytest.raises(ModelUntrusted, match=said):
        check_pins(models, "shapes")
    offer = offer_of(models)
    assert said in offer.refused["shapes"].sentence
    assert "shapes" not in {one.card.name for one in offer.models.values()}


def test_a_folder_that_is_a_link_is_refused(models: Path) -> None:
    (models / "shapes").rename(models / "elsewhere")
    (models / "shapes").symlink_to(models / "elsewhere")
    with pytest.raises(ModelUntrusted, match="folder of the model shapes is gone"):
        check_pins(models, "shapes")


def test_a_folder_that_is_gone_is_refused(models: Path) -> None:
    (models / "shapes").rename(models / "elsewhere")
    with pytest.raises(ModelUntrusted, match="folder of the model shapes is gone"):
        check_pins(models, "shapes")


def test_a_folder_without_pins_is_no_model(models: Path) -> None:
    (models / "shapes.pins.json").unlink()
    assert pinned_models(models) == []
    assert "shapes" not in {one.card.name for one in offer_of(models).models.values()}
    with pytest.raises(ModelUntrusted, match="pins of the model shapes cannot be read"):
        check_pins(models, "shapes")


@pytest.mark.parametrize("text", [b"", b"[]", b'{"files": 3}', b"\xff"])
def test_pins_that_are_none_are_refused(models: Path, text: bytes) -> None:
    (models / "shapes.pins.json").write_bytes(text)
    with pytest.raises(ModelUntrusted, match="pins of the model shapes cannot be read"):
        check_pins(models, "shapes")


def test_a_file_that_goes_while_it_is_read_is_refused(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: Path) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(trust, "_sha256", gone)
    with pytest.raises(ModelUntrusted, match="files of the model shapes cannot be read"):
        check_pins(models, "shapes")


def test_pins_of_before_stay_when_new_ones_cannot_be_written(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            write_pins(models, "shapes", Pins(files={"x": "y"}))
    assert check_pins(models, "shapes") == pins_of(models / "shapes")
    assert pinned_models(models) == ["shapes"]


def test_the_digest_tells_contents_and_names(models: Path) -> None:
    folder = models / "shapes"
    seen = {pins_of(folder).digest}
    change(folder)
    seen.add(pins_of(folder).digest)
    (folder / "weights/model.ts").rename(folder / "weights/other.ts")
    seen.add(pins_of(folder).digest)
    assert len(seen) == 3
