"""What is counted when a run ends, and what the counts say."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Double, literal, select, text, update

from segnode_contract.errors import ArchiveUnavailable, ModelProcessDied
from segnode_contract.findings import Findings
from segnode_contract.job import Claim, Priority, ResultObject, Stage
from segnode_contract.ledger import ActLedger, LeaseLedger, Ledger, WorkLedger, schema
from segnode_contract.ledger.clock import day_of
from segnode_contract.ledger.statistics import Statistics
from segnode_contract.ledger.tally import EVER, LATENCY, OUTCOMES, bucket_of, percentile, seconds_of
from segnode_contract.ledger.work import LeaseLost
from segnode_contract.settings import Limits

from ..plugin.rows import claim_job, fail_job, finish_job, queue_job

EVERYTHING = (*Stage, LATENCY, *OUTCOMES)


def today(ledger: Ledger) -> dict[str, dict[int, int]]:
    """Return what was counted today, by measure."""
    statistics = Statistics(ledger)
    tallied = statistics.by_day(statistics.last_days(1), EVERYTHING)
    return next(iter(tallied.values()), {})


def counts(ledger: Ledger) -> dict[str, int]:
    return {measure: sum(buckets.values()) for measure, buckets in today(ledger).items()}


def age(ledger: Ledger, key: str, seconds: float) -> None:
    """Let a job's last image have come so much earlier."""
    earlier = schema.job.c.last_instance_at - seconds
    with ledger.write() as connection:
        connection.execute(
            update(schema.job).where(schema.job.c.key == key).values(last_instance_at=earlier)
        )


def finish_in_two_parts(ledger: Ledger) -> None:
    """Do the oldest job; its result is stored in two goes of 10 s and 30 s."""
    work, claim = claim_job(ledger)
    uid = f"2.{claim.key[:8].lstrip('0')}"
    seg = ResultObject(role="SEG", instance_uid=f"{uid}.1", series_uid=uid, data=b"x")
    work.made(claim, [seg], Findings(), "i" * 64)
    with ledger.write() as connection:
        for seconds in (10.0, 30.0):
            row = {"run_id": claim.run_id, "stage": "store", "started_at": 0, "seconds": seconds}
            connection.execute(schema.stage.insert().values(row))
    work.confirmed(claim, seg)
    work.done(claim, 100)


@given(st.floats(min_value=0.001, max_value=1e7))
def test_a_bucket_tells_a_time_within_two_and_a_half_percent(seconds: float) -> None:
    assert seconds_of(bucket_of(seconds)) == pytest.approx(seconds, rel=0.0251)


def test_no_time_and_less_is_counted_as_a_millisecond() -> None:
    assert bucket_of(0.0) == bucket_of(-3.0) == 0
    assert seconds_of(0) == pytest.approx(0.001)


@pytest.mark.parametrize("percent", [50, 95, 99])
@pytest.mark.parametrize("spread", [0.05, 0.6, 2.0])
def test_percentiles_of_buckets_are_the_exact_ones_within_three_percent(
    percent: float, spread: float
) -> None:
    drawn = random.Random(7)
    times = sorted(drawn.lognormvariate(3, spread) for _ in range(5000))
    buckets: dict[int, int] = {}
    for each in times:
        buckets[bucket_of(each)] = buckets.get(bucket_of(each), 0) + 1
    exact = times[round(percent / 100 * len(times)) - 1]
    assert percentile(buckets, percent) == pytest.approx(exact, rel=0.03)


def test_of_nothing_there_is_no_percentile() -> None:
    assert percentile({}, 50) is None


def test_one_slow_run_in_a_hundred_does_not_move_the_middle() -> None:
    buckets = {bucket_of(2.0): 99, bucket_of(900.0): 1}
    assert percentile(buckets, 95) == pytest.approx(2.0, rel=0.03)
    assert percentile(buckets, 100) == pytest.approx(900.0, rel=0.03)


def test_a_run_that_is_done_is_counted_with_its_stages_and_the_whole(ledger: Ledger) -> None:
    key = queue_job(ledger)
    age(ledger, key, 100)
    finish_job(ledger)
    found = counts(ledger)
    assert found == dict.fromkeys(("queued", "store", "confirm", "latency", "done"), 1)
    assert percentile(today(ledger)["latency"], 50) == pytest.approx(100, rel=0.05)


def test_two_goes_at_one_stage_are_one_time(ledger: Ledger) -> None:
    queue_job(ledger)
    finish_in_two_parts(ledger)
    assert percentile(today(ledger)["store"], 50) == pytest.approx(40, rel=0.03)


