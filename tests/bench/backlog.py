"""Is the model fed? 20 studies wait for one model; then the ledger's stage times are read.

The worker is stopped until all are queued. Prints the stages' medians, how long the model stood
between two jobs, and how much of the other stages was done while it worked. With WORKERS=N children
(3); with BENCH_JSON=FILE adds rows to the list in it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from segnode_cli.ct_series import ct_series
from segnode_cli.jobs import view_of
from segnode_cli.node import CONFIG, Node, prepare
from segnode_cli.phantom import chest_phantom
from segnode_cli.send import Peer, send_paths
from segnode_cli.servers import program
from segnode_cli.show import say
from segnode_cli.supervise import running
from segnode_contract.job import JobState, Stage
from segnode_contract.ledger.view import Job, StageTime
from segnode_contract.settings import load_settings

STUDIES = int(os.environ.get("STUDIES", "20"))
WORKERS = int(os.environ.get("WORKERS", "3"))
SHAPE = (100, 512, 512)

Span = tuple[float, float]


def main() -> None:
    """Send, let the worker go, and print."""
    config = CONFIG / "segnode.toml"
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as data:
        node = prepare(Path(data), config, load_settings(config))
        with running(node, WORKERS, say):
            _supervisor(node, "stop", "worker")
            for number in range(STUDIES):
                say(f"sending study {number + 1} of {STUDIES}")
                _send(node)
            _await(node, JobState.QUEUED)
            say("the worker starts")
            _supervisor(node, "start", "worker")
            jobs = _await(node, JobState.DONE)
    _report(jobs)


def _send(node: Node) -> None:
    phantom = chest_phantom()
    index = [np.arange(n) * have // n for n, have in zip(SHAPE, phantom.hu.shape, strict=True)]
    spacing = [
        mm * have / n
        for mm, have, n in zip(phantom.spacing_mm, phantom.hu.shape, SHAPE, strict=True)
    ]
    series = ct_series(
        phantom.hu[np.ix_(*index)],
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        seed=str(time.time_ns()),
    )
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(series):
            image.save_as(Path(folder) / f"{number}.dcm", enforce_file_format=True)
        send_paths([Path(folder)], Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port))


def _await(node: Node, state: JobState) -> list[Job]:
    with view_of(node.data) as view:
        while view.counts().get(state, 0) < STUDIES:
            time.sleep(0.5)
        return [job for row in view.jobs() if (job := view.job(row.key))]


def _supervisor(node: Node, *words: str) -> None:
    command = [program("supervisorctl"), "-c", str(node.data / "supervisord.conf"), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _report(jobs: Sequence[Job]) -> None:
    stages = [stage for job in jobs for stage in job.row.stages]
    spans: dict[str, list[Span]] = defaultdict(list)
    for stage in stages:
        spans[stage.stage].append(_span(stage))
    model = sorted(spans[Stage.INFER])
    others = [
        span
        for name, found in spans.items()
        if name not in (Stage.INFER, Stage.QUEUED, Stage.TURN)
        for span in found
    ]
    whole = model[-1][1] - model[0][0]
    busy = sum(end - begin for begin, end in model)
    gaps = [later[0] - earlier[1] for earlier, later in pairwise(model)]
    beside = sum(_shared(span, model) for span in others)
    worked = sum(end - begin for begin, end in others)
    table = Table("stage", "median s", "min", "max", title=f"{STUDIES} studies of {SHAPE}")
    for name in Stage:
        if found := [end - begin for begin, end in spans[name]]:
            figures = (statistics.median(found), min(found), max(found))
            table.add_row(name, *(f"{value:.2f}" for value in figures))
    console = Console()
    console.print(table)
    console.print(
        f"{WORKERS} worker children, first to last inference {whole:.1f} s, "
        f"{whole / len(model):.2f} s for each study; the model worked {busy / whole:.0%} of it, "
        f"and stood {statistics.median(gaps):.2f} s between two jobs (median; "
        f"{max(gaps):.2f} at most). Of the other stages' {worked:.1f} s, {beside / worked:.0%} "
        "passed while it worked."
    )
    if target := os.environ.get("BENCH_JSON"):
        path = Path(target)
        rows = json.loads(path.read_text()) if path.exists() else []
        seconds = {"study-of-20": whole / len(model), "between-jobs": statistics.median(gaps)}
        rows += [
            {"step": step, "tool": "segnode", "seconds": s, "peak_mb": None, "n": len(model)}
            for step, s in seconds.items()
        ]
        path.write_text(json.dumps(rows, indent=2))


def _span(stage: StageTime) -> Span:
    return stage.started_at, stage.started_at + (stage.seconds or 0.0)


def _shared(span: Span, others: Sequence[Span]) -> float:
    return sum(max(0.0, min(span[1], end) - max(span[0], begin)) for begin, end in others)


if __name__ == "__main__":
    main()
