"""Key pictures: who may hand them over, for what, and who sees them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

import pytest
from flask import Flask
from flask.testing import FlaskClient
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from segnode_contract.errors import ArchiveUnavailable
from segnode_contract.findings import Findings
from segnode_contract.job import ResultObject, Stage
from segnode_contract.ledger import Ledger, PictureLedger
from segnode_contract.pictures import LARGEST, SIGNATURE, hand_over_path
from segnode_plugin.archive import OrthancArchive
from segnode_plugin.web.pictures import picture_pages
from segnode_worker.archive import DicomWebArchive

from .conftest import PASSWORD, PageNode
from .rows import claim_job, finish_job, queue_job

SEG = "2.1.1"
"""SOP Instance UID of the result that `finish_job` leaves."""


def png(grey: int = 0) -> bytes:
    """Return a picture of one pixel."""
    parts = (
        (b"IHDR", struct.pack("!IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes([0, grey]))),
        (b"IEND", b""),
    )
    return SIGNATURE + b"".join(
        struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))
        for kind, data in parts
    )


class Shelf:
    """What an archive keeps beside the instances that it has."""

    def __init__(self, *uids: str) -> None:
        self.kept: dict[str, dict[int, bytes]] = {uid: {} for uid in uids}

    def attach(self, instance_uid: str, number: int, data: bytes) -> bool:
        if instance_uid in self.kept:
            self.kept[instance_uid][number] = data
        return instance_uid in self.kept

    def attached(self, instance_uid: str, number: int) -> bytes | None:
        return self.kept.get(instance_uid, {}).get(number)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(SEG)


@pytest.fixture
def client(ledger: Ledger, shelf: Shelf) -> FlaskClient:
    """The pages of a node with one finished job."""
    queue_job(ledger)
    finish_job(ledger)
    app = Flask("test")
    app.register_blueprint(picture_pages(PictureLedger(ledger), shelf))
    return app.test_client()


def test_a_picture_is_shown_as_it_was_handed_over(client: FlaskClient, shelf: Shelf) -> None:
    for number in (1, 2, 3):
        answer = client.post(hand_over_path(SEG, number), data=png(number))
        assert answer.status_code == 204
    assert sorted(shelf.kept[SEG]) == [1032, 1033, 1034]
    for number in (1, 2, 3):
        shown = client.get(f"/segnode/pictures/{SEG}/{number}.png")
        assert shown.status_code == 200
        assert shown.data == png(number)
        assert shown.headers["Content-Type"] == "image/png"
        assert shown.headers["Cache-Control"] == "no-store"


def test_a_picture_may_come_again(client: FlaskClient) -> None:
    for grey in (10, 20):
        assert client.post(hand_over_path(SEG, 1), data=png(grey)).status_code == 204
    assert client.get(f"/segnode/pictures/{SEG}/1.png").data == png(20)


@pytest.mark.parametrize(
    ("uid", "number", "body", "status"),
    [
        ("2.1.2", 1, png(), 404),
        ("1.2.3", 1, png(), 404),
        ("2.1", 1, png(), 404),
        ("2.1.1x", 1, png(), 404),
        ("%", 1, png(), 404),
        (SEG, 0, png(), 404),
        (SEG, 4, png(), 404),
        (SEG, "1.0", png(), 404),
        (SEG, 1, b"", 415),
        (SEG, 1, b"GIF89a" + bytes(20), 415),
        (SEG, 1, b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
        (SEG, 1, png() + bytes(LARGEST), 413),
    ],
)
def test_anything_else_is_refused(
    client: FlaskClient, shelf: Shelf, uid: str, number: int, body: bytes, status: int
) -> None:
    shelf.kept |= {"2.1.2": {}, "1.2.3": {}, "2.1": {}}  # the archive would keep it
    assert client.post(hand_over_path(uid, number), data=body).status_code == status
    assert not any(shelf.kept.values())


def test_the_largest_picture_is_taken(client: FlaskClient) -> None:
    largest = png() + bytes(LARGEST - len(png()))
    assert client.post(hand_over_path(SEG, 1), data=largest).status_code == 204


def test_a_segmentation_that_the_archive_lacks_has_no_pictures(
    client: FlaskClient, shelf: Shelf
) -> None:
    shelf.kept.clear()
    assert client.post(hand_over_path(SEG, 1), data=png()).status_code == 404
    assert client.get(f"/segnode/pictures/{SEG}/1.png").status_code == 404


def test_only_results_are_shown(client: FlaskClient, shelf: Shelf) -> None:
    shelf.kept["1.2.3"] = {1032: png()}
    assert client.get("/segnode/pictures/1.2.3/1.png").status_code == 404
    assert client.get(f"/segnode/pictures/{SEG}/1.png").status_code == 404
    assert client.get(f"/segnode/pictures/{SEG}/4.png").status_code == 404


def test_what_may_have_pictures_is_a_segmentation_that_was_stored(ledger: Ledger) -> None:
    results = PictureLedger(ledger)
    queue_job(ledger)
    work, claim = claim_job(ledger)
    roles = ("SEG", "SR", "SEG 2", "SR 2")
    made = [
        ResultObject(role=role, instance_uid=f"2.{n}", series_uid="2", data=b"x")
        for n, role in enumerate(roles)
    ]

    def known() -> list[str]:
        return [one.role for one in made if results.is_segmentation(one.instance_uid)]

    with work.stage(claim, Stage.STORE):
        work.made(claim, made, Findings(), "i" * 64)
        assert known() == []
        for each in made[:3]:
            work.stored(claim, each.instance_uid)
    assert known() == ["SEG", "SEG 2"]
    with work.stage(claim, Stage.CONFIRM):
        for each in made:
            work.confirmed(claim, each)
    assert known() == ["SEG", "SEG 2"]


class Refused(Exception): ...


class Checking:
    """An Orthanc that is set to check revisions, and has one instance with the picture 1."""

    OrthancException = Refused

    def RestApiPost(self, uri: str, body: str) -> bytes:
        return b'[{"ID": "i", "Type": "Instance"}, {"ID": "s", "Type": "Series"}]'

    def RestApiPut(self, uri: str, body: bytes) -> bytes:
        assert uri == "/instances/i/attachments/1032"
        raise self.OrthancException(*((43, "revision") if body == png() else (15, "disk")))


def test_where_revisions_are_checked_the_picture_that_is_there_stays() -> None:
    archive = OrthancArchive(Checking())  # type: ignore[arg-type] # the part that is used
    assert archive.attach(SEG, 1032, png())
    with pytest.raises(Refused):
        archive.attach(SEG, 1032, png(1))


def seg() -> bytes:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = SegmentationStorage
    image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID = "1.2", "2.1", SEG
    image.PatientID, image.Modality = "1.2", "SEG"
    file = BytesIO()
    image.save_as(file, enforce_file_format=True)
    return file.getvalue()


def delete(node: PageNode) -> None:
    found = node.ask("/tools/lookup", user="admin", method="POST", body=SEG.encode())
    [instance] = [one for one in json.loads(found.body) if one["Type"] == "Instance"]
    ours = {"Origin": f"http://127.0.0.1:{node.port}"}
    gone = node.ask(instance["Path"], user="admin", method="DELETE", headers=ours)
    assert gone.status == 200


@pytest.fixture
def worker(page_node: PageNode) -> Iterator[DicomWebArchive]:
    """A worker that has stored the result of the finished job, which goes after the test."""
    archive = DicomWebArchive(f"http://127.0.0.1:{page_node.port}/dicom-web", "worker", PASSWORD)
    archive.store("1.2", seg())
    yield archive
    delete(page_node)


def test_a_workers_pictures_lie_beside_the_result_in_orthanc(
    page_node: PageNode, worker: DicomWebArchive
) -> None:
    assert page_node.ask(f"/segnode/pictures/{SEG}/1.png").status == 404
    noisy = png() + bytes(range(256)) * 1000
    for picture in (png(), noisy):  # the second replaces the first
        worker.keep_picture(SEG, 1, picture)
        shown = page_node.ask(f"/segnode/pictures/{SEG}/1.png")
        assert (shown.status, shown.body) == (200, picture)
    assert shown.headers["content-type"] == "image/png"
    assert shown.headers["cache-control"] == "no-store"
    assert page_node.ask(f"/segnode/pictures/{SEG}/2.png").status == 404
    with pytest.raises(ArchiveUnavailable, match="answers 404"):
        worker.keep_picture("1.2.3.1", 1, png())
    with pytest.raises(ArchiveUnavailable, match="answers 415"):
        worker.keep_picture(SEG, 1, b"no picture")
    with pytest.raises(ArchiveUnavailable, match="answers 413"):
        worker.keep_picture(SEG, 1, png() + bytes(LARGEST))
    assert page_node.ask(f"/segnode/pictures/{SEG}/1.png").body == noisy


@pytest.mark.parametrize("user", ["viewer", "operator", "admin", None])
def test_nobody_but_a_worker_hands_pictures_over(
    page_node: PageNode, worker: DicomWebArchive, user: str | None
) -> None:
    answer = page_node.ask(hand_over_path(SEG, 1), user=user, method="POST", body=png())
    assert answer.status == (403 if user else 401)
    assert page_node.ask(f"/segnode/pictures/{SEG}/1.png").status == 404


def test_a_worker_sees_no_pictures(page_node: PageNode, worker: DicomWebArchive) -> None:
    worker.keep_picture(SEG, 1, png())
    assert page_node.ask(f"/segnode/pictures/{SEG}/1.png", user="worker").status == 403
    assert page_node.ask(f"/segnode/pictures/{SEG}/1.png", user=None).status == 401


def test_pictures_go_with_their_result(page_node: PageNode, worker: DicomWebArchive) -> None:
    worker.keep_picture(SEG, 1, png())
    delete(page_node)
    worker.store("1.2", seg())
    assert page_node.ask(f"/segnode/pictures/{SEG}/1.png").status == 404
