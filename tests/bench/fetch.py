"""Time the way from the archive to a volume of 600 x 512 x 512: `python -m tests.bench.fetch`

`segnode` fetches by WADO-RS. `segnode REST` would ask Orthanc itself for the same files: it is
measured here, and not part of the node, as long as it gains nothing. `dicomweb-client + pydicom`
is what most would write first. They run in turn, each in a process of its own against one node,
and must give the same voxels. Prints medians; with BENCH_JSON=FILE adds rows to the list in it.
RUNS=N (5).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from segnode_cli.ct_series import ct_series
from segnode_cli.node import CONFIG, Node, prepare
from segnode_cli.phantom import chest_phantom
from segnode_cli.send import Peer, send_paths
from segnode_cli.show import say
from segnode_cli.supervise import running
from segnode_contract.settings import load_settings

from .measured import add_rows, row

RUNS = int(os.environ.get("RUNS", "5"))
SHAPE = (600, 512, 512)
SPACING_MM = (0.6, 0.7, 0.7)
VOLUME_MB = 2 * SHAPE[0] * SHAPE[1] * SHAPE[2] / 2**20
TOOLS = {  # and the role that Orthanc lets do it
    "segnode": "worker",
    "segnode REST": "administrator",
    "dicomweb-client + pydicom": "worker",
}
STEPS = ("fetch", "stack", "both")

Said = dict[str, float]


def main() -> None:
    """Send a series, fetch it in turn by each tool, and print."""
    said: dict[str, list[Said]] = defaultdict(list)
    config = CONFIG / "segnode.toml"
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as data:
        node = prepare(Path(data), config, load_settings(config))
        with running(node, 1, say):
            uids = _send(node)
            for _ in range(RUNS):
                for tool in TOOLS:
                    said[tool].append(_run(tool, node, uids))
    assert len({one["voxels"] for runs in said.values() for one in runs}) == 1
    _report(said)


def _send(node: Node) -> tuple[str, str]:
    """Send one series that no route of the node takes; return its study's and its own UID."""
    say("making the images")
    phantom = chest_phantom()
    index = [np.arange(n) * have // n for n, have in zip(SHAPE, phantom.hu.shape, strict=True)]
    noise = np.random.default_rng(1).integers(-20, 20, SHAPE, np.int16)
    images = ct_series(
        phantom.hu[np.ix_(*index)] + noise, spacing_mm=SPACING_MM, seed=str(time.time())
    )
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(images):
            image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
            image.save_as(Path(folder) / f"{number}.dcm", enforce_file_format=True)
        send_paths([Path(folder)], Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port))
    return images[0].StudyInstanceUID, images[0].SeriesInstanceUID


def _run(tool: str, node: Node, uids: tuple[str, str]) -> Said:
    say(f"running {tool}")
    user, password = node.login(TOOLS[tool])
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.fetch_once", tool, node.url, user, *uids],
        env={**os.environ, "BENCH_PASSWORD": password},
        stdout=subprocess.PIPE,
        check=True,
    )
    said: Said = json.loads(done.stdout.splitlines()[-1])
    return said


def _report(said: Mapping[str, Sequence[Said]]) -> None:
    table = Table("tool", *(f"{step} s" for step in STEPS), "peak MB", "of the volume")
    console, rows = Console(), []
    for tool, runs in said.items():
        peak_mb = max(one["peak_mb"] for one in runs)
        times = {step: [one[step] for one in runs] for step in STEPS}
        shown = [f"{statistics.median(t):.2f} ({min(t):.2f}-{max(t):.2f})" for t in times.values()]
        table.add_row(tool, *shown, f"{peak_mb:.0f}", f"{peak_mb / VOLUME_MB:.2f}")
        rows += [row(step, tool, times[step], peak_mb) for step in STEPS[:2]]
    console.print(table)
    ours = said["segnode"]
    for tool in list(said)[1:]:
        ratios = [b["both"] / a["both"] for a, b in zip(ours, said[tool], strict=True)]
        console.print(f"{tool}: {statistics.median(ratios):.2f} times as long as segnode")
    console.print(f"{SHAPE}, {VOLUME_MB:.0f} MB of voxels, n={RUNS}")
    add_rows(rows)


if __name__ == "__main__":
    main()
