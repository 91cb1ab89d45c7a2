"""Compare writers of segmentations on the same labels: `python -m tests.bench.writers [PART…]`

This node, highdicom, dcmqi and, where they install, the writers of TotalSegmentator and MONAI
Deploy. They run in turn, each in a process of its own; every object is read back and compared with
the labels, voxel by voxel, before it counts. Parts are `encode`, `store` and `chain`, all where
none is named; the last two are in `writers_store`. Prints medians; with BENCH_JSON=FILE adds rows
to the list in it. BENCH_N=N (3). Files lie below TMPDIR, which should be on a disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from segnode_cli.show import say

from .measured import RUNS, add_rows, in_turn, machine, row, spread, times_as_long
from .writers_inputs import CASES, Case, make_inputs
from .writers_once import TOOLS
from .writers_peers import PACKAGES, LeftOut, interpreter_of, last_line
from .writers_store import compare_chains, compare_stores, one_object

PARTS = ("encode", "store", "chain")
OURS = [tool for tool in TOOLS if tool.startswith("segnode")]

Said = dict[str, Any]


def main() -> None:
    """Make the inputs, run what is asked for, and print."""
    wanted = sys.argv[1:] or PARTS
    console = Console(width=max(100, shutil.get_terminal_size().columns))
    console.print(machine())
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as name:
        folders = {case: Path(name) / str(case.segments) for case in CASES}
        for case, folder in folders.items():
            say(f"making {case}")
            say(f"{make_inputs(folder, case):.0%} of the voxels have a label")
        if "encode" in wanted:
            writers = Writers()
            for case, folder in folders.items():
                writers.compare(case, folder, console)
        if "store" in wanted:
            compare_stores(one_object(folders[CASES[0]]), console)
        if "chain" in wanted:
            compare_chains(folders, console)


class Writers:
    """The tools that can be had here."""

    def __init__(self) -> None:
        self._interpreters: dict[str, str] = {}
        self._left_out: dict[str, str] = {}
        for tool in TOOLS:
            self._interpreters[tool] = sys.executable
            if tool in PACKAGES:
                say(f"looking for {tool}")
                try:
                    self._interpreters[tool] = interpreter_of(tool)
                except LeftOut as why:
                    self._left_out[tool] = str(why)

    def compare(self, case: Case, folder: Path, console: Console) -> None:
        """Let all write the labels of a case, in turn, and print."""
        said: dict[str, list[Said]] = defaultdict(list)
        for tool in in_turn(list(TOOLS)):
            if tool not in self._left_out:
                say(f"{tool} writes {case}")
                try:
                    said[tool].append(self._run(tool, folder))
                except LeftOut as why:
                    if tool in OURS:
                        raise SystemExit(f"{tool}: {why}") from why
                    self._left_out[tool] = str(why)
        whole = {tool: runs for tool, runs in said.items() if tool not in self._left_out}
        _report(case, whole, console)
        for tool, reason in self._left_out.items():
            console.print(f"{tool} is left out: {reason}")

    def _run(self, tool: str, folder: Path) -> Said:
        out = folder / "out"
        out.mkdir()
        try:
            return _checked(self._interpreters[tool], tool, folder, out)
        finally:
            shutil.rmtree(out)


def _checked(interpreter: str, tool: str, folder: Path, out: Path) -> Said:
    """Let a tool write, and return what it took if its object holds the labels."""
    said = _say([interpreter, "-m", "tests.bench.writers_once", tool, str(folder), str(out)])
    path = Path(said["path"])
    if tool in OURS:
        said["disk"] = _seconds_on_disk(path.read_bytes(), out / "copy")
    read = _say([sys.executable, "-m", "tests.bench.writers_read", str(path), str(folder)])
    if read["wrong"]:
        raise LeftOut(f"{read['wrong']} voxels of its object differ from the labels")
    return said | {"read": read}


def _say(command: list[str]) -> Said:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LeftOut(last_line(done.stderr) or f"it ends with {done.returncode}")
    said: Said = json.loads(done.stdout.splitlines()[-1])
    return said


def _seconds_on_disk(data: bytes, path: Path) -> float:
    """Return how long the same bytes take at the least."""
    began = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began


def _report(case: Case, said: dict[str, list[Said]], console: Console) -> None:
    table = Table(
        *("tool", "encode s", "x segnode", "peak MB", "before", "file MB", "read back s"),
        title=f"{case}, n={RUNS}; medians (least-most)",
        caption="before: MB of the process when it began to write",
    )
    rows = []
    for tool, runs in said.items():
        encode, read = [one["seconds"] for one in runs], [one["read"]["seconds"] for one in runs]
        peak_mb, read_mb = (
            max(one["peak_mb"] for one in some) for some in (runs, [one["read"] for one in runs])
        )
        table.add_row(
            tool,
            spread(encode),
            times_as_long([one["seconds"] for one in said["segnode"]], encode),
            f"{peak_mb}",
            f"{max(one['before_mb'] for one in runs)}",
            f"{runs[0]['bytes'] / 1e6:.1f}",
            spread(read).split()[0],
        )
        rows.append(row(f"encode-{case.segments}", tool, encode, peak_mb))
        rows.append(row(f"read-{case.segments}", tool, read, read_mb))
    console.print(table)
    for tool in OURS:
        rows += _report_own(case, tool, said[tool], console)
    add_rows(rows)


def _report_own(case: Case, tool: str, runs: list[Said], console: Console) -> list[Said]:
    """Print what only the node's own writer has: its proof, and how near it is to the disk."""
    encode, disk, verify = ([one[key] for one in runs] for key in ("seconds", "disk", "verify"))
    console.print(
        f"{tool}: its own proof takes {spread(verify)} s; writing the same bytes to the disk takes "
        f"{spread(disk)} s, of which encode is {times_as_long(disk, encode)} times as long"
    )
    verify_mb = max(one["verify_mb"] for one in runs)
    return [
        row(f"verify-{case.segments}", tool, verify, verify_mb),
        row(f"write-{case.segments}", tool.replace("segnode", "disk"), disk, 0),
    ]


if __name__ == "__main__":
    main()
