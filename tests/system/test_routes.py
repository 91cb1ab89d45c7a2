"""Routes with conditions on a real node, and `segnode explain` of what they did."""

from __future__ import annotations

import base64
import html
import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from pydicom import Dataset

from segnode_cli.ct_series import ct_series
from segnode_cli.node import CONFIG, Node
from segnode_cli.phantom import chest_phantom
from segnode_cli.servers import program

from .conftest import whole_node
from .test_road import send_and_wait, wait_for_jobs

ROUTES = """
[[routes]]
name = "thin"
model = "ct-tissue"
modality = "CT"
where.all = [
  { fact = "slice_spacing_mm", at_most = 3.1 },
  { fact = "orientation", equals = "axial" },
  { fact = "calling_aet", equals = "SEGNODE_SEND" },
  { not = { attribute = "SeriesDescription", contains = "bone" } },
]
"""


LATER = """
[[routes]]
name = "{name}"
model = "ct-lung-density"
modality = "CT"
where = {{ attribute = "ProtocolName", equals = "{name}" }}
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    demo = (CONFIG / "demo.toml").read_text()
    words = demo[: demo.index("[[routes]]")] + ROUTES
    with whole_node(tmp_path_factory.mktemp("routes"), words, 1) as node:
        yield node


def study() -> list[Dataset]:
    """Make what one visit leaves: a thin series, a bone kernel, thick slices, a localizer."""
    phantom = chest_phantom()
    thin = phantom.hu[:40, ::4, ::4]
    z, y, x = phantom.spacing_mm
    images = []
    for number, (words, hu, spacing_mm) in enumerate(
        [
            ("Thorax soft", thin, z),
            ("Thorax BONE", thin, z),
            ("Thorax thick", thin[::2], 2 * z),
            ("Topogram", thin[:1], z),
        ],
        1,
    ):
        series = ct_series(hu, spacing_mm=(spacing_mm, 4 * y, 4 * x), seed=f"routes {number}")
        for image in series:
            image.StudyInstanceUID = (images or series)[0].StudyInstanceUID
            image.SeriesNumber = number
            image.SeriesDescription = words
            if words == "Topogram":
                image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        images += series
    return images


def test_a_study_of_four_series_gives_one_job_and_three_reasons(node: Node, tmp_path: Path) -> None:
    images = study()
    [job] = send_and_wait(node, images, tmp_path, count=1)
    assert (job.state, job.series_uids) == ("done", (images[0].SeriesInstanceUID,))
    asked = [program("segnode"), "explain", job.study_uid, "--json", "--data", str(node.data)]
    said = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)
    assert {row["series"]: row["reason"] for row in said if row["series"][2:4] == "CT"} == {
        "1 CT Thorax soft": "every condition holds",
        "2 CT Thorax BONE": "SeriesDescription is Thorax BONE, a text with BONE is not wanted",
        "3 CT Thorax thick": "slice_spacing_mm is 6, at most 3.1 is wanted",
        "4 CT Topogram": "Image Type says LOCALIZER",
    }
    [own] = [row for row in said if " SEG " in row["series"]]
    assert own["reason"] == "a result of ours"


def test_a_study_that_is_not_there_is_named(node: Node) -> None:
    asked = [program("segnode"), "explain", "1.2.3", "--data", str(node.data)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no study 1.2.3" in done.stderr


def test_a_changed_file_is_followed_and_a_broken_one_is_told_of(node: Node, tmp_path: Path) -> None:
    config = Path(node.environment()["SEGNODE_CONFIG"])
    before = config.read_text()
    config.write_text(before.replace('contains = "bone"', 'contains = "soft"'))
    phantom = chest_phantom()
    z, y, x = phantom.spacing_mm
    series = ct_series(phantom.hu[:9, ::4, ::4], spacing_mm=(z, 4 * y, 4 * x), seed="changed")
    for image in series:
        image.SeriesDescription = "BONE"
    [job] = send_and_wait(node, series, tmp_path, count=1)
    assert job.state == "done"
    config.write_text(before.replace("SeriesDescription", "SeriesDescripton"))
    wait_for_page(node, lambda page: "'SeriesDescripton', which DICOM does not know" in page)
    config.write_text(before)
    wait_for_page(node, lambda page: "DICOM does not know" not in page)


def segnode(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("segnode"), *words, "--data", str(node.data)],
        capture_output=True,
        text=True,
        check=True,
    )


def replayed(node: Node, *words: str) -> list[tuple[str, str]]:
    """Return route and state of the jobs that a replay of today's studies shows."""
    since = (datetime.now() - timedelta(days=1)).strftime("%Y-%m-%d")
    rows = json.loads(segnode(node, "replay", "--since", since, "--json", *words).stdout)
    return sorted((row["route"], row["state"]) for row in rows)


