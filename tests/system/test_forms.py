"""A label map on a whole node, and the same one from `segnode segment`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from segnode_cli.node import CONFIG, Node
from segnode_contract.form import Form
from segnode_worker.archive import DicomWebArchive
from segnode_worker.sandbox import why_not

from ..models.trained import shapes_phantom
from .conftest import whole_node
from .test_added_models import ROUTES, SEGNODE, add, brought, dice, found, give, wait_for

__all__ = ["brought"]

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no cell can be made here: {why_not()}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forms")


@pytest.fixture(scope="module")
def node(folder: Path) -> Iterator[Node]:
    demo = (CONFIG / "demo.toml").read_text()
    words = demo[: demo.index("[[routes]]")] + '[results]\nform = "LABELMAP"\n'
    with whole_node(folder, words + ROUTES, 1) as node:
        yield node


def test_a_node_and_the_command_write_the_same_label_map(
    node: Node, folder: Path, brought: Path, tmp_path: Path
) -> None:
    add(node, brought / "by-card")
    shapes = shapes_phantom(31, shape=(60, 70, 80), spacing_mm=(2.4, 1.9, 1.6))
    study_uid = give(node, tmp_path / "images", "by-card", shapes)
    job = wait_for(node, study_uid, lambda job: job.row.state in ("done", "failed", "dead"))
    assert job.row.state == "done", job.row.error_sentence
    masks = found(node, job)
    assert dice(masks["Organ"], shapes.organ & ~shapes.rod) > 0.9
    assert dice(masks["Rod"], shapes.rod) > 0.9

    config = ["--config", folder / "segnode.toml", "--data", node.data]
    command = [SEGNODE, "segment", tmp_path / "images", "--model", "by-card", "--out"]
    subprocess.run([*command, tmp_path / "out", *config], check=True)

    made = [dcmread(path) for path in (tmp_path / "out").iterdir()]
    [seg] = [each for each in made if each.Modality == "SEG"]
    archive = DicomWebArchive(f"{node.url}/dicom-web", "worker", node.passwords["worker"])
    kept = archive.fetch_instance(study_uid, seg.SeriesInstanceUID, seg.SOPInstanceUID)
    assert kept is not None
    for each in (seg, dcmread(BytesIO(kept))):
        assert (each.SegmentationType, each.SOPClassUID) == ("LABELMAP", Form.LABELMAP.storage)
    assert np.array_equal(seg.pixel_array, dcmread(BytesIO(kept)).pixel_array)
