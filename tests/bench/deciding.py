"""Time what the plugin needs to decide on a study of 20 series and 5,000 images: make bench

The images are small, for their pixels are never looked at. The times are the plugin's own, from
Orthanc's log: all decisions on the series of a study, and the one on the study as a whole.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from segnode_cli.ct_series import ct_series
from segnode_cli.node import CONFIG, Node, prepare
from segnode_cli.send import Peer, send_paths
from segnode_cli.show import say
from segnode_cli.supervise import running
from segnode_contract.settings import load_settings

STUDIES = 3
SERIES = 20
IMAGES = 250
QUIET_S = 20
"""Longer than the sending takes, which would hold the decisions up."""
ROUTE = """
[[routes]]
name = "best"
model = "ct-tissue"
modality = "CT"
trigger = "study"
prefer = ["thin_slices", "soft_kernel", "most_images", "largest_coverage"]
where.all = [
  { fact = "orientation", equals = "axial" },
  { fact = "slice_spacing_mm", at_most = 3 },
  { fact = "instances", at_least = 100000 },
]
"""
"""No image is enough, so that no job takes the machine meanwhile."""
_MS = re.compile(r"(series|study) decided .*ms=([0-9.]+)")


def main() -> None:
    """Run and print."""
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as folder:
        words = (CONFIG / "segnode.toml").read_text()
        words = words[: words.index("[[routes]]")].replace("quiet_s = 5 ", f"quiet_s = {QUIET_S} ")
        config = Path(folder) / "segnode.toml"
        config.write_text(words + ROUTE)
        node = prepare(Path(folder) / "node", config, load_settings(config))
        with running(node, 1, say):
            times = [one_study(node, Path(folder) / str(number)) for number in range(STUDIES)]
    _report(times)


def one_study(node: Node, folder: Path) -> tuple[float, float]:
    """Send a study; return the milliseconds of its series' decisions, and of its own."""
    folder.mkdir()
    before = len(decisions(node))
    study_uid = ""
    for number in range(SERIES):
        voxels = np.zeros((IMAGES, 16, 16), np.int16)
        series = ct_series(voxels, spacing_mm=(1.0, 1.0, 1.0), seed=f"{folder} {number}")
        study_uid = study_uid or series[0].StudyInstanceUID
        for place, image in enumerate(series):
            image.StudyInstanceUID, image.SeriesNumber = study_uid, number
            image.save_as(folder / f"{number}-{place}.dcm", enforce_file_format=True)
    send_paths([folder], Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port))
    deadline = time.monotonic() + 300
    while (found := decisions(node)[before:])[-1:] == [] or found[-1][0] != "study":
        if time.monotonic() > deadline:
            raise SystemExit("The study was not decided within five minutes.")
        time.sleep(0.5)
    series_ms = sum(ms for what, ms in found if what == "series")
    return series_ms, sum(ms for what, ms in found if what == "study")


def decisions(node: Node) -> list[tuple[str, float]]:
    """Return what the plugin's log says of decisions."""
    log = (node.data / "logs" / "orthanc.log").read_text(encoding="utf-8", errors="replace")
    return [(found[1], float(found[2])) for found in _MS.finditer(log)]


def _report(times: list[tuple[float, float]]) -> None:
    table = Table("decision", "median ms", "min", "max", title=f"{SERIES} series, {IMAGES} each")
    whole = [sum(both) for both in times]
    for name, values in (
        ("all series", [both[0] for both in times]),
        ("the study", [both[1] for both in times]),
        ("together", whole),
    ):
        row = (statistics.median(values), min(values), max(values))
        table.add_row(name, *(f"{value:.0f}" for value in row))
    Console().print(table, f"n={len(times)} studies", sep="\n")


if __name__ == "__main__":
    main()
