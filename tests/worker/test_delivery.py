"""A delivery from our archive to another; STOW-RS against servers that answer as they are told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
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
from segnode_worker.receivers import LateReceiver, Took, receiver_of

from .peers import images, seg

Answer = tuple[int, object]


def by_uid(*batch: bytes) -> dict[str, bytes]:
    return {str(dcmread(BytesIO(data)).SOPInstanceUID): data for data in batch}


class Shelf:
    """An archive with one series and one result."""

    def __init__(self, count: int = 3, *, result: bool = True) -> None:
        self.fetched = 0
        self._series = {"1.2.3": by_uid(*images(count)), "2.25.2": by_uid(seg()) if result else {}}

    def instance_uids(self, study_uid: str, series_uid: str) -> list[str]:
        return list(self._series[series_uid])

    def fetch_instance(self, study_uid: str, series_uid: str, instance_uid: str) -> bytes | None:
        self.fetched += 1
        return self._series[series_uid].get(instance_uid)


class Inbox:
    """A destination that takes all but what it is told, and breaks off after so many objects."""

    def __init__(self, refuses: str = "", breaks_after: int = 0) -> None:
        self.got: list[str] = []
        self.uids: list[str] = []
        self._refuses = refuses
        self._breaks_after = breaks_after

    def send(self, study_uid: str, batch: Mapping[str, bytes], took: Took) -> None:
        for number, (uid, data) in enumerate(batch.items()):
            modality = str(dcmread(BytesIO(data)).Modality)
            if modality == self._refuses:
                raise PeerRefused(f"It takes no {modality}.")
            if self._breaks_after and number == self._breaks_after:
                raise PeerUnavailable("It broke off.")
            self.got.append(modality)
            self.uids.append(uid)
            took(uid, len(data), "")

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


def go(
    archive: Shelf, inbox: Inbox, *, with_images: bool = True, taken: Taken | None = None
) -> Taken:
    taken = taken or Taken()
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
    with pytest.raises(PeerRefused, match=r"takes no CT\. 3 of 4 were refused"):
        go(Shelf(), inbox)
    assert inbox.got == ["SEG"]


def test_a_result_that_is_refused_alone_is_not_counted() -> None:
    with pytest.raises(PeerRefused, match=r"takes no SEG\.$"):
        go(Shelf(), Inbox(refuses="SEG"), with_images=False)


def test_images_are_fetched_as_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segnode_worker.delivery._BATCH_BYTES", 1)
    shelf, behind = Shelf(), []

    class Watching(Inbox):
        def send(self, study_uid: str, batch: Mapping[str, bytes], took: Took) -> None:
            behind.append(shelf.fetched - len(self.got))
            super().send(study_uid, batch, took)

    assert go(shelf, Watching()).objects == 4
    assert behind == [1, 1, 1, 1]


def test_what_was_taken_before_is_neither_fetched_nor_sent_again() -> None:
    shelf, inbox, taken = Shelf(), Inbox(breaks_after=2), Taken()
    with pytest.raises(PeerUnavailable):
        go(shelf, inbox, taken=taken)
    assert (taken.objects, shelf.fetched) == (2, 3)
    assert go(shelf, inbox, taken=taken).objects == 4
    assert inbox.got == ["CT", "CT", "CT", "SEG"]
    assert len(set(inbox.uids)) == 4
    assert shelf.fetched == 5


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
def server(*answers: Answer, logins: list[str | None] | None = None) -> Iterator[Destination]:
    """Serve these answers, one after another; the last is repeated.

    Parameters
    ----------
    logins
        Gets what each request says of its user.
    """
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if logins is not None:
                logins.append(self.headers["Authorization"])
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


def listed(
    sequence: str, data: bytes, reason: int | None = None, tag: str = "00081197"
) -> dict[str, object]:
    """Return the answer to a store that lists an object (PS3.18 I.2.2)."""
    uid = dcmread(BytesIO(data)).SOPInstanceUID
    item: dict[str, object] = {"00081155": {"vr": "UI", "Value": [uid]}}
    if reason is not None:
        item[tag] = {"vr": "US", "Value": [reason]}
    return {sequence: {"vr": "SQ", "Value": [item]}}


STORED, FAILED, WARNING = "00081199", "00081198", "00081196"


LOGIN = {"SEGNODE_DESTINATION_WEB_USER": "u", "SEGNODE_DESTINATION_WEB_PASSWORD": "p"}


def stow(
    destination: Destination, *batch: bytes, environ: Mapping[str, str] | None = None
) -> list[str]:
    """Send a batch and return what was said of each object that was taken."""
    said: list[str] = []
    receiver = receiver_of(destination, "SEGNODE", environ or {})
    try:
        receiver.send("1.2", by_uid(*batch), lambda _, __, note: said.append(note))
    except SegnodeError as error:
        error.add_note(f"{len(said)} taken")
        raise
    return said


def test_what_is_listed_as_stored_is_taken() -> None:
    with server((200, listed(STORED, seg()))) as web:
        assert stow(web, seg()) == [""]


def test_a_warning_on_what_is_stored_is_kept_as_a_note() -> None:
    with server((202, listed(STORED, seg(), 0xB007, WARNING))) as web:
        assert stow(web, seg()) == ["taken with the warning B007H"]


@pytest.mark.parametrize("reason", [0x0111, 45070])
def test_what_the_archive_has_already_is_taken(reason: int) -> None:
    with server((409, listed(FAILED, seg(), reason))) as web:
        assert stow(web, seg()) == ["it had the object already"]


def test_nobody_logs_in_without_a_user() -> None:
    logins: list[str | None] = []
    with server((200, listed(STORED, seg())), logins=logins) as web:
        stow(web, seg())
        stow(web, seg(), environ=LOGIN)
    assert logins == [None, "Basic dTpw"]


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("environ", "says"), [({}, "does not let us in without a user"), (LOGIN, "refuses our user")]
)
def test_a_login_that_is_refused_is_named_with_its_status(
    status: int, environ: Mapping[str, str], says: str
) -> None:
    with (
        server((status, {})) as web,
        pytest.raises(PeerUnavailable, match=rf"{says} \({status}\)"),
    ):
        stow(web, seg(), environ=environ)


def test_a_failure_that_names_no_object_is_worth_another_try() -> None:
    nameless = {FAILED: {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA700]}}]}}
    with server((409, nameless)) as web, pytest.raises(PeerUnavailable, match="without a reason"):
        stow(web, seg())


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
def test_the_doctor_is_content_with_an_answer_and_says_what_it_did_not_ask(
    status: int, said: str
) -> None:
    with server((status, [])) as web:
        found = receiver_of(web, "SEGNODE", {}).check()
    assert said in found
    assert found.endswith("whether it takes results shows when one is sent")


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


def test_a_destination_is_sent_to_as_soon_as_its_settings_can_be_followed() -> None:
    environ = {"SEGNODE_DESTINATION_WEB_USER": "u"}
    with server((200, listed(STORED, seg()))) as web:
        late = LateReceiver(web, "SEGNODE", environ)
        with pytest.raises(PeerUnavailable, match="WEB_PASSWORD is not") as unready:
            late.send("1.2", by_uid(seg()), lambda *_: None)
        with pytest.raises(SettingsError, match="WEB_PASSWORD is not"):
            late.check()
        environ |= LOGIN
        said: list[str] = []
        late.send("1.2", by_uid(seg()), lambda _, __, note: said.append(note))
    assert unready.value.code == "peer-settings"
    assert said == [""]
