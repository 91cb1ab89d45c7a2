"""Cards and digests of the built-in models, and folders that are refused."""

import shutil
import subprocess
import sys

import pytest
from pydicom.sr.codedict import Code, codes

from segnode_contract.errors import CardError
from segnode_models import registry


@pytest.fixture(params=["ct-tissue", "ct-lung-density"])
def card(request):
    return {card.name: card for card, _ in registry.builtin_cards()}[request.param]


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
        "import sys; from segnode_models.registry import builtin_cards; builtin_cards(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_loaded_models_have_the_digests_that_were_listed(models):
    assert {c.name: digest for c, digest in registry.builtin_cards()} == {
        name: model.digest for name, model in models.items()
    }


@pytest.mark.parametrize("name", ["ct_tissue/bone.py", "ct_tissue/card.toml", "morphology.py"])
def test_a_change_of_code_or_card_changes_the_digest(tmp_path, monkeypatch, name):
    copy = tmp_path / "builtin"
    shutil.copytree(registry.BUILTIN, copy)
    monkeypatch.setattr(registry, "BUILTIN", copy)
    before = registry.digest(copy / "ct_tissue")
    assert before == {c.name: d for c, d in registry.builtin_cards()}["ct-tissue"]
    with (copy / name).open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    assert registry.digest(copy / "ct_tissue") != before


def test_a_change_of_another_model_leaves_the_digest(tmp_path, monkeypatch):
    copy = tmp_path / "builtin"
    shutil.copytree(registry.BUILTIN, copy)
    monkeypatch.setattr(registry, "BUILTIN", copy)
    before = registry.digest(copy / "ct_tissue")
    (copy / "ct_lung_density/model.py").write_text("changed", encoding="utf-8")
    assert registry.digest(copy / "ct_tissue") == before


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


def test_an_unknown_model_is_refused_by_name(folder):
    path = folder / "card.toml"
    path.write_text(path.read_text(encoding="utf-8").replace('"ct-tissue"', '"ct-soul"'), "utf-8")
    with pytest.raises(CardError, match="ct-soul"):
        registry.available([folder], "cpu")


def test_two_models_of_one_name_are_refused(folder):
    with pytest.raises(CardError, match="another model is named 'ct-tissue'"):
        registry.available([registry.BUILTIN / "ct_tissue", folder], "cpu")
