"""The routes that the README shows take the series that they are written for, and no other."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segnode_contract.route import Route
from segnode_contract.settings import load_settings
from segnode_plugin.choosing import choose
from segnode_plugin.facts import SeriesFacts
from segnode_plugin.routing import verdict

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Route, ...]:
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    [block] = [block for block in blocks if "[[routes]]" in block]
    file = tmp_path_factory.mktemp("readme") / "segnode.toml"
    file.write_text('[node]\nname = "readme"\n' + block)
    return load_settings(file).routes


CHEST = SeriesFacts(
    orthanc_id="o",
    study_orthanc_id="s",
    study_uid="1.2",
    series_uid="1.2.3",
    modality="CT",
    body_part="CHEST",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    copied=False,
    namesakes=0,
    instance_uids=tuple(f"1.{n}" for n in range(300)),
    numbers={
        "instances": 300.0,
        "slice_spacing_mm": 1.0,
        "largest_gap_mm": 1.0,
        "coverage_mm": 300.0,
        "arrival_hour": 11.0,
    },
    texts={"orientation": "AXIAL", "kernel": "SHARP", "contrast": "UNKNOWN", "calling_aet": "CT9"},
    attributes={"BodyPartExamined": "CHEST", "KVP": "120"},
)


def like(**changes: Any) -> SeriesFacts:
    numbers = {k: v for k, v in changes.items() if k in CHEST.numbers}
    texts = {k: v for k, v in changes.items() if k in CHEST.texts}
    rest = {k: v for k, v in changes.items() if k not in numbers and k not in texts}
    return replace(
        CHEST, numbers={**CHEST.numbers, **numbers}, texts={**CHEST.texts, **texts}, **rest
    )


NAMELESS = {"body_part": "", "attributes": {"SeriesDescription": "Thorax nativ", "KVP": "120"}}
CODED = {"ProcedureCodeSequence": [{"CodeMeaning": "CT of chest"}]}


@pytest.mark.parametrize(
    ("facts", "takers"),
    [
        (CHEST, ["chest"]),
        (like(slice_spacing_mm=5.0), []),
        (like(coverage_mm=80.0), []),
        (like(image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")), []),
        (like(**NAMELESS), ["chest by its words"]),
        (like(body_part="", attributes=CODED), ["chest by its words"]),
        (like(slice_spacing_mm=5.0, kernel="SOFT"), ["native soft"]),
        (like(slice_spacing_mm=5.0, kernel="SOFT", contrast="YES"), []),
        (like(calling_aet="CT2", arrival_hour=23.5, coverage_mm=None), ["night"]),
        (like(calling_aet="CT2", arrival_hour=3.0, coverage_mm=None), ["night"]),
        (like(calling_aet="CT2", coverage_mm=None), []),
        (
            like(
                orientation="CORONAL",
                image_type=("DERIVED", "SECONDARY", "MPR"),
                largest_gap_mm=3.0,
            ),
            ["coronal"],
        ),
        (like(modality="MR"), []),
    ],
    ids=[
        "thin chest",
        "thick",
        "short",
        "localizer",
        "no body part",
        "by procedure",
        "soft kernel",
        "contrast",
        "late evening",
        "early morning",
        "by day",
        "reformatted",
        "other modality",
    ],
)
def test_the_right_route_takes_it(
    routes: tuple[Route, ...], facts: SeriesFacts, takers: list[str]
) -> None:
    alone = [route for route in routes if route.trigger == "series"]
    assert [route.name for route in alone if verdict(route, facts).taken] == takers


def test_the_best_series_of_a_study_is_taken_on_trial(routes: tuple[Route, ...]) -> None:
    [best] = [route for route in routes if route.trigger == "study"]
    given = (
        replace(like(slice_spacing_mm=5.0), series_uid="1.2.1"),
        replace(like(kernel="SOFT"), series_uid="1.2.2"),
        replace(like(kernel="SHARP"), series_uid="1.2.3"),
        replace(like(image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")), series_uid="1.2.4"),
    )
    [[chosen]] = choose(best, given, 60.0).groups
    assert chosen.series_uid == "1.2.2"
    assert best.shadow


def test_the_example_of_several_series_is_one(tmp_path: Path) -> None:
    [block] = re.findall(
        r"    \[\[routes\]\]\n    name = \"brain\".*?\n    \]\n", README.read_text(), re.DOTALL
    )
    file = tmp_path / "segnode.toml"
    file.write_text('[node]\nname = "readme"\n' + block)
    [route] = load_settings(file).routes
    assert [one.role for one in route.series] == ["t1", "flair"]
