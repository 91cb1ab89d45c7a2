"""F17, F18 and F20: what comes late, what a store is answered, and full disks."""

from __future__ import annotations

import time
from functools import partial

from .faulty_node import LEDGER, FaultyNode, wait_for
from .phantom import SLICES, small_series
from .table import row

EARLY = SLICES - 4

# F17: a slice that comes late


def late_before_claim(site: FaultyNode) -> None:
    site.stop("worker")
    series = small_series()
    site.send(series, EARLY)
    wait_for(lambda: site.job(series) is not None, 30, "the first job")
    site.send(series, start=EARLY)
    site.start("worker")
    site.injured()


def late_at(point: str, site: FaultyNode) -> None:
    site.points.arm(point, "hold")
    series = small_series()
    site.send(series, EARLY)
    site.struck(point)
    site.send(series, start=EARLY)
    time.sleep(site.quiet_s + 1.5)
    site.injured()
    site.points.release(point)


def late_after_all(site: FaultyNode) -> None:
    series = small_series()
    site.send(series, EARLY)
    wait_for(lambda: (job := site.job(series)) is not None and job.state == "done", 40, "a result")
    site.send(series, start=EARLY)


row("F17", "late slices: before claim", late_before_claim)
for name, at in {
    "before fetch": "fetch.before",
    "in infer": "model",
    "before store": "store.before",
    "after store": "store.after",
}.items():
    row("F17", f"late slices: {name}", partial(late_at, at))
row("F17", "late slices: after the result", late_after_all)


# F18: answers to a store


def answered(answer: str, codes: tuple[str, ...], site: FaultyNode) -> None:
    site.archive.next_store = answer
    site.send(small_series(codes=codes))
    wait_for(lambda: not site.archive.next_store, 40, "a store")
    site.injured()


for answer, codes in {
    "500": (),
    "409": (),
    "202": (),
    "a700": (),
    "0110": ("store-refused",),
    "silent": (),
    "cut after": (),
    "cut body": (),
    "other": ("uid-collision",),
}.items():
    differs = ("result-differs", "result-unconfirmed") if answer == "other" else ()
    row("F18", f"store answered: {answer}", partial(answered, answer, codes), differs=differs)


def archive_away(site: FaultyNode) -> None:
    site.points.arm("store.before", "hold")
    site.send(small_series())
    site.struck("store.before")
    site.archive.cut = True
    site.points.release("store.before")
    time.sleep(5)
    site.archive.cut = False
    site.injured()


row("F18", "archive away for 5 s: from store on", archive_away)


# F20: full disks

DISKS = ("spool", "orthanc", LEDGER)
"""Folders below the node's data that are disks of their own: spool, archive, ledger."""


def full_before(disk: str, site: FaultyNode) -> None:
    site.send(small_series())
    _fill(site, disk)
    time.sleep(6)
    _make_room(site, disk)


def full_at(disk: str, point: str, site: FaultyNode) -> None:
    site.points.arm(point, "hold")
    site.send(small_series())
    site.struck(point)
    _fill(site, disk)
    site.points.release(point)
    time.sleep(6)
    _make_room(site, disk)


def _fill(site: FaultyNode, disk: str) -> None:
    with (site.node.data / disk / "filler").open("wb", buffering=0) as filler:
        piece = bytes(1 << 16)
        while piece:
            try:
                filler.write(piece)
            except OSError:
                piece = piece[: len(piece) // 2]


def _make_room(site: FaultyNode, disk: str) -> None:
    (site.node.data / disk / "filler").unlink()
    site.injured()


for disk in DISKS:
    row("F20", f"disk of {disk} full for 6 s: before", partial(full_before, disk), site="disks")
    for name, at in {"in infer": "infer.after", "before store": "store.before"}.items():
        row(
            "F20",
            f"disk of {disk} full for 6 s: {name}",
            partial(full_at, disk, at),
            site="disks",
        )
