"""A delivery from our archive to another; STOW-RS against servers that answer as they are told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from pydicom import dcmread

from segnode_contract.destination import Destination
from segnode_contract.errors import (
    ObjectMissing,
    PeerRefused,
    PeerUnavailable,
    SegnodeError,
    SettingsError,
)
from segnode_contract.ledger.deliveries import Delivery, SentObject, Taken
from segnode_worker.delivery import Road, deliver
from segnode_worker.receivers import receiver_of

from .peers import images, seg

Answer = tuple[int, object]


class Shelf:
    """An archive with one series and one result."""

    def __init__(self, count: int = 3, *, result: bool = True) -> None:
        self._images = images(count)
        self._result = seg() if result else None

    def fetch_series(self, study_uid: str, series_uid: str) -> list[bytes]:
        return self._images

    def fetch_instance(self, study_uid: str, series_uid: str, instance_uid: str) -> bytes | None:
        return self._result

    def store(self, study_uid: str, data: bytes) -> None:
        raise AssertionError("our archive is read only here")


class Inbox:
    """A destination that takes all but what it is told."""

    def __init__(self, refuses: str = "") -> None:
        self.got: list[str] = []
        self._refuses = refuses

    def send(self, study_uid: str, batch: list[bytes], took: Callable[[int, str], None]) -> None:
        for data in batch:
            modality = str(dcmread(BytesIO(data)).Modality)
            if modality == self._refuses:
                raise PeerRefused(f"It takes no {modality}.")
            self.got.append(modality)
            took(len(data), "")

    def check(self) -> str:
        return ""


def delivery(instance_count: int = 3) -> Delivery:
    return Delivery(
        job_key="ab" * 32,
        destination="inbox",
        epoch=1,
        study_uid="1.2",
        series_uids=("1.2.3",),
        instance_count=instance_count,
        objects=(SentObject(role="SEG", series_uid="2.25.2", instance_uid="2.25.1"),),
    )


def go(archive: Shelf, inbox: Inbox, *, with_images: bool = True) -> Taken:
    taken = Taken()
    destination = Destination(name="inbox", aet="INBOX", host="h", images=with_images)
    road = Road(archive=archive, receiver=inbox, destination=destination)
    deliver(delivery(), road, taken, lambda: None)
    return taken


def test_the_result_comes_after_its_images() -> None:
    inbox = Inbox()
    taken = go(Shelf(), inbox)
    assert inbox.got == ["CT", "CT", "CT", "SEG"]
    assert taken.objects == 4
    assert taken.bytes == sum(map(len, [*images(3), seg()]))


def test_images_are_sent_where_they_are_wanted_only() -> None:
    inbox = Inbox()
    go(Shelf(), inbox, with_images=False)
    assert inbox.got == ["SEG"]


@pytest.mark.parametrize(
    ("archive", "what"),
    [(Shelf(2), "2 of the 3 images"), (Shelf(result=False), "SEG 2.25.1")],
    ids=["an image", "the result"],
)
def test_nothing_is_sent_while_a_part_is_missing(archive: Shelf, what: str) -> None:
    inbox = Inbox()
    with pytest.raises(ObjectMissing, match=what):
        go(archive, inbox)
    assert inbox.got == []


def test_what_is_refused_does_not_keep_the_rest() -> None:
    inbox = Inbox(refuses="CT")
    with pytest.raises(PeerRefused, match="takes no CT"):
        go(Shelf(), inbox)
    assert inbox.got == ["SEG"]


def test_a_delivery_ends_where_it_is_told_to() -> None:
    inbox, destination = Inbox(), Destination(name="i", aet="I", host="h", images=True)
    road = Road(archive=Shelf(), receiver=inbox, destination=destination)

    def go_on() -> None:
        if len(inbox.got) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        deliver(delivery(), road, Taken(), go_on)
    assert inbox.got == ["CT", "CT"]


@contextmanager
def server(*answers: Answer) -> Iterator[Destination]:
    """Serve these answers, one after another; the last is repeated."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content = left.pop(0) if len(left) > 1 else left[0]
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _answer

        def log_message(self, *_: object) -> None: ...

    odd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=odd.serve_forever, args=(0.05,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{odd.server_address[1]}/dicom-web"
        yield Destination(name="web", url=url)
    finally:
        odd.shutdown()
        thread.join()
        odd.server_close()


def listed(sequence: str, data: bytes, reason: int | None = None) -> dict[str, object]:
    """Return the answer to a store that lists an object (PS3.18 I.2.2)."""
    uid = dcmread(BytesIO(data)).SOPInstanceUID
    item: dict[str, object] = {"00081155": {"vr": "UI", "Value": [uid]}}
    if reason is not None:
        item["00081197"] = {"vr": "US", "Value": [reason]}
    return {sequence: {"vr": "SQ", "Value": [item]}}


STORED, FAILED = "00081199", "00081198"


def stow(destination: Destination, *batch: bytes) -> int:
    sizes: list[int] = []
    receiver = receiver_of(destination, "SEGNODE", {})
    try:
        receiver.send("1.2", batch, lambda size, _: sizes.append(size))
    except SegnodeError as error:
        error.add_note(f"{len(sizes)} taken")
        raise
    return len(sizes)


def test_what_is_listed_as_stored_is_taken() -> None:
    with server((200, listed(STORED, seg()))) as web:
        assert stow(web, seg()) == 1


def test_an_answer_that_lists_nothing_is_no_success() -> None:
    with server((200, {})) as web, pytest.raises(PeerUnavailable, match="without a reason"):
        stow(web, seg())


def test_a_refusal_names_address_class_and_reason_and_the_others_go_on() -> None:
    first, second = images(2)
    answers = [(202, listed(FAILED, first, 0x0122)), (200, listed(STORED, second))]
    with server(*answers) as web, pytest.raises(PeerRefused) as refused:
        stow(web, first, second)
    assert web.url in refused.value.sentence
    assert "CT Image Storage" in refused.value.sentence
    assert "0122H" in refused.value.sentence
    assert "1 of 2 were refused" in refused.value.sentence
    assert refused.value.__notes__ == ["1 taken"]


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((401, {}), "peer-password", "SEGNODE_DESTINATION_WEB_USER"),
        ((404, {}), "peer-address", "DICOMweb root"),
        ((503, {}), "peer-unavailable", "answers 503"),
        ((200, listed(FAILED, seg(), 0xA700)), "peer-unavailable", "A700H"),
    ],
)
def test_what_may_be_mended_is_tried_again(answer: Answer, code: str, words: str) -> None:
    with server(answer) as web, pytest.raises(PeerUnavailable, match=words) as away:
        stow(web, seg())
    assert away.value.code == code


@pytest.mark.parametrize(
    ("status", "said"),
    [(200, "answers"), (204, "answers"), (403, "which sending does not need")],
)
def test_the_doctor_is_content_with_an_answer(status: int, said: str) -> None:
    with server((status, [])) as web:
        assert receiver_of(web, "SEGNODE", {}).check().endswith(said)


@pytest.mark.parametrize(
    ("status", "cure"), [(401, "SEGNODE_DESTINATION_WEB_PASSWORD"), (404, "DICOMweb root")]
)
def test_the_doctor_names_the_cure(status: int, cure: str) -> None:
    with server((status, {})) as web, pytest.raises(PeerUnavailable, match=cure):
        receiver_of(web, "SEGNODE", {}).check()


def test_a_certificate_that_cannot_be_read_is_named() -> None:
    web = Destination(name="web", url="https://127.0.0.1:1", certificate="/nowhere.pem")
    with pytest.raises(SettingsError, match=r"/nowhere\.pem of destination 'web'"):
        receiver_of(web, "SEGNODE", {})
