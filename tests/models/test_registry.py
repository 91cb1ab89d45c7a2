"""Cards and digests of the built-in models, and folders that are refused."""

import re
import shutil
import subprocess
import sys

import pytest
from pydicom.sr.codedict import Code, codes

from segnode_contract.errors import CardError
from segnode_models import registry
from segnode_models.trust import pins_of, write_pins


@pytest.fixture(params=["ct-tissue", "ct-lung-density"])
def card(request):
    return {listed.card.name: listed.card for listed in registry.builtin_models()}[request.param]


def test_every_card_is_complete(card):
    assert (card.version, card.licence, card.orientation) == ("1.0.0", "AGPL-3.0-or-later", "HPL")
    assert len(card.limitations) >= 5
    assert any("Not a diagnosis" in sentence for sentence in card.limitations)
    assert all(segment.plausible_ml for segment in card.segments)
    assert len({segment.colour for segment in card.segments}) == len(card.segments)


def test_every_snomed_code_is_in_the_dictionary(card):
    entries = (getattr(codes.SCT, name) for name in dir(codes.SCT))
    known = {entry.value for entry in entries if isinstance(entry, Code)}
    used = [c for s in card.segments for c in (s.category, s.type, *s.modifiers)]
    assert {code.value for code in used if code.scheme == "SCT"} <= known
    assert {code.scheme for code in used} <= {"SCT", "99SEGNODE"}


def test_cards_are_read_without_torch():
    script = (
        "import sys; from segnode_models.registry import offer_of; offer_of(None); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", ["ct_tissue/bone.py", "ct_tissue/card.toml", "morphology.py"])
def test_a_change_of_code_or_card_changes_the_digest(tmp_path, monkeypatch, name):
    copy = tmp_path / "builtin"
    shutil.copytree(registry.BUILTIN, copy)
    monkeypatch.setattr(registry, "BUILTIN", copy)
    before = _digests()
    with (copy / name).open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    assert _digests()["ct-tissue"] != before["ct-tissue"]


def test_a_change_of_another_model_leaves_the_digest(tmp_path, monkeypatch):
    copy = tmp_path / "builtin"
    shutil.copytree(registry.BUILTIN, copy)
    monkeypatch.setattr(registry, "BUILTIN", copy)
    before = _digests()
    (copy / "ct_lung_density/model.py").write_text("changed", encoding="utf-8")
    assert _digests()["ct-tissue"] == before["ct-tissue"]
    assert _digests()["ct-lung-density"] != before["ct-lung-density"]


def _digests():
    return {listed.card.name: listed.digest for listed in registry.builtin_models()}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(registry.BUILTIN / "ct_tissue/card.toml", folder)
    return folder


@pytest.mark.parametrize("line", ["colour", "type", "limitations", "licence", "plane"])
def test_a_card_that_lacks_a_line_is_refused_with_its_name(folder, line):
    path = folder / "card.toml"
    text = path.read_text(encoding="utf-8")
    start = text.index(f"\n{line} = ") + 1
    end = text.index("\n]\n" if line == "limitations" else "\n", start) + 1
    path.write_text(text[:start] + text[end:].removeprefix("]\n"), encoding="utf-8")
    with pytest.raises(CardError, match=f"mine/card.toml.*'{line}'"):
        registry.read_card(folder)


def test_a_folder_without_a_card_is_refused(tmp_path):
    with pytest.raises(CardError, match=r"card\.toml is missing"):
        registry.read_card(tmp_path)


def _add(models, name, *, kind="torchscript", named=None):
    """Put a model into the folder of models as `segnode models add` leaves it."""
    folder = models / name
    folder.mkdir(parents=True)
    (folder / "model.ts").write_bytes(b"weights")
    text = (registry.BUILTIN / "ct_tissue/card.toml").read_text(encoding="utf-8")
    text = text.replace('"ct-tissue"', f'"{named or name}"').replace('"builtin"', f'"{kind}"')
    text = text.replace('orientation = "HPL"', f'orientation = "HPL"\n{_INPUT}')
    text = re.sub(r"(?m)^number = (\d+)$", r"number = \1\nchannel = \1", text)
    (folder / "card.toml").write_text(text + _NETWORK, encoding="utf-8")
    write_pins(models, name, pins_of(folder))
    return folder


_INPUT = "spacing_mm = [3, 1.5, 1.5]\nintensity = { clip = [-100, 300], scale = [0, 1] }"
_NETWORK = """
[network]
patch = [32, 32, 32]
activation = "softmax"
"""


def test_an_added_model_stands_beside_the_built_in_ones(tmp_path):
    _add(tmp_path, "ct-liver")
    offer = registry.offer_of(tmp_path)
    names = {listed.card.name for listed in offer.models.values()}
    assert names == {"ct-tissue", "ct-lung-density", "ct-liver"}
    assert offer.refused == {}


@pytest.mark.parametrize("file", ["card.toml", "model.ts"])
def test_a_file_that_changed_is_refused_and_added_again_it_is_another_model(tmp_path, file):
    folder = _add(tmp_path, "ct-liver")
    catalogue = registry.Catalogue(tmp_path)
    (before,) = _added(catalogue)
    with (folder / file).open("a", encoding="utf-8") as written:
        written.write("# changed\n")
    assert _added(catalogue) == []
    error = catalogue.offer().refused["ct-liver"]
    assert error.code == "model-untrusted"
    assert f"ct-liver/{file} is not the file that was added" in error.sentence
    write_pins(tmp_path, "ct-liver", pins_of(folder))
    (after,) = _added(catalogue)
    assert after.digest != before.digest


def test_a_model_that_did_not_change_is_not_read_again(tmp_path):
    _add(tmp_path, "ct-liver")
    catalogue = registry.Catalogue(tmp_path)
    (liver,) = _added(catalogue)
    _add(tmp_path, "ct-spleen")
    assert _added(catalogue)[0] is liver
    assert [one.card.name for one in _added(catalogue)] == ["ct-liver", "ct-spleen"]
    (tmp_path / "ct-liver.pins.json").unlink()
    assert [one.card.name for one in _added(catalogue)] == ["ct-spleen"]


def test_models_from_elsewhere_are_refused_where_nothing_holds_them(tmp_path):
    _add(tmp_path, "ct-liver")
    error = registry.offer_of(tmp_path, trusted=False).refused["ct-liver"]
    assert error.code == "model-untrusted"
    assert "apt-get install bubblewrap" in error.sentence


def test_a_model_cannot_take_a_built_in_ones_name(tmp_path):
    _add(tmp_path, "ct-tissue")
    assert "no built-in model's" in registry.offer_of(tmp_path).refused["ct-tissue"].sentence


def test_a_model_in_a_folder_of_another_name_is_refused(tmp_path):
    _add(tmp_path, "ct-liver", named="ct-spleen")
    assert "'ct-spleen'" in registry.offer_of(tmp_path).refused["ct-liver"].sentence


def _added(catalogue):
    models = catalogue.offer().models.values()
    return [listed for listed in models if listed.card.kind != "builtin"]
