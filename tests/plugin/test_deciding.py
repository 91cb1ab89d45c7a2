"""What routes make of a study of seven reconstructions, of chains and of required series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import segnode_models
from segnode_contract.condition import read_condition
from segnode_contract.job import NewJob, Priority
from segnode_contract.ledger.intake import AnnouncedModel, Verdict
from segnode_contract.route import PriorityRule, RequiredSeries, Route
from segnode_plugin.deciding import Arrived, Known, Outcome, decide
from segnode_plugin.facts import SeriesFacts

from ..worker.many_segments import card_of

NUMBERS = {"slice_spacing_mm": 5.0, "coverage_mm": 300.0, "instances": 60.0}
BEST = Route(
    name="best",
    model="ct-tissue",
    modality="CT",
    trigger="study",
    prefer=("thin_slices", "soft_kernel", "most_images", "largest_coverage"),
)
SERIES = Route(name="all", model="ct-tissue", modality="CT")


def series(
    number: int,
    *,
    modality: str = "CT",
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL"),
    kernel: str = "UNKNOWN",
    images: int = 3,
    attributes: Mapping[str, Any] | None = None,
    received_s: float = 0.0,
    **numbers: float | None,
) -> SeriesFacts:
    return SeriesFacts(
        study_uid="1.2",
        orthanc_id="o",
        study_orthanc_id="study",
        series_uid=f"1.2.{number}",
        modality=modality,
        body_part="",
        image_type=image_type,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        copied=False,
        namesakes=0,
        received_s=received_s,
        instance_uids=tuple(f"1.2.{number}.{i}" for i in range(images)),
        numbers=NUMBERS | numbers,
        texts={"kernel": kernel, "contrast": "UNKNOWN"},
        attributes={"SeriesNumber": str(number), **(attributes or {})},
    )


SEVEN = (
    series(1, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")),
    series(2, slice_spacing_mm=5.0, kernel="SOFT"),
    series(3, slice_spacing_mm=1.0, kernel="SHARP"),
    series(4, slice_spacing_mm=1.0, kernel="SOFT"),
    series(5, slice_spacing_mm=3.0, image_type=("DERIVED", "SECONDARY", "MPR")),
    series(6, slice_spacing_mm=None, kernel="SOFT"),
    series(7, modality="SR"),
)
"""Localizer, soft 5 mm, lung 1 mm, soft 1 mm, MPR, no positions, dose report."""


def known(
    *routes: Route, models: tuple[str, ...] = ("ct-tissue", "other"), card: str = "", **more: Any
) -> Known:
    announced = {
        name: AnnouncedModel(name=name, version="1", digest=name, card=card, announced_at=0.0)
        for name in models
    }
    values = {"priorities": (), "ours": lambda uid: False} | more
    return Known(routes=routes, models=announced, **values)


def decided(
    routes: Known, *given: SeriesFacts, trigger: str = "study", idle_s: float = 60.0, **more: Any
) -> Outcome:
    came_at = tuple(float(place) for place in range(len(given)))
    arrived = Arrived(series=given, trigger=trigger, came_at=came_at, idle_s=idle_s, **more)
    return decide(arrived, routes)


def taken(outcome: Outcome) -> list[tuple[str, ...]]:
    return [job.series_uids for job in outcome.jobs]


def said(outcome: Outcome, place: int, route: int = 0) -> Verdict:
    return outcome.verdicts[place][route]


def test_a_study_of_seven_reconstructions_gives_one_job() -> None:
    outcome = decided(known(BEST), *SEVEN)
    assert taken(outcome) == [("1.2.4",)]
    assert outcome.jobs[0].last_instance_at == 3.0
    assert [said(outcome, place).reason for place in range(7)] == [
        "Image Type says LOCALIZER",
        "series 4 was chosen: thin_slices wants the one with 1 mm, this one has 5 mm",
        "series 4 was chosen: soft_kernel wants the one with kernel soft, "
        "this one has kernel sharp",
        "the best of 4 series that fit",
        "Image Type says SECONDARY, and derived series are not wanted",
        "series 4 was chosen: thin_slices wants the one with 1 mm, "
        "this one has slice_spacing_mm unknown",
        "Modality is SR, CT is wanted",
    ]


@pytest.mark.parametrize(
    ("prefer", "best"),
    [
        ("thin_slices", "1.2.1"),
        ("soft_kernel", "1.2.2"),
        ("sharp_kernel", "1.2.3"),
        ("most_images", "1.2.4"),
        ("largest_coverage", "1.2.5"),
        ("with_contrast", "1.2.6"),
        ("without_contrast", "1.2.7"),
    ],
)
def test_each_preference_chooses_its_own(prefer: str, best: str) -> None:
    given = (
        series(1, slice_spacing_mm=0.6),
        series(2, kernel="SOFT"),
        series(3, kernel="SHARP"),
        series(4, instances=900.0),
        series(5, coverage_mm=900.0),
        replace(series(6), texts={"contrast": "YES"}),
        replace(series(7), texts={"contrast": "NO"}),
    )
    assert taken(decided(known(replace(BEST, prefer=(prefer,))), *given)) == [(best,)]


@pytest.mark.parametrize("corrected", [1, 3], ids=["lower UID", "higher UID"])
@pytest.mark.parametrize("of_study", [(2, 0), (0, 2)], ids=["before", "behind"])
def test_a_draw_goes_to_the_series_that_came_later(corrected: int, of_study: Any) -> None:
    """As a corrected one does, whose UIDs are new and whose words are the old ones."""
    received = {2: 100.0, corrected: 101.0}
    given = [series(n or corrected, received_s=received[n or corrected]) for n in of_study]
    outcome = decided(known(BEST), *given)
    assert taken(outcome) == [(f"1.2.{corrected}",)]
    assert said(outcome, of_study.index(2)).reason == (
        f"series {corrected} was chosen: both are equal in what is preferred, and it came later"
    )


def test_a_corrected_series_takes_the_role_of_the_wrong_one() -> None:
    again = replace(C, series_uid="1.2.9", received_s=9.0)
    both = replace(BOTH, series=(replace(T1, prefer=()), FLAIR))
    assert taken(decided(known(both), C, again, B)) == [("1.2.9", "1.2.2")]


def test_of_series_that_came_at_once_the_first_uid_is_taken() -> None:
    twins = (series(3, received_s=7.0), series(2, received_s=7.0))
    for given in (twins, twins[::-1]):
        outcome = decided(known(BEST), *given)
        assert taken(outcome) == [("1.2.2",)]
    assert "comes first" in said(outcome, 1).reason


def test_a_series_alone_is_told_that_its_study_is_awaited() -> None:
    outcome = decided(known(BEST), SEVEN[3], trigger="series")
    assert outcome.jobs == []
    assert not outcome.waits
    assert said(outcome, 0).taken
    assert said(outcome, 0).reason == "every condition holds; waits until the study is complete"


CARD = (Path(segnode_models.__file__).parent / "builtin" / "ct_tissue" / "card.toml").read_text()


@pytest.mark.parametrize("route", [SERIES, replace(BEST, prefer=())], ids=["series", "study"])
@pytest.mark.parametrize(("images", "found"), [(1, "1 image"), (2, "2 images")])
def test_a_series_with_fewer_images_than_its_model_needs_has_no_job(
    route: Route, images: int, found: str
) -> None:
    outcome = decided(known(route, card=CARD), series(1, images=images), trigger=route.trigger)
    assert outcome.jobs == []
    assert not outcome.waits
    assert said(outcome, 0) == Verdict(
        route=route.name, taken=False, reason=f"{found}; the model ct-tissue needs 3 slices"
    )
    assert decided(known(route, card=CARD), series(1), trigger=route.trigger).jobs
    assert decided(known(route), series(1, images=images), trigger=route.trigger).jobs


def test_a_series_that_is_too_short_is_told_so_before_its_study_is_complete() -> None:
    outcome = decided(known(BEST, card=CARD), series(1, images=1), trigger="series")
    assert said(outcome, 0).reason == "1 image; the model ct-tissue needs 3 slices"


def test_a_series_that_is_too_short_is_not_the_best() -> None:
    given = (series(1, kernel="SHARP", images=2), series(2, kernel="SOFT"))
    routes = known(replace(BEST, prefer=("sharp_kernel",)), card=CARD)
    assert taken(decided(routes, *given)) == [("1.2.2",)]


def test_of_several_series_the_first_needs_the_models_slices() -> None:
    short = replace(A, instance_uids=("1.2.1.0",), numbers=NUMBERS | {"instances": 99.0})
    routes = known(BOTH, card=CARD)
    assert taken(decided(routes, short, B, C)) == [("1.2.3", "1.2.2")]
    one = replace(B, instance_uids=("1.2.2.0",))
    assert taken(decided(routes, A, one)) == [("1.2.1", "1.2.2")]


@pytest.mark.parametrize(("frames", "jobs"), [("1", 0), ("x", 0), ("3", 1)])
def test_the_frames_of_an_image_are_slices(frames: str, jobs: int) -> None:
    many = series(1, images=1, attributes={"NumberOfFrames": frames})
    assert len(decided(known(SERIES, card=CARD), many, trigger="series").jobs) == jobs


SCOUT = "it is called a localizer (SeriesDescription: {}), and scouts are not wanted"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("Topogram 0.6 T20f", SCOUT.format("TOPOGRAM")),
        ("3-plane localizer", SCOUT.format("LOCALIZER")),
        ("localiser_haste", SCOUT.format("LOCALISER")),
        ("AAHead_Scout", SCOUT.format("SCOUT")),
        ("Lateral Surview", SCOUT.format("SURVIEW")),
        ("PILOT", SCOUT.format("PILOT")),
        ("Scouting the copilot", ""),
        ("Thorax 1.0", ""),
    ],
)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_what_is_called_a_localizer_starts_nothing_by_itself(
    modality: str, words: str, reason: str
) -> None:
    route = replace(SERIES, modality=modality)
    given = series(1, modality=modality, attributes={"SeriesDescription": words})
    outcome = decided(known(route), given, trigger="series")
    assert (said(outcome, 0).reason if reason else "") == reason
    assert len(outcome.jobs) == (0 if reason else 1)
    assert decided(known(replace(route, scouts=True)), given, trigger="series").jobs


def test_a_protocol_may_call_it_a_localizer_and_other_modalities_may_not() -> None:
    attributes = {"SeriesDescription": "3 plane", "ProtocolName": "Localizer"}
    outcome = decided(known(SERIES), series(1, attributes=attributes), trigger="series")
    assert "ProtocolName: LOCALIZER" in said(outcome, 0).reason
    pet = series(1, modality="PT", attributes=attributes)
    assert decided(known(replace(SERIES, modality="PT")), pet, trigger="series").jobs


def test_an_image_type_localizer_is_refused_whatever_a_route_says() -> None:
    wants_all = replace(SERIES, scouts=True, derived=True)
    outcome = decided(known(wants_all), SEVEN[0], trigger="series")
    assert said(outcome, 0).reason == "Image Type says LOCALIZER"


def test_a_series_number_that_is_none_is_not_repeated() -> None:
    sly = replace(series(1, slice_spacing_mm=1.0), attributes={"SeriesNumber": "DOE^JANE"})
    outcome = decided(known(BEST), sly, series(2))
    assert said(outcome, 1).reason.startswith("series 1.2.1 was chosen")


def test_a_study_route_without_preference_takes_every_match() -> None:
    route = replace(BEST, prefer=())
    assert taken(decided(known(route), *SEVEN[1:4])) == [("1.2.2",), ("1.2.3",), ("1.2.4",)]


T1 = RequiredSeries(
    role="t1",
    prefer=("most_images",),
    where=read_condition({"attribute": "SeriesDescription", "contains": "t1"}, ""),
)
FLAIR = RequiredSeries(
    role="flair",
    prefer=("most_images",),
    where=read_condition({"attribute": "SeriesDescription", "contains": "flair"}, ""),
)
BOTH = Route(name="both", model="other", modality="MR", trigger="study", series=(T1, FLAIR))
A = series(1, modality="MR", attributes={"SeriesDescription": "T1 mprage"}, instances=9.0)
B = series(2, modality="MR", attributes={"SeriesDescription": "FLAIR"})
C = series(3, modality="MR", attributes={"SeriesDescription": "T1 tse"}, instances=5.0)


def test_several_series_make_one_job_in_the_order_of_their_roles() -> None:
    outcome = decided(known(BOTH), B, C, A)
    [job] = outcome.jobs
    assert (job.series_uids, job.roles) == (("1.2.1", "1.2.2"), ("t1", "flair"))
    assert job.instance_count == 6
    assert job.last_instance_at == 2.0
    assert said(outcome, 0).reason == "chosen as 'flair'"
    assert "series 1 was chosen" in said(outcome, 1).reason


def test_one_series_is_not_taken_for_two_roles() -> None:
    again = replace(BOTH, series=(T1, replace(T1, role="second")))
    assert taken(decided(known(again), A, C)) == [("1.2.1", "1.2.3")]
    assert decided(known(again), A, idle_s=9999.0).jobs == []


def test_a_role_leaves_its_series_to_one_that_has_no_other() -> None:
    either = series(4, modality="MR", attributes={"SeriesDescription": "T1 FLAIR"}, instances=99.0)
    assert taken(decided(known(BOTH), A, either)) == [("1.2.1", "1.2.4")]
    assert taken(decided(known(BOTH), A, B, either)) == [("1.2.4", "1.2.2")]


@pytest.mark.parametrize(
    ("missing", "idle_s", "jobs", "waits", "reason"),
    [
        ("discard", 599, [], True, "fits as 't1'; waits for 'flair', 600 s at most"),
        ("proceed", 599, [], True, "fits as 't1'; waits for 'flair', 600 s at most"),
        ("discard", 601, [], False, "fits as 't1', but 'flair' did not come within 600 s"),
        ("proceed", 601, [("1.2.1",)], False, "fits as 't1', but 'flair' did not come within"),
    ],
)
def test_a_missing_series_is_waited_for(
    missing: str, idle_s: float, jobs: list[Any], waits: bool, reason: str
) -> None:
    outcome = decided(known(replace(BOTH, missing=missing)), A, idle_s=idle_s)
    assert taken(outcome) == jobs
    assert outcome.waits is waits
    assert said(outcome, 0).reason.startswith(reason)
    assert said(outcome, 0).taken is (waits or bool(jobs))


def test_the_first_series_is_needed_whatever_proceeds() -> None:
    outcome = decided(known(replace(BOTH, missing="proceed")), B, idle_s=601)
    assert outcome.jobs == []
    assert not said(outcome, 0).taken


def test_with_and_without_the_late_series_are_two_contents_of_one_route() -> None:
    first = decided(known(replace(BOTH, missing="proceed")), A, idle_s=601).jobs[0]
    whole = decided(known(BOTH), A, B).jobs[0]
    assert first.key != whole.key
    assert first.alone
    assert whole.alone


def test_a_study_without_any_of_the_series_waits_for_nothing() -> None:
    assert not decided(known(BOTH), *SEVEN, idle_s=1).waits


def chain(after: str = "all", **more: Any) -> Route:
    return replace(SERIES, name="then", model="other", after=after, **more)


def test_a_chain_makes_both_jobs_in_their_order() -> None:
    first, then = decided(known(SERIES, chain()), series(1), trigger="series").jobs
    assert (first.model, then.model) == ("ct-tissue", "other")
    assert then.builds_on == first.key
    assert first.builds_on == ""


def test_a_chain_changes_with_what_it_builds_on() -> None:
    other = known(replace(SERIES, shadow=True, name="all"), chain())
    keys = {
        decided(one, series(1), trigger="series").jobs[1].key
        for one in (known(SERIES, chain()), other)
    }
    assert len(keys) == 2


def test_a_chain_needs_its_first_route_on_the_same_series() -> None:
    never = replace(SERIES, min_instances=99)
    outcome = decided(known(never, chain()), series(1), trigger="series")
    assert outcome.jobs == []
    assert said(outcome, 0, 1).reason == (
        "the route 'all', after which it comes, does not take this series"
    )


def test_a_chain_waits_for_the_model_of_its_first_route() -> None:
    outcome = decided(known(SERIES, chain(), models=("other",)), series(1), trigger="series")
    assert outcome.jobs == []
    assert outcome.waits
    assert said(outcome, 0, 1).reason == (
        "comes after 'all': waits: no worker has announced the model"
    )


def test_a_study_route_builds_on_a_series_route() -> None:
    alone = decided(known(SERIES), SEVEN[3], trigger="series").jobs[0]
    best = replace(BEST, name="then", model="other", after="all")
    outcome = decided(known(SERIES, best), *SEVEN)
    first, job = outcome.jobs
    assert first.key == alone.key  # which the ledger may not have: of a newer model, say
    assert job.builds_on == alone.key
    assert all(len(verdicts) == 1 for verdicts in outcome.verdicts)


def test_one_model_runs_once_on_a_series_whatever_it_builds_on() -> None:
    twice = replace(SERIES, name="again", model="other")
    outcome = decided(known(SERIES, chain(), twice), series(1), trigger="series")
    assert [job.route for job in outcome.jobs] == ["all", "then"]
    assert said(outcome, 0, 2).reason == "the route 'then' above runs this model on it already"


def test_a_shadow_run_is_another_job_beside_the_real_one() -> None:
    shadow = replace(SERIES, name="shadow", shadow=True)
    real, hidden = decided(known(SERIES, shadow), series(1), trigger="series").jobs
    assert real.key != hidden.key
    assert (real.shadow, hidden.shadow) == (False, True)


RULES = (
    PriorityRule(
        priority="stat",
        where=read_condition(
            {
                "any": [
                    {"attribute": "RequestedProcedurePriority", "one_of": ["STAT", "HIGH"]},
                    {"fact": "calling_aet", "equals": "ER_CT"},
                ]
            },
            "",
        ),
    ),
    PriorityRule(
        priority="background",
        where=read_condition({"attribute": "StudyPriorityID", "equals": "LOW"}, ""),
    ),
)


@pytest.mark.parametrize(
    ("route", "facts", "backlog", "priority"),
    [
        (SERIES, series(1), False, Priority.ROUTINE),
        (
            SERIES,
            series(1, attributes={"RequestedProcedurePriority": "stat"}),
            False,
            Priority.STAT,
        ),
        (SERIES, replace(series(1), texts={"calling_aet": "ER_CT"}), False, Priority.STAT),
        (SERIES, series(1, attributes={"StudyPriorityID": "LOW"}), False, Priority.BACKGROUND),
        (
            replace(SERIES, priority="background"),
            series(1, attributes={"RequestedProcedurePriority": "STAT"}),
            False,
            Priority.BACKGROUND,
        ),
        (replace(SERIES, priority="stat"), series(1), False, Priority.STAT),
        (replace(SERIES, priority="stat"), series(1), True, Priority.BACKGROUND),
    ],
    ids=["none", "attribute", "title", "low", "route's own", "stat route", "backlog"],
)
def test_priority_comes_from_the_route_or_the_study(
    route: Route, facts: SeriesFacts, backlog: bool, priority: Priority
) -> None:
    known_ = known(route, priorities=RULES)
    [job] = decided(known_, facts, trigger="series", backlog=backlog).jobs
    assert job.priority == priority


def test_a_result_of_ours_starts_nothing() -> None:
    routes = known(SERIES, chain(), BEST, ours=lambda uid: uid == "1.2.1")
    outcome = decided(routes, series(1), trigger="series")
    assert outcome.jobs == []
    assert {each.reason for each in outcome.verdicts[0]} == {"a result of ours"}


def keys(jobs: list[NewJob]) -> set[str]:
    return {job.key for job in jobs}


def test_a_job_is_the_same_whether_a_series_or_a_study_gave_it() -> None:
    of_study = replace(SERIES, name="study", trigger="study")
    alone = decided(known(SERIES), series(1), trigger="series").jobs
    assert keys(alone) == keys(decided(known(of_study), series(1)).jobs)


@pytest.mark.parametrize(
    ("segments", "setting", "form"),
    [(104, "auto", "LABELMAP"), (2, "auto", "BINARY"), (104, "BINARY", "BINARY")],
)
def test_a_job_is_made_for_the_form_of_its_models_card(
    segments: int, setting: str, form: str
) -> None:
    card = card_of(segments).source
    [job] = decided(known(SERIES, card=card, form=setting), series(1), trigger="series").jobs
    assert job.form == form
    [other] = decided(known(SERIES, card=card, form="BINARY"), series(1), trigger="series").jobs
    assert (job.key == other.key) == (form == "BINARY")
