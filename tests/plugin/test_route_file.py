"""Routes follow their file; a broken file leaves them as they are, and is told of."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from segnode_cli.routes import Keywords
from segnode_contract.errors import SettingsError
from segnode_contract.ledger import IntakeLedger, Ledger
from segnode_plugin.intake import Intake
from segnode_plugin.route_file import RouteFile

from .test_intake import Archive, announce, states

CT = """\
[node]
name = "test"
[intake]
quiet_s = 0
[[routes]]
name = "CT"
model = "ct-tissue"
modality = "CT"
"""
MR = CT.replace('modality = "CT"', 'modality = "MR"')


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "segnode.toml").write_text(MR)
    return tmp_path / "segnode.toml"


def test_a_changed_file_counts_for_the_next_series(file: Path, ledger: Ledger) -> None:
    archive = Archive()
    routes = RouteFile(file, Keywords())
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), routes.settings, routes)
    archive.add("7", "1.7.1")
    intake.tick()
    assert states(ledger) == []
    file.write_text(CT)
    archive.add("8", "1.8.1")
    intake.tick()
    assert states(ledger) == [("queued", 1)]


def test_a_changed_form_counts_for_the_next_series(file: Path) -> None:
    routes = RouteFile(file, Keywords())
    assert routes().form == "auto"
    file.write_text(CT + "[results]\nform = 'BINARY'\n")
    assert routes().form == "BINARY"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[routes]", "is not TOML"),
        (CT.replace("modality", "modalty"), "'modality' was probably meant"),
        (CT + 'where = { attribute = "BodyPartExamind", present = true }\n', "does not know"),
        (None, "cannot be read"),
    ],
    ids=["syntax", "key", "keyword", "gone"],
)
def test_a_broken_file_leaves_the_routes_and_is_told_of(
    file: Path, caplog: pytest.LogCaptureFixture, text: str | None, said: str
) -> None:
    routes = RouteFile(file, Keywords())
    before = routes()
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with caplog.at_level(logging.ERROR):
        assert routes() == before
        assert routes() == before
    assert said in routes.trouble
    assert re.search(r"The routes of \d{4}-\d\d-\d\d [\d:]{8} UTC are", routes.trouble)
    assert "are followed until the file is mended" in routes.trouble
    assert len(caplog.records) == 1
    file.write_text(CT)
    assert routes() != before
    assert routes.trouble == ""


def test_a_file_that_is_broken_from_the_first_stops_the_start(file: Path) -> None:
    file.write_text(MR + 'where = { attribute = "ProcedureCodeSequence.CodeValu", present = true }')
    with pytest.raises(SettingsError, match="'CodeValu', which DICOM does not know"):
        RouteFile(file, Keywords())
