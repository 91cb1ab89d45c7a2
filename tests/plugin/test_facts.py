"""Whatever a file made Orthanc say: facts, and a verdict with a reason."""

from __future__ import annotations

import random
import time
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from segnode_contract.condition import FACTS, read_condition
from segnode_contract.ledger import IntakeLedger, Ledger, LedgerView
from segnode_contract.route import Route
from segnode_plugin.clauses import refusal
from segnode_plugin.facts import SeriesFacts, series_facts
from segnode_plugin.intake import Intake
from segnode_plugin.routing import verdict

from .test_intake import Archive, announce, settings

ROUTES = (
    Route(name="any CT", model="ct-tissue", modality="CT"),
    Route(name="chest", model="ct-tissue", modality="CT", body_parts=("CHEST",), min_instances=3),
)
TAGS = {
    "Modality": "CT",
    "BodyPartExamined": "CHEST",
    "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
}
VALUES: tuple[Any, ...] = (
    None,
    "",
    " ct ",
    "\\" * 1000,
    "CT\0",
    "CT\r\nlevel=ERROR",
    "\u202eTC",
    "\ufffd" * 8,
    "x" * 65536,
    "<script>alert(1)</script>",
    "CANARY^Name",
    "LOCALIZER",
    7,
    1.5,
    True,
    [],
    [{"CodeValue": "1"}],
    {"Alphabetic": "x"},
)


class Index:
    """One series as Orthanc gives it."""

    def __init__(self, tags: dict[str, Any], metadata: Any = (), uid: str = "1.2.3") -> None:
        self.answers = {
            "/series/s": {"ParentStudy": "t", "MainDicomTags": {"SeriesInstanceUID": uid}},
            "/series/s/instances": [
                {"ID": str(n), "MainDicomTags": {"SOPInstanceUID": f"1.2.3.{n}"}} for n in range(3)
            ],
            "/studies/t": {"MainDicomTags": {"StudyInstanceUID": "1.2"}},
            "/instances/0/simplified-tags": tags,
            "/series/s/metadata": metadata,
        }

    def get(self, uri: str) -> Any:
        return self.answers.get(uri)

    def series_named(self, series_uid: str) -> list[str]:
        return ["s"]


def facts_of(tags: dict[str, Any], metadata: Any = ()) -> SeriesFacts:
    facts = series_facts(Index(tags, metadata), "s")
    assert facts is not None
    return facts


def test_a_scout_among_slices_does_not_speak_for_them() -> None:
    index = Index(TAGS | {"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"})
    index.answers["/instances/1/simplified-tags"] = TAGS
    for n, each in enumerate(index.answers["/series/s/instances"]):
        direction = "0\\1\\0\\0\\0\\-1" if n == 0 else "1\\0\\0\\0\\1\\0"
        each["MainDicomTags"]["ImageOrientationPatient"] = direction
    facts = series_facts(index, "s")
    assert facts is not None
    assert facts.image_type == ("ORIGINAL", "PRIMARY", "AXIAL")


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        (TAGS, "every condition holds"),
        (TAGS | {"Modality": " ct "}, "every condition holds"),
        (TAGS | {"Modality": None}, "Modality is missing, CT is wanted"),
        (TAGS | {"Modality": ["CT"]}, "Modality is missing, CT is wanted"),
        ({}, "Modality is missing, CT is wanted"),
        (TAGS | {"Modality": "SEG"}, "Modality is SEG, CT is wanted"),
        (TAGS | {"BodyPartExamined": 7}, "Body Part Examined is missing, CHEST is wanted"),
        (TAGS | {"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "Image Type says LOCALIZER"),
        (TAGS | {"ImageType": None}, "every condition holds"),
    ],
)
def test_a_verdict_says_what_decided(tags: dict[str, Any], reason: str) -> None:
    assert verdict(ROUTES[1], facts_of(tags)).reason == reason


def test_two_thousand_changes_of_tags_end_in_a_verdict() -> None:
    dice = random.Random(7)
    taken = 0
    for _ in range(2000):
        tags: dict[str, Any] = dict(TAGS)
        for keyword in dice.sample(sorted(TAGS), dice.randint(1, 3)):
            tags[keyword] = dice.choice(VALUES)
        facts = facts_of(tags, dice.choice((None, [], ["ModifiedFrom"], {})))
        verdicts = [verdict(route, facts) for route in ROUTES]
        assert all(v.reason for v in verdicts)
        taken += verdicts[0].taken
    assert 50 < taken < 1950


@pytest.mark.parametrize("missing", ["/series/s", "/series/s/instances", "/studies/t"])
def test_a_series_that_left_meanwhile_has_no_facts(missing: str) -> None:
    index = Index(TAGS)
    del index.answers[missing]
    assert series_facts(index, "s") is None


@pytest.mark.parametrize("keyword", ["Modality", "BodyPartExamined"])
@pytest.mark.parametrize("value", ["CANARY^Name", "<script>", "x" * 65536, "CT\r\nERROR"])
def test_a_reason_quotes_a_code_and_no_other_text(keyword: str, value: str) -> None:
    reason = verdict(ROUTES[1], facts_of(TAGS | {keyword: value})).reason
    assert value.upper() not in reason
    assert len(reason) < 200


