"""From an address to a coloured overlay: `python -m tests.bench.viewer`

300 slices of 512 x 512 with 6 and with 104 segments, in the form that `auto` chooses, from an
Orthanc of its own into OHIF in a Chromium that has seen nothing before, WebGL in software. All
times are the page's own, from the moment the address was entered. Prints medians; with
BENCH_JSON=FILE adds rows to the list in it. BENCH_N=N (3).
"""

from __future__ import annotations

import socket
import statistics
import tempfile
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from rich.console import Console
from rich.table import Table

from segnode_cli.ct_series import as_file, ct_series
from segnode_cli.node import VIEWER
from segnode_cli.show import say
from segnode_contract.card import Card
from segnode_contract.findings import Findings
from segnode_contract.form import AUTO, form_of
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.stack import stack_series

from ..system.browser import logged_in, open_viewer, running_chromium
from ..system.viewer_node import ViewerNode, running_node
from ..worker.many_segments import card_of
from .measured import RUNS, add_rows, machine, row, spread

SEGMENTS = (6, 104)
SLICES, SIZE = 300, 512
ACROSS = 13
"""Discs side by side; each goes through every slice."""
RED = (34885, 53485, 50171)
MOMENTS = {
    "asked": "asks for the study",
    "image": "first image drawn",
    "seg": "SEG fetched",
    "overlay": "SEG drawn",
}

_WATCH = """(() => {
    performance.setResourceTimingBufferSize(20000);
    const at = (window.benchAt = {});
    const small = new OffscreenCanvas(128, 128).getContext('2d', { willReadFrequently: true });
    document.addEventListener('CORNERSTONE_IMAGE_RENDERED', ({ target }) => {
        const canvas = target.querySelector('canvas');
        if (at.overlay || !canvas?.width) return;
        const now = performance.now();
        small.drawImage(canvas, 0, 0, 128, 128);
        const { data } = small.getImageData(0, 0, 128, 128);
        let bright = 0, coloured = 0;
        for (let i = 0; i < data.length; i += 4) {
            const pixel = [data[i], data[i + 1], data[i + 2]];
            bright += Math.max(...pixel) > 20;
            coloured += Math.max(...pixel) - Math.min(...pixel) > 40;
        }
        if (bright > 300) at.image ??= now;
        if (coloured > 3) at.overlay = now;
    }, true);
})()"""

_READ = """segSeries => {
    const got = performance.getEntriesByType('resource');
    const page = performance.getEntriesByType('navigation');
    const sum = values => values.reduce((a, b) => a + b, 0);
    const dicom = got.filter(({ name }) => /\\/(qido|dicom-web)\\//.test(name));
    const seg = dicom.filter(({ name }) => name.includes(segSeries) && !/metadata/.test(name));
    return {
        asked: Math.min(...dicom.map(({ startTime }) => startTime)),
        image: window.benchAt.image,
        seg: Math.max(...seg.map(({ responseEnd }) => responseEnd)),
        overlay: window.benchAt.overlay,
        requests: got.length + page.length,
        mb: sum([...got, ...page].map(({ transferSize }) => transferSize)) / 1e6,
        segMb: sum(seg.map(({ transferSize }) => transferSize)) / 1e6,
        heapMb: performance.memory.usedJSHeapSize / 1e6,
    };
}"""


