"""Pages that ask and change the archive, behind a real Orthanc."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import BytesIO
from urllib.parse import urlencode

import pytest
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage

from segnode_contract.ledger import Ledger
from segnode_worker.archive import DicomWebArchive

from .conftest import PASSWORD, Answer, PageNode
from .pages import token
from .rows import finish_job, queue_job
from .test_pictures import png

STUDY, SEG, SEG_SERIES = "1.7", "2.5.1", "2.5"


def instance(sop_class: str, modality: str, series_uid: str, uid: str) -> bytes:
    """Return an object of a study that no other test touches."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = sop_class, uid
    image.StudyInstanceUID, image.SeriesInstanceUID = STUDY, series_uid
    image.PatientID, image.Modality, image.SeriesDescription = STUDY, modality, "AI ct-tissue"
    file = BytesIO()
    image.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.fixture(scope="module")
def key(page_node: PageNode) -> Iterator[str]:
    """A job whose result, with one key picture, lies in the archive."""
    ledger = Ledger(f"sqlite:///{page_node.log.parent}/ledger.sqlite")
    made = queue_job(ledger, number=5, study_uid=STUDY)
    finish_job(ledger)
    worker = DicomWebArchive(f"http://127.0.0.1:{page_node.port}/dicom-web", "worker", PASSWORD)
    worker.store(STUDY, instance(CTImageStorage, "CT", f"{STUDY}.3", f"{STUDY}.3.1"))
    worker.store(STUDY, instance(SegmentationStorage, "SEG", SEG_SERIES, SEG))
    worker.keep_picture(SEG, 2, png())
    yield made
    with ledger.write() as connection:  # others look at the same node
        runs = f"select id from run where job_key = '{made}'"
        connection.exec_driver_sql(f"delete from stage where run_id in ({runs})")
        for table in ("run", "event", "outbox", "result"):
            connection.exec_driver_sql(f"delete from {table} where job_key = '{made}'")
        connection.exec_driver_sql(f"delete from job where key = '{made}'")
        connection.exec_driver_sql(f"delete from series where study_uid = '{STUDY}'")
    ledger.close()


def post(node: PageNode, page: str, path: str, **fields: str) -> Answer:
    word = token(node.ask(page, user="admin").text)
    return node.ask(
        path,
        user="admin",
        method="POST",
        body=urlencode({"token": word, **fields}).encode(),
        headers={
            "Content-Type": "application/x-www-form-urlencoded",
            "Origin": f"http://127.0.0.1:{node.port}",
        },
    )


def test_a_result_is_looked_at_withdrawn_and_deleted(page_node: PageNode, key: str) -> None:
    job = f"/segnode/jobs/{key}"
    text = page_node.ask(job, user="admin").text
    assert re.findall(r'<img src="(/segnode/pictures[^"]+)"', text) == [
        f"/segnode/pictures/{SEG}/2.png"
    ]
    assert re.search(r"/app/explorer\.html#series\?uuid=[0-9a-f-]{44}", text)
    assert "SEG AI ct-tissue" in page_node.ask(f"/segnode/studies/{STUDY}").text

    path = f"{job}/withdraw-and-delete"
    refused = post(page_node, f"{job}/withdraw", path, reason="wrong side", confirm="no")
    assert (refused.status, "Type 00000005 to delete" in refused.text) == (200, True)
    done = post(page_node, f"{job}/withdraw", path, reason="wrong side", confirm=key[:8])
    assert (done.status, done.headers["location"]) == (302, job)
    found = page_node.ask("/tools/lookup", user="admin", method="POST", body=SEG.encode())
    assert json.loads(found.body) == []
    after = page_node.ask(job).text
    assert "1 of 1 objects were in the archive and are deleted: wrong side" in after
    assert "Key slices" not in after
    told = json.loads(page_node.ask(f"/segnode/api/overlays?StudyInstanceUIDs={STUDY}").body)
    assert told == {"overlays": [], "hidden": [SEG_SERIES]}


def test_a_page_that_did_not_change_is_not_sent_again(page_node: PageNode, key: str) -> None:
    first = page_node.ask(f"/segnode/jobs/{key}/live")
    assert first.status == 200
    again = page_node.ask(
        f"/segnode/jobs/{key}/live", headers={"If-None-Match": first.headers["etag"]}
    )
    assert (again.status, again.body) == (304, b"")


def test_a_series_that_was_never_decided_can_be_run_by_hand_if_it_fits(
    page_node: PageNode, key: str
) -> None:
    text = page_node.ask(f"/segnode/studies/{STUDY}").text
    assert "Intake has not met this series" in text
    page = page_node.ask(f"/segnode/series/{STUDY}.3/run", user="admin")
    assert page.status == 200
    assert "Cannot: 1 image; the model ct-tissue needs 3 slices." in page.text
    assert page_node.ask("/segnode/series/9.9/run", user="admin").status == 404