NO_UIDS = ("../../../system", "1." + "2" * 90, "1.2/3", "..", "", "CANARY", "1.2\0")


@pytest.mark.parametrize("uid", NO_UIDS)
def test_a_series_with_a_uid_that_is_none_starts_nothing(uid: str) -> None:
    facts = series_facts(Index(TAGS, uid=uid), "s")
    assert facts is not None
    assert not verdict(ROUTES[0], facts).taken


class LongUid(Archive):
    """An archive whose series have a UID that no column takes."""

    def get(self, uri: str) -> Any:
        found = super().get(uri)
        if uri == "/series/7":
            found["MainDicomTags"]["SeriesInstanceUID"] = "1." + "2" * 90
        return found


def test_a_series_with_a_long_uid_is_decided_and_starts_nothing(ledger: Ledger) -> None:
    """PostgreSQL takes 64 characters and no more."""
    announce(ledger)
    archive, notes = LongUid(), IntakeLedger(ledger)
    intake = Intake(archive, notes, settings())
    intake.tick()
    archive.add("7", "1.7.1")
    intake.tick()
    assert notes.quiet(archive.archive_id(), 0) == []
    assert LedgerView(ledger).jobs() == []


PLACES = {"1": "0\\0\\0", "2": "0\\0\\-2", "3": "0\\0\\-6"}
FULL_TAGS = TAGS | {"ConvolutionKernel": "B70f", "ContrastBolusAgent": "Omnipaque"}


class FullIndex(Index):
    """A series of which Orthanc knows all that routes ask."""

    def __init__(self) -> None:
        super().__init__(FULL_TAGS, ["LastUpdate"])
        self.answers |= {
            "/series/s": {
                "ParentStudy": "t",
                "MainDicomTags": {"SeriesInstanceUID": "1.2.3"},
                "Instances": ["3", "1", "2"],
                "LastUpdate": "20261124T170000",
            },
            "/series/s/instances": [
                {
                    "ID": one,
                    "MainDicomTags": {
                        "SOPInstanceUID": f"1.2.3.{one}",
                        "ImagePositionPatient": place,
                        "ImageOrientationPatient": "1\\0\\0\\0\\-0.8\\0.6",
                    },
                }
                for one, place in PLACES.items()
            ],
            "/instances/3/simplified-tags": FULL_TAGS,
            "/instances/3/metadata?expand": {
                "RemoteAET": "CT1",
                "CalledAET": "SEGNODE",
                "ReceptionDate": "20261124T165500",
            },
        }


def full_facts() -> SeriesFacts:
    facts = series_facts(FullIndex(), "s")
    assert facts is not None
    return facts


HOLDS = {
    "instances": '{ fact = "instances", equals = 3 }',
    "orientation": '{ fact = "orientation", equals = "oblique" }',
    "obliquity_deg": '{ fact = "obliquity_deg", at_least = 36, at_most = 37 }',
    "slice_spacing_mm": '{ fact = "slice_spacing_mm", at_least = 2.3, at_most = 2.5 }',
    "largest_gap_mm": '{ fact = "largest_gap_mm", at_least = 3.1, at_most = 3.3 }',
    "coverage_mm": '{ fact = "coverage_mm", at_least = 7.1, at_most = 7.3 }',
    "kernel": '{ fact = "kernel", equals = "sharp" }',
    "contrast": '{ fact = "contrast", equals = "yes" }',
    "calling_aet": '{ fact = "calling_aet", equals = "CT1" }',
    "called_aet": '{ fact = "called_aet", equals = "SEGNODE" }',
    "arrival_hour": '{ fact = "arrival_hour", equals = 22.5 }',
}


@pytest.fixture
def in_india(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Half an hour off every other time zone."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_india")
@pytest.mark.parametrize("fact", FACTS)
def test_each_fact_comes_from_orthanc_to_the_clause_that_asks_for_it(fact: str) -> None:
    condition = read_condition(tomllib.loads(f"where = {HOLDS[fact]}")["where"], "where")
    assert refusal(condition, full_facts()) is None


def test_what_else_is_known_of_a_series() -> None:
    facts = full_facts()
    assert facts.received_s == datetime(2026, 11, 24, 16, 55, tzinfo=UTC).timestamp()
    assert facts.instance_uids == ("1.2.3.3", "1.2.3.1", "1.2.3.2")
    assert facts.attributes == FULL_TAGS
    plain = (facts.orthanc_id, facts.study_uid, facts.study_orthanc_id, facts.series_uid)
    assert plain == ("s", "1.2", "t", "1.2.3")
    assert (facts.modality, facts.body_part) == ("CT", "CHEST")
    assert facts.image_type == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert facts.sop_class_uid == TAGS["SOPClassUID"]
    assert (facts.copied, facts.namesakes) == (False, 0)


def test_facts_are_the_same_from_images_read_as_they_came() -> None:
    index = FullIndex()
    arrived = {each["ID"]: each["MainDicomTags"] for each in index.answers["/series/s/instances"]}
    del index.answers["/series/s/instances"]
    assert series_facts(index, "s", arrived) == full_facts()
