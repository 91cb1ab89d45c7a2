"""The sender tells the ledger how each delivery ended, whatever happens to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from segnode_contract.destination import Destination
from segnode_contract.errors import PeerRefused, PeerUnavailable
from segnode_contract.ledger import ActLedger, DeliveryLedger, Ledger, LedgerView, write_shared
from segnode_contract.ledger.view import DeliveryRow
from segnode_contract.settings import Background, Connections, Limits, Node, Shared
from segnode_worker import sender
from segnode_worker.delivery import Road
from segnode_worker.receivers import Took
from segnode_worker.sender import Courier

from ..plugin.rows import finish_job, queue_job
from .peers import peer_that_answers, seg

LIMITS = Limits(back_off_s=(0.05,), lease_s=0.3)
PACS = Destination(name="pacs", aet="PACS", host="127.0.0.1", port=1)
SHARED = Shared(node=Node(name="n"), limits=LIMITS, background=Background(), destinations=(PACS,))


class Shelf:
    """An archive that has every result, and images of every series."""

    def instance_uids(self, study_uid: str, series_uid: str) -> list[str]:
        return [f"{series_uid}.{number}" for number in range(1, 113)]

    def fetch_instance(self, study_uid: str, series_uid: str, instance_uid: str) -> bytes | None:
        return seg()


class Scripted:
    """A destination to which one thing after another happens, then nothing but good."""

    def __init__(self, *happens: Callable[[], None]) -> None:
        self._happens = list(happens)
        self.calls = 0
        self.got: list[str] = []

    def send(self, study_uid: str, batch: Mapping[str, bytes], took: Took) -> None:
        self.calls += 1
        if self._happens:
            self._happens.pop(0)()
        for uid, data in batch.items():
            self.got.append(uid)
            took(uid, len(data), "")


class Weak(Scripted):
    """A destination to which the line breaks after every seven objects."""

    def send(self, study_uid: str, batch: Mapping[str, bytes], took: Took) -> None:
        for number, (uid, data) in enumerate(batch.items()):
            if number == 7:
                raise PeerUnavailable("It broke the association off.")
            super().send(study_uid, {uid: data}, took)

    def check(self) -> str:
        return ""


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    ledger.migrate()
    write_shared(ledger, SHARED)
    yield ledger
    ledger.close()


@contextmanager
def whole_sender(ledger: Ledger) -> Iterator[threading.Thread]:
    """Run the sender as a process does."""
    stop = threading.Event()
    connections = Connections(
        data=Path(),
        ledger_url=str(ledger.engine.url),
        broker_url="",
        archive_url="http://127.0.0.1:1/dicom-web",
        archive_user="",
        archive_password="",
    )
    thread = threading.Thread(target=sender.run, args=(connections, stop))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()


def raises(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@contextmanager
def courier(
    ledger: Ledger,
    inbox: Scripted,
    stop: threading.Event | None = None,
    *,
    images: bool = False,
    due_s: float = 0.05,
) -> Iterator[Courier]:
    stop = stop or threading.Event()
    destination = replace(PACS, images=images)
    road = Road(archive=Shelf(), receiver=inbox, destination=destination)
    deliveries = DeliveryLedger(ledger, "s1", replace(LIMITS, back_off_s=(due_s,)))
    runs = Courier(road, deliveries, LIMITS, stop)
    runs.thread.start()
    try:
        yield runs
    finally:
        stop.set()
        runs.thread.join()


def row(ledger: Ledger, key: str) -> DeliveryRow:
    [found] = rows(ledger, key)
    return found


def rows(ledger: Ledger, key: str) -> list[DeliveryRow]:
    return LedgerView(ledger).deliveries(key)


def awaited(ledger: Ledger, key: str, state: str) -> DeliveryRow:
    deadline = time.monotonic() + 60
    while (found := row(ledger, key)).state != state:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def let_go(ledger: Ledger, *, at_least: int = 0) -> None:
    """Wait until no sender holds the delivery, and it was tried so often."""
    held = f"select count(*) from delivery where lease_until is not null or attempts < {at_least}"
    deadline = time.monotonic() + 60
    while True:
        with ledger.read() as connection:
            if connection.exec_driver_sql(held).scalar_one() == 0:
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finished(ledger: Ledger) -> str:
    key = queue_job(ledger)
    finish_job(ledger)
    return key


def test_what_is_away_at_first_arrives(sqlite: Ledger) -> None:
    key, inbox = finished(sqlite), Scripted(*[raises(PeerUnavailable("It is away."))] * 2)
    with courier(sqlite, inbox):
        found = awaited(sqlite, key, "done")
    assert (found.attempts, inbox.calls) == (3, 3)


def test_a_fault_of_ours_is_recorded_without_its_text(
    sqlite: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    key = finished(sqlite)
    with caplog.at_level(logging.INFO), courier(sqlite, Scripted(raises(KeyError("DOE^JOHN")))):
        found = awaited(sqlite, key, "failed")
    assert found.error_code == "internal"
    assert "KeyError at test_sender.py" in (found.error_sentence or "")
    assert "DOE" not in f"{found} {caplog.text} {[vars(record) for record in caplog.records]}"


def test_a_weak_line_gets_on_with_each_try(sqlite: Ledger) -> None:
    key, inbox = finished(sqlite), Weak()
    with courier(sqlite, inbox, images=True):
        found = awaited(sqlite, key, "done")
    assert (found.objects, found.attempts) == (113, 16)
    assert len(inbox.got) == len(set(inbox.got)) == 113


def test_what_failed_for_good_begins_anew(sqlite: Ledger) -> None:
    key = finished(sqlite)
    inbox = Scripted(lambda: None, raises(PeerRefused("It takes no Segmentation.")))
    with courier(sqlite, inbox, images=True):
        assert awaited(sqlite, key, "failed").objects == 112
        ActLedger(sqlite).send_again(key, "me")
        assert awaited(sqlite, key, "done").objects == 113
    assert len(inbox.got) == 112 + 113


def test_what_is_retried_by_hand_begins_anew(sqlite: Ledger) -> None:
    key, inbox = finished(sqlite), Weak()
    with courier(sqlite, inbox, images=True, due_s=60.0):
        for _ in range(2):
            let_go(sqlite, at_least=1)
            assert row(sqlite, key).objects == 7
            assert ActLedger(sqlite).send_again(key, "me") == ["pacs"]
        let_go(sqlite, at_least=1)
    assert inbox.got == inbox.got[:7] * 3


def test_a_slow_destination_keeps_its_lease(sqlite: Ledger) -> None:
    key, inbox = finished(sqlite), Scripted(lambda: time.sleep(1.5))
    with courier(sqlite, inbox):
        awaited(sqlite, key, "sending")
        other = DeliveryLedger(sqlite, "s2", LIMITS)
        while row(sqlite, key).state == "sending":
            assert other.claim("pacs") is None
            time.sleep(0.05)
        assert awaited(sqlite, key, "done").attempts == 1
    assert inbox.calls == 1


def test_a_sender_that_is_asked_to_stop_hands_back(sqlite: Ledger) -> None:
    key, stop = finished(sqlite), threading.Event()
    with courier(sqlite, Scripted(stop.set), stop) as asked:
        asked.thread.join(60)
    with sqlite.read() as connection:
        [left] = connection.exec_driver_sql("select state, lease_until, attempts from delivery")
    assert tuple(left) == ("waiting", None, 0)
    with courier(sqlite, Scripted()):
        assert awaited(sqlite, key, "done").objects == 1


def test_a_job_that_is_superseded_meanwhile_is_left(sqlite: Ledger) -> None:
    key, seen = finished(sqlite), threading.Event()

    def supersede() -> None:
        with sqlite.write() as connection:
            connection.exec_driver_sql("update job set state = 'superseded'")
        assert seen.wait(60)

    def lost() -> None:
        while all(thread.name != "beat" for thread in threading.enumerate()):
            time.sleep(0.01)
        while any(thread.name == "beat" for thread in threading.enumerate()):
            time.sleep(0.01)
        seen.set()

    with courier(sqlite, Scripted(supersede)):
        lost()
        let_go(sqlite)
    found = row(sqlite, key)
    assert (found.state, found.objects) == ("superseded", None)


def test_other_settings_start_it_anew(sqlite: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_SETTINGS_S", 0.05)
    with whole_sender(sqlite) as thread:
        time.sleep(0.5)
        assert thread.is_alive()
        write_shared(sqlite, replace(SHARED, destinations=()))
        thread.join(20)
        assert not thread.is_alive()


def test_an_old_sender_leaves_new_destinations_alone(
    sqlite: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_SETTINGS_S", 1.0)
    with whole_sender(sqlite) as thread:
        time.sleep(0.5)
        new = Destination(name="new", aet="NEW", host="127.0.0.1", port=1)
        write_shared(sqlite, replace(SHARED, destinations=(PACS, new)))
        key = finished(sqlite)
        thread.join(20)
        assert not thread.is_alive()
    found = {each.destination: each.error_code for each in LedgerView(sqlite).deliveries(key)}
    assert found.keys() == {"pacs", "new"}
    assert "destination-unknown" not in found.values()


@pytest.mark.parametrize("cause", ["certificate", "login"])
def test_a_destination_with_wrong_settings_silences_no_other(
    sqlite: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    cause: str,
) -> None:
    gone = tmp_path / "gone.pem" if cause == "certificate" else ""
    if cause == "login":
        monkeypatch.setenv("SEGNODE_DESTINATION_WEB_USER", "u")
    web = Destination(name="web", url="https://127.0.0.1:1/dicom-web", certificate=str(gone))
    monkeypatch.setattr(sender, "DicomWebArchive", lambda *_, **__: Shelf())
    words = "gone.pem" if cause == "certificate" else "WEB_PASSWORD is not"
    with peer_that_answers() as pacs:
        write_shared(sqlite, replace(SHARED, destinations=(web, pacs)))
        key, deadline = finished(sqlite), time.monotonic() + 60
        with whole_sender(sqlite) as thread:
            while any(d.attempts == 0 for d in rows(sqlite, key)):
                assert thread.is_alive() and time.monotonic() < deadline
                time.sleep(0.02)
    held, sent = sorted(rows(sqlite, key), key=lambda d: d.state == "done")
    assert (sent.destination, sent.state) == (pacs.name, "done")
    assert (held.state, held.error_code) == ("waiting", "peer-settings")
    assert words in (held.error_sentence or "")
    assert any(words in record.message for record in caplog.records)
