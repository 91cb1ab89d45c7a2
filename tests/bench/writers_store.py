"""The ways to an archive and back, side by side: the parts `store` and `chain` of `writers`.

All talk to the Orthanc of one node. Straightforward is what a good engineer writes first:
dicomweb-client or requests, pydicom, highdicom, each as its documentation shows it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from segnode_cli.node import CONFIG, Node, prepare
from segnode_cli.send import Peer, send_paths
from segnode_cli.show import say
from segnode_cli.supervise import running
from segnode_contract.settings import load_settings

from .measured import RUNS, add_rows, in_turn, row, spread, times_as_long
from .writers_chain_once import CHAINS, STEPS
from .writers_inputs import Case
from .writers_store_once import STORES

Said = dict[str, Any]


def one_object(folder: Path) -> Path:
    """Return a file of the node's own, for all to store."""
    out = folder / "to-store"
    out.mkdir()
    words = ("tests.bench.writers_once", "segnode", str(folder), str(out))
    return Path(_say(words, {})["path"])


def compare_stores(path: Path, console: Console) -> None:
    """Let all store the object and read it back, in turn, and print."""
    said: dict[str, list[Said]] = defaultdict(list)
    with _node() as node:
        for tool in in_turn(list(STORES)):
            say(f"{tool} stores {path.stat().st_size >> 20} MB")
            words = ("tests.bench.writers_store_once", tool, node.url, str(path))
            said[tool].append(_say(words, _login(node)))
    table = Table(
        "tool",
        "store s",
        "read back s",
        "both s",
        "x segnode",
        "peak MB",
        title=f"STOW-RS of one object of {path.stat().st_size / 1e6:.0f} MB, n={RUNS}",
    )
    for tool, runs in said.items():
        cells = [spread([one[key] for one in runs]) for key in ("store", "confirm", "both")]
        ours, theirs = ([one["both"] for one in some] for some in (said["segnode"], runs))
        peak_mb = max(one["peak_mb"] for one in runs)
        table.add_row(tool, *cells, times_as_long(ours, theirs), f"{peak_mb}")
        add_rows([row("store-104", tool, theirs, peak_mb)])
    console.print(table)


def compare_chains(folders: Mapping[Case, Path], console: Console) -> None:
    """Let all go from the images in the archive to a result in it, with labels at hand."""
    with _node() as node:
        peer = Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port)
        for case, folder in folders.items():
            send_paths([folder / "images"], peer)
            said: dict[str, list[Said]] = defaultdict(list)
            for tool in in_turn(list(CHAINS)):
                say(f"the chain of {tool}, {case}")
                words = ("tests.bench.writers_chain_once", tool, node.url, str(folder))
                said[tool].append(_say(words, _login(node)))
            _report(case, said, console)


def _report(case: Case, said: Mapping[str, list[Said]], console: Console) -> None:
    table = Table(
        *("step", *(f"{tool} s" for tool in said)),
        title=f"archive to archive without inference, {case}, n={RUNS}",
        caption="segnode's holds its proof, and a report with the measurements of each segment",
    )
    peaks = {tool: max(one["peak_mb"] for one in runs) for tool, runs in said.items()}
    for step in STEPS:
        times = {tool: [one[step] for one in runs if step in one] for tool, runs in said.items()}
        table.add_row(step, *(spread(some) if some else "-" for some in times.values()))
        names = {"chain": f"chain-{case.segments}", "second": f"chain-{case.segments}-warm"}
        if step in names:
            ratios = [times_as_long(times["segnode"], some) for some in times.values()]
            table.add_row("x segnode", *ratios, end_section=True)
            add_rows([row(names[step], tool, times[tool], peaks[tool]) for tool in said])
    table.add_row("peak MB", *(f"{peak}" for peak in peaks.values()))
    console.print(table)


@contextmanager
def _node() -> Iterator[Node]:
    config = CONFIG / "segnode.toml"
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as data:
        node = prepare(Path(data), config, load_settings(config))
        with running(node, 1, say):
            yield node


def _login(node: Node) -> dict[str, str]:
    user, password = node.login("worker")
    return {"BENCH_USER": user, "BENCH_PASSWORD": password}


def _say(words: tuple[str, ...], login: Mapping[str, str]) -> Said:
    """Run a module of the bench in a process of its own and return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env={**os.environ, **login},
        stdout=subprocess.PIPE,
        check=True,
    )
    said: Said = json.loads(done.stdout.splitlines()[-1])
    return said
