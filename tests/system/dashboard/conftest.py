"""A whole node with a job that is done, one that failed, and one that nobody takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom.config
import pytest
from pydicom import Dataset

from segnode_cli.ct_series import ct_series
from segnode_cli.node import CONFIG, PARTS, Node
from segnode_cli.phantom import chest_phantom
from segnode_contract.ledger.view import JobRow

from ..conftest import need, whole_node
from .studies import HOSTILE, ended, queue_for_nobody, send

SETTINGS = """
[[routes]]
name = "head only"
model = "ct-lung-density"
modality = "CT"
body_parts = ["HEAD"]
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, viewer_dist: Path) -> Iterator[Node]:
    need(PARTS.is_dir(), f"the scripts of the pages are not in {PARTS}")
    words = (CONFIG / "segnode.toml").read_text().replace("quiet_s = 5 ", "quiet_s = 1 ")
    with whole_node(tmp_path_factory.mktemp("dashboard"), words + SETTINGS, 1) as node:
        yield node


@pytest.fixture(scope="module")
def images() -> list[Dataset]:
    phantom = chest_phantom()
    made = ct_series(phantom.hu[::4], spacing_mm=(12.0, *phantom.spacing_mm[1:]), seed="dashboard")
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    for image in made:
        for keyword, value in HOSTILE.items():
            setattr(image, keyword, value)
    return made


@pytest.fixture(scope="module")
def done(node: Node, images: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> JobRow:
    """A job that is done, of a study with hostile words."""
    return ended(node, send(node, images, tmp_path_factory.mktemp("done")))[0]


@pytest.fixture(scope="module")
def failed(node: Node, tmp_path_factory: pytest.TempPathFactory) -> JobRow:
    """A job that failed: its images have no Hounsfield units."""
    phantom = chest_phantom()
    made = ct_series(phantom.hu[::8], spacing_mm=(24.0, *phantom.spacing_mm[1:]), seed="failed")
    for image in made:
        image.RescaleType = "US"
    return ended(node, send(node, made, tmp_path_factory.mktemp("failed")))[0]


@pytest.fixture(scope="module")
def queued(node: Node) -> str:
    """The key of a job in a lane that has no worker."""
    return queue_for_nobody(node, "queued")
