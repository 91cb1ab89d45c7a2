"""F7 to F16, F21 and F22: what happens to Redis, Orthanc, the ledger and clocks."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

from .faulty_node import FaultyNode, descendants, send_signal, wait_for
from .phantom import SLICES, small_series
from .table import row

Harm = Callable[[FaultyNode], None]


def kill_redis(site: FaultyNode) -> None:
    site.kill("redis")


def flush(site: FaultyNode) -> None:
    site.flush()
    site.injured()


# F7, F8: Redis is killed, or emptied


def before_all(harm: Harm, site: FaultyNode) -> None:
    harm(site)
    site.send(small_series())


def with_ring_in_redis(harm: Harm, site: FaultyNode) -> None:
    """Harm when the ring lies in Redis and no worker has heard it."""
    site.stop("worker")
    site.send(small_series())
    wait_for(lambda: site.rings() > 0, 30, "a ring")
    harm(site)
    time.sleep(1)
    site.start("worker")
    site.injured()


def while_it_runs(point: str, harm: Harm, site: FaultyNode) -> None:
    site.points.arm(point, "hold")
    site.send(small_series())
    site.struck(point)
    harm(site)
    time.sleep(1)
    site.points.release(point)


for fault, what, harm in (("F7", "Redis killed", kill_redis), ("F8", "FLUSHALL", flush)):
    row(fault, f"{what}: before", partial(before_all, harm))
    row(fault, f"{what}: ring not heard yet", partial(with_ring_in_redis, harm))
    for name, at in {"in infer": "model", "before ack": "done.after"}.items():
        row(fault, f"{what}: {name}", partial(while_it_runs, at, harm))


# F9, F10: Redis is away, frozen, or slow, while studies come


def redis_away(site: FaultyNode) -> None:
    site.stop("redis")
    site.send(small_series())
    time.sleep(5)
    site.send(small_series())
    site.start("redis")
    site.injured()


def redis_frozen(site: FaultyNode) -> None:
    redis = site.pid("redis")
    send_signal([redis], signal.SIGSTOP)
    site.send(small_series())
    time.sleep(5)
    send_signal([redis], signal.SIGCONT)
    site.injured()


def redis_slow(site: FaultyNode) -> None:
    site.broker.delay_s = 1.0
    site.send(small_series())
    site.send(small_series())
    site.settle(60)


row("F9", "Redis down for 5 s: while images come", redis_away)
row("F9", "Redis stopped (SIGSTOP) for 5 s: while images come", redis_frozen)
row("F10", "Redis slow: 1 s each way", redis_slow, limit_s=90)


# F11, F12: Orthanc is killed, or asked to stop


def orthanc_after(delay_s: float, number: signal.Signals, site: FaultyNode) -> None:
    site.send(small_series())
    time.sleep(delay_s)
    site.kill("orthanc", number)


def orthanc_at(point: str, number: signal.Signals, site: FaultyNode) -> None:
    site.points.arm(point, "hold")
    site.send(small_series())
    site.struck(point)
    site.kill("orthanc", number)
    site.points.release(point)


def orthanc_in_intake(point: str, site: FaultyNode) -> None:
    site.points.arm(point, "kill")
    site.send_until_taken(small_series())
    site.struck(point)


def orthanc_in_store(number: signal.Signals, site: FaultyNode) -> None:
    site.archive.hold_next()
    site.send(small_series())
    wait_for(site.archive.held.is_set, 40, "half of a store")
    site.kill("orthanc", number)
    site.archive.released.set()


for fault, what, number in (
    ("F11", "Orthanc killed", signal.SIGKILL),
    ("F12", "SIGTERM to Orthanc", signal.SIGTERM),
):
    for delay_s in (0, 1, 4):
        row(fault, f"{what}: {delay_s} s after", partial(orthanc_after, delay_s, number))
    for name, at in {"before fetch": "fetch.before", "after store": "store.after"}.items():
        row(fault, f"{what}: {name}", partial(orthanc_at, at, number))
    row(fault, f"{what}: in store", partial(orthanc_in_store, number))
for point in ("intake.note", "intake.decide", "ring.published"):
    for side in ("before", "after"):
        at = f"{point}.{side}"
        row("F11", f"Orthanc killed: at {at}", partial(orthanc_in_intake, at))


# F13, F14: the index is replaced, the record of changes deleted


def wipe(site: FaultyNode) -> None:
    """Replace the archive by an empty one: what lay in it is not asked for any more."""
    site.stop("orthanc")
    folder = site.node.data / "orthanc"
    for inside in folder.iterdir():
        if inside.is_dir():
            shutil.rmtree(inside)
        else:
            inside.unlink()
    for series in site.sent:
        series.contents.clear()
    site.sent.clear()
    site.trial.clear()


def wiped(site: FaultyNode) -> None:
    wipe(site)
    site.start("orthanc")
    site.heal()
    site.send(small_series())


def wiped_and_sent_again(site: FaultyNode) -> None:
    series = small_series()
    site.send(series)
    site.settle(40)
    wipe(site)
    site.start("orthanc")
    site.heal()
    site.send(series)


def wiped_in_job(site: FaultyNode) -> None:
    """The images vanish under a job, and are sent again."""
    site.points.arm("store.before", "hold")
    series = small_series()
    site.send(series)
    site.struck("store.before")
    wipe(site)
    site.points.release("store.before")
    site.start("orthanc")
    site.heal()
    site.send(series)


def replaced_and_outgrown(site: FaultyNode) -> None:
    """The new index has more changes than the old, before the plugin sees it."""
    site.send(small_series())
    site.settle(40)
    wipe(site)
    series = small_series()
    with site.orthanc_alone():
        site.send(series)
        for _ in range(2):
            site.send(small_series())
    _grow(site, 100_000)
    site.start("orthanc")
    site.injured()


def changes_deleted(site: FaultyNode) -> None:
    """Images come, and their changes are gone, while the plugin is away."""
    site.stop("orthanc")
    with site.orthanc_alone():
        site.send(small_series())
        site.delete_changes()
    site.start("orthanc")
    site.injured()


def changes_deleted_in_quiet_period(site: FaultyNode) -> None:
    series = small_series()
    site.send(series, SLICES // 2)
    site.kill("orthanc")
    site.stop("orthanc")
    with site.orthanc_alone():
        site.send(series, start=SLICES // 2)
        site.delete_changes()
    site.start("orthanc")
    site.injured()


def changes_deleted_after(site: FaultyNode) -> None:
    site.send(small_series())
    site.settle(40)
    site.stop("orthanc")
    with site.orthanc_alone():
        site.delete_changes()
    site.start("orthanc")
    site.heal()
    site.send(small_series())


def _grow(site: FaultyNode, changes: int) -> None:
    with closing(sqlite3.connect(site.node.data / "orthanc" / "index")) as index:
        index.execute("update sqlite_sequence set seq = ? where name = 'Changes'", (changes,))
        index.commit()


row("F13", "index wiped: then new images", wiped)
row("F13", "index wiped: the same images again", wiped_and_sent_again)
row("F13", "index wiped: before store", wiped_in_job)
row("F13", "index replaced by one that outgrew the cursor", replaced_and_outgrown)
row("F14", "DELETE /changes: before they are read", changes_deleted)
row("F14", "DELETE /changes: half of a series read", changes_deleted_in_quiet_period)
row("F14", "DELETE /changes: after", changes_deleted_after)


# F15, F16: the callback fails, events come again


def callback_raises(site: FaultyNode) -> None:
    site.points.arm("callback", "raise")
    site.send(small_series())


def step_raises(point: str, site: FaultyNode) -> None:
    site.points.arm(point, "raise")
    site.send(small_series())
    site.struck(point)


def same_again(site: FaultyNode) -> None:
    """Orthanc calls the series stable three times."""
    series = small_series()
    for _ in range(3):
        site.send(series)
        time.sleep(6)


def same_at_once(site: FaultyNode) -> None:
    series = small_series()
    for _ in range(3):
        site.send(series)


row("F15", "change callback raises", callback_raises)
for point in ("intake.note.before", "intake.decide.after", "ring.published.before"):
    row("F15", f"step of the plugin raises: {point}", partial(step_raises, point))
row("F16", "the same series three times, stable each time", same_again)
row("F16", "the same series three times at once", same_at_once)


# F21: the ledger is away


def ledger_locked(seconds: float, site: FaultyNode) -> None:
    site.points.arm("model", "hold")
    site.send(small_series())
    site.struck("model")
    with closing(sqlite3.connect(site.node.data / "ledger.sqlite", isolation_level=None)) as ledger:
        ledger.execute("begin immediate")
        site.points.release("model")
        site.send(small_series())
        time.sleep(seconds)
        ledger.execute("rollback")
    site.injured()


def postgresql_restarted(point: str, site: FaultyNode) -> None:
    if point:
        site.points.arm(point, "hold")
    site.send(small_series())
    if point:
        site.struck(point)
    assert site.database
    site.database.restart()
    site.injured()
    if point:
        site.points.release(point)


row("F21", "ledger locked for 10 s: in infer", partial(ledger_locked, 10.0), limit_s=90)
row("F21", "ledger locked for 35 s: in infer", partial(ledger_locked, 35.0), limit_s=120, times=1)
for name, at in {
    "in the quiet period": "",
    "before fetch": "fetch.before",
    "in infer": "model",
    "after store": "store.after",
    "before done": "done.before",
}.items():
    row(
        "F21",
        f"PostgreSQL restarted: {name}",
        partial(postgresql_restarted, at),
        site="postgresql",
    )


# F22: a host's clock is wrong


def just_a_study(site: FaultyNode) -> None:
    site.send(small_series())


def just_a_death(site: FaultyNode) -> None:
    site.points.arm("infer.before", "kill")
    site.send(small_series())
    site.struck("infer.before")


def right_worker_beside(site: FaultyNode) -> None:
    """A worker with the right time beside one with the wrong; whoever has the job is stopped."""
    with site.second_worker(SEGNODE_CLOCK_SHIFT_S="0") as second:
        site.points.arm("store.before", "stop")
        site.send(small_series())
        child = site.struck("store.before")
        tree = [second.pid] if child in descendants(second.pid) else [site.pid("worker")]
        tree = [pid for top in tree for pid in (top, *descendants(top))]
        send_signal(tree, signal.SIGSTOP)
        site.meanwhile(site.limits.lease_s * 1.7)
        send_signal(tree, signal.SIGCONT)
        site.settle(60)


for shift in ("ahead", "behind"):
    for name, strike in {
        "a study": just_a_study,
        "child killed in infer": just_a_death,
        "stopped beside a right clock": right_worker_beside,
    }.items():
        row("F22", f"clock 1 h {shift}: {name}", strike, site=f"clock {shift}", limit_s=90)
