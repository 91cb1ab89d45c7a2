"""F1 to F6, F19, F23 and F24: what happens to workers and model processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from sqlalchemy import make_url

from .faulty_node import (
    FaultyNode,
    continue_,
    descendants,
    send_signal,
    wait_for,
)
from .links import ArchiveLink, SlowLink
from .phantom import HANG, MEMORY, POISON, small_series
from .table import row

Victims = Callable[[FaultyNode], list[int]]


def _parent(site: FaultyNode) -> list[int]:
    return [site.pid("worker")]


def _model(site: FaultyNode) -> list[int]:
    return [site.model_pid()]


# F1: a child is killed

CHILD_POINTS = {
    "claim": "claim.after",
    "fetch": "fetch.after",
    "stack": "stack.after",
    "infer": "infer.after",
    "encode": "encode.after",
    "verify": "verify.after",
    "spool, before rename": "rename.before",
    "after spool, before ledger": "made.before",
    "after spool, before store": "store.before",
    "after store, before ledger": "store.after",
    "after confirm": "confirm.after",
    "before ack": "done.after",
}


def kill_child(point: str, site: FaultyNode) -> None:
    site.points.arm(point, "kill")
    site.send(small_series())
    site.struck(point)


def kill_child_in_infer(site: FaultyNode) -> None:
    child = _held_in_infer(site)
    send_signal([child], signal.SIGKILL)
    site.injured()
    site.points.release("model")


def kill_child_in_store(site: FaultyNode) -> None:
    child = _held_in_store(site)
    send_signal([child], signal.SIGKILL)
    site.injured()


def _held_in_infer(site: FaultyNode) -> int:
    """Send a series and hold its job in the model; return the child that has the job."""
    site.points.arm("infer.before", "sleep 0")
    site.points.arm("model", "hold")
    site.send(small_series())
    site.struck("model")
    return site.struck("infer.before")


def _held_in_store(site: FaultyNode) -> int:
    """Send a series and hold its result half-way to the archive; return the child."""
    site.points.arm("store.before", "sleep 0")
    site.archive.hold_next()
    site.send(small_series())
    child = site.struck("store.before")
    wait_for(site.archive.held.is_set, 20, "half of a store")
    return child


for name, at in CHILD_POINTS.items():
    row("F1", f"child killed: {name}", partial(kill_child, at))
row("F1", "child killed: in infer", kill_child_in_infer)
row("F1", "child killed: in store", kill_child_in_store)


# F2, F3, F4: the parent is killed, all are, all are asked to stop


def strike_before(victims: Victims, number: signal.Signals, site: FaultyNode) -> None:
    site.end(victims(site), number)
    site.send(small_series())


def strike_in_infer(victims: Victims, number: signal.Signals, site: FaultyNode) -> None:
    _held_in_infer(site)
    site.end(victims(site), number)
    time.sleep(0.5)
    site.points.release("model")


def strike_in_store(victims: Victims, number: signal.Signals, site: FaultyNode) -> None:
    _held_in_store(site)
    site.end(victims(site), number)
    time.sleep(0.5)
    site.archive.released.set()


def strike_after_store(victims: Victims, number: signal.Signals, site: FaultyNode) -> None:
    site.points.arm("store.after", "hold")
    site.send(small_series())
    site.struck("store.after")
    site.end(victims(site), number)
    site.points.release("store.after")


def strike_before_ack(victims: Victims, number: signal.Signals, site: FaultyNode) -> None:
    site.points.arm("done.after", "hold")
    site.send(small_series())
    site.struck("done.after")
    site.end(victims(site), number)
    site.points.release("done.after")


STRIKES = {
    "before": strike_before,
    "in infer": strike_in_infer,
    "in store": strike_in_store,
    "after store": strike_after_store,
    "before ack": strike_before_ack,
}
for fault, what, victims, number in (
    ("F2", "parent killed", _parent, signal.SIGKILL),
    ("F3", "parent and children killed", FaultyNode.worker_tree, signal.SIGKILL),
    ("F4", "SIGTERM to the parent", _parent, signal.SIGTERM),
):
    for when, strike in STRIKES.items():
        row(fault, f"{what}: {when}", partial(strike, victims, number), limit_s=100)


# F5: memory runs out


def kill_model(site: FaultyNode) -> None:
    strike_in_infer(_model, signal.SIGKILL, site)


def model_without_memory(site: FaultyNode) -> None:
    site.send(small_series(MEMORY, codes=("out-of-memory", "memory-exhausted", "model-failed")))
    site.send(small_series())


def child_without_memory(site: FaultyNode) -> None:
    site.points.arm("encode.before", "memory")
    site.send(small_series(codes=("out-of-memory", "memory-exhausted")))
    site.struck("encode.before")
    site.send(small_series())


row("F5", "child killed as the kernel does: stack", partial(kill_child, "stack.before"))
row("F5", "model process killed: in infer", kill_model)
row("F5", "model raises MemoryError", model_without_memory)
row("F5", "child raises MemoryError: encode", child_without_memory)


# F6: a worker is stopped for longer than its lease, then goes on


def freeze_child(point: str, site: FaultyNode) -> None:
    site.points.arm(point, "stop")
    site.send(small_series())
    child = site.struck(point)
    site.meanwhile(site.limits.lease_s * 1.7)
    continue_(child)


def freeze_child_for_good(site: FaultyNode) -> None:
    """A child that does not even notice that its job was taken from it must not keep its place."""
    site.points.arm("infer.before", "stop")
    site.send(small_series())
    child = site.struck("infer.before")
    site.meanwhile(site.limits.lease_s * 1.7)
    wait_for(
        lambda: not Path(f"/proc/{child}").exists(), site.limits.lease_s * 3, "the child's end"
    )


def freeze_all(site: FaultyNode) -> None:
    _held_in_infer(site)
    tree = site.worker_tree()
    send_signal(tree, signal.SIGSTOP)
    site.points.release("model")
    time.sleep(site.limits.lease_s * 1.7)
    site.injured()
    send_signal(tree, signal.SIGCONT)


for name, at in {
    "in infer": "infer.before",
    "before store": "store.before",
    "after store": "store.after",
    "before done": "done.before",
}.items():
    row("F6", f"child stopped past its lease: {name}", partial(freeze_child, at), limit_s=150)
row("F6", "child stopped for good: in infer", freeze_child_for_good, limit_s=150)
row("F6", "all stopped past the lease: in infer", freeze_all, limit_s=150)


# F19: poison


def poison_among_healthy(site: FaultyNode) -> None:
    for number in range(55):
        if number % 11 == 5:
            site.send(small_series(POISON, codes=("model-process-died", "worker-lost")))
        else:
            site.send(small_series())


def hung_model(site: FaultyNode) -> None:
    site.send(small_series(HANG, codes=("model-time-limit",)))
    site.send(small_series())


row("F19", "5 poisoned among 50 healthy", poison_among_healthy, limit_s=400, times=1)
row("F19", "hung model", hung_model, limit_s=90)


# F23: Redis gives a ring away while its task runs


def short_visibility(site: FaultyNode) -> None:
    (site.node.data / "faults" / "visibility").write_text("2")
    site.stop("worker")
    site.heal()
    try:
        site.points.arm("model", "sleep 9")
        site.send(small_series())
        site.struck("model")
        site.settle(60)
    finally:
        (site.node.data / "faults" / "visibility").unlink()
        site.stop("worker")


row("F23", "visibility timeout of 2 s, task of 9 s", short_visibility)


# F24: two workers, one is cut off


def frozen_worker(point: str, site: FaultyNode) -> None:
    """The job goes to either worker; whichever has it is stopped whole."""
    with site.second_worker() as second:
        site.points.arm(point, "stop")
        site.send(small_series())
        child = site.struck(point)
        other = [second.pid, *descendants(second.pid)]
        tree = other if child in other else site.worker_tree()
        send_signal(tree, signal.SIGSTOP)
        site.meanwhile(site.limits.lease_s * 1.7)
        send_signal(tree, signal.SIGCONT)
        site.settle(60)


def partitioned_worker(point: str, site: FaultyNode) -> None:
    """One worker loses archive and Redis, and where the ledger is a server, that too."""
    archive, broker = ArchiveLink(site.node.http_port), SlowLink(site.node.redis_port)
    word = site.node.passwords["redis"]
    environment = {
        "SEGNODE_ARCHIVE_URL": f"http://127.0.0.1:{archive.port}/dicom-web",
        "SEGNODE_BROKER_URL": f"redis://:{word}@127.0.0.1:{broker.port}/0",
    }
    links: list[ArchiveLink | SlowLink] = [archive, broker]
    if site.database is not None:
        url = make_url(site.database.url)
        ledger = SlowLink(url.port or 5432)
        links.append(ledger)
        environment["SEGNODE_LEDGER_URL"] = str(url.set(port=ledger.port))
    with ExitStack() as stack:
        for link in links:
            stack.enter_context(link.running())
        second = stack.enter_context(site.second_worker(**environment))
        # only the second worker hears the ring
        send_signal(site.worker_tree(), signal.SIGSTOP)
        site.points.arm(point, "hold")
        site.send(small_series())
        child = site.struck(point)
        assert child in descendants(second.pid)
        for link in links:
            link.cut = True
        send_signal(site.worker_tree(), signal.SIGCONT)
        site.points.release(point)
        site.injured()
        site.settle(60)
        for link in links:
            link.cut = False
        site.meanwhile(2.0)  # for what it still would store


for name, at in {
    "in infer": "infer.before",
    "before store": "store.before",
    "after store": "store.after",
}.items():
    row("F24", f"one of two workers stopped: {name}", partial(frozen_worker, at), limit_s=90)
for name, at in {"before store": "store.before", "after store": "store.after"}.items():
    for site, what in {"plain": "network", "postgresql": "network, nor ledger"}.items():
        row(
            "F24",
            f"one of two workers without {what}: {name}",
            partial(partitioned_worker, at),
            site=site,
            limit_s=90,
        )
