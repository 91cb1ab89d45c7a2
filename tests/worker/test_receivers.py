"""Sending to other archives by C-STORE: real peers, good and odd."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import JPEGLSLossless, RLELossless

from segnode_contract.destination import Destination
from segnode_contract.errors import PeerRefused, PeerUnavailable, SegnodeError, SettingsError
from segnode_worker.dicom_link import LABEL_MAP, MOST_CONTEXTS, proposed
from segnode_worker.receivers import receiver_of

from ..conftest import free_port
from .peers import classes, images, only, peer_that_answers, received, seg, storescp


def send(destination: Destination, *batch: bytes) -> list[str]:
    """Send a batch and return what was said of each object that was taken."""
    said: list[str] = []
    receiver = receiver_of(destination, "SEGNODE", {})
    try:
        # two of the tests' objects may have one UID
        named = {str(number): data for number, data in enumerate(batch)}
        receiver.send("1.2", named, lambda _, __, note: said.append(note))
    except SegnodeError as error:
        error.add_note(f"taken: {len(said)}")
        raise
    return said


def taken(error: BaseException) -> str:
    return error.__notes__[-1]


def test_storescp_gets_every_object_as_it_is(tmp_path: Path) -> None:
    batch = [*images(3), seg()]
    with storescp(tmp_path / "in") as inbox:
        assert send(inbox, *batch) == ["", "", "", ""]
        assert send(inbox, *batch) == ["", "", "", ""]  # once more does no harm
    got = {instance.SOPInstanceUID: instance for instance in received(tmp_path / "in")}
    assert len(got) == 4
    for data in batch:
        sent = dcmread(BytesIO(data))
        assert got[sent.SOPInstanceUID] == sent


@pytest.mark.parametrize("order", ["+xe", "+xi"], ids=["explicit", "implicit"])
def test_a_peer_may_prefer_another_uncompressed_syntax(tmp_path: Path, order: str) -> None:
    with storescp(tmp_path / "in", order) as inbox:
        send(inbox, *images(2))
    assert len(received(tmp_path / "in")) == 2


def test_a_peer_that_takes_implicit_alone_gets_it_converted(tmp_path: Path) -> None:
    [image] = images(1)
    with storescp(tmp_path / "in", "+xi") as inbox:
        send(inbox, image)
    [got] = received(tmp_path / "in")
    assert got.file_meta.TransferSyntaxUID.is_implicit_VR
    assert got.PixelData == dcmread(BytesIO(image)).PixelData


def test_a_sop_class_that_is_refused_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    options = only(tmp_path, "CTImageStorage")
    with (
        storescp(tmp_path / "in", *options) as inbox,
        pytest.raises(PeerRefused, match="Segmentation Storage") as refused,
    ):
        send(inbox, *images(3), seg())
    assert refused.value.code == "sop-class-refused"
    assert f"INBOX at 127.0.0.1:{inbox.port}" in refused.value.sentence
    assert taken(refused.value) == "taken: 3"
    assert classes(received(tmp_path / "in")) == ["CT Image Storage"] * 3


def test_a_peer_that_takes_nothing_of_it_is_no_success(tmp_path: Path) -> None:
    options = only(tmp_path, "CTImageStorage")
    with (
        storescp(tmp_path / "in", *options) as inbox,
        pytest.raises(PeerRefused, match="Segmentation Storage") as refused,
    ):
        send(inbox, seg())
    assert refused.value.code == "sop-class-refused"
    assert taken(refused.value) == "taken: 0"
    assert received(tmp_path / "in") == []


def test_a_peer_that_is_too_old_for_label_maps_is_told_apart(tmp_path: Path) -> None:
    with (
        storescp(tmp_path / "in") as inbox,
        pytest.raises(PeerRefused, match=r"Label Map Segmentation Storage.*in RLE") as old,
    ):
        send(inbox, seg(RLELossless, LABEL_MAP), seg())
    assert 'form = "BINARY" in [results]' in old.value.sentence
    assert taken(old.value) == "taken: 1"
    with storescp(tmp_path / "in", "+xa", "--promiscuous") as inbox:
        send(inbox, seg(RLELossless, LABEL_MAP), seg())


def test_a_compressed_object_is_not_sent_as_another(tmp_path: Path) -> None:
    options = only(tmp_path, "CTImageStorage", "SegmentationStorage")
    with (
        storescp(tmp_path / "in", *options) as inbox,
        pytest.raises(PeerRefused, match="in JPEG-LS Lossless") as refused,
    ):
        send(inbox, seg(JPEGLSLossless), seg(), *images(1))
    assert refused.value.code == "sop-class-refused"
    assert taken(refused.value) == "taken: 2"


def test_a_peer_that_does_not_know_us_is_asked_again() -> None:
    with (
        peer_that_answers(knows="SOMEBODY") as odd,
        pytest.raises(PeerUnavailable, match="must know our AE title SEGNODE") as away,
    ):
        send(odd, seg())
    assert away.value.code == "peer-rejected"


def test_a_peer_that_breaks_off_is_asked_again(tmp_path: Path) -> None:
    with (
        storescp(tmp_path / "in", "--abort-after") as inbox,
        pytest.raises(PeerUnavailable, match="broke the association off"),
    ):
        send(inbox, *images(3))


@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")  # pynetdicom's own
def test_a_peer_that_is_not_there_is_asked_again() -> None:
    nobody = Destination(name="x", aet="NOBODY", host="127.0.0.1", port=free_port())
    with pytest.raises(PeerUnavailable, match=r"NOBODY at 127\.0\.0\.1:\d+ does not answer"):
        send(nobody, seg())


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_a_warning_is_kept_as_a_note(status: int) -> None:
    with peer_that_answers(0, status) as odd:
        assert send(odd, *images(3)) == ["", f"taken with the warning {status:04X}H", ""]


def test_an_object_that_the_peer_has_already_is_taken() -> None:
    with peer_that_answers(0x0111) as odd:
        assert send(odd, seg()) == ["it had the object already"]


@pytest.mark.parametrize("status", [0xA700, 0xA7FF, 0x0110])
def test_a_peer_without_room_is_asked_again(status: int) -> None:
    with (
        peer_that_answers(0, status) as odd,
        pytest.raises(PeerUnavailable, match=f"{status:04X}H") as away,
    ):
        send(odd, *images(3))
    assert away.value.code == "peer-busy"
    assert taken(away.value) == "taken: 1"


@pytest.mark.parametrize("status", [0xA900, 0xC000, 0xC123, 0x0122, 0x0124, 0xFE00])
def test_an_object_that_is_refused_is_named_and_the_others_go_on(status: int) -> None:
    with (
        peer_that_answers(0, status) as odd,
        pytest.raises(PeerRefused, match=f"CT Image Storage.*{status:04X}H") as refused,
    ):
        send(odd, *images(3))
    assert refused.value.code == "object-refused"
    assert taken(refused.value) == "taken: 2"


def test_no_value_of_an_object_is_told(tmp_path: Path) -> None:
    broken = dcmread(BytesIO(images(1)[0]))
    name = str(broken.PatientName)
    assert name
    with peer_that_answers(0xC000) as odd, pytest.raises(PeerRefused) as refused:
        send(odd, *images(1))
    assert name not in refused.value.sentence


def test_there_are_no_more_contexts_than_fit() -> None:
    kinds = [(f"1.2.{number}", "1.2.840.10008.1.2.1") for number in range(200)]
    contexts = proposed(kinds)
    assert len(contexts) == MOST_CONTEXTS
    assert contexts[:MOST_CONTEXTS] == kinds[:MOST_CONTEXTS]


def test_the_doctor_asks_whether_segmentations_are_taken(tmp_path: Path) -> None:
    with storescp(tmp_path / "in") as inbox:
        said = receiver_of(inbox, "SEGNODE", {}).check()
        assert said.startswith(f"INBOX at 127.0.0.1:{inbox.port} takes results, but none")
    with storescp(tmp_path / "in", "+xa", "--promiscuous") as inbox:
        assert receiver_of(inbox, "SEGNODE", {}).check().endswith("takes results of every form")
    options = only(tmp_path, "CTImageStorage", "VerificationSOPClass")
    with (
        storescp(tmp_path / "in", *options) as inbox,
        pytest.raises(PeerRefused, match="Segmentation Storage"),
    ):
        receiver_of(inbox, "SEGNODE", {}).check()
    assert list((tmp_path / "in").iterdir()) == []


def test_a_login_is_whole_or_none() -> None:
    stow = Destination(name="far_away", url="http://127.0.0.1:1/dicom-web")
    assert stow.login({}) == ("", "")
    both = {"SEGNODE_DESTINATION_FAR_AWAY_USER": "u", "SEGNODE_DESTINATION_FAR_AWAY_PASSWORD": "p"}
    assert stow.login(both) == ("u", "p")
    with pytest.raises(SettingsError, match="SEGNODE_DESTINATION_FAR_AWAY_PASSWORD is not"):
        stow.login({"SEGNODE_DESTINATION_FAR_AWAY_USER": "u"})
