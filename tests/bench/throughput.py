"""Time C-STORE into Orthanc with our plugin and without: make bench

Two Orthancs with the same configuration, but that one lacks the Python plugin, take the same new
study of 300 CT images of 512 x 512 in every pair, each by one association: ABBA, so that whatever
changes slowly is shared. Both live all the time, but one is halted (SIGSTOP) while the other takes
images: the plugin's polling cannot slow the Orthanc without it, and what the plugin puts off,
such as deciding on the study before, falls into its own time. Redis runs and the model is
announced; no worker takes the jobs.

The sender is dcmtk's `storescu`, which takes about a third of the processor time of pynetdicom.
Prints each pair, and the median of the ratios with an interval; with BENCH_JSON=FILE adds
{step, tool, seconds, peak_mb, n} to the list in it. PAIRS=4 takes fewer pairs, TMPDIR=/dev/shm
leaves out the disk.
"""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from segnode_cli.ct_series import ct_series
from segnode_cli.health import pages_answer, redis_answers
from segnode_cli.node import CONFIG, Node, prepare
from segnode_cli.send import CALLING
from segnode_cli.servers import write_settings
from segnode_cli.show import say
from segnode_cli.supervise import check_programs
from segnode_contract.ledger import Ledger, WorkerLedger
from segnode_contract.settings import load_settings
from segnode_models.registry import builtin_models

from .bench import volume

PAIRS = int(os.environ.get("PAIRS", "20"))
SERIES = 2
GOAL = 1.05
KEPT = 2
"""Studies left in each archive: the plugin decides on one while the next one comes."""
_START_S = 60.0
_PLUGIN = "libOrthancPython.so"


@dataclass(kw_only=True)
class Store:
    """One of the two Orthancs, and what was measured of it."""

    step: str
    tool: str
    node: Node
    process: subprocess.Popen[bytes]
    kept: list[str] = field(default_factory=list)
    """Orthanc's ids of the studies that it has."""
    seconds: list[float] = field(default_factory=list)

    def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Call the REST API as administrator."""
        word = b64encode(":".join(self.node.login("administrator")).encode()).decode()
        headers = {"Authorization": f"Basic {word}", "Origin": self.node.url}
        request = urllib.request.Request(self.node.url + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def answers(self) -> bool:
        try:
            return bool(self.ask("GET", "/system"))
        except OSError:
            return False

    def peak_mb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [line] = [row for row in status.splitlines() if row.startswith("VmHWM")]
        return int(line.split()[1]) // 1024

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run inside the ``with``, and halt it afterwards."""
        self.process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGSTOP)

    def take(self, study_uid: str, images: Sequence[Path]) -> float:
        """Send a study; return the seconds until its last image was taken."""
        os.sync()  # what was written before is not to be waited for
        with self.awake():
            began = time.perf_counter()
            send(images, self.node.dicom_port)
            took = time.perf_counter() - began
            [found] = self.ask("POST", "/tools/lookup", study_uid.encode())
            counted = self.ask("GET", f"/studies/{found['ID']}/statistics")["CountInstances"]
            assert int(counted) == len(images), f"{counted} of {len(images)} images are there"
            self.kept.append(found["ID"])
            while len(self.kept) > KEPT:
                self.ask("DELETE", f"/studies/{self.kept.pop(0)}")
        return took


def send(images: Sequence[Path], port: int) -> None:
    """Send files by one association; each must be taken."""
    titles = ["-aet", CALLING, "-aec", "SEGNODE"]
    subprocess.run(
        ["storescu", "--required", *titles, "127.0.0.1", str(port), *map(str, images)],
        env={**os.environ, "TCP_NODELAY": "1"},
        check=True,
    )


def make_study(folder: Path, hu: NDArray[np.int16], spacing: tuple[float, float, float]) -> str:
    """Write a new study into a folder, over the one before, and return its UID."""
    study_uid = ""
    for number in range(SERIES):
        series = ct_series(hu, spacing_mm=spacing, series_number=number)
        study_uid = study_uid or str(series[0].StudyInstanceUID)
        for place, image in enumerate(series):
            image.StudyInstanceUID = study_uid
            image.save_as(folder / f"{number}-{place}.dcm", enforce_file_format=True)
    return study_uid


@contextmanager
def both(folder: Path) -> Iterator[tuple[Store, Store]]:
    """Start Orthanc with the plugin and Orthanc without, and halt them."""
    config = CONFIG / "segnode.toml"
    nodes = [prepare(folder / name, config, load_settings(config)) for name in ("with", "without")]
    programs = check_programs()
    for node in nodes:
        write_settings(node, programs, 0, node.data)
    leave_plugin_out(nodes[1].data / "orthanc.json")
    with (
        _started(nodes[0], programs["redis-server"], "redis.conf") as redis,
        _started(nodes[0], programs["Orthanc"], "orthanc.json") as ours,
        _started(nodes[1], programs["Orthanc"], "orthanc.json") as plain,
    ):
        stores = (
            Store(step="store-with-plugin", tool="segnode", node=nodes[0], process=ours),
            Store(step="store-without-plugin", tool="orthanc", node=nodes[1], process=plain),
        )
        _await(nodes[0], redis, lambda: redis_answers(nodes[0]))
        _await(nodes[0], ours, lambda: pages_answer(nodes[0]))
        _await(nodes[1], plain, stores[1].answers)
        announce_models(nodes[0])
        for store in stores:
            store.process.send_signal(signal.SIGSTOP)
        yield stores


