"""A wrong settings file stops the start with the name of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segnode_contract.errors import SettingsError
from segnode_contract.settings import Shared, load_connections, load_settings

GOOD = """
[node]
name = "test"
[[users]]
name = "admin"
role = "administrator"
[[routes]]
name = "any CT"
model = "ct-tissue"
modality = "CT"
"""


def load(tmp_path: Path, text: str):  # type: ignore[no-untyped-def] # Settings or an error
    (tmp_path / "segnode.toml").write_text(text)
    return load_settings(tmp_path / "segnode.toml")


def test_a_good_file_is_read(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD + "[intake]\nquiet_s = 2\n")
    assert settings.intake.quiet_s == 2.0
    assert settings.role("admin") == "administrator"
    assert settings.role("stranger") is None
    assert settings.routes[0].model == "ct-tissue"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[node]\n", "has no 'name'"),
        (GOOD.replace("modality", "modalty"), "'modality' was probably meant"),
        (GOOD + "[intake]\nquiet_s = 'long'\n", "quiet_s is 'long'"),
        (GOOD + "[intake]\nquiet_s = 'long'\n", "a number is needed"),
        (GOOD + "derived = 'yes'\n", "derived is 'yes'; true or false is needed"),
        (GOOD + "lane = 3\n", "lane is 3; a text in quotes is needed"),
        (GOOD + "min_instances = 2.5\n", "min_instances is 2.5; a whole number is needed"),
        (GOOD.replace("administrator", "king"), "role is 'king'"),
        (GOOD + "[listen]\nhost = '0.0.0.0'\n", "without encryption"),
        (GOOD + "[[routes]]\nname='any CT'\nmodel='m'\nmodality='CT'\n", "two routes"),
        ("[node\n", "is not TOML"),
    ],
    ids=[
        "missing",
        "misspelt",
        "type",
        "number",
        "switch",
        "text",
        "whole number",
        "role",
        "open to others",
        "twice",
        "syntax",
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load(tmp_path, text)


BEST = 'trigger = "study"\nprefer = ["thin_slices"]\n'
NEXT = '[[routes]]\nname = "then"\nmodel = "other"\nmodality = "CT"\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            'prefer = ["thin_slices"]\n',
            r"\[\[routes\]\] 1 has 'prefer', which needs the whole study",
        ),
        (BEST.replace("thin_slices", "thin_slice"), "'thin_slices' was probably meant"),
        ('trigger = "studies"\n', "trigger is 'studies'; one of series, study"),
        ('priority = "urgent"\n', "one of stat, routine, background"),
        ("wait_s = -1\n", "cannot be negative"),
        (BEST + 'series = [{ role = "t1" }]\n', "has 'prefer' beside 'series'"),
        ('trigger = "study"\nseries = [{ role = "a" }, { role = "a" }]\n', "one word of its own"),
        ('trigger = "study"\nseries = [{ role = "a b" }]\n', "one word of its own"),
        ('trigger = "study"\nseries = [{ rol = "a" }]\n', "'role' was probably meant"),
        ("shadow = true\n" + NEXT + 'after = "any CT"\n', "kept out of the archive"),
        (NEXT + 'after = "any Ct"\n', "no route above it; 'any CT' was probably meant"),
        ('after = "then"\n' + NEXT, "no route above it"),
        (BEST + NEXT + 'after = "any CT"\n', "decides on whole studies; add"),
        (
            NEXT + 'after = "any CT"\n' + NEXT.replace('"then"', '"again"') + 'trigger = "study"\n',
            "give both the same trigger",
        ),
        ("[background]\nfrom_hour = 20\nto_hour = 25\n", "no window of a day"),
        ("[background]\none_in = 1\n", "nothing else runs"),
        ("[[priorities]]\npriority = 'stat'\n", "has no 'where'"),
    ],
)
def test_routes_that_contradict_themselves_are_refused(
    tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        load(tmp_path, GOOD + text)


PACS = '[[destinations]]\nname = "pacs"\naet = "PACS"\nhost = "10.0.0.5"\n'
WEB = '[[destinations]]\nname = "web"\nurl = "https://pacs.example/dicom-web"\n'


def test_destinations_are_read_and_shared(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD + PACS + 'models = ["ct-tissue"]\n' + WEB + "images = true\n")
    pacs, web = settings.shared.destinations
    assert (pacs.aet, pacs.host, pacs.port, pacs.images) == ("PACS", "10.0.0.5", 104, False)
    assert (pacs.takes("ct-tissue"), pacs.takes("ct-lung-density")) == (True, False)
    assert (web.images, web.takes("any")) == (True, True)
    assert Shared.from_json(json.loads(json.dumps(settings.shared.to_json()))) == settings.shared


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (PACS + "port_ = 1\n", r"\[\[destinations\]\] 1 has an unknown key 'port_'"),
        (PACS + 'password = "x"\n', "unknown key 'password'"),
        (PACS.replace('name = "pacs"\n', ""), "has no 'name'"),
        (PACS.replace('"pacs"', '"Main PACS"'), "small letters, digits and _"),
        (PACS + PACS, "two destinations are called 'pacs'"),
        (PACS.replace('aet = "PACS"\n', ""), "has no 'aet'; C-STORE needs"),
        (PACS.replace('host = "10.0.0.5"\n', ""), "has no 'host'; C-STORE needs"),
        ('[[destinations]]\nname = "x"\n', "needs either aet and host"),
        (PACS + 'url = "https://x/y"\n', "and not both"),
        (PACS + "port = 70000\n", "port is 70000"),
        (PACS.replace('"PACS"', '"A LONG TITLE OF AN AE"'), "16 characters at most"),
        (PACS + 'certificate = "/x.pem"\n', "which goes with url only"),
        (WEB + 'certificate = "x.pem"\n', "a whole path is needed"),
        (WEB.replace("https://", "https://user:secret@"), "without a password in it"),
        (WEB.replace("https://", "ftp://"), "no http:// or https:// address"),
    ],
)
def test_a_destination_that_cannot_be_meant_is_refused(
    tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(SettingsError, match=named) as refused:
        load(tmp_path, GOOD + text)
    assert "secret" not in refused.value.sentence


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml")


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(SettingsError, match="SEGNODE_DATA"):
        load_connections({})
