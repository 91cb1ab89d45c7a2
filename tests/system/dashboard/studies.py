"""Studies sent to the node, and the jobs that come of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TypeVar

from pydicom import Dataset
from sqlalchemy import update

from segnode_cli.jobs import ledger_of, view_of
from segnode_cli.node import Node
from segnode_cli.send import Peer, send_paths
from segnode_contract.identity import derived_uid
from segnode_contract.job import OPEN_STATES, JobState, NewJob
from segnode_contract.ledger import IntakeLedger, schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.view import JobRow

T = TypeVar("T")
HOSTILE = {
    "PatientName": "CANARY^<script>alert(1)</script>",
    "PatientID": 'CANARYID"><img src=x onerror=alert(2)>',
    "AccessionNumber": "<b onx=alert(3)>",
    "StudyDescription": "</title><script>alert(4)</script>",
    "SeriesDescription": "'><svg onload=alert(5)>",
    "ProtocolName": "{{7*7}}${7*7}<%=7*7%>",
    "InstitutionName": "<iframe srcdoc='<script>alert(6)</script>'>",
    "ReferringPhysicianName": "javascript:alert(7)^<a href=javascript:alert(7)>x",
    "StationName": "<x onclick=a(8)>",
    "Manufacturer": "--><script>alert(9)</script><!--",
    "StudyID": "<i onx=alert(A)>",
    "ImageComments": "]]><script>alert(11)</script>\u202egnp.exe",
}
"""What a scanner, or somebody with one, may have put into twelve attributes."""


def send(node: Node, images: list[Dataset], folder: Path) -> str:
    """Send the images of a study, and return its UID."""
    for number, image in enumerate(images):
        image.save_as(folder / f"{number:04}.dcm", enforce_file_format=True)
    peer = Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port)
    [study_uid] = send_paths([folder], peer).study_uids
    return study_uid


def ended(node: Node, study_uid: str, count: int = 1) -> list[JobRow]:
    """Return the jobs of a study once there are so many and none is open, the newest first."""

    def jobs() -> list[JobRow]:
        with view_of(node.data) as view:
            found = view.jobs(study_uid=study_uid)
        enough = len(found) >= count and not any(job.state in OPEN_STATES for job in found)
        return found if enough else []

    return wait(jobs, f"{count} ended jobs of study {study_uid}")


def wait(asked: Callable[[], T], what: str) -> T:
    """Return what is asked for once there is any."""
    end = time.monotonic() + 120
    while not (found := asked()):
        assert time.monotonic() < end, f"after two minutes there is not: {what}"
        time.sleep(0.2)
    return found


def decided(node: Node, study_uid: str) -> None:
    """Wait until the routes have decided on a study's series."""

    def series() -> bool:
        with view_of(node.data) as view:
            return any(each.decided_at is not None for each in view.series(study_uid))

    wait(series, f"a decision on study {study_uid}")


def again(images: list[Dataset], seed: str) -> list[Dataset]:
    """Return the same images as another study."""
    made = [deepcopy(image) for image in images]
    for image in made:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(image, keyword, derived_uid(seed, getattr(image, keyword)))
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    return made


def queue_for_nobody(node: Node, seed: str) -> str:
    """Queue a job in a lane that has no worker, and return its key."""
    key = hashlib.sha256(seed.encode()).hexdigest()
    job = NewJob(
        key=key,
        study_uid=derived_uid(seed, "study"),
        series_uids=(derived_uid(seed, "series"),),
        content=key,
        instance_count=100,
        route="to nobody",
        route_rank=9,
        model="ct-nobody",
        model_version="1.0",
        model_digest=key,
        lane="nobody",
        last_instance_at=time.time(),
        modality="CT",
    )
    with ledger_of(node.data) as ledger:
        intake = IntakeLedger(ledger)
        intake.note("elsewhere", 1, [])
        return intake.queue_by_hand("elsewhere", job, "test")


def set_state(node: Node, key: str, state: JobState) -> None:
    job = schema.job
    with ledger_of(node.data) as ledger, ledger.write() as connection:
        connection.execute(
            update(job).where(job.c.key == key).values(state=state, updated_at=now_s())
        )
