"""The way of a job as steps, and as a staircase that squeezes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from segnode_contract.ledger.view import Job, JobRow, RunRow, StageTime
from segnode_plugin.web.staircase import staircase_of
from segnode_plugin.web.timeline import Step, steps_of

ROW = JobRow(
    key="k",
    base_key="k",
    revision=0,
    state="done",
    study_uid="1.2",
    series_uids=("1.2.3",),
    instance_count=3,
    modality="CT",
    route="tissue",
    model="ct-tissue",
    model_version="1",
    model_digest="d",
    lane="default",
    priority="routine",
    builds_on="",
    shadow=False,
    created_at=130.0,
    updated_at=0.0,
    first_instance_at=100.0,
    last_instance_at=120.0,
    not_before=130.0,
    error_code=None,
    error_sentence=None,
    error_stage=None,
    progress=None,
    findings=None,
    stages=(),
    objects=(),
)


def run(epoch: int, began: float, *stages: tuple[str, float | None], **more: object) -> RunRow:
    """Return a run that was queued one second before it began."""
    at, times = began - 1, []
    for name, seconds in (("queued", 1.0), *stages):
        times.append(StageTime(stage=name, started_at=at, seconds=seconds))
        at += seconds or 0
    values: dict[str, object] = {
        "epoch": epoch,
        "worker": "w",
        "started_at": began,
        "ended_at": at,
        "outcome": "done",
        "error_code": None,
        "peak_mb": None,
        "stages": tuple(times),
    }
    return RunRow(**(values | more))  # type: ignore[arg-type] # as above


def steps(*runs: RunRow, now: float = 1000.0, whole: bool = False, **row: object) -> list[Step]:
    job = Job(row=replace(ROW, **row), runs=runs, events=())  # type: ignore[arg-type]
    return list(steps_of(job, now, whole=whole))


def said(found: list[Step]) -> list[tuple[str, float]]:
    return [(step.name, round(step.seconds, 3)) for step in found]


def test_every_step_from_the_first_image_on_is_there_with_its_seconds() -> None:
    assert said(steps(run(1, 131.0, ("fetch", 2.0), ("turn", 0.5), ("infer", 4.0)))) == [
        ("first to last image", 20.0),
        ("quiet period, decision", 10.0),
        ("queued", 1.0),
        ("fetch", 2.0),
        ("wait for the model", 0.5),
        ("infer", 4.0),
    ]


def test_a_run_that_failed_is_marked_and_the_wait_for_the_next_one_shown() -> None:
    first = run(1, 131.0, ("fetch", None), outcome="failed", ended_at=134.0)
    found = steps(first, run(2, 200.0, ("fetch", 1.0)))
    assert [step.words for step in found if step.run == 1] == ["1.00 s", "3.00 s, failed"]
    assert ("until the next try", 65.0) in said(found)
    assert [step.run for step in found if step.name == "fetch"] == [1, 2]


def test_days_until_images_came_again_are_no_wait_for_a_next_try() -> None:
    found = steps(run(1, 131.0, ("fetch", 1.0)), run(2, 9000.0, ("fetch", 1.0)))
    names = [step.name for step in found]
    assert "until images came again" in names
    assert "until the next try" not in names


def test_what_goes_on_lasts_until_now() -> None:
    going = run(1, 131.0, ("fetch", 2.0), ("infer", None), outcome=None, ended_at=None)
    last = steps(going, now=150.0, state="running")[-1]
    assert (last.name, last.ended_at, last.seconds) == ("infer", None, 17.0)
    assert last.words == "17.0 s so far"


@pytest.mark.parametrize(
    ("row", "name", "seconds"),
    [
        ({"state": "queued"}, "queued", 70.0),
        ({"state": "queued", "not_before": 230.0}, "until the next try", 70.0),
        ({"state": "waiting", "builds_on": "f"}, "for the job it builds on", 70.0),
    ],
    ids=["queued", "back-off", "waits for another"],
)
def test_what_a_job_waits_for_now_is_said(
    row: dict[str, object], name: str, seconds: float
) -> None:
    last = steps(now=200.0, **row)[-1]
    assert (last.name, last.seconds, last.ended_at) == (name, seconds, None)


def test_a_job_that_builds_on_another_waited_for_that_one() -> None:
    found = steps(run(1, 171.0, ("fetch", 2.0)), builds_on="f")
    assert ("for the job it builds on", 40.0) in said(found)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"revision": 1}, "until it was made anew"),
        ({"route": "by hand"}, "until somebody asked for it"),
    ],
    ids=["made anew", "by hand"],
)
def test_what_somebody_asked_for_has_no_quiet_period(row: dict[str, object], name: str) -> None:
    assert (name, 10.0) in said(steps(**row))


def test_images_that_came_again_after_the_job_are_not_put_before_it() -> None:
    found = steps(run(1, 131.0, ("fetch", 2.0)), last_instance_at=500.0)
    assert found[0].name == "queued"


def test_an_older_ledger_knows_no_first_image() -> None:
    assert steps(first_instance_at=None)[0].name == "quiet period, decision"


def test_many_runs_are_shown_as_one_before_the_newest() -> None:
    runs = [
        run(n, 100.0 + 100 * n, ("fetch", None), outcome="failed", ended_at=110.0 + 100 * n)
        for n in range(1, 12)
    ]
    found = steps(*runs, state="failed")
    [earlier] = [step for step in found if "earlier" in step.name]
    assert earlier.name == "7 earlier runs"
    assert {step.run for step in found if step.run} == {8, 9, 10, 11}
    assert {step.run for step in steps(*runs, whole=True) if step.run} == set(range(1, 12))


def test_hours_of_waiting_leave_half_of_the_staircase_to_seconds_of_work() -> None:
    found = steps(
        run(1, 40_000.0, ("fetch", 1.0), ("infer", 3.0)),
        first_instance_at=0.0,
        last_instance_at=20_000.0,
        created_at=30_000.0,
    )
    drawn = staircase_of(found)
    work = sum(stair.width for stair in drawn.stairs if stair.step.kind in ("fetch", "infer"))
    waits = sum(stair.width for stair in drawn.stairs) - work
    assert work >= waits * 0.95
    broken = [stair.step.name for stair in drawn.stairs if stair.broken]
    assert broken == [
        "first to last image",
        "quiet period, decision",
        "until it came into the queue",
    ]
    fetch, infer = drawn.stairs[-2:]
    assert infer.width == pytest.approx(3 * fetch.width, rel=0.01)


def test_short_waits_are_drawn_to_scale_too() -> None:
    drawn = staircase_of(steps(run(1, 131.0, ("fetch", 60.0))))
    assert not drawn.broken
    arriving, quiet = drawn.stairs[:2]
    assert arriving.width == pytest.approx(2 * quiet.width, rel=0.01)


def test_milliseconds_of_work_do_not_break_a_wait_of_a_second() -> None:
    found = steps(
        run(1, 131.0, ("fetch", 0.004)), first_instance_at=119.5, created_at=120.5, not_before=130.0
    )
    assert [stair.step.name for stair in staircase_of(found).stairs if stair.broken] == [
        "until it came into the queue"
    ]


def test_stairs_and_words_stay_within_the_picture() -> None:
    runs = [run(n, 100.0 + 100 * n, ("fetch", 0.001), ("infer", 900.0)) for n in range(1, 5)]
    drawn = staircase_of(steps(*runs))
    for stair in drawn.stairs:
        assert stair.width > 0
        assert stair.x + stair.width <= drawn.width - 100
        assert 0 < stair.words_x < drawn.width - 90
    assert drawn.height == len(drawn.stairs) * drawn.row


def test_a_job_without_any_step_has_an_empty_staircase() -> None:
    assert staircase_of([]).stairs == ()
