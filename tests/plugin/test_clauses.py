"""Which series a condition takes, and what it says of the others."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from segnode_contract.condition import Condition, read_condition
from segnode_plugin.acquisition import contrast, kernel_class
from segnode_plugin.clauses import refusal
from segnode_plugin.facts import SeriesFacts

TAGS = {
    "SeriesDescription": "Thorax 1.0 B70f lung",
    "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
    "KVP": "120.0",
    "PatientName": "CANARY^Name",
    "PatientComments": "x" * 100000,
    "ProcedureCodeSequence": [{"CodeValue": "1"}, {"CodeValue": "CTTHX", "CodeMeaning": "CANARY"}],
}


def facts(**tags: Any) -> SeriesFacts:
    return SeriesFacts(
        orthanc_id="o",
        study_orthanc_id="s",
        study_uid="1.2",
        series_uid="1.2.3",
        modality="CT",
        body_part="CHEST",
        image_type=(),
        sop_class_uid="1",
        copied=False,
        namesakes=0,
        instance_uids=("1",),
        numbers={"slice_spacing_mm": 1.25, "coverage_mm": None, "arrival_hour": 22.5},
        texts={"orientation": "AXIAL", "kernel": "SHARP", "calling_aet": ""},
        attributes=TAGS | tags,
    )


def where(text: str) -> Condition:
    return read_condition(tomllib.loads(f"where = {text}")["where"], "where")


@pytest.mark.parametrize(
    "text",
    [
        '{ fact = "slice_spacing_mm", at_most = 1.25 }',
        '{ fact = "orientation", equals = "axial" }',
        '{ fact = "arrival_hour", at_least = 22 }',
        '{ attribute = "SeriesDescription", contains = "Lung" }',
        '{ attribute = "SeriesDescription", matches = "b[67]\\\\df" }',
        '{ attribute = "ImageType", equals = "axial" }',
        '{ attribute = "KVP", at_least = 80, at_most = 140 }',
        '{ attribute = "KVP", equals = 120 }',
        '{ attribute = "KVP", one_of = [100, 120] }',
        '{ attribute = "ProcedureCodeSequence.CodeValue", one_of = ["CTTHX", "CTABD"] }',
        '{ attribute = "BodyPartExamined", one_of = ["CHEST", ""] }',
        '{ attribute = "BodyPartExamined", present = false }',
        '{ attribute = "ProcedureCodeSequence", present = true }',
        '{ not = { attribute = "ImageType", equals = "LOCALIZER" } }',
        '{ any = [{ attribute = "KVP", at_most = 1 }, { fact = "kernel", equals = "sharp" }] }',
    ],
)
def test_a_condition_that_holds(text: str) -> None:
    assert refusal(where(text), facts()) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{ fact = "slice_spacing_mm", at_least = 2, at_most = 5 }',
            "slice_spacing_mm is 1.25, at least 2 and at most 5 is wanted",
        ),
        (
            '{ fact = "coverage_mm", at_least = 9 }',
            "coverage_mm is not known, at least 9 is wanted",
        ),
        ('{ fact = "calling_aet", equals = "CT1" }', "calling_aet is not known, CT1 is wanted"),
        (
            '{ attribute = "SeriesDescription", contains = "bone" }',
            "SeriesDescription is another value, a text with BONE is wanted",
        ),
        ('{ attribute = "KVP", at_least = 130 }', "KVP is 120.0, at least 130 is wanted"),
        (
            '{ attribute = "BodyPartExamined", contains = "chest" }',
            "BodyPartExamined is missing, a text with CHEST is wanted",
        ),
        (
            '{ not = { attribute = "ImageType", equals = "AXIAL" } }',
            "ImageType is ORIGINAL\\PRIMARY\\AXIAL, AXIAL is not wanted",
        ),
        (
            '{ not = { any = [{ fact = "kernel", equals = "soft" }, '
            '{ attribute = "KVP", at_least = 100 }] } }',
            "KVP is 120.0, at least 100 is not wanted",
        ),
        (
            '{ not = { all = [{ fact = "kernel", equals = "sharp" }, '
            '{ not = { attribute = "KVP", at_least = 130 } }] } }',
            "together unwanted: kernel is SHARP, SHARP is not wanted; "
            "KVP is 120.0, at least 130 is wanted",
        ),
        (
            '{ not = { not = { attribute = "KVP", equals = 1 } } }',
            "KVP is 120.0, 1 is wanted",
        ),
        (
            '{ not = { attribute = "SeriesDescription", contains = "lung" } }',
            "SeriesDescription is a value that fits, a text with LUNG is not wanted",
        ),
        (
            '{ not = { attribute = "BodyPartExamined", present = false } }',
            "BodyPartExamined is missing, missing is not wanted",
        ),
        (
            '{ not = { fact = "slice_spacing_mm", at_most = 3 } }',
            "slice_spacing_mm is 1.25, at most 3 is not wanted",
        ),
        (
            '{ any = [{ attribute = "KVP", at_most = 1 }, { fact = "kernel", equals = "soft" }] }',
            "none of these holds: KVP is 120.0, at most 1 is wanted; "
            "kernel is SHARP, SOFT is wanted",
        ),
        (
            '{ all = [{ attribute = "KVP", present = true }, { attribute = "KVP", equals = 1 }] }',
            "KVP is 120.0, 1 is wanted",
        ),
        ('{ attribute = "KVP.CodeValue", present = true }', "KVP.CodeValue is missing, present is"),
    ],
)
def test_the_clause_that_failed_is_named(text: str, said: str) -> None:
    assert (refusal(where(text), facts()) or "").startswith(said)


def test_the_value_that_is_not_wanted_is_among_those_shown() -> None:
    condition = where('{ not = { attribute = "ImageType", equals = "MPR" } }')
    many = facts(ImageType="DERIVED\\PRIMARY\\AXIAL\\CT_SOM5\\MPR")
    assert refusal(condition, many) == (
        "ImageType is DERIVED\\PRIMARY\\AXIAL\\MPR, MPR is not wanted"
    )
    anything = where('{ not = { attribute = "ImageType", present = true } }')
    assert refusal(anything, many) == (
        "ImageType is DERIVED\\PRIMARY\\AXIAL\\CT_SOM5, present is not wanted"
    )


@pytest.mark.parametrize("subject", ["PatientName", "ProcedureCodeSequence.CodeMeaning"])
def test_what_may_be_a_name_is_told_to_who_asks_and_kept_nowhere(subject: str) -> None:
    condition = where(f'{{ attribute = "{subject}", equals = "other" }}')
    assert "CANARY" not in (refusal(condition, facts()) or "CANARY")
    assert "CANARY" in (refusal(condition, facts(), quote=True) or "")
    unwanted = where(f'{{ not = {{ attribute = "{subject}", contains = "canary" }} }}')
    assert "CANARY^" not in (refusal(unwanted, facts()) or "CANARY^")


@pytest.mark.parametrize(
    "value", [None, 7, [], [7], [{"KVP": None}], {"KVP": "1"}, "\0", "1e999", "nan"]
)
def test_no_value_breaks_a_test(value: Any) -> None:
    for test in (
        "at_least = 80",
        "equals = 3",
        'contains = "x"',
        'matches = "^x"',
        'one_of = [""]',
    ):
        condition = where(f'{{ attribute = "KVP", {test} }}')
        refusal(condition, facts(KVP=value), quote=True)
    assert refusal(where('{ attribute = "KVP", at_most = 140 }'), facts(KVP=value)) is not None


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("B31f", "SOFT"),
        ("B70f\\3", "SHARP"),
        ("Br40d", "SOFT"),
        ("Hr68h", "SHARP"),
        ("STANDARD", "SOFT"),
        ("BONEPLUS", "SHARP"),
        ("FC08", "SOFT"),
        ("FC51", "SHARP"),
        ("FC35-H", "SHARP"),
        ("B", "SOFT"),
        ("YB", "SHARP"),
        ("", "UNKNOWN"),
        (None, "UNKNOWN"),
        ("x" * 9999, "UNKNOWN"),
    ],
)
def test_kernels_of_four_vendors(word: Any, kind: str) -> None:
    assert kernel_class(word) == kind


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        ("OMNIPAQUE 300", "YES"),
        ("NON IONIC 300", "YES"),
        ("0.5 ml/kg Gadovist", "YES"),
        ("0", "NO"),
        ("none", "NO"),
        ("without contrast", "NO"),
        ("W/O", "NO"),
        ("Nativ", "NO"),
        ("Non-Contrast", "NO"),
        ("-", "UNKNOWN"),
        ("", "UNKNOWN"),
        (None, "UNKNOWN"),
    ],
)
def test_contrast_is_told_where_an_agent_is_named(agent: Any, told: str) -> None:
    assert contrast(agent) == told


def test_a_retired_attribute_is_found_under_orthancs_name() -> None:
    wanted = where('{ attribute = "StudyPriorityID", equals = "HIGH" }')
    assert refusal(wanted, facts(RETIRED_StudyPriorityID="HIGH")) is None
    assert refusal(wanted, facts(RETIRED_StudyPriorityID="LOW")) is not None
