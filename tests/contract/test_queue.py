"""Who comes first, who waits for whom, and what a study's decision replaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy import text

from segnode_contract.errors import PriorMissing, UnsuitableSeries
from segnode_contract.findings import Findings, Measurement
from segnode_contract.job import Claim, NewJob, Priority, ResultObject
from segnode_contract.ledger import (
    ActLedger,
    IntakeLedger,
    Ledger,
    LedgerView,
    OutboxLedger,
    WorkerLedger,
    WorkLedger,
)
from segnode_contract.ledger.intake import Decision, OpenStudy, StudyDecision, Verdict
from segnode_contract.ledger.overlays import study_overlays
from segnode_contract.ledger.work import LeaseLost
from segnode_contract.settings import Background, Limits

DIGEST = "d" * 64
ALWAYS = Background()


def job(number: int, priority: Priority = Priority.ROUTINE, **more: object) -> NewJob:
    values: dict[str, object] = {
        "key": f"{number:064x}",
        "study_uid": "1.2",
        "series_uids": (f"1.2.{number}",),
        "content": "c",
        "instance_count": 1,
        "route": "r",
        "route_rank": 0,
        "model": "m",
        "model_version": "1",
        "model_digest": DIGEST,
        "lane": "default",
        "last_instance_at": 0.0,
        "priority": priority,
    }
    return NewJob(**(values | more))  # type: ignore[arg-type] # as above


def arrive(ledger: Ledger, *jobs: NewJob, of: str = "o1", study: str = "") -> list[str]:
    intake = IntakeLedger(ledger)
    intake.note("a", 1, [of])
    quiet = next(each for each in intake.quiet("a", 0) if each.orthanc_id == of)
    return intake.decide(
        "a",
        Decision(
            orthanc_id=of,
            last_instance_at=quiet.last_instance_at,
            study_uid="1.2",
            series_uid="1.2.1",
            instance_count=1,
            verdicts=(
                Verdict(route="series route", taken=True, reason="yes"),
                Verdict(route="r", taken=True, reason="waits until the study is complete"),
            ),
            jobs=jobs,
            study=study,
        ),
    )


def choose(ledger: Ledger, *jobs: NewJob, final: bool = True, of: str = "o1") -> list[str]:
    """Decide on the one open study."""
    intake = IntakeLedger(ledger)
    [study] = intake.open_studies("a")
    said = Verdict(route="r", taken=bool(jobs), reason="chosen")
    return intake.decide_study("a", decision(study, jobs, {of: (said,)}, final=final))


def decision(
    study: OpenStudy,
    jobs: Sequence[NewJob],
    verdicts: dict[str, tuple[Verdict, ...]],
    *,
    final: bool = True,
) -> StudyDecision:
    return StudyDecision(
        orthanc_id=study.orthanc_id,
        changed_at=study.changed_at,
        verdicts=verdicts,
        jobs=tuple(jobs),
        final=final,
    )


def worker(ledger: Ledger, background: Background = ALWAYS) -> WorkLedger:
    return WorkLedger(ledger, "w", Limits(), background)


def take(ledger: Ledger, background: Background = ALWAYS) -> Claim | None:
    return worker(ledger, background).claim("default", [DIGEST])


def the(claim: Claim | None) -> Claim:
    assert claim is not None
    return claim


def number(claim: Claim | None) -> int:
    return int(the(claim).key, 16)


def finish(ledger: Ledger, claim: Claim) -> None:
    work = worker(ledger)
    seg = ResultObject(role="SEG", instance_uid=f"2.{claim.key}"[:60], series_uid="2", data=b"x")
    work.made(claim, [seg], Findings(), "i")
    work.confirmed(claim, seg)
    work.done(claim, 1)


def state(ledger: Ledger, new: NewJob) -> str:
    found = LedgerView(ledger).job(new.key)
    assert found is not None
    return found.row.state


def test_a_stat_job_overtakes_a_backlog_of_five_hundred(ledger: Ledger) -> None:
    arrive(ledger, *(job(n) for n in range(1, 501)))
    assert number(take(ledger)) == 1
    arrive(ledger, job(1000, Priority.STAT), of="o2")
    assert number(take(ledger)) == 1000
    assert number(take(ledger)) == 2


def test_of_ten_jobs_one_is_background_work_under_constant_load(ledger: Ledger) -> None:
    arrive(ledger, *(job(n, Priority.BACKGROUND) for n in range(1, 50)))
    arrive(ledger, *(job(n) for n in range(100, 200)), of="o2")
    order = [number(take(ledger)) for _ in range(40)]
    background = [place for place, one in enumerate(order) if one < 100]
    assert background == [9, 19, 29, 39]
    assert [order[place] for place in background] == [1, 2, 3, 4]


def test_background_work_never_delays_a_stat_job(ledger: Ledger) -> None:
    arrive(ledger, *(job(n, Priority.BACKGROUND) for n in range(1, 5)))
    arrive(ledger, *(job(n) for n in range(100, 109)), of="o2")
    for _ in range(9):
        assert number(take(ledger)) >= 100
    arrive(ledger, job(1000, Priority.STAT), of="o3")
    assert number(take(ledger)) == 1000
    assert number(take(ledger)) == 1


def test_background_work_has_every_turn_when_nothing_else_waits(ledger: Ledger) -> None:
    arrive(ledger, *(job(n, Priority.BACKGROUND) for n in (1, 2, 3)))
    assert [number(take(ledger)) for _ in range(3)] == [1, 2, 3]


def test_lanes_count_apart(ledger: Ledger) -> None:
    arrive(ledger, *(job(n) for n in range(100, 109)))
    arrive(ledger, job(1, Priority.BACKGROUND, lane="other"), of="o2")
    arrive(ledger, job(2, lane="other"), of="o3")
    for _ in range(9):
        take(ledger)
    assert number(worker(ledger).claim("other", [DIGEST])) == 2


def window(opens: bool) -> Background:
    hour = datetime.now().hour
    start, end = (hour - 1) % 24, (hour + 2) % 24
    return Background(
        from_hour=float(start if opens else end), to_hour=float(end if opens else start)
    )


@pytest.mark.parametrize("opens", [True, False])
def test_background_work_keeps_to_its_hours(ledger: Ledger, opens: bool) -> None:
    arrive(ledger, job(1, Priority.BACKGROUND))
    outbox = OutboxLedger(ledger, Limits(), window(opens))
    assert len(outbox.due()) == int(opens)
    assert (take(ledger, window(opens)) is not None) is opens


def test_a_night_may_hold_midnight() -> None:
    night = Background(from_hour=20, to_hour=6)
    assert [h for h in range(24) if night.open_at(h)] == [0, 1, 2, 3, 4, 5, 20, 21, 22, 23]
    assert all(ALWAYS.open_at(h) for h in range(24))


def test_what_lay_there_before_is_known_as_backlog_until_an_image_comes(ledger: Ledger) -> None:
    intake = IntakeLedger(ledger)
    intake.note("a", 1, ["o1"], backlog=True)
    assert [one.backlog for one in intake.quiet("a", 0)] == [True]
    intake.note("a", 2, ["o2"])
    assert [one.orthanc_id for one in intake.quiet("a", 0)] == ["o2", "o1"]
    intake.note("a", 3, ["o1"])
    assert [one.backlog for one in intake.quiet("a", 0)] == [False, False]


def chain(ledger: Ledger) -> tuple[NewJob, NewJob]:
    first, then = job(1), job(2, model="n", series_uids=("1.2.1",), builds_on=f"{1:064x}")
    arrive(ledger, first, then)
    return first, then


def test_a_chained_job_waits_for_the_one_it_builds_on(ledger: Ledger) -> None:
    WorkerLedger(ledger, "w").announce("m", "1", DIGEST, "the card")
    _, then = chain(ledger)
    assert state(ledger, then) == "waiting"
    first = the(take(ledger))
    assert take(ledger) is None
    finish(ledger, first)
    claim = the(take(ledger))
    assert claim.key == then.key
    assert len(OutboxLedger(ledger, Limits()).due()) == 2
    prior = worker(ledger).prior(claim)
    assert (prior.model, prior.card, prior.series_uid) == ("m", "the card", "2")


def test_a_chained_job_that_comes_later_finds_its_first_one_done(ledger: Ledger) -> None:
    first = job(1)
    arrive(ledger, first)
    finish(ledger, the(take(ledger)))
    then = job(2, model="n", builds_on=first.key)
    arrive(ledger, first, then, of="o2")
    assert state(ledger, then) == "queued"


def test_a_chain_goes_on_after_its_first_job_was_retried(ledger: Ledger) -> None:
    first, then = chain(ledger)
    worker(ledger).failed(the(take(ledger)), UnsuitableSeries("Tilted."), 1)
    assert (state(ledger, first), state(ledger, then)) == ("failed", "waiting")
    ActLedger(ledger).retry(first.key, "somebody")
    finish(ledger, the(take(ledger)))
    assert state(ledger, then) == "queued"


def test_a_result_that_is_gone_is_waited_for(ledger: Ledger) -> None:
    WorkerLedger(ledger, "w").announce("m", "1", DIGEST, "the card")
    first, _ = chain(ledger)
    finish(ledger, the(take(ledger)))
    claim = the(take(ledger))
    arrive(ledger, replace(first, last_instance_at=9.0))
    with pytest.raises(PriorMissing, match="not done any more"):
        worker(ledger).prior(claim)


def test_what_builds_on_a_superseded_job_goes_with_it(ledger: Ledger) -> None:
    first, then = chain(ledger)
    arrive(ledger, job(3, series_uids=first.series_uids))
    assert (state(ledger, first), state(ledger, then)) == ("superseded", "superseded")


def test_a_job_comes_as_soon_as_the_most_urgent_route_that_wants_it(ledger: Ledger) -> None:
    arrive(ledger, job(1, Priority.BACKGROUND), job(1, Priority.STAT, route="emergency"))
    arrive(ledger, job(2), of="o2")
    assert number(take(ledger)) == 1


def test_an_urgent_job_hurries_the_one_that_it_builds_on(ledger: Ledger) -> None:
    arrive(ledger, job(1))
    arrive(
        ledger,
        job(2),
        job(3, Priority.STAT, model="n", builds_on=f"{2:064x}"),
        of="o2",
    )
    assert number(take(ledger)) == 2


def links(*priorities: Priority) -> list[NewJob]:
    """Return a chain of jobs of one series, behind which another waits in vain."""
    return [
        job(n, priority, model=f"m{n}", builds_on=f"{n - 1:064x}" if n > 2 else "")
        for n, priority in enumerate(priorities, 2)
    ]


@pytest.mark.parametrize("length", [2, 3, 5])
def test_an_urgent_job_hurries_the_whole_chain_before_it(ledger: Ledger, length: int) -> None:
    arrive(ledger, job(1))
    routine = [Priority.ROUTINE] * (length - 1)
    arrive(ledger, *links(*routine, Priority.STAT), of="o2")
    assert number(take(ledger)) == 2
    with ledger.read() as connection:
        waiting = text("select distinct priority from job where state = 'waiting'")
        assert list(connection.scalars(waiting)) == [int(Priority.STAT)]


def test_an_urgent_route_hurries_the_chain_of_a_job_that_is_there(ledger: Ledger) -> None:
    arrive(ledger, job(1))
    first, then, last = links(*[Priority.ROUTINE] * 3)
    arrive(ledger, first, then, last, of="o2")
    arrive(ledger, replace(last, priority=Priority.STAT, route="emergency"), of="o3")
    assert number(take(ledger)) == 2


def test_images_that_came_again_under_a_running_job_start_it_anew(ledger: Ledger) -> None:
    arrive(ledger, job(1))
    old = the(take(ledger))
    arrive(ledger, replace(job(1), last_instance_at=9.0))
    with pytest.raises(LeaseLost):
        worker(ledger).heartbeat(old)
    assert the(take(ledger)).key == old.key


def test_idle_is_since_the_last_image_that_is_none_of_ours(ledger: Ledger) -> None:
    intake = IntakeLedger(ledger)
    assert intake.idle_s(["o1"]) == float("inf")
    arrive(ledger, job(1))
    with ledger.write() as connection:
        connection.execute(text("update series set last_instance_at = last_instance_at - 100"))
    assert 99 < intake.idle_s(["o1"]) < 160


def test_a_shadow_job_is_done_without_an_object(ledger: Ledger) -> None:
    new = job(1, shadow=True)
    arrive(ledger, new)
    claim = the(take(ledger))
    assert claim.shadow
    seg = ResultObject(role="SEG", instance_uid="2.1", series_uid="2", data=b"12345")
    found = Findings(measurements=(Measurement(segment=1, name="Volume", value=7.0, unit="ml"),))
    worker(ledger).shadowed(claim, [seg], found, "i")
    worker(ledger).done(claim, 1)
    shown = LedgerView(ledger).job(new.key)
    assert shown is not None
    assert (shown.row.state, shown.row.shadow, shown.row.objects) == ("done", True, ())
    assert Findings.from_json(shown.row.findings or {}) == found
    assert "SEG of 5 bytes, proved and not stored" in [event.detail for event in shown.events]
    assert study_overlays(ledger, "1.2").overlays == ()


def test_a_shadow_job_is_not_measured_again_when_its_images_come_again(ledger: Ledger) -> None:
    new = job(1, shadow=True)
    arrive(ledger, new)
    worker(ledger).done(the(take(ledger)), 1)
    arrive(ledger, replace(new, last_instance_at=9.0))
    assert state(ledger, new) == "done"


def test_a_series_of_a_study_is_known_as_ours(ledger: Ledger) -> None:
    intake = IntakeLedger(ledger)
    arrive(ledger, job(1))
    assert [one.ours for one in intake.series_of_study("a", ["o1", "o2"])] == [False]
    claim = the(take(ledger))
    seg = ResultObject(role="SEG", instance_uid="2.1", series_uid="1.2.1", data=b"x")
    worker(ledger).made(claim, [seg], Findings(), "i")
    assert [one.ours for one in intake.series_of_study("a", ["o1"])] == [True]


def test_a_job_that_is_no_shadow_needs_its_object(ledger: Ledger) -> None:
    arrive(ledger, job(1))
    with pytest.raises(RuntimeError, match="0 of 0 objects"):
        worker(ledger).done(the(take(ledger)), 1)


def test_a_shadow_job_and_the_real_one_leave_each_other_alone(ledger: Ledger) -> None:
    real, hidden = job(1), job(2, shadow=True, series_uids=("1.2.1",))
    arrive(ledger, real, hidden)
    assert (state(ledger, real), state(ledger, hidden)) == ("queued", "queued")


def test_a_study_is_decided_once_and_again_when_a_series_was(ledger: Ledger) -> None:
    intake = IntakeLedger(ledger)
    arrive(ledger, study="s")
    assert choose(ledger, job(1, alone=True)) == [job(1).key]
    assert intake.open_studies("a") == []
    arrive(ledger, of="o2", study="s")
    assert [one.orthanc_id for one in intake.open_studies("a")] == ["s"]


def test_the_better_series_that_comes_late_takes_the_place(ledger: Ledger) -> None:
    arrive(ledger, study="s")
    old, new = job(1, alone=True), job(2, alone=True)
    choose(ledger, old)
    claim = the(take(ledger))
    arrive(ledger, of="o2", study="s")
    choose(ledger, new)
    assert (state(ledger, old), state(ledger, new)) == ("superseded", "queued")
    with pytest.raises(LeaseLost):
        worker(ledger).heartbeat(claim)


def test_a_late_series_that_is_no_better_changes_nothing(ledger: Ledger) -> None:
    arrive(ledger, study="s")
    choose(ledger, job(1, alone=True))
    finish(ledger, the(take(ledger)))
    arrive(ledger, of="o2", study="s")
    assert choose(ledger, job(1, alone=True)) == []
    assert state(ledger, job(1)) == "done"


def test_routes_that_take_every_match_keep_their_jobs_side_by_side(ledger: Ledger) -> None:
    arrive(ledger, study="s")
    choose(ledger, job(1), job(2))
    assert (state(ledger, job(1)), state(ledger, job(2))) == ("queued", "queued")


def test_a_study_decision_is_dropped_when_a_series_was_decided_since(ledger: Ledger) -> None:
    intake = IntakeLedger(ledger)
    arrive(ledger, study="s")
    [study] = intake.open_studies("a")
    arrive(ledger, of="o2", study="s")
    assert intake.decide_study("a", decision(study, [job(1)], {})) == []
    assert LedgerView(ledger).jobs() == []


def test_a_study_that_waits_stays_open_and_says_so(ledger: Ledger) -> None:
    arrive(ledger, study="s")
    choose(ledger, final=False)
    assert len(IntakeLedger(ledger).open_studies("a")) == 1


def test_a_study_decision_leaves_the_other_routes_words(ledger: Ledger) -> None:
    arrive(ledger, study="s")
    choose(ledger, job(1))
    [series] = LedgerView(ledger).series("1.2")
    assert [(each["route"], each["reason"]) for each in series.verdicts] == [
        ("series route", "yes"),
        ("r", "chosen"),
    ]


def test_a_forgotten_study_is_not_asked_for_again(ledger: Ledger) -> None:
    arrive(ledger, study="s")
    IntakeLedger(ledger).forget_study("a", "s")
    assert IntakeLedger(ledger).open_studies("a") == []