class Opened:
    """A study in the archive, and what the ledger says of it."""

    def __init__(self, node: ViewerNode, segments: int) -> None:
        images = _images(segments)
        card = card_of(segments, colours={1: RED})
        self.form = form_of(card, AUTO)
        identity = ResultIdentity(
            job_key=f"bench {segments}", model_digest="0" * 64, node_id="bench", form=self.form
        )
        stack = stack_series([as_file(image) for image in images])
        seg = b"".join(
            encode(stack, _discs(card)[None], card, Findings(), identity, datetime(2026, 1, 2))
        )
        for image in images:
            node.upload(image)
        node.get("/instances", seg)
        self.seg_mb = len(seg) / 1e6
        self.study_uid = str(images[0].StudyInstanceUID)
        self.overlay = {
            "series_uid": str(images[0].SeriesInstanceUID),
            "seg_series_uid": identity.uid("series"),
            "model": card.name,
            "version": card.version,
            "route": "bench",
        }

    def measure(self, node: ViewerNode) -> dict[str, float]:
        """Open it in a fresh browser; return moments in seconds, and what was fetched."""
        node.say([self.overlay])
        with (
            running_chromium() as browser,
            logged_in(browser, node.base_url, node.user, node.password) as profile,
            open_viewer(profile, node.base_url) as viewer,
        ):
            viewer.page.add_init_script(_WATCH)
            viewer.open_study(self.study_uid)
            viewer.page.wait_for_function("window.benchAt?.overlay", timeout=240_000)
            got: dict[str, float] = viewer.page.evaluate(_READ, self.overlay["seg_series_uid"])
            viewer.screenshot(f"bench-viewer-{self.form}")
        return got | {moment: got[moment] / 1000 for moment in MOMENTS}


def main() -> None:
    """Measure, print, and add rows."""
    console = Console(width=160)
    console.print(machine())
    found: dict[int, list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as name, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        with running_node(Path(name), VIEWER, port) as node:
            say("making studies")
            studies = {segments: Opened(node, segments) for segments in SEGMENTS}
            for _ in range(RUNS):
                for segments, study in studies.items():
                    say(f"opening {segments} segments")
                    found[segments].append(study.measure(node))
    console.print(_table(studies, found))
    add_rows([_row(segments, runs) for segments, runs in found.items()])


def _table(studies: dict[int, Opened], found: dict[int, list[dict[str, float]]]) -> Table:
    table = Table(title=f"{SLICES} x {SIZE} x {SIZE}, seconds since the address, n={RUNS}")
    extra = ("requests", "MB in all", "MB of the SEG (file)", "heap of scripts, MB")
    for heading in ("segments", *MOMENTS.values(), *extra):
        table.add_column(heading)
    for segments, runs in found.items():
        study = studies[segments]

        def median(name: str, runs: list[dict[str, float]] = runs) -> float:
            return statistics.median(run[name] for run in runs)

        table.add_row(
            f"{segments}, {study.form}",
            *(spread([run[moment] for run in runs]) for moment in MOMENTS),
            f"{median('requests'):.0f}",
            f"{median('mb'):.0f}",
            f"{median('segMb'):.1f} ({study.seg_mb:.1f})",
            f"{median('heapMb'):.0f}",
        )
    return table


def _row(segments: int, runs: list[dict[str, float]]) -> dict[str, Any]:
    heap_mb = max(run["heapMb"] for run in runs)
    return row(f"viewer-{segments}", "segnode", [run["overlay"] for run in runs], heap_mb)


def _images(segments: int) -> list[Dataset]:
    noise = np.random.default_rng(segments).integers(-20, 20, (SLICES, SIZE, SIZE), np.int16)
    rows, columns = np.ogrid[:SIZE, :SIZE]
    body = ((rows - SIZE / 2) / 200) ** 2 + ((columns - SIZE / 2) / 240) ** 2 < 1
    hu = noise + np.where(body, np.int16(40), np.int16(-980))
    images = ct_series(hu, spacing_mm=(1.0, 0.75, 0.75), seed=f"viewer {segments}")
    for image in images:
        image.WindowCenter, image.WindowWidth = 40, 400
    return images


def _discs(card: Card) -> NDArray[np.uint8]:
    """Return labels with each segment in every slice."""
    across = min(ACROSS, len(card.segments) // 2)
    down = -(-len(card.segments) // across)
    cell = np.array([300 / down, 380 / across])
    rows, columns = np.ogrid[:SIZE, :SIZE]
    plane = np.zeros((SIZE, SIZE), np.uint8)
    for place, segment in enumerate(card.segments):
        middle = (np.array(divmod(place, across)) + 0.5) * cell + [106, 66]
        away = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2
        plane[away < (0.45 * cell.min()) ** 2] = segment.value
    return np.broadcast_to(plane, (SLICES, SIZE, SIZE)).copy()


if __name__ == "__main__":
    main()
