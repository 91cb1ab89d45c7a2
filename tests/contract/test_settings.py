"""A wrong settings file stops the start with the name of what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from segnode_contract.errors import SettingsError
from segnode_contract.settings import load_connections, load_settings

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
        (GOOD.replace("administrator", "king"), "role 'king'"),
        (GOOD + "[listen]\nhost = '0.0.0.0'\n", "without encryption"),
        (GOOD + "[[routes]]\nname='any CT'\nmodel='m'\nmodality='CT'\n", "two routes"),
        ("[node\n", "is not TOML"),
    ],
    ids=["missing", "misspelt", "type", "role", "open to others", "twice", "syntax"],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml")


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(SettingsError, match="SEGNODE_DATA"):
        load_connections({})