def test_a_route_that_is_added_later_is_replayed(node: Node, tmp_path: Path) -> None:
    config = Path(node.environment()["SEGNODE_CONFIG"])
    before = config.read_text()
    z, y, x = chest_phantom().spacing_mm
    series = ct_series(chest_phantom().hu[:30, ::4, ::4], spacing_mm=(z, 4 * y, 4 * x))
    for image in series:
        image.ProtocolName = "later"
    [first] = send_and_wait(node, series, tmp_path, count=1)
    config.write_text(before + LATER.format(name="later"))
    shown = replayed(node)
    assert shown.count(("later", "missing")) == 1
    time.sleep(3)
    assert [job.key for job in wait_for_jobs(node, first.study_uid, 1)] == [first.key]
    assert replayed(node, "--run") == shown
    jobs = {job.route: job for job in wait_for_jobs(node, first.study_uid, 2)}
    assert (jobs["later"].state, jobs["later"].priority) == ("done", "background")
    assert jobs[first.route] == first
    assert ("later", "done") in replayed(node)
    assert ("later", "missing") not in replayed(node)
    config.write_text(before)


def test_an_administrator_replays_in_the_browser(
    node: Node, chromium: Browser, tmp_path: Path
) -> None:
    config = Path(node.environment()["SEGNODE_CONFIG"])
    before = config.read_text()
    z, y, x = chest_phantom().spacing_mm
    series = ct_series(chest_phantom().hu[:30, ::4, ::4], spacing_mm=(z, 4 * y, 4 * x))
    for image in series:
        image.ProtocolName = "by hand"
    [first] = send_and_wait(node, series, tmp_path, count=1)
    config.write_text(before + LATER.format(name="by hand"))
    login = {"username": "admin", "password": node.passwords["admin"]}
    tab = chromium.new_context(http_credentials=login).new_page()
    day = (datetime.now() - timedelta(days=1)).strftime("%Y-%m-%d")
    tab.goto(f"{node.url}/segnode/replay")
    tab.fill("#since", day)
    tab.click("text=Look")
    assert tab.locator(".chip.missing").count() > 0
    tab.click("text=Start what is missing")
    assert "series were given back to intake" in tab.locator(".good").inner_text()
    jobs = {job.route: job for job in wait_for_jobs(node, first.study_uid, 2)}
    assert jobs["by hand"].state == "done"
    tab.goto(f"{node.url}/segnode/studies/{first.study_uid}/explain")
    assert tab.locator(".chip.done").count() >= 2
    tab.context.close()
    config.write_text(before)


def wait_for_page(node: Node, holds: Callable[[str], bool]) -> None:
    word = base64.b64encode(f"viewer:{node.passwords['viewer']}".encode()).decode()
    asked = urllib.request.Request(
        f"{node.url}/segnode/", headers={"Authorization": f"Basic {word}"}
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            page = html.unescape(answer.read().decode())
        if holds(page):
            return
        time.sleep(0.3)
    raise AssertionError(page)