def test_all_days_are_counted_together_as_well(ledger: Ledger) -> None:
    for number in (1, 2):
        queue_job(ledger, number=number)
        finish_job(ledger)
        with ledger.write() as connection:  # a day goes by
            connection.execute(text("update tally set day = day - 1 where day > 0"))
    assert counts(ledger) == {}
    ever = Statistics(ledger).by_model([EVER], OUTCOMES)
    assert ever == {"ct-tissue": {"done": {0: 2}}}


def test_a_job_that_is_tried_again_has_not_ended(ledger: Ledger) -> None:
    queue_job(ledger)
    fail_job(ledger, ArchiveUnavailable("The archive is away."))
    assert counts(ledger) == {}


def test_a_job_that_failed_for_good_is_counted_once(ledger: Ledger) -> None:
    queue_job(ledger)
    fail_job(ledger)
    assert counts(ledger) == {"failed": 1}


def test_a_job_that_killed_its_model_too_often_is_counted_as_dead(ledger: Ledger) -> None:
    queue_job(ledger)
    for _ in range(Limits().deliveries):
        fail_job(ledger, ModelProcessDied("It died."))
        with ledger.write() as connection:
            connection.execute(update(schema.job).values(not_before=0))
    assert counts(ledger) == {"dead": 1}


def test_a_job_whose_worker_was_lost_too_often_is_counted_as_dead(ledger: Ledger) -> None:
    key = queue_job(ledger)
    leases = LeaseLedger(ledger, Limits())
    for _ in range(Limits().deliveries):
        assert counts(ledger) == {}
        claim_job(ledger)
        with ledger.write() as connection:
            connection.execute(update(schema.job).values(lease_until=0))
        assert leases.take_back(leases.expired(), "reaper") == [key]
    assert counts(ledger) == {"dead": 1}


def test_a_shadow_run_has_stages_but_nobody_waits_for_it(ledger: Ledger) -> None:
    key = queue_job(ledger)
    with ledger.write() as connection:
        connection.execute(update(schema.job).where(schema.job.c.key == key).values(shadow=True))
    work, claim = claim_job(ledger)
    with work.stage(claim, Stage.INFER):
        work.shadowed(claim, [], Findings(), "i")
    work.done(claim, 1)
    assert counts(ledger) == {"queued": 1, "infer": 1, "done": 1}


def test_background_work_on_old_images_says_nothing_of_how_long_people_wait(
    ledger: Ledger,
) -> None:
    queue_job(ledger)
    with ledger.write() as connection:
        connection.execute(update(schema.job).values(priority=int(Priority.BACKGROUND)))
    finish_job(ledger)
    assert "latency" not in counts(ledger)
    assert counts(ledger)["done"] == 1


def test_nor_does_a_job_that_somebody_retried(ledger: Ledger) -> None:
    key = queue_job(ledger)
    fail_job(ledger)
    assert ActLedger(ledger).retry(key, "operator")
    finish_job(ledger)
    found = counts(ledger)
    assert "latency" not in found
    assert (found["failed"], found["done"]) == (1, 1)


def test_what_is_refused_is_not_counted(ledger: Ledger) -> None:
    key = queue_job(ledger)
    work, claim = claim_job(ledger)
    assert ActLedger(ledger).cancel(key, "operator")
    with pytest.raises(LeaseLost):
        work.done(claim, 1)
    assert counts(ledger) == {}


def test_workers_that_end_at_the_same_moment_are_all_counted(ledger: Ledger) -> None:
    jobs, hands = 60, 6
    for number in range(1, jobs + 1):
        queue_job(ledger, number=number, study_uid=f"1.{number}")
    claims = [claim_job(ledger) for _ in range(jobs)]

    def end(mine: list[tuple[WorkLedger, Claim]]) -> None:
        for place, (work, claim) in enumerate(mine):
            if place % 2:
                work.failed(claim, ModelProcessDied("It died."), 1)
                continue
            seg = ResultObject(
                role="SEG", instance_uid=f"2.{int(claim.key[:8], 16)}", series_uid="2", data=b"x"
            )
            work.made(claim, [seg], Findings(), "i")
            with work.stage(claim, Stage.CONFIRM):
                work.confirmed(claim, seg)
            work.done(claim, 1)

    with ledger.write() as connection:
        connection.execute(update(schema.job).values(deliveries=Limits().deliveries))
    with ThreadPoolExecutor(hands) as pool:
        list(pool.map(end, [claims[hand::hands] for hand in range(hands)]))
    assert counts(ledger) == {
        "done": jobs / 2,
        "dead": jobs / 2,
        "queued": jobs / 2,
        "confirm": jobs / 2,
        "latency": jobs / 2,
    }


@pytest.mark.parametrize(("second", "day"), [(0.0, 0), (86399.999, 0), (86400.0, 1)])
def test_a_day_begins_at_midnight_utc(ledger: Ledger, second: float, day: int) -> None:
    with ledger.read() as connection:
        assert connection.scalar(select(day_of(literal(second, Double())))) == day
