"""A hundred mutated series, and hostile ones, through the whole road; then a healthy one.

The judge knows no expectation per series: what Orthanc took must be decided, and what became a job
must have ended, with a code where it failed.
"""

from __future__ import annotations

import base64
import json
import random
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from sqlalchemy import select

from segnode_cli.ct_series import as_file, ct_series
from segnode_cli.jobs import ledger_of, view_of
from segnode_cli.node import CONFIG, Node
from segnode_cli.phantom import chest_phantom
from segnode_cli.send import Peer, send_paths
from segnode_contract.job import OPEN_STATES
from segnode_contract.ledger import schema
from segnode_contract.ledger.view import JobRow
from segnode_worker.multipart import body

from .conftest import whole_node

NAME = "CANARY^Name"
SPACING_MM = (3.0, 1.5, 1.25)
FLIPPED, CHANGED = 60, 40
VALUES = ("", "0", "-1", "nan", "CANARY", "1\\2\\3\\4", "2147483647", "../../..", "x" * 30000)
HOSTILE = {
    "StudyInstanceUID": ("../../../../system", "1." + "2" * 90, "1.2/../../x", ".."),
    "SeriesInstanceUID": ("../../../../system", "1." + "2" * 90, "<script>", "1.2?x=1#y"),
    "SOPInstanceUID": ("../../../../system", "1." + "2" * 90, "CANARY"),
    "Modality": ("CANARY^Name", "x" * 30000, "CT\\MR"),
    "BodyPartExamined": ("CANARY^Name" * 10, "<script>alert(1)</script>"),
    "NumberOfFrames": (str(2**31 - 1),),
    "SpecificCharacterSet": ("ISO_IR 999", "\\ISO 2022 IR 87"),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, viewer_dist: Path) -> Iterator[Node]:
    """A node with one route, as `segnode up` starts it."""
    demo = (CONFIG / "demo.toml").read_text()
    words = demo[: demo.index('[[routes]]\nname = "lung density"')]
    with whole_node(tmp_path_factory.mktemp("node"), words, 2) as node:
        yield node


def small_series(seed: str, **how: str) -> list[Dataset]:
    hu = np.full((4, 40, 40), -1000, np.int16)
    hu[1:, 5:30, 8:30] = 40
    return ct_series(hu, spacing_mm=SPACING_MM, seed=seed, patient_name=NAME, **how)


def flipped(number: int) -> list[bytes]:
    """Change a few bytes of one image."""
    dice = random.Random(f"road {number}")
    files = [as_file(image) for image in small_series(f"flipped {number}")]
    file = bytearray(files[1])
    last = dice.choice((1500, len(file)))
    for _ in range(dice.randint(1, 4)):
        file[dice.randrange(132, last)] ^= 1 << dice.randrange(8)
    return [files[0], bytes(file), *files[2:]]


def changed(number: int) -> list[bytes]:
    """Give one attribute of every image another value, or take it away."""
    dice = random.Random(f"road {number}")
    images = small_series(f"changed {number}")
    elements = [e for e in images[0] if e.VR in ("CS", "DS", "IS", "LO", "PN", "SH", "DA", "TM")]
    keyword = dice.choice(elements).keyword
    return with_text(images, keyword, dice.choice(VALUES))


def with_text(images: list[Dataset], keyword: str, text: str) -> list[bytes]:
    """Write a text without asking whether the attribute may have it."""
    files = []
    for image in images:
        whole = dcmread(BytesIO(as_file(image)))
        tag, value = Tag(tag_for_keyword(keyword) or 0), text.encode()
        value += b" " * (len(value) % 2)
        kind = dictionary_VR(tag)
        whole[tag] = RawDataElement(tag, kind, len(value), value, 0, False, True)
        stream = BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcmwrite(stream, whole)
        files.append(stream.getvalue())
    return files


def hostile() -> Iterator[list[bytes]]:
    for keyword, texts in HOSTILE.items():
        for text in texts:
            images = small_series(f"{keyword} {text}")
            if keyword not in images[0]:
                for image in images:
                    setattr(image, keyword, 1)
            yield with_text(images, keyword, text)
    images = small_series("much from little")
    for image in images:
        image.Rows = image.Columns = 65535
        image.PixelData = bytes(10)
    yield [as_file(image) for image in images]
    yield [b"", b"no image", b"\x7fELF" + bytes(1000), as_file(images[0])[:500]]


