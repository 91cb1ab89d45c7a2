"""A condition that cannot be meant is refused with its place and what was probably meant."""

from __future__ import annotations

import tomllib

import pytest

from segnode_contract.condition import Clause, Group, read_condition
from segnode_contract.errors import SettingsError


def read(text: str):  # type: ignore[no-untyped-def] # a condition or an error
    return read_condition(tomllib.loads(f"where = {text}")["where"], "route 1 where")


def test_conditions_nest() -> None:
    condition = read(
        '{ all = [{ fact = "slice_spacing_mm", at_least = 1, at_most = 3.5 }, '
        '{ not = { attribute = "ImageType", equals = "LOCALIZER" } }] }'
    )
    spacing, without = condition.parts
    assert spacing == Clause(
        subject="slice_spacing_mm", is_fact=True, tests=(("at_least", 1.0), ("at_most", 3.5))
    )
    assert isinstance(without, Group)
    assert without.parts[0].tests == (("equals", "LOCALIZER"),)


ATTRIBUTE = '{{ attribute = "{}", present = true }}'
FACT = '{{ fact = "{}", at_most = 3 }}'


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (ATTRIBUTE.format("Series Description"), "'SeriesDescription' was probably meant."),
        (ATTRIBUTE.format("seriesDescription"), "'SeriesDescription' was probably meant."),
        (ATTRIBUTE.format("series_descripton"), "'SeriesDescription' was probably meant."),
        (ATTRIBUTE.format("(0008,103E)"), "'SeriesDescription' was probably meant."),
        (ATTRIBUTE.format("0008,103e"), "'SeriesDescription' was probably meant."),
        (ATTRIBUTE.format("0008103E"), "'SeriesDescription' was probably meant."),
        (
            ATTRIBUTE.format("Procedure Code Sequence.(0008,0104)"),
            "'ProcedureCodeSequence.CodeMeaning' was probably meant.",
        ),
        (ATTRIBUTE.format("slice_spacing_mm"), 'this is a fact: fact = "slice_spacing_mm".'),
        (ATTRIBUTE.format("kernel"), 'this is a fact: fact = "kernel".'),
        (FACT.format("SliceThickness"), 'this is an attribute: attribute = "SliceThickness".'),
        (FACT.format("slice thickness"), 'this is an attribute: attribute = "SliceThickness".'),
        (FACT.format("(0018,0050)"), 'this is an attribute: attribute = "SliceThickness".'),
        (
            '{ fact = "instances", between = [1, 3] }',
            "'at_least' with 'at_most' was probably meant.",
        ),
        ('{ fact = "instances", less_than = 3 }', "'at_most' was probably meant."),
        ('{ fact = "instances", greater_than = 3 }', "'at_least' was probably meant."),
        ('{ fact = "instances", Less-Than = 3 }', "'at_most' was probably meant."),
        (FACT.format("Slice Spacing mm"), "'slice_spacing_mm' was probably meant."),
        (FACT.format("SliceSpacing"), "'slice_spacing_mm' was probably meant."),
    ],
)
def test_what_was_probably_meant_is_named(text: str, meant: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read(text)
    assert refused.value.sentence.endswith(meant)


@pytest.mark.parametrize("subject", ["(0009,1001)", "q", ".", ""])
def test_nothing_is_meant_by_what_is_near_to_nothing(subject: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read(ATTRIBUTE.format(subject))
    assert "probably meant" not in refused.value.sentence


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "a condition is a table"),
        ("{}", "a condition is a table"),
        ('{ fact = "spacing_mm", at_most = 3 }', "'slice_spacing_mm' was probably meant"),
        ('{ fact = "orientation", equals = "axal" }', "'AXIAL' was probably meant"),
        ('{ fact = "orientation", at_most = 3 }', "no test for 'orientation', which is a text"),
        ('{ fact = "coverage_mm", contains = "3" }', "no test for 'coverage_mm', which is a numb"),
        ('{ fact = "coverage_mm", at_lest = 3 }', "'at_least' was probably meant"),
        ('{ fact = "coverage_mm", at_least = 5, at_most = 3 }', "which no series satisfies"),
        ('{ fact = "coverage_mm", at_most = -1 }', "which no series satisfies"),
        ('{ fact = "instances", at_most = 0 }', "to be at most 0, which no series satisfies"),
        ('{ fact = "instances", equals = 0 }', "to be 0, which no series satisfies"),
        ('{ fact = "instances", one_of = [0, -1] }', "to be 0 or -1, which no series satisfies"),
        ('{ fact = "obliquity_deg", at_least = 54.8 }', "which no series satisfies"),
        ('{ fact = "instances", equals = 2, at_least = 3 }', "to be 2 and at least 3, which no"),
        ('{ fact = "coverage_mm", at_most = nan }', "a number is needed"),
        ('{ fact = "coverage_mm" }', "asks nothing of"),
        ("{ at_most = 3 }", "either 'attribute' or 'fact'"),
        ('{ attribute = "0008,103e", equals = "x" }', "is no keyword"),
        ('{ attribute = "SeriesDescription", matches = "(" }', "no regular expression"),
        ('{ attribute = "SeriesDescription", matches = "a{99999999999}" }', "no regular expr"),
        ('{ attribute = "SeriesDescription", matches = "^([a-z]+ ?)+$" }', "may take for ever"),
        ('{ attribute = "SeriesDescription", matches = ".*a.*b.*c.*d" }', "may take for ever"),
        ('{ fact = "arrival_hour", at_least = 24 }', "which no series satisfies"),
        ('{ attribute = "SeriesDescription", one_of = [true] }', "one_of is True"),
        ('{ attribute = "SeriesDescription", one_of = [] }', "a list of values is needed"),
        ('{ attribute = "SeriesDescription", contains = 3 }', "a text in quotes is needed"),
        ('{ attribute = "KVP", present = true, at_most = 3 }', "it stands alone"),
        ("{ any = [] }", "a list of conditions is needed"),
        ('{ any = [{ fact = "instances", at_most = 3 }], not = {} }', "it stands alone"),
        ('{ all = [{ fact = "instances", at_most = "3" }] }', "where all 1 at_most is '3'"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        read(text)
