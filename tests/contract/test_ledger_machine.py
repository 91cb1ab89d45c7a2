"""Any order of what can happen to the ledger keeps its promises.

A small world of one archive at a time, three workers and an intake acts on a real ledger, whose
database has a clock of ours. SEGNODE_SEQUENCES=10000 tries as many orders.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Row, event, select

from segnode_contract.errors import (
    ArchiveUnavailable,
    MemoryExhausted,
    ModelFailed,
    ModelProcessDied,
    OutOfMemory,
    SegnodeError,
    SeriesChanged,
)
from segnode_contract.findings import Findings
from segnode_contract.identity import content_digest, derived_uid, job_key
from segnode_contract.job import Claim, JobState, NewJob, ResultObject, Stage
from segnode_contract.ledger import (
    ActLedger,
    IntakeLedger,
    LeaseLedger,
    Ledger,
    OutboxLedger,
    WorkerLedger,
    WorkLedger,
)
from segnode_contract.ledger.intake import Decision, QuietSeries, Verdict
from segnode_contract.ledger.schema import job, metadata, outbox, result
from segnode_contract.ledger.work import LeaseLost
from segnode_contract.settings import Limits

SEQUENCES = int(os.environ.get("SEGNODE_SEQUENCES", "0"))
LIMITS = Limits()
QUIET_S = 5.0
LANE = "default"
SERIES = ("1.2.1", "1.2.2")
MODELS = ("ct-tissue", "ct-lung-density")
WORKERS = ("host-a/1", "host-a/2", "host-b/1")
ENDS = {JobState.DONE, JobState.FAILED, JobState.DEAD, JobState.SUPERSEDED}
ERRORS: dict[str, SegnodeError] = {
    "archive away": ArchiveUnavailable("The archive does not answer."),
    "model raises": ModelFailed("The model raised."),
    "model dies": ModelProcessDied("It ended."),
    "out of memory": OutOfMemory("Too little."),
}


def digest_of(model: str, version: int) -> str:
    return hashlib.sha256(f"{model} {version}".encode()).hexdigest()


@dataclass
class Clock:
    """What SQLite is told for ``julianday('now')``; each question takes a millisecond."""

    now: float = 1_800_000_000.0

    def __call__(self, of: str) -> float:
        assert of == "now"
        self.now += 0.001
        return self.now / 86400 + 2440587.5


@dataclass(kw_only=True)
class Hand:
    """A worker child with a job: alive, a zombie that lost it, or dead."""

    claim: Claim
    work: WorkLedger
    road: Iterator[None]
    alive: bool = True


@dataclass(kw_only=True)
class Archive:
    id: str
    images: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SERIES, 0))
    objects: dict[str, bytes] = field(default_factory=dict)
    results: dict[str, set[str]] = field(default_factory=lambda: {one: set() for one in SERIES})
    """UIDs of the objects that were ever stored for a series."""
    changes: int = 0


# of the children at work, counted round
picked = st.integers(0, 3)
at_work = precondition(lambda self: self.at_work)
waiting = precondition(lambda self: self.stand(JobState.QUEUED))
running = precondition(lambda self: self.stand(JobState.RUNNING))


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        super().__init__()
        self.ledger = ledger
        self.clock = clock
        clock.now = Clock.now
        with ledger.write() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        self.intake = IntakeLedger(ledger)
        self.leases = LeaseLedger(ledger, LIMITS)
        self.bell = OutboxLedger(ledger, LIMITS)
        self.archive = Archive(id="archive-0")
        self.spool: dict[str, bytes] = {}
        self.versions = dict.fromkeys(WORKERS, 1)
        self.seen: list[tuple[QuietSeries, int]] = []
        self.everyone: list[Hand] = []
        self.deaths: Counter[str] = Counter()
        self.thrift: set[str] = set()
        self.before: dict[str, tuple[int, str]] = {}
        self.may_reopen: set[str] = set()
        self.mood = "well"
        self.deleted: set[str] = set()
        self.inferred = 0

    @initialize(mood=st.sampled_from(["well", *ERRORS]))
    def begin(self, mood: str) -> None:
        """At the end all workers are in one mood; errors of the way are rules of their own."""
        self.mood = mood
        self.announce()
        self.images_come_or_go(SERIES[0], 3)
        self.images_are_decided()

    # what happens in the archive

    @rule(series=st.sampled_from(SERIES), images=st.integers(3, 4))
    def a_series_changes_and_is_decided(self, series: str, images: int) -> None:
        self.images_come_or_go(series, images)
        self.images_are_decided()

    @rule(series=st.sampled_from(SERIES), images=st.integers(3, 4))
    def images_come_or_go(self, series: str, images: int) -> None:
        archive = self.archive
        archive.images[series] = images
        archive.changes += 1
        self.intake.note(self.archive.id, archive.changes, [series])

    @rule(series=st.sampled_from(SERIES))
    def a_series_is_deleted(self, series: str) -> None:
        """With its results, as they belong to its study."""
        self.deleted.add(series)
        self.archive.images[series] = 0
        for uid in self.archive.results[series]:
            self.archive.objects.pop(uid, None)

    @rule()
    def another_archive(self) -> None:
        """The index was replaced, and the images were sent again."""
        number = int(self.archive.id.partition("-")[2]) + 1
        self.archive = Archive(id=f"archive-{number}", images=dict(self.archive.images))
        self.seen = []
        self.intake.note(self.archive.id, 0, [s for s, n in self.archive.images.items() if n])

    # what the plugin does

    @rule()
    def look(self) -> None:
        quiet = self.intake.quiet(self.archive.id, QUIET_S)
        self.seen = [(one, self.archive.images[one.orthanc_id]) for one in quiet]

    @rule()
    @precondition(lambda self: bool(self.seen))
    def decide(self) -> None:
        for quiet, images in self.seen:
            if not images:
                self.intake.forget(self.archive.id, quiet.orthanc_id)
                continue
            models = self.intake.models(LIMITS.lease_s)
            jobs = [
                self._new_job(rank, model, models[model].digest, quiet, images)
                for rank, model in enumerate(MODELS)
                if model in models
            ]
            said = self.intake.decide(
                self.archive.id,
                Decision(
                    orthanc_id=quiet.orthanc_id,
                    last_instance_at=quiet.last_instance_at,
                    study_uid="1.2",
                    series_uid=quiet.orthanc_id,
                    instance_count=images,
                    verdicts=(Verdict(route="any CT", taken=True, reason="CT"),),
                    jobs=tuple(jobs),
                    final=len(jobs) == len(MODELS),
                ),
            )
            self._begin_anew(said)
            self.may_reopen |= {each.key for each in jobs}
        self.seen = []

    @rule()
    def images_are_decided(self) -> None:
        self.time_passes(QUIET_S + 1)
        self.look()
        self.decide()

    @rule()
    def upgrades_are_noticed(self) -> None:
        self.intake.replace_stranded(LIMITS.lease_s)

    @rule()
    def rings_go_out(self) -> None:
        if rings := self.bell.due():
            self.bell.published(rings)
            assert not {ring.id for ring in self.bell.due()} & {ring.id for ring in rings}

    @rule()
    def rings_are_tidied(self) -> None:
        self.bell.tidy()

    @rule()
    @running
    def leases_run_out(self) -> None:
        self.time_passes(LIMITS.lease_s + 1)
        self._lost(self.leases.take_back(self.leases.expired(), "reaper"))

    # what workers do

    @rule(worker=st.sampled_from(WORKERS))
    @waiting
    def claim(self, worker: str) -> None:
        self._claim(worker)

    @rule(worker=st.sampled_from(WORKERS))
    @waiting
    def a_job_is_worked_off(self, worker: str) -> None:
        hand = self._claim(worker)
        while hand and hand.alive:
            self._step(hand)

    @rule(who=picked, steps=st.integers(1, 12))
    @at_work
    def go_on(self, who: int, steps: int) -> None:
        hand = self._pick(who)
        for _ in range(steps):
            self._step(hand)

    @rule(who=picked)
    @at_work
    def heartbeat(self, who: int) -> None:
        hand = self._pick(who)
        if self._holds(hand):
            hand.work.heartbeat(hand.claim)

    @rule(who=picked, what=st.sampled_from(sorted(ERRORS)))
    @at_work
    def fail(self, who: int, what: str) -> None:
        self._fail(self._pick(who), ERRORS[what])

    @rule(who=picked)
    @at_work
    def a_child_dies(self, who: int) -> None:
        self._pick(who).alive = False

    @rule(worker=st.sampled_from(WORKERS))
    @precondition(lambda self: any(not h.alive and self.is_held(h) for h in self.everyone))
    def its_parent_notices(self, worker: str) -> None:
        host = worker.partition("/")[0]
        dead = [lease for lease in self.leases.held(host) if not self._lives(lease.owner)]
        self._lost(self.leases.take_back(dead, worker))

    @rule(worker=st.sampled_from(WORKERS))
    @running
    def a_worker_is_stopped(self, worker: str) -> None:
        held = self.leases.held(worker.partition("/")[0])
        mine = [lease for lease in held if lease.owner.startswith(f"{worker}/")]
        assert len(self.leases.hand_back(mine, worker)) == len(mine)

    @rule(worker=st.sampled_from(WORKERS), version=st.integers(1, 2))
    def a_worker_is_upgraded(self, worker: str, version: int) -> None:
        self.versions[worker] = version
        self.announce()

    @rule()
    def announce(self) -> None:
        for worker, version in self.versions.items():
            for model in MODELS:
                parent = WorkerLedger(self.ledger, worker)
                parent.announce(model, f"{version}.0.0", digest_of(model, version), "card")

    # what people and clocks do

    @rule(who=picked)
    @precondition(lambda self: self.stand(JobState.FAILED, JobState.DEAD))
    def retry(self, who: int) -> None:
        keys = self.stand(JobState.FAILED, JobState.DEAD)
        key = keys[who % len(keys)]
        if ActLedger(self.ledger).retry(key, "jane"):
            self._begin_anew([key])

    @rule(seconds=st.sampled_from([1.0, 6.0, 31.0, 901.0, 73 * 3600.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    # the promises

    @rule(who=st.integers(0, 20))
    @precondition(lambda self: not all(self.is_held(hand) for hand in self.everyone))
    def a_zombie_changes_nothing(self, who: int) -> None:
        late_ones = [hand for hand in self.everyone if not self.is_held(hand)]
        hand = late_ones[who % len(late_ones)]
        claim, work = hand.claim, hand.work
        late = self._objects(claim.key)
        writes: list[Callable[[], None]] = [
            lambda: work.heartbeat(claim),
            lambda: work.stage(claim, Stage.STORE).__enter__(),
            lambda: work.made(claim, late, Findings(), "i" * 64),
            lambda: work.adopted(claim, late[0]),
            lambda: work.stored(claim, late[0].instance_uid),
            lambda: work.confirmed(claim, late[0]),
            lambda: work.done(claim, 1),
            *(lambda error=error: work.failed(claim, error, 1) for error in ERRORS.values()),
        ]
        before = self._everything()
        for write in writes:
            try:
                write()
            except (LeaseLost, RuntimeError):  # RuntimeError: its objects are not confirmed
                continue
            raise AssertionError("an older epoch wrote")
        assert self._everything() == before

    @invariant()
    def promises_hold(self) -> None:
        with self.ledger.read() as connection:
            jobs = connection.execute(select(job)).all()
            objects = connection.execute(select(result)).all()
            rings = set(connection.scalars(select(outbox.c.job_key)))
        made: dict[str, list[Row[Any]]] = defaultdict(list)
        for each in objects:
            made[each.job_key].append(each)
        done = Counter((j.archive_id, j.series_uids, j.model) for j in jobs if j.state == "done")
        assert all(count == 1 for count in done.values()), f"two results hold: {done}"
        for row in jobs:
            self._moved_on(row)
            self._counted(row)
            roles = [each.role for each in made[row.key]]
            assert len(roles) == len(set(roles)), "one result per job"
            if row.state == JobState.QUEUED:
                assert row.key in rings, "a queued job is rung for"
            if row.state == JobState.DONE:
                self._is_stored(row, made[row.key])
        self.before = {row.key: (row.lease_epoch, row.state) for row in jobs}
        self.may_reopen = set()

    def _moved_on(self, row: Row[Any]) -> None:
        epoch, state = self.before.get(row.key, (0, JobState.QUEUED))
        assert row.lease_epoch >= epoch
        if row.state == JobState.RUNNING:
            assert row.lease_owner and row.lease_until
            assert state == JobState.RUNNING or row.lease_epoch > epoch
        if state in ENDS and row.state not in (state, JobState.SUPERSEDED):
            assert row.key in self.may_reopen, f"{state} became {row.state} by itself"

    def _counted(self, row: Row[Any]) -> None:
        if row.state in (JobState.QUEUED, JobState.RUNNING):
            starts = self.deaths[row.key] + (row.state == JobState.RUNNING)
            assert row.deliveries == starts <= LIMITS.deliveries
        if row.state == JobState.QUEUED:
            assert self.deaths[row.key] < LIMITS.deliveries, "it should be dead"

    def _is_stored(self, row: Row[Any], objects: Sequence[Row[Any]]) -> None:
        assert len(objects) == 2 and all(each.confirmed_at for each in objects)
        # a deletion says nothing; the images' return does
        deleted = row.series_uids in self.deleted
        if row.archive_id == self.archive.id and not deleted:
            for each in objects:
                data = self.archive.objects.get(each.instance_uid)
                assert data is not None, "done, and not in the archive"
                assert hashlib.sha256(data).hexdigest() == each.digest

    def teardown(self) -> None:
        """Let time pass and workers work: every job comes to an end."""
        for model in MODELS:
            assert any(digest_of(model, version) for version in self.versions.values())
        for _ in range(100):
            self.time_passes(73 * 3600 / 20)
            self.announce()
            self.upgrades_are_noticed()
            self.look()
            self.decide()
            self._lost(self.leases.take_back(self.leases.expired(), "reaper"))
            self.promises_hold()
            due = {ring.id for ring in self.bell.due(10_000)}
            self.rings_go_out()
            self.rings_are_tidied()
            self._work_off(bool(due))
            self.promises_hold()
            if not self.stand(JobState.QUEUED, JobState.RUNNING) and not self.seen:
                self.deleted = {one for one, images in self.archive.images.items() if not images}
                self.promises_hold()
                return
        raise AssertionError(f"no end in sight: {self.before}")

    def _work_off(self, rung: bool) -> None:
        """Each worker takes all that it can; only a ring makes it look."""
        for worker in WORKERS if rung else ():
            for _ in range(20):
                hand = self._claim(worker)
                if hand is None:
                    break
                if self.mood == "out of memory" and hand.claim.on_cpu:
                    self._fail(hand, MemoryExhausted("Too little."))
                elif self.mood != "well":
                    self._fail(hand, ERRORS[self.mood])
                while hand.alive:
                    self._step(hand)
                self.promises_hold()

    def stand(self, *states: JobState) -> list[str]:
        return [key for key, (_, state) in self.before.items() if state in states]

    def is_held(self, hand: Hand) -> bool:
        now = (hand.claim.epoch, JobState.RUNNING)
        return self.before.get(hand.claim.key) == now

    @property
    def at_work(self) -> list[Hand]:
        return [hand for hand in self.everyone if hand.alive]

    def _pick(self, who: int) -> Hand:
        return self.at_work[who % len(self.at_work)]

    # a worker child, as segnode_worker.pipeline has it

    def _claim(self, worker: str) -> Hand | None:
        work = WorkLedger(self.ledger, f"{worker}/{len(self.everyone)}/0", LIMITS)
        digests = [digest_of(model, self.versions[worker]) for model in MODELS]
        claim = work.claim(LANE, digests)
        if claim is None:
            return None
        assert claim.on_cpu == (claim.key in self.thrift)
        hand = Hand(claim=claim, work=work, road=self._road(claim, work))
        self.everyone.append(hand)
        return hand

    def _step(self, hand: Hand) -> None:
        if not hand.alive:
            return
        holds = self._holds(hand)
        try:
            next(hand.road)
        except StopIteration:
            hand.alive = False
        except LeaseLost:
            assert not holds
            hand.alive = False
        except SegnodeError as error:
            self._fail(hand, error)

    def _road(self, claim: Claim, work: WorkLedger) -> Iterator[None]:
        """What `run_job` does; time may pass and others may act wherever it yields."""
        archive = self.archive
        [series] = claim.series_uids
        known = [(one, self.spool.get(one.digest)) for one in work.known(claim)]
        objects = [
            ResultObject(
                role=one.role,
                instance_uid=one.instance_uid,
                series_uid=one.series_uid,
                data=data,
            )
            for one, data in known
            if data is not None
        ]
        yield
        if not objects or len(objects) < len(known):
            with work.stage(claim, Stage.FETCH):
                yield
                if _content(series, archive.images[series]) != claim.content:
                    raise SeriesChanged("The series changed since.")
            objects = self._objects(claim.key)
            self.spool |= {each.digest: each.data for each in objects}
            yield
            work.made(claim, objects, Findings(), "i" * 64)
        kept = []
        with work.stage(claim, Stage.STORE):
            for each in objects:
                yield
                there = archive.objects.get(each.instance_uid)
                if there is None:
                    archive.objects[each.instance_uid] = each.data
                    archive.results[series].add(each.instance_uid)
                    yield
                    work.stored(claim, each.instance_uid)
                else:
                    work.adopted(claim, each.as_kept(there))
                kept.append(each.as_kept(there or each.data))
        with work.stage(claim, Stage.CONFIRM):
            for each in kept:
                yield
                work.confirmed(claim, each)
        yield
        work.done(claim, 1)
        for each in objects:
            self.spool.pop(each.digest, None)

    def _fail(self, hand: Hand, error: SegnodeError) -> None:
        hand.alive = False
        holds = self._holds(hand)
        try:
            hand.work.failed(hand.claim, error, 1)
        except LeaseLost:
            assert not holds
            return
        if isinstance(error, ModelProcessDied):
            self.deaths[hand.claim.key] += 1
        if isinstance(error, OutOfMemory):
            self.thrift.add(hand.claim.key)

    def _lost(self, keys: Sequence[str]) -> None:
        self.deaths.update(keys)

    def _begin_anew(self, keys: Sequence[str]) -> None:
        for key in keys:
            del self.deaths[key]
        self.thrift -= set(keys)
        self.may_reopen |= set(keys)

    def _objects(self, key: str) -> list[ResultObject]:
        """A result; inferred twice it has other bytes."""
        self.inferred += 1
        return [
            ResultObject(
                role=role,
                instance_uid=derived_uid(key, role),
                series_uid=derived_uid(key, "series"),
                data=f"{key} {role} {self.inferred}".encode(),
            )
            for role in ("SEG", "SR")
        ]

    def _new_job(  # as `routing.new_job`
        self, rank: int, model: str, digest: str, quiet: QuietSeries, images: int
    ) -> NewJob:
        series = quiet.orthanc_id
        return NewJob(
            key=job_key(
                series_uids=[series],
                instance_uids=_instances(series, images),
                model=model,
                model_digest=digest,
                parameters={},
                form="BINARY",
            ),
            study_uid="1.2",
            series_uids=(series,),
            content=_content(series, images),
            instance_count=images,
            route="any CT",
            route_rank=rank,
            model=model,
            model_version="1.0.0",
            model_digest=digest,
            lane=LANE,
            last_instance_at=quiet.last_instance_at,
        )

    def _holds(self, hand: Hand) -> bool:
        with self.ledger.read() as connection:
            row = connection.execute(
                select(job.c.state, job.c.lease_epoch).where(job.c.key == hand.claim.key)
            ).one()
        return tuple(row) == (JobState.RUNNING, hand.claim.epoch)

    def _lives(self, owner: str) -> bool:
        return any(hand.alive and hand.work.worker == owner for hand in self.everyone)

    def _everything(self) -> list[list[Row[Any]]]:
        with self.ledger.read() as connection:
            return [list(connection.execute(select(t)).all()) for t in metadata.sorted_tables]


def _instances(series: str, images: int) -> list[str]:
    return [f"{series}.{number}" for number in range(images)]


def _content(series: str, images: int) -> str:
    return content_digest(_instances(series, images))


@pytest.fixture
def new_machine(tmp_path: Path) -> Iterator[Callable[[], LedgerMachine]]:
    ledger, clock = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite"), Clock()

    @event.listens_for(ledger.engine, "connect")
    def _prepare(connection: sqlite3.Connection, record: Any) -> None:
        connection.execute("pragma synchronous=off").close()
        connection.create_function("julianday", 1, clock)

    ledger.migrate()
    yield lambda: LedgerMachine(ledger, clock)
    ledger.close()


@pytest.fixture
def machine(new_machine: Callable[[], LedgerMachine]) -> LedgerMachine:
    """A machine with two jobs on the first series."""
    machine = new_machine()
    machine.begin("well")
    return machine


def test_any_order_of_events_keeps_the_promises(
    new_machine: Callable[[], LedgerMachine],
) -> None:
    run_state_machine_as_test(
        new_machine,
        settings=settings(
            max_examples=SEQUENCES or 150,
            derandomize=not SEQUENCES,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def done_there(machine: LedgerMachine) -> None:
    for _ in MODELS:
        machine.a_job_is_worked_off(WORKERS[0])
    machine.promises_hold()
    assert len(machine.stand(JobState.DONE)) == len(MODELS)


def one_more_and_back(machine: LedgerMachine) -> None:
    for images in (4, 3):
        machine.a_series_changes_and_is_decided(SERIES[0], images)
        machine.promises_hold()


def test_content_is_back_in_a_new_archive(machine: LedgerMachine) -> None:
    done_there(machine)
    machine.another_archive()
    machine.images_are_decided()
    one_more_and_back(machine)
    machine.teardown()


def test_content_is_back_after_a_deletion(machine: LedgerMachine) -> None:
    done_there(machine)
    machine.a_series_is_deleted(SERIES[0])
    one_more_and_back(machine)
    machine.teardown()


def test_an_upgrade_after_the_archive_was_replaced(machine: LedgerMachine) -> None:
    machine.another_archive()
    machine.a_series_is_deleted(SERIES[0])
    for worker in WORKERS:
        machine.a_worker_is_upgraded(worker, 2)
    machine.teardown()


def test_a_stopped_worker_ends_its_run_of_a_job_that_is_made_anew(machine: LedgerMachine) -> None:
    machine.claim(WORKERS[0])
    for _ in range(2):
        machine.go_on(0, 5)
    machine.a_worker_is_stopped(WORKERS[0])
    machine.a_series_changes_and_is_decided(SERIES[0], 3)
    machine.go_on(0, 1)
    machine.teardown()


def test_a_job_that_waited_in_a_replaced_archive_supersedes_there(machine: LedgerMachine) -> None:
    machine.a_series_changes_and_is_decided(SERIES[0], 4)
    machine.another_archive()
    machine.a_series_changes_and_is_decided(SERIES[0], 3)
    for _ in MODELS:
        machine.a_job_is_worked_off(WORKERS[0])
    machine.a_series_changes_and_is_decided(SERIES[0], 4)
    machine.promises_hold()
    machine.teardown()
