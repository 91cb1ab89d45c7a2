"""What is sent on to other archives, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import text

from segnode_contract.destination import Destination
from segnode_contract.errors import PeerRefused, PeerUnavailable, SegnodeError
from segnode_contract.findings import Findings
from segnode_contract.identity import content_digest
from segnode_contract.job import NewJob, ResultObject
from segnode_contract.ledger import (
    ActLedger,
    DeliveryLedger,
    IntakeLedger,
    Ledger,
    LedgerView,
    WorkLedger,
    write_shared,
)
from segnode_contract.ledger.deliveries import Delivery, DeliveryLost, Taken
from segnode_contract.ledger.intake import Decision, Verdict
from segnode_contract.ledger.shared import shared_in
from segnode_contract.ledger.view import DeliveryRow
from segnode_contract.settings import Background, Limits, Node, Shared

DIGEST = "d" * 64
LIMITS = Limits(back_off_s=(5.0, 15.0), give_up_h=1.0)
PACS = Destination(name="pacs", aet="PACS", host="127.0.0.1")
RESEARCH = Destination(name="research", url="http://127.0.0.1:1/dicom-web", models=("ct-lung",))
AWAY = PeerUnavailable("PACS at 127.0.0.1:104 does not answer.")
REFUSED = PeerRefused("It refused Segmentation Storage.", code="sop-class-refused")
ALL = Taken(objects=1, bytes=3)


@pytest.fixture(autouse=True)
def destinations(ledger: Ledger) -> None:
    says(ledger, PACS, RESEARCH)


def says(ledger: Ledger, *destinations: Destination) -> None:
    write_shared(
        ledger,
        Shared(
            node=Node(name="n"),
            limits=LIMITS,
            background=Background(),
            destinations=destinations,
        ),
    )


def queue(
    ledger: Ledger, number: int = 1, *, images: int = 3, model: str = "ct", shadow: bool = False
) -> str:
    intake, orthanc_id, series = IntakeLedger(ledger), f"o{number}", f"1.2.{number}"
    intake.note("a", number, [orthanc_id])
    quiet = next(q for q in intake.quiet("a", 0) if q.orthanc_id == orthanc_id)
    job = NewJob(
        key=f"{number:04x}{images:04x}" + "e" * 56,
        study_uid="1.2",
        series_uids=(series,),
        content=content_digest([str(images)]),
        instance_count=images,
        route="any",
        route_rank=0,
        model=model,
        model_version="1",
        model_digest=DIGEST,
        lane="default",
        last_instance_at=quiet.last_instance_at,
        shadow=shadow,
    )
    decision = Decision(
        orthanc_id=orthanc_id,
        last_instance_at=quiet.last_instance_at,
        study_uid="1.2",
        series_uid=series,
        instance_count=images,
        verdicts=(Verdict(route="any", taken=True, reason="CT"),),
        jobs=(job,),
    )
    intake.decide("a", decision)
    return job.key


def run(ledger: Ledger) -> str:
    """Have a worker do the oldest job."""
    work = WorkLedger(ledger, "w1", LIMITS)
    claim = work.claim("default", [DIGEST])
    assert claim is not None
    if claim.shadow:
        work.shadowed(claim, [], Findings(), "i" * 64)
    else:
        seg = ResultObject(
            role="SEG", instance_uid=f"2.{claim.key[:8]}", series_uid="2.1", data=b"seg"
        )
        work.made(claim, [seg], Findings(), "i" * 64)
        work.confirmed(claim, seg)
    work.done(claim, 100)
    return claim.key


def finished(ledger: Ledger, number: int = 1, **job: str | int | bool) -> str:
    queue(ledger, number, **job)  # type: ignore[arg-type] # as there
    return run(ledger)


def sender(ledger: Ledger, owner: str = "s1") -> DeliveryLedger:
    return DeliveryLedger(ledger, owner, LIMITS)


def held(ledger: Ledger, owner: str = "s1", to: str = "pacs") -> Delivery:
    found = sender(ledger, owner).claim(to)
    assert found is not None
    return found


def row(ledger: Ledger, key: str, to: str = "pacs") -> DeliveryRow:
    return next(d for d in LedgerView(ledger).deliveries(key) if d.destination == to)


def later(ledger: Ledger, seconds: float, *, column: str = "due_at") -> None:
    """Let time pass, for deliveries."""
    with ledger.write() as connection:
        connection.execute(text(f"update delivery set {column} = {column} - {seconds}"))


def fail(ledger: Ledger, error: SegnodeError, taken: Taken | None = None) -> None:
    sender(ledger).failed(held(ledger), error, taken or Taken())


def test_a_job_that_is_done_is_sent_where_its_model_goes(ledger: Ledger) -> None:
    first, second = finished(ledger), finished(ledger, 2, model="ct-lung")
    assert [d.destination for d in LedgerView(ledger).deliveries(first)] == ["pacs"]
    assert {d.destination for d in LedgerView(ledger).deliveries(second)} == {"pacs", "research"}
    assert {d.state for d in LedgerView(ledger).deliveries()} == {"waiting"}


def test_a_job_that_runs_has_no_delivery_yet(ledger: Ledger) -> None:
    queue(ledger)
    assert LedgerView(ledger).deliveries() == []
    assert sender(ledger).claim("pacs") is None


def test_a_shadow_run_is_sent_nowhere(ledger: Ledger) -> None:
    finished(ledger, shadow=True)
    assert LedgerView(ledger).deliveries() == []


def test_what_is_sent_is_known_by_its_uids(ledger: Ledger) -> None:
    key = finished(ledger)
    delivery = held(ledger)
    assert (delivery.job_key, delivery.study_uid, delivery.series_uids) == (key, "1.2", ("1.2.1",))
    assert [(o.role, o.instance_uid) for o in delivery.objects] == [("SEG", f"2.{key[:8]}")]
    assert row(ledger, key).state == "sending"


def test_what_arrived_is_not_sent_again(ledger: Ledger) -> None:
    key = finished(ledger)
    sender(ledger).done(held(ledger), ALL)
    found = row(ledger, key)
    assert (found.state, found.attempts, found.objects, found.bytes) == ("done", 1, 1, 3)
    assert sender(ledger).claim("pacs") is None
    assert ActLedger(ledger).send_again(key, "me") == []


def test_an_empty_success_is_no_success(ledger: Ledger) -> None:
    key = finished(ledger)
    delivery = held(ledger)
    with pytest.raises(RuntimeError, match="0 of 1"):
        sender(ledger).done(delivery, Taken())
    assert row(ledger, key).state == "sending"


def test_senders_that_race_share_the_deliveries_out(ledger: Ledger) -> None:
    keys = sorted(finished(ledger, number) for number in range(1, 9))
    taken: list[str] = []

    def work(owner: str) -> None:
        while found := sender(ledger, owner).claim("pacs"):
            taken.append(found.job_key)

    threads = [threading.Thread(target=work, args=(f"s{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == keys


def test_a_destination_that_is_away_is_tried_again_later_and_later(ledger: Ledger) -> None:
    key = finished(ledger)
    for number, wait_s in enumerate((5.0, 15.0, 15.0), 1):
        fail(ledger, AWAY)
        found = row(ledger, key)
        assert (found.state, found.error_code, found.attempts) == (
            "waiting",
            "peer-unavailable",
            number,
        )
        assert found.due_at - found.updated_at == pytest.approx(wait_s, abs=0.5)
        assert sender(ledger).claim("pacs") is None
        later(ledger, wait_s)
    sender(ledger).done(held(ledger), ALL)
    assert (row(ledger, key).state, row(ledger, key).error_code) == ("done", None)


def test_after_hours_it_is_given_up_and_an_act_tries_again(ledger: Ledger) -> None:
    key = finished(ledger)
    fail(ledger, AWAY)
    later(ledger, 3700, column="tried_since")
    later(ledger, 5)
    fail(ledger, AWAY)
    found = row(ledger, key)
    assert found.state == "failed"
    assert "Given up after 1.0 h" in (found.error_sentence or "")
    assert LedgerView(ledger).failed_deliveries() == 1
    assert ActLedger(ledger).send_again(key, "me") == ["pacs"]
    assert LedgerView(ledger).failed_deliveries() == 0
    assert held(ledger).job_key == key


def test_what_waited_long_for_its_first_try_is_not_given_up(ledger: Ledger) -> None:
    key = finished(ledger)
    later(ledger, 7200, column="tried_since")
    fail(ledger, AWAY)
    assert row(ledger, key).state == "waiting"


def test_a_refusal_fails_at_once_and_says_what_was_taken(ledger: Ledger) -> None:
    key = finished(ledger)
    fail(ledger, REFUSED, Taken(objects=3, bytes=9, note="taken with the warning B000H"))
    found = row(ledger, key)
    assert (found.state, found.error_code) == ("failed", "sop-class-refused")
    assert (found.objects, found.note) == (3, "taken with the warning B000H")
    job = LedgerView(ledger).job(key)
    assert job is not None
    assert job.events[-1].detail == "to pacs: sop-class-refused"


def test_what_a_dead_sender_held_is_taken_over(ledger: Ledger) -> None:
    finished(ledger)
    dead = held(ledger)
    assert sender(ledger, "s2").claim("pacs") is None
    later(ledger, 61, column="lease_until")
    taken_over = held(ledger, "s2")
    assert taken_over.epoch > dead.epoch
    with pytest.raises(DeliveryLost):
        sender(ledger).done(dead, ALL)
    with pytest.raises(DeliveryLost):
        sender(ledger).heartbeat(dead)
    sender(ledger, "s2").heartbeat(taken_over)
    sender(ledger, "s2").done(taken_over, ALL)


@pytest.mark.parametrize("end", ["failed", "handed back"])
def test_a_late_heartbeat_takes_no_lease_again(ledger: Ledger, end: str) -> None:
    key = finished(ledger)
    delivery = held(ledger)
    if end == "failed":
        sender(ledger).failed(delivery, AWAY, Taken())
    else:
        sender(ledger).hand_back(delivery)
    with pytest.raises(DeliveryLost):
        sender(ledger).heartbeat(delivery)
    assert row(ledger, key).state == "waiting"


def test_what_ends_its_sender_each_time_fails(ledger: Ledger) -> None:
    key = finished(ledger)
    for _ in range(LIMITS.deliveries):
        held(ledger)
        later(ledger, 61, column="lease_until")
    assert sender(ledger).claim("pacs") is None
    assert (row(ledger, key).state, row(ledger, key).error_code) == ("failed", "sender-lost")


def test_what_is_handed_back_is_due_at_once(ledger: Ledger) -> None:
    finished(ledger)
    for _ in range(LIMITS.deliveries + 1):
        sender(ledger).hand_back(held(ledger))
    assert held(ledger, "s2")


def test_a_superseded_result_is_not_sent(ledger: Ledger) -> None:
    old = finished(ledger)
    delivery = held(ledger)
    new = queue(ledger, images=4)
    with pytest.raises(DeliveryLost):
        sender(ledger).heartbeat(delivery)
    sender(ledger).hand_back(delivery)
    assert row(ledger, old).state == "superseded"
    assert sender(ledger).claim("pacs") is None
    assert ActLedger(ledger).send_again(old, "me") == []
    assert run(ledger) == new
    assert held(ledger).job_key == new


def test_a_job_that_ran_again_is_sent_again(ledger: Ledger) -> None:
    key = finished(ledger)
    sender(ledger).done(held(ledger), ALL)
    queue(ledger)  # its images came again
    assert run(ledger) == key
    assert row(ledger, key).state == "waiting"
    sender(ledger).done(held(ledger), ALL)


def test_a_sender_that_is_slow_keeps_nothing_that_was_retried(ledger: Ledger) -> None:
    key = finished(ledger)
    slow = held(ledger)
    assert ActLedger(ledger).send_again(key, "me") == []
    later(ledger, 61, column="lease_until")
    assert ActLedger(ledger).send_again(key, "me") == ["pacs"]
    found = row(ledger, key)
    assert (found.state, found.attempts) == ("waiting", 0)
    with pytest.raises(DeliveryLost):
        sender(ledger).done(slow, ALL)
    assert sender(ledger, "s2").claim("pacs") is not None


def test_how_often_it_was_tried_is_known(ledger: Ledger) -> None:
    key = finished(ledger)
    for number in range(2):
        claimed = held(ledger)
        assert claimed.attempts == number
        sender(ledger).failed(claimed, AWAY, Taken())
        later(ledger, 20)
    ActLedger(ledger).send_again(key, "me")
    assert held(ledger).attempts == 0


def test_what_counts_no_more_is_not_listed(ledger: Ledger) -> None:
    waiting, failed = finished(ledger), finished(ledger, 2)
    later(ledger, 5)
    while (delivery := sender(ledger).claim("pacs")) is not None:
        if delivery.job_key == failed:
            sender(ledger).failed(delivery, REFUSED, Taken())
        else:
            sender(ledger).failed(delivery, AWAY, Taken())
    assert {d.job_key for d in LedgerView(ledger).deliveries()} == {waiting, failed}
    queue(ledger, images=4)
    queue(ledger, 2, images=4)
    assert LedgerView(ledger).deliveries() == []
    assert [row(ledger, key).state for key in (waiting, failed)] == ["superseded", "failed"]


def test_a_destination_that_is_new_fails_nothing(ledger: Ledger) -> None:
    new = Destination(name="new", aet="NEW", host="127.0.0.1")
    says(ledger, PACS, new)
    key = finished(ledger)
    sender(ledger).fail_unnamed()
    assert {d.state for d in LedgerView(ledger).deliveries(key)} == {"waiting"}


def test_the_settings_stay_while_it_is_said_what_waits_for_nobody(ledger: Ledger) -> None:
    written = threading.Event()

    def write() -> None:
        says(ledger, PACS)
        written.set()

    thread = threading.Thread(target=write)
    with ledger.write() as connection:
        assert shared_in(connection, kept=True) is not None
        thread.start()
        assert not written.wait(0.5)
    thread.join(60)
    assert written.is_set()


def test_a_destination_that_is_no_more_fails_what_waits_for_it(ledger: Ledger) -> None:
    key = finished(ledger, model="ct-lung")
    says(ledger, PACS)
    sender(ledger).fail_unnamed()
    assert row(ledger, key).state == "waiting"
    found = row(ledger, key, "research")
    assert (found.state, found.error_code) == ("failed", "destination-unknown")


def test_jobs_from_before_the_settings_were_shared_end_well(ledger: Ledger) -> None:
    with ledger.write() as connection:
        connection.execute(text("delete from shared"))
    key = finished(ledger)
    assert LedgerView(ledger).deliveries(key) == []
    sender(ledger).fail_unnamed()
