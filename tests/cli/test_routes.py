"""`segnode routes check` points at the word that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from segnode_cli.main import app
from segnode_cli.node import CONFIG
from segnode_cli.routes import check_routes

HEAD = """\
[node]
name = "test"
[[routes]]
name = "any CT"         # 'BodyPartExamind' stands in a comment only
model = "ct-tissue"
modality = "CT"
[[routes]]
name = "chest"
model = "ct-tissue"
modality = "CT"
"""


def check(folder: Path, text: str) -> list[tuple[int, int, str]]:
    file = folder / "segnode.toml"
    file.write_text(text)
    return [(c.line, c.column, c.sentence) for c in check_routes(file)]


@pytest.mark.parametrize(
    ("line", "column", "said"),
    [
        (
            'where = { attribute = "BodyPartExamind", equals = "CHEST" }',
            24,
            "'BodyPartExamined' was",
        ),
        (
            'where = { attribute = "ProcedureCodeSequence.CodeValu", present = true }',
            46,
            "CodeValue",
        ),
        ('where = { attribute = "Modality.CodeValue", present = true }', 24, "no sequence"),
        ('where = { attribute = "ProcedureCodeSequence", present = true }', 24, "after a dot"),
        ('where = { attribute = "SeriesDescription", at_most = 3 }', 24, "no number but LO"),
        ('where = { fact = "slice_spacing", at_most = 3 }', 19, "'slice_spacing_mm' was probably"),
        ('where = { fact = "coverage_mm", at_least = 9, at_most = 3 }', 19, "no series satisfies"),
        ("where = { fact = 3", 19, "not TOML"),
        ('where = { fact = "instances", at_most = "3" }', 31, "at_most is '3'"),
        ("min_instanzes = 3", 1, "'min_instances' was probably meant"),
    ],
)
def test_a_wrong_word_is_pointed_at(tmp_path: Path, line: str, column: int, said: str) -> None:
    [(found_line, found_column, sentence)] = check(tmp_path, HEAD + line + "\n")
    assert said in sentence
    assert (found_line, found_column) == (11, column)


def test_a_missing_model_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    [(line, column, sentence)] = check(tmp_path, HEAD.replace('"ct-tissue"', '"ct-tisue"', 1))
    assert (line, column) == (5, 10)
    assert "'ct-tissue' was probably meant" in sentence


@pytest.mark.parametrize("name", ["segnode.toml", "demo.toml"])
def test_our_own_files_are_right(name: str) -> None:
    assert check_routes(CONFIG / name) == []


def test_the_command_prints_file_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "segnode.toml"
    file.write_text(HEAD + "where = { fact = 'instances', at_most = -1 }\n")
    done = CliRunner().invoke(app, ["routes", "check", "--config", str(file)])
    assert done.exit_code == 1
    assert done.stdout.startswith(f"{file}:11:19: ")