def give(node: Node, file: bytes) -> int:
    """Store over DICOMweb; return the status of the answer."""
    word = base64.b64encode(f"worker:{node.passwords['worker']}".encode()).decode()
    headers = {
        "Authorization": f"Basic {word}",
        "Content-Type": 'multipart/related; type="application/dicom"; boundary=bad-input',
        "Accept": "application/dicom+json",
    }
    request = urllib.request.Request(
        f"{node.url}/dicom-web/studies", b"".join(body("bad-input", file)[1]), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def series_in_archive(node: Node) -> set[str]:
    """Return Orthanc's ids of all series."""
    word = base64.b64encode(f"admin:{node.passwords['admin']}".encode()).decode()
    request = urllib.request.Request(
        f"{node.url}/series", headers={"Authorization": f"Basic {word}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return set(json.loads(answer.read()))


def pids(node: Node) -> dict[str, str]:
    ctl = [str(Path(sys.executable).parent / "supervisorctl"), "-c"]
    ctl.append(str(node.data / "supervisord.conf"))
    return {
        name: subprocess.run([*ctl, "pid", name], capture_output=True, check=True)
        .stdout.decode()
        .strip()
        for name in ("redis", "orthanc", "worker")
    }


def undecided(node: Node) -> set[str]:
    """Return Orthanc's ids of the series in the archive without a decision."""
    table = schema.series
    with ledger_of(node.data) as ledger, ledger.read() as connection:
        decided = select(table.c.orthanc_id).where(table.c.decided_at.is_not(None))
        return series_in_archive(node) - set(connection.scalars(decided))


def all_jobs(node: Node) -> list[JobRow]:
    with view_of(node.data) as view:
        return view.jobs(limit=1000)


def wait_until_idle(node: Node, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        left = undecided(node)
        busy = [job for job in all_jobs(node) if job.state in OPEN_STATES]
        if not left and not busy:
            return
        time.sleep(1)
    raise AssertionError(f"{len(left)} series undecided: {left}; jobs open: {busy}")


@dataclass(frozen=True)
class Outcome:
    jobs: list[JobRow]
    """All that the bad series caused, after they ended."""
    pids_before: dict[str, str]
    pids_after: dict[str, str]


@pytest.fixture(scope="module")
def outcome(node: Node) -> Outcome:
    before = pids(node)
    series = [flipped(number) for number in range(FLIPPED)]
    series += [changed(number) for number in range(CHANGED)]
    series += hostile()
    answers = Counter(give(node, file) for files in series for file in files)
    assert set(answers) <= {200, 202, 400, 409}
    assert len(series_in_archive(node)) >= FLIPPED + CHANGED
    wait_until_idle(node, 100)
    return Outcome(all_jobs(node), before, pids(node))


def test_every_bad_series_ends_in_a_code(outcome: Outcome) -> None:
    ended = Counter((job.state, job.error_code) for job in outcome.jobs)
    print(ended)
    assert {state for state, _ in ended} <= {"done", "failed", "superseded"}
    assert None not in {code for state, code in ended if state == "failed"}
    assert "internal" not in {code for _, code in ended}
    assert {"bad-uid", "too-large", "multi-frame", "geometry"} <= {code for _, code in ended}
    assert not [job for job in outcome.jobs if "CANARY" in (job.error_sentence or "")]


def test_no_process_died_of_them(outcome: Outcome) -> None:
    assert outcome.pids_after == outcome.pids_before


def test_the_next_healthy_series_is_done_within_a_minute(
    node: Node, outcome: Outcome, tmp_path: Path
) -> None:
    began = time.monotonic()
    phantom = chest_phantom()
    healthy = ct_series(phantom.hu[:60], spacing_mm=phantom.spacing_mm, seed="healthy")
    for number, image in enumerate(healthy):
        image.save_as(tmp_path / f"{number:04}.dcm", enforce_file_format=True)
    peer = Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port)
    assert send_paths([tmp_path], peer).stored == len(healthy)
    uid = healthy[0].StudyInstanceUID
    while not (job := next((job for job in all_jobs(node) if job.study_uid == uid), None)) or (
        job.state in OPEN_STATES
    ):
        assert time.monotonic() - began < 60
        time.sleep(0.5)
    assert job.state == "done"


def test_what_is_no_uid_becomes_no_address(outcome: Outcome) -> None:
    asked = [uid for job in outcome.jobs for uid in (job.study_uid, *job.series_uids)]
    assert [uid for uid in asked if not re.fullmatch(r"[0-9.]{1,64}", uid)] == []
    assert "archive-password" not in {job.error_code for job in outcome.jobs}


def test_no_name_leaves_the_archive(node: Node, outcome: Outcome) -> None:
    places = [*(node.data / "logs").iterdir(), *node.data.glob("ledger.sqlite*")]
    places += [file for file in (node.data / "redis").rglob("*") if file.is_file()]
    assert len(places) >= 4
    assert [place.name for place in places if b"CANARY" in place.read_bytes()] == []
