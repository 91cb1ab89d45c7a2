"""`segnode routes check` points at the word that is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import segnode_models
from segnode_cli.main import app
from segnode_cli.node import CONFIG
from segnode_cli.routes import Keywords, check_routes
from segnode_contract.card import parse_card
from segnode_plugin import route_check

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

NO_NODE = Path("no-node")
"""Data of a node that was never there: the built-in models count."""


def check(folder: Path, text: str | bytes) -> list[tuple[int, int, str]]:
    file = folder / "segnode.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return [(c.line, c.column, c.sentence) for c in check_routes(file, NO_NODE)]


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


THREE = """\
where.all = [
  { fact = "coverage_mm", at_least = 3, at_most = 5 },
  { attribute = "KVP", at_least = 80 },
  %s
]
"""


@pytest.mark.parametrize(
    ("third", "column", "said"),
    [
        ('{ fact = "coverage_mm", at_least = 5, at_most = 3 },', 13, "where all 3 wants 'coverage"),
        ('{ fact = "coverage_mm", at_least = "5" },', 27, "where all 3 at_least is '5'"),
        ('{ attribute = "KVP", at_least = true },', 24, "where all 3 at_least is True"),
        ('{ attribute = "KVP.CodeValue", present = true },', 18, "no sequence"),
        ('{ any = [{ not = { fact = "coverage_mm", at_lest = 3 } }] },', 44, "'at_least' was"),
        ('{ any = [{ fact = "coverage_mm", at_most = 3 }, { fact = "coverage" }] },', 61, "'cove"),
    ],
)
def test_the_clause_that_is_wrong_is_pointed_at_and_no_other_with_its_words(
    tmp_path: Path, third: str, column: int, said: str
) -> None:
    [(line, found, sentence)] = check(tmp_path, HEAD + THREE % third)
    assert said in sentence
    assert (line, found) == (14, column)


SERIES = """\
trigger = "study"
[[routes.series]]
role = "t1"
where = { attribute = "KVP", equals = 1 }
[[routes.series]]
role = "t2"
%s
"""


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ('where = { attribute = "KV", equals = 1 }', 24),
        ('where.any = [{ attribute = "KVP", at_leest = 1 }]', 35),
        ('prefer = ["thin_slices", "thin_slice"]', 27),
        ('"role two" = "x"', 1),
    ],
)
def test_a_required_series_is_pointed_at(tmp_path: Path, line: str, column: int) -> None:
    [(found_line, found_column, _), *_] = check(tmp_path, HEAD + SERIES % line)
    assert (found_line, found_column) == (17, column)


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        (
            HEAD.replace('[[routes]]\nname = "chest', '[routes]\nname = "chest'),
            (7, 8),
            "[[routes]] stands in double brackets each time",
        ),
        (
            '[node]\nname = "x"\n[routes]\nname = "a"\nmodel = "m"\nmodality = "CT"\n',
            (3, 1),
            "[routes] stands in single brackets; write [[routes]]",
        ),
        (HEAD.replace("[node]", "[[node]]"), (1, 1), "[node] stands in double brackets"),
        (HEAD.replace('[node]\nname = "test"\n', ""), (1, 1), "[node] has no 'name'"),
        (HEAD.replace('name = "test"', ""), (1, 1), "[node] has no 'name'"),
        (HEAD.replace('"test"', "7"), (2, 1), "a text in quotes is needed"),
        (HEAD + '[nodes]\nname = "chest"\n', (11, 1), "'node' was probably meant"),
        (HEAD + "[background]\nto_hour = 6\nfrom_hour = 25\n", (13, 1), "from_hour is 25"),
        (HEAD + "[background]\none_in = 1\n", (12, 1), "one_in is 1"),
        (HEAD + "[intake]\nrescan_s = 0\nquiet_s = -1\n", (13, 1), "cannot be negative"),
        (HEAD + "[limits]\nstop_s = 99\n", (12, 1), "killed a minute after"),
        (HEAD.replace('"chest"', '"any CT"'), (8, 9), "two routes are called 'any CT'"),
        (HEAD + '[[users]]\nname = "king"\nrole = "king"\n', (13, 1), "role is 'king'"),
        (HEAD + 'after = "chest"\n', (11, 1), "no route above it"),
        (HEAD + 'priority = "urgent"\n', (11, 1), "one of stat, routine"),
        ("\ufeff" + HEAD.replace("[node]", "[nodes]"), (1, 1), "'node' was probably meant"),
        ("\ufeff" + HEAD.replace("[node]", "[node"), (1, 6), "is not TOML"),
    ],
)
def test_the_table_that_is_wrong_is_pointed_at(
    tmp_path: Path, text: str, place: tuple[int, int], said: str
) -> None:
    [(line, column, sentence)] = check(tmp_path, text)
    assert said in sentence
    assert (line, column) == place


def test_a_file_in_another_encoding_is_pointed_at(tmp_path: Path) -> None:
    text = (HEAD + "# ä\n").encode() + 'lane = "für"\n'.encode("latin-1")
    [(line, column, sentence)] = check(tmp_path, text)
    assert (line, column) == (12, 10)
    assert "the byte 0xfc (at line 12, column 10) is none; save it as UTF-8" in sentence


TABLE = "an inline table { … } stands on one line"


@pytest.mark.parametrize(
    ("lines", "place", "said"),
    [
        ('where = {\n  fact = "x" }', (11, 10), TABLE),
        ('where = { fact = "x", # what\n  at_most = 3 }', (11, 23), TABLE),
        ('where = { fact = "x"\n}', (11, 21), TABLE),
        ('where.all = [\n  { not = { fact = "x" },\n  }\n]', (12, 26), TABLE),
        ('where = { fact = "x", }', (11, 23), "no comma stands before the }"),
        ('where = { attribute = "x", matches = "\\d" }', (11, 41), "each backslash is written"),
        ("body_parts = [CHEST]", (11, 15), "a text stands between straight quotes"),
        ("lane = “x”", (11, 8), "a text stands between straight quotes"),
        ("derived = True", (11, 11), "true and false are in small letters"),
        ('lane = "x', (11, 10), "ends with a quote on the line"),
        ('model = "x"', (11, 12), "this key stands above already"),
        ("body_parts = [", (12, 1), "the end of the file"),
        ("derived = ", (11, 11), "Invalid value (at line 11, column 11)."),
    ],
)
def test_what_is_no_toml_has_its_place_and_the_usual_reason(
    tmp_path: Path, lines: str, place: tuple[int, int], said: str
) -> None:
    [(line, column, sentence)] = check(tmp_path, HEAD + lines + "\n")
    assert said in sentence
    assert (line, column) == place


@pytest.mark.parametrize(
    ("line", "column", "said"),
    [
        ('where = { attribute = "ImageType", equals = "A\\\\B" }', 36, "stands between two values"),
        ('where = { attribute = "ImageType", contains = "\\\\" }', 36, "stands between two"),
        ('where = { attribute = "ImageType", one_of = ["A", "B "] }', 52, "without"),
        ('where = { attribute = "StationName", equals = " CT1" }', 38, "without"),
        ('where = { fact = "calling_aet", equals = "CT1 " }', 33, "without"),
        ('where = { attribute = "SeriesDescription", contains = " lung" }', 44, "inside a value"),
        ('where = { attribute = "KVP", equals = "120" }', 30, "is a number (DS)"),
        ('where = { attribute = "KVP", one_of = ["", "120"] }', 45, "is a number (DS)"),
        ('where = { fact = "instances", at_most = 0 }', 19, "no series satisfies"),
        ('where = { fact = "obliquity_deg", at_least = 55 }', 19, "no series satisfies"),
    ],
)
def test_what_never_matches_is_told(tmp_path: Path, line: str, column: int, said: str) -> None:
    [(found_line, found_column, sentence)] = check(tmp_path, HEAD + line + "\n")
    assert said in sentence
    assert (found_line, found_column) == (11, column)


@pytest.mark.parametrize(
    "line",
    [
        'where = { attribute = "BodyPartExamined", one_of = ["CHEST", ""] }',
        'where = { attribute = "KVP", equals = "" }',
        'where = { attribute = "KVP", one_of = [100, 120] }',
        'where = { attribute = "StudyID", equals = "120" }',
        'where = { fact = "instances", at_most = 1 }',
        'where = { fact = "obliquity_deg", at_least = 54 }',
    ],
)
def test_what_may_match_is_not_complained_of(tmp_path: Path, line: str) -> None:
    assert check(tmp_path, HEAD + line + "\n") == []


def test_a_route_for_another_modality_than_its_models_is_told(tmp_path: Path) -> None:
    text = HEAD.replace('modality = "CT"', 'modality = "mr"', 1)
    [(line, column, sentence)] = check(tmp_path, text)
    assert (line, column) == (6, 1)
    assert "modality is mr; the model 'ct-tissue' takes CT" in sentence


def test_a_required_series_of_another_modality_than_its_role_is_told(tmp_path: Path) -> None:
    source = (Path(segnode_models.__file__).parent / "builtin/ct_tissue/card.toml").read_text()
    roles = '\n[[input.series]]\nrole = "t1"\nmodality = "CT"\n[[input.series]]\nrole = "t2"\n'
    line = re.search(r"largest_gap_mm = \d+\n", source)
    assert line
    card = parse_card(source.replace(line[0], line[0] + roles), where="card")
    file = tmp_path / "segnode.toml"
    file.write_text(HEAD + SERIES % 'modality = "PT"')
    complaints = route_check.check_routes(file, Keywords(), {"ct-tissue": card})
    about = [(c.line, c.column, c.sentence) for c in complaints if "modality" in c.sentence]
    assert about == [
        (17, 1, "[[routes]] 2 series 2 modality is PT; the model 'ct-tissue' takes CT.")
    ]


def test_a_missing_model_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    [(line, column, sentence)] = check(tmp_path, HEAD.replace('"ct-tissue"', '"ct-tisue"', 1))
    assert (line, column) == (5, 1)
    assert "'ct-tissue' was probably meant" in sentence


@pytest.mark.parametrize("name", ["segnode.toml", "demo.toml"])
def test_our_own_files_are_right(name: str) -> None:
    assert check_routes(CONFIG / name, NO_NODE) == []


def test_the_command_prints_file_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "segnode.toml"
    file.write_text(HEAD + "where = { fact = 'instances', at_most = -1 }\n")
    done = CliRunner().invoke(app, ["routes", "check", "--config", str(file)])
    assert done.exit_code == 1
    assert done.stdout.startswith(f"{file}:11:19: ")