def leave_plugin_out(path: Path) -> None:
    """Take the Python plugin and its script out of Orthanc's configuration, and nothing else."""
    settings = json.loads(path.read_text())
    settings["Plugins"] = [each for each in settings["Plugins"] if Path(each).name != _PLUGIN]
    del settings["PythonScript"], settings["PythonVerbose"]
    path.write_text(json.dumps(settings, indent=2))


def announce_models(node: Node) -> None:
    """Say that there is a worker, so that series are decided on once, as in service."""
    ledger = Ledger.open(node.environment()["SEGNODE_LEDGER_URL"])
    worker = WorkerLedger(ledger, "bench/1")
    for each in builtin_models():
        worker.announce(each.card.name, each.card.version, each.digest, each.card.source)
    ledger.close()


@contextmanager
def _started(node: Node, program: str, settings: str) -> Iterator[subprocess.Popen[bytes]]:
    with (node.data / "logs" / f"{Path(program).name}.log").open("w") as log:
        process = subprocess.Popen(
            # it ends with us, however we end, halted or not
            ["/usr/bin/setpriv", "--pdeathsig", "KILL", program, str(node.data / settings)],
            env={**os.environ, **node.environment(), "TCP_NODELAY": "1"},
            cwd=node.data,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.send_signal(signal.SIGCONT)
        process.wait()


def _await(node: Node, process: subprocess.Popen[bytes], answers: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_S
    while not answers():
        logs = sorted((node.data / "logs").glob("*.log"))
        words = "\n".join(log.read_text(errors="replace")[-2000:] for log in logs)
        assert process.poll() is None, words
        assert time.monotonic() < deadline, words
        time.sleep(0.2)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the exact interval of the median that holds it in 95 % or more of all samples.

    It lies between two of the sorted values, and assumes nothing of how they are distributed: how
    many of them are below the median is binomial. At least six values are needed.
    """
    ordered, n = sorted(values), len(values)
    rank, outside = 0, 2 * 0.5**n
    while outside <= 0.05:
        rank += 1
        outside += 2 * math.comb(n, rank) * 0.5**n
    return (ordered[rank - 1], ordered[-rank]) if rank else (-math.inf, math.inf)


def main() -> None:
    """Run, print, and add to the JSON where it is wanted."""
    hu, spacing = volume()
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as name:
        images_at = Path(name) / "images"
        images_at.mkdir()
        with both(Path(name)) as (ours, plain):
            for pair in range(PAIRS + 1):
                study_uid = make_study(images_at, hu, spacing)
                images = sorted(images_at.iterdir())
                order = (ours, plain) if pair % 2 else (plain, ours)
                took = {store.step: store.take(study_uid, images) for store in order}
                if pair:  # the one before warms up
                    for store in order:
                        store.seconds.append(took[store.step])
                    say(_line(pair, order[0], ours.seconds[-1], plain.seconds[-1]))
            peaks = [store.peak_mb() for store in (ours, plain)]
    _report((ours, plain), peaks, len(images))


def _line(pair: int, first: Store, with_s: float, without_s: float) -> str:
    return (
        f"pair {pair:2}: {with_s:.2f} s with, {without_s:.2f} s without, "
        f"ratio {with_s / without_s:.3f}, {first.tool} first"
    )


def _report(stores: tuple[Store, Store], peaks: Sequence[int], images: int) -> None:
    ours, plain = stores
    rows = [
        {
            "step": store.step,
            "tool": store.tool,
            "seconds": statistics.median(store.seconds),
            "peak_mb": peak,
            "n": len(store.seconds),
        }
        for store, peak in zip(stores, peaks, strict=True)
    ]
    table = Table("step", "median s", "min", "max", "images per s", "peak MB")
    for store, peak in zip(stores, peaks, strict=True):
        median = statistics.median(store.seconds)
        values = (median, min(store.seconds), max(store.seconds))
        table.add_row(
            store.step, *(f"{value:.2f}" for value in values), f"{images / median:.0f}", f"{peak}"
        )
    ratios = [a / b for a, b in zip(ours.seconds, plain.seconds, strict=True)]
    low, high = interval(ratios)
    console = Console()
    console.print(table)
    console.print(
        f"time with / time without: median {statistics.median(ratios):.3f}, "
        f"95 % interval {low:.3f} to {high:.3f}, goal at most {GOAL}; n={len(ratios)} pairs"
    )
    if target := os.environ.get("BENCH_JSON"):
        add_rows(Path(target), rows)


def add_rows(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Add rows to those of other benchmarks in a file, in place of older ones of the same steps."""
    new = {row["step"] for row in rows}
    before = json.loads(path.read_text()) if path.exists() else []
    kept = [row for row in before if row["step"] not in new]
    path.write_text(json.dumps([*kept, *rows], indent=2))


if __name__ == "__main__":
    main()
