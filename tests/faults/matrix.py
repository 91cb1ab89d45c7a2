"""The fault matrix: ``python -m tests.faults.matrix [F1 F7 …] [--times N] [--production]``.

Each fault strikes a real node; then what lies in the archive is compared with what was sent, by
QIDO-RS and WADO-RS alone, and `segnode verify` compares ledger and archive.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

from segnode_cli.servers import program
from segnode_contract.ledger.view import JobRow

from . import on_archive, on_servers, on_workers
from .databases import postgresql, programs
from .faulty_node import PRODUCTION, SHORT, FaultyNode, Unwell, faulty_node
from .judge import ArchiveAway
from .table import ROWS, Row

__all__ = ["on_archive", "on_servers", "on_workers"]

TIMES = 3
KINDS = ("lost", "doubled", "half-stored")
SETTLED_S = 1.0
"""How long a ghost has to store what it must not, before the judge looks."""


@dataclass(kw_only=True)
class Outcome:
    """What came of a row."""

    fault: str
    point: str
    times: int = 0
    lost: int = 0
    doubled: int = 0
    half_stored: int = 0
    verify: int = 0
    """Differences of ledger and archive that `segnode verify` found."""
    seconds: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    """How jobs ended that need not give a result."""
    skipped: str = ""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.half_stored or self.verify)

    def line(self) -> str:
        """Return the row of the table."""
        if self.skipped:
            return f"{self.fault:4} {self.point:52} not done: {self.skipped}"
        middle = f"{statistics.median(self.seconds):6.1f}" if self.seconds else "     -"
        most = f"{max(self.seconds):6.1f}" if self.seconds else "     -"
        counts = f"{self.lost:5} {self.doubled:8} {self.half_stored:12} {self.verify:7}"
        ends = ", ".join(f"{count} {end}" for end, count in Counter(self.ends).items())
        return f"{self.fault:4} {self.point:52} {self.times:5} {counts} {middle} {most}  {ends}"


HEAD = (
    f"{'':4} {'fault, point':52} tried  lost  doubled  half-stored  verify median    max\n"
    f"{'':4} {'':52} {'':38} {'':6}seconds to recover"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows asked for, print the table, and return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.matrix", description=__doc__)
    parser.add_argument("faults", nargs="*", help="F1, say, or F1:infer; all where absent")
    parser.add_argument("--times", type=int, help=f"tries of each row, {TIMES} where absent")
    parser.add_argument("--production", action="store_true", help="with the waits of production")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file too")
    asked = parser.parse_args(arguments)
    rows = chosen(asked.faults)
    if not rows:
        parser.error(f"no row of the matrix is {' or '.join(asked.faults)}")
    print(HEAD, flush=True)
    outcomes = []
    for outcome in run(rows, times=asked.times, production=asked.production):
        outcomes.append(outcome)
        print(outcome.line(), flush=True)
        for note in outcome.notes:
            print(f"{'':5}{note}", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    done = [outcome for outcome in outcomes if not outcome.skipped]
    wrong = sum(not outcome.clean for outcome in done)
    print(
        f"{len(done)} rows, {sum(o.times for o in done)} trials: {sum(o.lost for o in done)} lost, "
        f"{sum(o.doubled for o in done)} doubled, {sum(o.half_stored for o in done)} half-stored; "
        f"{wrong} rows with something wrong, {len(outcomes) - len(done)} not done"
    )
    return 1 if wrong else 0


def chosen(names: Sequence[str]) -> list[Row]:
    """Return the rows that ``F1`` or ``F1:part of its point`` name, all where nothing does."""

    def fits(row: Row, name: str) -> bool:
        fault, _, part = name.partition(":")
        return row.fault == fault and part in row.point

    return [row for row in ROWS if not names or any(fits(row, name) for name in names)]


def run(
    rows: Sequence[Row], *, times: int | None = None, production: bool = False
) -> Iterator[Outcome]:
    """Try each row on the node that it needs; a node that does not recover is replaced."""
    waits = PRODUCTION if production else SHORT
    for site, some in groupby(sorted(rows, key=lambda row: list(SITES).index(row.site)), _site):
        reason = LACKS.get(site, str)()
        with ExitStack() as stack:
            node: FaultyNode | None = None
            for row in some:
                if reason:
                    yield Outcome(fault=row.fault, point=row.point, skipped=reason)
                    continue
                outcome = Outcome(fault=row.fault, point=row.point)
                for _ in range(times or row.times or TIMES):
                    if node is None:
                        node = stack.enter_context(SITES[site](waits))
                    if not try_once(row, node, outcome):
                        outcome.notes += _last_words(node)
                        stack.close()
                        node = None
                if node is not None:
                    verify(node, row.differs, outcome)
                yield outcome


def _site(row: Row) -> str:
    return row.site


def try_once(row: Row, node: FaultyNode, outcome: Outcome) -> bool:
    """Try once; return whether the node is whole afterwards."""
    outcome.times += 1
    node.begin()
    try:
        row.strike(node)
        node.settle(row.limit_s)
        node.heal()
        time.sleep(SETTLED_S)
        findings = node.judge.findings(node.trial)
    except (Unwell, ArchiveAway) as error:
        outcome.lost += 1
        outcome.notes.append(f"try {outcome.times}: {error}")
        return False
    if node.took is not None:
        outcome.seconds.append(node.took)
    late = node.took is None and not any(finding.kind == "lost" for finding in findings)
    if late:
        outcome.notes.append(f"try {outcome.times}: came after more than {row.limit_s:g} s")
    counts = Counter(finding.kind for finding in findings)
    outcome.lost += counts["lost"] + late
    outcome.doubled += counts["doubled"]
    outcome.half_stored += counts["half-stored"]
    for finding in findings:
        series = next((s for s in node.trial if s.series_uid == finding.series_uid), None)
        job = node.job(series) if series else None
        said = f"{job.state}, {job.error_code}, {job.error_stage}" if job else "no job"
        outcome.notes.append(f"try {outcome.times}: {finding.kind}: {finding.text} (job: {said})")
    outcome.ends += [_end(node.job(series)) for series in node.trial if series.codes]
    return True


def _end(job: JobRow | None) -> str:
    return (job.error_code or job.state) if job else "no job"


def verify(node: FaultyNode, differs: Collection[str], outcome: Outcome) -> None:
    """Ask `segnode verify`, and count what it did not say before, `differs` left out."""
    asked = _segnode("verify", "--json", "--data", str(node.node.data))
    if not asked.stdout:
        outcome.verify = 1
        outcome.notes += [f"verify: {line}" for line in asked.stderr.splitlines()]
        return
    for found in json.loads(asked.stdout):
        if found["what"] not in node.differs and found["code"] not in differs:
            outcome.verify += 1
            outcome.notes.append(f"verify: {found['code']} {found['what']} {found['sentence']}")
        node.differs.add(found["what"])


def _segnode(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("segnode"), *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def _last_words(node: FaultyNode) -> list[str]:
    said = []
    for name in ("orthanc", "worker"):
        log = node.node.data / "logs" / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        said += [f"{name}: {line[:200]}" for line in lines[-6:]]
    return said


Waits = Mapping[type, Mapping[str, object]]


def _plain(waits: Waits) -> AbstractContextManager[FaultyNode]:
    return faulty_node(waits=waits)


def _disks(waits: Waits) -> AbstractContextManager[FaultyNode]:
    return faulty_node(waits=waits, disks=on_archive.DISKS)


@contextmanager
def _postgresql(waits: Waits) -> Iterator[FaultyNode]:
    with postgresql() as database, faulty_node(waits=waits, database=database) as node:
        yield node


@contextmanager
def _clock(shift_s: int, waits: Waits) -> Iterator[FaultyNode]:
    """Every Python process of the node has a wrong clock; PostgreSQL has the right one."""
    with (
        postgresql() as database,
        faulty_node(waits=waits, database=database, SEGNODE_CLOCK_SHIFT_S=str(shift_s)) as node,
    ):
        yield node


def _no_mount() -> str:
    return "" if os.geteuid() == 0 else "only root mounts a small disk"


def _no_postgresql() -> str:
    return "" if programs() else "PostgreSQL is not installed"


SITES: Mapping[str, Callable[[Waits], AbstractContextManager[FaultyNode]]] = {
    "plain": _plain,
    "disks": _disks,
    "postgresql": _postgresql,
    "clock ahead": partial(_clock, 3600),
    "clock behind": partial(_clock, -3600),
}
LACKS: Mapping[str, Callable[[], str]] = {
    "disks": _no_mount,
    "postgresql": _no_postgresql,
    "clock ahead": _no_postgresql,
    "clock behind": _no_postgresql,
}
"""Why a site cannot be had here; empty if it can."""

if __name__ == "__main__":
    sys.exit(main())
