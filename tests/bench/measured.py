"""What a bench measured: rows for BENCH_JSON, cells for a table, and the machine it was."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

RUNS = int(os.environ.get("BENCH_N", "3"))


def in_turn(tools: Sequence[str]) -> Iterator[str]:
    """Give the tools of all runs, each run from another one on.

    What a tool left to be written to the disk is written before the next one starts.
    """
    for run in range(RUNS):
        first = run % len(tools)
        for tool in (*tools[first:], *tools[:first]):
            os.sync()
            yield tool


def row(step: str, tool: str, seconds: Sequence[float], peak_mb: float) -> dict[str, Any]:
    """Return what BENCH_JSON has of one step of one tool."""
    return {
        "step": step,
        "tool": tool,
        "seconds": statistics.median(seconds),
        "peak_mb": peak_mb,
        "n": len(seconds),
    }


def add_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to the list in the file BENCH_JSON, if one is named.

    They take the place of rows of the same step and tool that an earlier bench left.
    """
    if not (target := os.environ.get("BENCH_JSON")):
        return
    path = Path(target)
    before = json.loads(path.read_text()) if path.exists() else []
    ours = {(one["step"], one["tool"]) for one in rows}
    kept = [one for one in before if (one["step"], one["tool"]) not in ours]
    path.write_text(json.dumps([*kept, *rows], indent=2))


def spread(seconds: Sequence[float]) -> str:
    """Return a cell: the median, and the least and the most."""
    least, most = min(seconds), max(seconds)
    digits = 2 if statistics.median(seconds) >= 0.1 else 3
    median = f"{statistics.median(seconds):.{digits}f}"
    return f"{median} ({least:.{digits}f}-{most:.{digits}f})" if len(seconds) > 1 else median


def times_as_long(ours: Sequence[float], others: Sequence[float]) -> str:
    """Return a cell: how many times our time the others take, run by run."""
    ratios = [other / own for own, other in zip(ours, others, strict=True)]
    return f"{statistics.median(ratios):.2f}"


def machine() -> str:
    """Return processor, memory and date."""
    listed = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    names = [line.split(":", 1)[1].strip() for line in listed.splitlines() if "Model name" in line]
    name = names[0] if names else platform.machine()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    date = time.strftime("%Y-%m-%d")
    return f"{os.cpu_count()} x {name}, {memory_gb} GB, load {os.getloadavg()[0]:.1f}, {date}"
