"""The node's own stages beside the straightforward stack, on the same images and the same network.

Straightforward is what a good engineer writes first: dicomweb-client, pydicom, MONAI's dictionary
transforms with their defaults, `sliding_window_inference`, highdicom, requests. Both run in turn,
each in a process of its own, against one Orthanc. Prints medians; with BENCH_JSON=FILE adds rows to
the list in it. RUNS=N (3).

``python -m tests.bench.side_by_side``
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
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.models.trained import PATCH, SOFTMAX_SEGMENTS, card_toml, shapes_phantom, trained_softmax

from segnode_cli.ct_series import ct_series
from segnode_cli.node import CONFIG, Node, prepare
from segnode_cli.send import Peer, send_paths
from segnode_cli.show import say
from segnode_cli.supervise import running
from segnode_contract.settings import load_settings
from segnode_models.trust import pins_of, write_pins

from .measured import add_rows, row

RUNS = int(os.environ.get("RUNS", "3"))
SHAPE = (300, 512, 512)
SPACING_MM = (1.0, 0.7, 0.7)
MODEL = "shapes"
TOOLS = ("segnode", "straightforward")
STEPS = ("fetch", "stack", "infer", "encode", "verify", "store", "chain", "second")
"""`second` is the whole chain once more in the same process, with the model loaded."""


def card() -> str:
    """Return the card of the network that both run."""
    return card_toml(
        kind="torchscript",
        needs="spacing_mm = [3, 2, 2]\nintensity = { clip = [-200, 400], scale = [0, 1] }",
        network=f"patch = {list(PATCH)}\noverlap = 0.25\nactivation = 'softmax'",
        segments=SOFTMAX_SEGMENTS,
    )


def main() -> None:
    """Prepare, run both in turn, and print."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    peaks: dict[str, list[float]] = defaultdict(list)
    config = CONFIG / "segnode.toml"
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as data:
        node = prepare(Path(data), config, load_settings(config))
        _add_model(node.data / "models")
        with running(node, 1, say):
            study = _send(node)
            for _ in range(RUNS):
                for tool in TOOLS:
                    said = _run(tool, node, study)
                    for step in STEPS:
                        if step in said:
                            seconds[tool, step].append(said[step])
                    peaks[tool].append(said["peak_mb"])
    _report(seconds, peaks)


def _add_model(models: Path) -> None:
    folder = models / MODEL
    folder.mkdir(parents=True)
    (folder / "model.ts").write_bytes(trained_softmax().torchscript.read_bytes())
    (folder / "card.toml").write_text(card())
    write_pins(models, MODEL, pins_of(folder))


def _send(node: Node) -> str:
    """Send one series that no route of the node takes; it is there to be fetched."""
    say("making the images")
    hu = shapes_phantom(7, shape=SHAPE, spacing_mm=SPACING_MM).hu
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(ct_series(hu, spacing_mm=SPACING_MM, seed=str(time.time()))):
            image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
            image.save_as(Path(folder) / f"{number}.dcm", enforce_file_format=True)
        peer = Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port)
        [study] = send_paths([Path(folder)], peer).study_uids
    return study


def _run(tool: str, node: Node, study: str) -> dict[str, float]:
    say(f"running {tool}")
    password = node.passwords["worker"]
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.side_{tool}", str(node.data), node.url, study],
        env={**os.environ, "BENCH_PASSWORD": password},
        stdout=subprocess.PIPE,
        check=True,
    )
    said: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return said


def _report(seconds: dict[tuple[str, str], list[float]], peaks: dict[str, list[float]]) -> None:
    table = Table("step", *(f"{tool} s" for tool in TOOLS), "ratio", title=f"{SHAPE}, n={RUNS}")
    for step in STEPS:
        ours, plain = (seconds[tool, step] for tool in TOOLS)
        medians = [statistics.median(times) if times else None for times in (ours, plain)]
        shown = [f"{m:.2f}" if m is not None else "-" for m in medians]
        ratios = [b / a for a, b in zip(ours, plain, strict=False)]
        table.add_row(step, *shown, f"{statistics.median(ratios):.1f}" if ratios else "-")
    table.add_row("peak MB", *(f"{max(peaks[tool]):.0f}" for tool in TOOLS), "")
    Console().print(table)
    add_rows(
        [
            row(f"unet-{step}", tool, times, max(peaks[tool]))
            for (tool, step), times in seconds.items()
            if times
        ]
    )


if __name__ == "__main__":
    main()
