"""A result that was wrong: withdrawn, and made anew; on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from sqlalchemy import text

from segnode_contract.errors import ImagesChanged, UnsuitableSeries
from segnode_contract.findings import Findings
from segnode_contract.identity import derived_uid, revised
from segnode_contract.job import Claim, JobState, NewJob, Priority, ResultObject, Stage
from segnode_contract.ledger import ActLedger, IntakeLedger, Ledger, LedgerView, queue
from segnode_contract.ledger.one_job import built_on, changed
from segnode_contract.ledger.overlays import study_overlays
from segnode_contract.ledger.revisions import can_run_anew
from segnode_contract.ledger.work import LeaseLost

from .test_queue import arrive, chain, finish, job, state, take, the, worker

WHY = "the liver is on the left"
FINDINGS = Findings()


def act(ledger: Ledger) -> ActLedger:
    return ActLedger(ledger)


def done(ledger: Ledger, new: NewJob) -> None:
    """Have a job made and its result stored, under UIDs that its key gives."""
    arrive(ledger, new)
    store(ledger, the(take(ledger)))


def store(ledger: Ledger, claim: Claim) -> None:
    work = worker(ledger)
    seg = ResultObject(
        role="SEG",
        instance_uid=derived_uid(claim.key, "seg"),
        series_uid=derived_uid(claim.key, "series"),
        data=b"x",
    )
    with work.stage(claim, Stage.STORE):
        work.made(claim, [seg], FINDINGS, "i")
        work.stored(claim, seg.instance_uid)
    work.confirmed(claim, seg)
    work.done(claim, 1)


def withdrawn(ledger: Ledger, new: NewJob) -> None:
    done(ledger, new)
    assert act(ledger).withdraw(new.key, "ada", WHY) == [new.key]


def state_of(ledger: Ledger, key: str | None) -> str:
    found = LedgerView(ledger).job(key or "none")
    assert found is not None
    return found.row.state


def shown(ledger: Ledger) -> list[str]:
    return [each.seg_series_uid for each in study_overlays(ledger, "1.2").overlays]


def test_a_withdrawn_result_is_hidden_with_who_when_and_why(ledger: Ledger) -> None:
    done(ledger, job(1))
    uid = derived_uid(job(1).key, "series")
    assert shown(ledger) == [uid]
    act(ledger).withdraw(job(1).key, "ada", WHY)
    assert shown(ledger) == []
    assert study_overlays(ledger, "1.2").hidden == (uid,)
    found = LedgerView(ledger).job(job(1).key)
    assert found is not None
    last = found.events[-1]
    assert (last.kind, last.actor, last.detail) == ("withdrawn", "ada", WHY)
    assert [each.instance_uid for each in found.row.objects] == [derived_uid(job(1).key, "seg")]


def test_a_result_is_withdrawn_once(ledger: Ledger) -> None:
    withdrawn(ledger, job(1))
    assert act(ledger).withdraw(job(1).key, "bob", "again") == []


@pytest.mark.parametrize("how", ["queued", "failed", "cancelled"])
def test_what_has_no_result_is_not_withdrawn(ledger: Ledger, how: str) -> None:
    arrive(ledger, job(1))
    if how == "failed":
        worker(ledger).failed(the(take(ledger)), UnsuitableSeries("Tilted."), 1)
    elif how == "cancelled":
        act(ledger).cancel(job(1).key, "ada")
    assert act(ledger).withdraw(job(1).key, "ada", WHY) == []
    assert state(ledger, job(1)) == how


def test_nor_is_a_superseded_job_that_never_ran(ledger: Ledger) -> None:
    arrive(ledger, job(1))
    arrive(ledger, job(2, series_uids=job(1).series_uids))
    assert act(ledger).withdraw(job(1).key, "ada", WHY) == []
    arrive(ledger, job(1))
    assert state(ledger, job(1)) == "queued"


def test_a_superseded_result_is_withdrawn_since_others_may_have_it(ledger: Ledger) -> None:
    done(ledger, job(1))
    arrive(ledger, job(2, series_uids=job(1).series_uids))
    assert act(ledger).withdraw(job(1).key, "ada", WHY) == [job(1).key]


def test_a_shadow_run_is_not_withdrawn(ledger: Ledger) -> None:
    arrive(ledger, job(1, shadow=True))
    claim = the(take(ledger))
    worker(ledger).shadowed(claim, [], FINDINGS, "i")
    worker(ledger).done(claim, 1)
    assert act(ledger).withdraw(job(1).key, "ada", WHY) == []


def test_a_result_that_builds_on_a_withdrawn_one_goes_with_it(ledger: Ledger) -> None:
    first, then = chain(ledger)
    store(ledger, the(take(ledger)))
    store(ledger, the(take(ledger)))
    assert act(ledger).withdraw(first.key, "ada", WHY) == [first.key, then.key]
    assert shown(ledger) == []
    [child] = built_on(ledger, first.key)
    assert (child.key, child.state) == (then.key, "withdrawn")


def test_a_run_that_builds_on_it_is_its_workers_no_more(ledger: Ledger) -> None:
    first, then = chain(ledger)
    store(ledger, the(take(ledger)))
    claim = the(take(ledger))
    act(ledger).withdraw(first.key, "ada", WHY)
    with pytest.raises(LeaseLost):
        worker(ledger).check(claim)
    found = LedgerView(ledger).job(then.key)
    assert found is not None
    assert [run.outcome for run in found.runs] == ["withdrawn"]


def test_a_series_decided_again_does_not_bring_a_withdrawn_result_back(ledger: Ledger) -> None:
    withdrawn(ledger, job(1))
    uid = derived_uid(job(1).key, "series")
    assert arrive(ledger, job(1)) == []
    assert state(ledger, job(1)) == "withdrawn"
    assert arrive(ledger, job(1, last_instance_at=99.0)) == []  # its images came again
    assert arrive(ledger, job(1, last_instance_at=99.0, study_uid="1.2")) == []
    assert state(ledger, job(1)) == "withdrawn"
    assert study_overlays(ledger, "1.2").hidden == (uid,)
    assert take(ledger) is None


def test_nor_does_a_copy_of_its_images_in_another_study(ledger: Ledger) -> None:
    withdrawn(ledger, job(1))
    assert arrive(ledger, job(1, last_instance_at=99.0, study_uid="7.7")) == []
    assert study_overlays(ledger, "1.2").hidden == (derived_uid(job(1).key, "series"),)


def test_made_anew_it_is_another_job_with_other_uids(ledger: Ledger) -> None:
    withdrawn(ledger, job(1))
    key = act(ledger).run_anew(job(1).key, "bob")
    assert key == revised(job(1).key, 1)
    assert derived_uid(key, "seg") != derived_uid(job(1).key, "seg")
    store(ledger, the(take(ledger)))
    assert shown(ledger) == [derived_uid(key, "series")]
    assert study_overlays(ledger, "1.2").hidden == (derived_uid(job(1).key, "series"),)
    assert LedgerView(ledger).revisions(job(1).key) == [
        (0, job(1).key, "withdrawn"),
        (1, key, "done"),
    ]


def test_who_made_it_anew_is_said_on_both(ledger: Ledger) -> None:
    withdrawn(ledger, job(1))
    key = act(ledger).run_anew(job(1).key, "bob")
    old, new = (LedgerView(ledger).job(each or "") for each in (job(1).key, key))
    assert old is not None
    assert new is not None
    assert (old.events[-1].actor, old.events[-1].detail) == ("bob", f"as job {key}")
    assert new.events[0].actor == "bob"
    assert (new.row.base_key, new.row.revision) == (job(1).key, 1)


def test_the_newest_revision_alone_is_made_anew(ledger: Ledger) -> None:
    withdrawn(ledger, job(1))
    assert act(ledger).run_anew(job(1).key, "bob") is not None
    assert act(ledger).run_anew(job(1).key, "bob") is None
    key = revised(job(1).key, 1)
    assert act(ledger).run_anew(key, "bob") is None  # it is queued
    store(ledger, the(take(ledger)))
    assert act(ledger).withdraw(key, "ada", WHY) == [key]
    assert act(ledger).run_anew(key, "bob") == revised(job(1).key, 2)


def test_two_who_make_it_anew_at_once_make_one(ledger: Ledger) -> None:
    withdrawn(ledger, job(1))
    made: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: made.append(act(ledger).run_anew(job(1).key, "bob")))
        for _ in range(4)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(made, key=str) == sorted([revised(job(1).key, 1), None, None, None], key=str)


def test_intake_means_the_newest_revision(ledger: Ledger) -> None:
    withdrawn(ledger, job(1))
    key = act(ledger).run_anew(job(1).key, "bob")
    store(ledger, the(take(ledger)))
    assert arrive(ledger, job(1)) == []
    assert arrive(ledger, job(1, last_instance_at=99.0)) != []  # its images came again
    assert state_of(ledger, key) == "queued"
    assert state(ledger, job(1)) == "withdrawn"


def test_other_content_supersedes_the_newest_revision_and_its_return_means_it(
    ledger: Ledger,
) -> None:
    withdrawn(ledger, job(1))
    key = act(ledger).run_anew(job(1).key, "bob")
    arrive(ledger, job(2, series_uids=job(1).series_uids))
    assert (state_of(ledger, key), state(ledger, job(1))) == ("superseded", "withdrawn")
    arrive(ledger, job(1))
    assert (state_of(ledger, key), state(ledger, job(2))) == ("queued", "superseded")


def test_a_result_whose_place_is_taken_is_not_made_anew(ledger: Ledger) -> None:
    withdrawn(ledger, job(1))
    assert can_run_anew(ledger, job(1).key)
    arrive(ledger, job(2, series_uids=job(1).series_uids))
    assert not can_run_anew(ledger, job(1).key)
    assert act(ledger).run_anew(job(1).key, "bob") is None


def test_what_was_withdrawn_with_it_is_made_anew_after_it(ledger: Ledger) -> None:
    first, then = chain(ledger)
    store(ledger, the(take(ledger)))
    store(ledger, the(take(ledger)))
    act(ledger).withdraw(first.key, "ada", WHY)
    assert not can_run_anew(ledger, then.key)  # what it builds on is withdrawn
    assert act(ledger).run_anew(then.key, "bob") is None
    key = act(ledger).run_anew(first.key, "bob")
    child = revised(then.key, 1)
    assert (state_of(ledger, key), state_of(ledger, child)) == ("queued", "waiting")
    store(ledger, the(take(ledger)))
    claim = the(take(ledger))
    assert (claim.key, claim.builds_on) == (child, key)


def test_one_withdrawn_alone_builds_on_the_result_that_is_there(ledger: Ledger) -> None:
    first, then = chain(ledger)
    store(ledger, the(take(ledger)))
    store(ledger, the(take(ledger)))
    assert act(ledger).withdraw(then.key, "ada", WHY) == [then.key]
    assert state(ledger, first) == "done"
    key = act(ledger).run_anew(then.key, "bob")
    assert the(take(ledger)).key == key


@pytest.mark.parametrize(("before", "then"), [("failed", "waiting"), ("superseded", None)])
def test_one_whose_first_job_is_not_done_waits_where_it_may_be(
    ledger: Ledger, before: str, then: str | None
) -> None:
    first, child = chain(ledger)
    store(ledger, the(take(ledger)))
    store(ledger, the(take(ledger)))
    act(ledger).withdraw(child.key, "ada", WHY)
    with ledger.write() as connection:
        connection.execute(
            text("update job set state = :state where key = :key"),
            {"state": before, "key": first.key},
        )
    assert can_run_anew(ledger, child.key) == bool(then)
    key = act(ledger).run_anew(child.key, "bob")
    assert (state_of(ledger, key) if key else None) == then


def test_a_job_that_came_after_the_withdrawal_goes_on_with_the_new_result(ledger: Ledger) -> None:
    first = job(1)
    withdrawn(ledger, first)
    late = job(3, model="late", series_uids=first.series_uids, builds_on=first.key)
    arrive(ledger, first, late)
    assert state(ledger, late) == "waiting"
    key = act(ledger).run_anew(first.key, "bob")
    store(ledger, the(take(ledger)))
    claim = the(take(ledger))
    assert (claim.key, claim.builds_on) == (late.key, key)


def test_a_model_by_hand_makes_a_withdrawn_result_anew(ledger: Ledger) -> None:
    withdrawn(ledger, job(1))
    key = IntakeLedger(ledger).queue_by_hand("a", job(1), "bob")
    assert key == revised(job(1).key, 1)
    found = LedgerView(ledger).job(key)
    assert found is not None
    assert {each.actor for each in found.events} == {"bob"}


def test_a_model_by_hand_on_what_is_done_changes_nothing(ledger: Ledger) -> None:
    done(ledger, job(1))
    by_hand = replace(job(1), route="by hand", route_rank=9)
    assert IntakeLedger(ledger).queue_by_hand("a", by_hand, "bob") == job(1).key
    found = LedgerView(ledger).job(job(1).key)
    assert found is not None
    assert (found.row.state, found.row.route) == ("done", "r")
    assert (found.events[-1].kind, found.events[-1].actor) == ("by hand", "bob")


def test_whatever_is_new_about_a_job_is_noticed(ledger: Ledger) -> None:
    arrive(ledger, job(1))
    seen = changed(ledger, job(1).key)
    assert changed(ledger, job(1).key) == seen
    claim = the(take(ledger))
    running = changed(ledger, job(1).key)
    assert running != seen
    finish(ledger, claim)
    finished = changed(ledger, job(1).key)
    assert finished != running
    act(ledger).note("deleted", "ada", key=job(1).key)
    assert changed(ledger, job(1).key) != finished
    assert changed(ledger, "none") == (None, None, None)
    assert state(ledger, job(1)) == JobState.DONE


@pytest.mark.parametrize("where", ["_comes_back", "supersede"])
def test_a_withdrawal_beside_intake_holds(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if ledger.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has one writer at a time")
    done(ledger, job(1))
    usual, threads = getattr(queue, where), []

    def beside(*arguments: object) -> object:
        if not threads:  # somebody withdraws it in the middle of intake's transaction
            threads.append(
                threading.Thread(target=act(ledger).withdraw, args=(job(1).key, "ada", WHY))
            )
            threads[0].start()
            threads[0].join(0.5)
        return usual(*arguments)

    monkeypatch.setattr(queue, where, beside)
    again = job(1) if where == "_comes_back" else job(2, series_uids=job(1).series_uids)
    arrive(ledger, replace(again, last_instance_at=5.0))
    threads[0].join()
    monkeypatch.undo()
    assert state(ledger, job(1)) == "withdrawn"
    arrive(ledger, replace(job(1), last_instance_at=9.0))
    assert state(ledger, job(1)) == "withdrawn"


@pytest.mark.parametrize("how", ["failed", "queued", "running"])
def test_a_result_of_a_job_that_is_at_it_again_is_withdrawn_too(ledger: Ledger, how: str) -> None:
    done(ledger, job(1))
    arrive(ledger, replace(job(1), last_instance_at=5.0))
    claim = the(take(ledger)) if how != "queued" else None
    if how == "failed" and claim:
        worker(ledger).failed(claim, ImagesChanged("other pixels"), 1)
    assert state(ledger, job(1)) == how
    assert act(ledger).withdraw(job(1).key, "ada", WHY) == [job(1).key]
    assert take(ledger) is None
    if how == "running" and claim:
        with pytest.raises(LeaseLost):
            worker(ledger).check(claim)
    assert act(ledger).run_anew(job(1).key, "ada") == revised(job(1).key, 1)


def test_what_was_withdrawn_for_its_own_fault_stays_so(ledger: Ledger) -> None:
    first, second = chain(ledger)
    store(ledger, the(take(ledger)))
    store(ledger, the(take(ledger)))
    act(ledger).withdraw(second.key, "ada", "the second model is wrong")
    act(ledger).withdraw(first.key, "ada", WHY)
    act(ledger).run_anew(first.key, "ada")
    assert LedgerView(ledger).job(revised(second.key, 1)) is None
    assert state(ledger, second) == "withdrawn"


def test_one_cancelled_meanwhile_builds_on_the_new_result(ledger: Ledger) -> None:
    first, second = chain(ledger)
    store(ledger, the(take(ledger)))
    act(ledger).cancel(second.key, "ada")
    with ledger.write() as connection:  # as one that came after the withdrawal, and was cancelled
        act_of = "update job set state = 'waiting' where key = :key"
        connection.execute(text(act_of), {"key": second.key})
    act(ledger).withdraw(first.key, "ada", WHY)
    with ledger.write() as connection:
        act_of = "update job set state = 'cancelled' where key = :key"
        connection.execute(text(act_of), {"key": second.key})
    newer = act(ledger).run_anew(first.key, "ada")
    store(ledger, the(take(ledger)))
    assert act(ledger).retry(second.key, "ada")
    assert the(take(ledger)).builds_on == newer


def test_a_model_by_hand_is_run_where_the_images_lie_and_as_urgent_as_asked(
    ledger: Ledger,
) -> None:
    background = job(1, Priority.BACKGROUND)
    withdrawn(ledger, background)
    asked = job(1, Priority.STAT, study_uid="1.9", route="by hand")
    key = IntakeLedger(ledger).queue_by_hand("a", asked, "ada")
    found = LedgerView(ledger).job(key)
    assert found is not None
    row = found.row
    assert (row.priority, row.study_uid, row.route, row.revision) == ("stat", "1.9", "by hand", 1)
