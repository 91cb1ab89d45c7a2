"""Time the road of a 300 x 512 x 512 CT through a real node: `make bench`.

Prints a table; with BENCH_JSON=FILE writes a list of {step, tool, seconds, peak_mb, n} as well.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from segnode_cli.ct_series import ct_series
from segnode_cli.jobs import view_of
from segnode_cli.node import CONFIG, Node, prepare
from segnode_cli.phantom import chest_phantom
from segnode_cli.send import Peer, send_paths
from segnode_cli.show import say
from segnode_cli.supervise import running
from segnode_contract.job import OPEN_STATES
from segnode_contract.ledger.view import Job
from segnode_contract.settings import load_settings

from .measured import machine

RUNS = 3
SHAPE = (300, 512, 512)


def volume() -> tuple[NDArray[np.int16], tuple[float, float, float]]:
    """Return the phantom on a grid of 300 x 512 x 512, with its spacing."""
    phantom = chest_phantom()
    index = [np.arange(n) * have // n for n, have in zip(SHAPE, phantom.hu.shape, strict=True)]
    spacing = [
        mm * have / n
        for mm, have, n in zip(phantom.spacing_mm, phantom.hu.shape, SHAPE, strict=True)
    ]
    return phantom.hu[np.ix_(*index)], (spacing[0], spacing[1], spacing[2])


def one_run(node: Node, hu: NDArray[np.int16], spacing: tuple[float, float, float]) -> Job:
    """Send one new study and return its finished job."""
    with tempfile.TemporaryDirectory() as folder:
        series = ct_series(hu, spacing_mm=spacing, seed=str(time.time_ns()))
        for number, image in enumerate(series):
            image.save_as(Path(folder) / f"{number}.dcm", enforce_file_format=True)
        del series
        peer = Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port)
        [study_uid] = send_paths([Path(folder)], peer).study_uids
    with view_of(node.data) as view:
        while not (jobs := view.jobs(study_uid=study_uid)) or jobs[0].state in OPEN_STATES:
            time.sleep(0.2)
        job = view.job(jobs[0].key)
    assert job is not None and job.row.state == "done", job
    return job


def model_process_peak_mb() -> int:
    """Return the peak memory of the model process below this one, from /proc."""
    below = [os.getpid()]
    for pid in below:  # grows while it is read
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            below += [int(child) for child in children.read_text().split()]
    for pid in below:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        # what stands before it makes its cell, and then waits
        if b"segnode_models.server" in command and b"--die-with-parent" not in command:
            return peak_mb_of(pid)
    return 0


def peak_mb_of(pid: int) -> int:
    """Return the peak memory of a process; getrusage would count what its parent had."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [row for row in status.splitlines() if row.startswith("VmHWM")]
    return int(line.split()[1]) // 1024


def main() -> None:
    """Run, print, and write JSON where it is wanted."""
    seconds: dict[str, list[float]] = defaultdict(list)
    child_mb: list[int] = []
    hu, spacing = volume()
    config = CONFIG / "segnode.toml"
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as data:
        node = prepare(Path(data), config, load_settings(config))
        with running(node, 1, say):
            for _ in range(RUNS):
                job = one_run(node, hu, spacing)
                for stage in job.row.stages:
                    seconds[stage.stage].append(stage.seconds or 0.0)
                whole = (
                    max(each.confirmed_at or 0.0 for each in job.row.objects)
                    - job.row.last_instance_at
                )
                seconds["chain"].append(whole - node.settings.intake.quiet_s)
                child_mb.append(job.runs[-1].peak_mb or 0)
            model_mb = model_process_peak_mb()
    _report(seconds, max(child_mb), model_mb)


def _report(seconds: dict[str, list[float]], child_mb: int, model_mb: int) -> None:
    whole = statistics.median(seconds["chain"])
    table = Table(
        "step",
        "median s",
        "min",
        "max",
        "share of chain",
        title=f"{SHAPE}, ct-tissue, on {machine()}",
    )
    for step, times in seconds.items():
        median = statistics.median(times)
        row = (median, min(times), max(times))
        table.add_row(step, *(f"{value:.2f}" for value in row), f"{median / whole:.2f}")
    console = Console()
    console.print(table)
    console.print(f"peak memory: worker child {child_mb} MB, model process {model_mb} MB; n={RUNS}")
    if target := os.environ.get("BENCH_JSON"):
        rows = [
            row(step, "segnode", times, model_mb if step == "infer" else child_mb)
            for step, times in seconds.items()
        ]
        Path(target).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
