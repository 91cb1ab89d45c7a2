"""The node looks after itself, and tells people once: by a real mail server and a real webhook."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from segnode_contract.alerts import Alerts
from segnode_contract.job import JobState
from segnode_contract.ledger import ActLedger, Ledger, WorkerLedger, schema
from segnode_contract.ledger.alerts import AlertLedger
from segnode_contract.ledger.clock import now_s
from segnode_contract.settings import Settings, load_settings
from segnode_plugin import alerting
from segnode_plugin.alerting import Alerting, free_mb_of
from segnode_plugin.telling import channels

from ..conftest import free_port
from .pages import CONFIG
from .receivers import HookServer, MailServer, hook_server, mail_server
from .rows import queue_job

CANARY = "CANARY^PATIENT"
HOUR_S = 3600.0
WORKER = "host-1-2/1"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A node with a mail server and a webhook, at which time passes when we say so."""

    ledger: Ledger
    mail: MailServer
    hook: HookServer

    def settings(self, **more: object) -> Settings:
        alerts = Alerts(
            email_to=("it@hospital.example",),
            email_from="segnode@hospital.example",
            smtp_host="127.0.0.1",
            smtp_port=self.mail.port,
            smtp_tls="none",
            webhook=f"http://127.0.0.1:{self.hook.port}/hook",
        )
        return replace(load_settings(CONFIG), alerts=replace(alerts, **more))  # type: ignore[arg-type] # as there

    def started(self, free_mb: float | None = 9000.0, **more: object) -> Alerting:
        """Return what Orthanc makes when it starts."""
        settings = self.settings(**more)
        return Alerting(self.ledger, settings, channels(settings.alerts, {}), lambda: free_mb)

    def dead(self, count: int, first: int = 0) -> None:
        """Let jobs die; a job's error may quote what it should not."""
        job = schema.job
        values = {"state": JobState.DEAD, "error_code": "worker-lost", "error_sentence": CANARY}
        with self.ledger.write() as connection:
            row = connection.execute(select(job).limit(1)).one()._asdict()
            now = connection.scalar(select(now_s()))
            new = [f"{number:012x}" + "d" * 52 for number in range(first, first + count)]
            rows = [{**row, **values, "key": key, "updated_at": now} for key in new]
            connection.execute(insert(job), rows)
        self.passes(3)

    def revived(self) -> None:
        """Have somebody retry what is dead, and workers do it."""
        with self.ledger.write() as connection:
            dead = schema.job.c.state == JobState.DEAD
            connection.execute(update(schema.job).where(dead).values(state=JobState.DONE))

    def passes(self, seconds: float, *speaking: str) -> None:
        """Let time pass; these workers live still."""
        with self.ledger.write() as connection:
            for table, names in (
                (schema.job, ("updated_at",)),
                (schema.worker, ("seen_at", "started_at")),
                (schema.alert, ("raised_at", "over_at", "told_at")),
            ):
                earlier = {table.c[name]: table.c[name] - seconds for name in names}
                connection.execute(update(table).values(earlier))
        for name in speaking or (WORKER,):
            WorkerLedger(self.ledger, name).seen("ready")


@pytest.fixture
def place(ledger: Ledger) -> Iterator[Place]:
    queue_job(ledger, study_uid="1.2.826.0.1.3680043.99")
    WorkerLedger(ledger, WORKER).seen("ready")
    with mail_server() as mail, hook_server() as hook:
        yield Place(ledger=ledger, mail=mail, hook=hook)


@pytest.fixture(autouse=True)
def always_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting, "_LOOK_S", 0.0)
    monkeypatch.setattr(alerting, "_BACK_OFF_S", (0.0,))


def test_a_node_that_is_well_tells_nobody(place: Place) -> None:
    place.started().tick()
    assert (place.mail.mails, place.hook.bodies) == ([], [])


def test_a_thousand_dead_jobs_are_one_mail_and_one_post(place: Place) -> None:
    node = place.started()
    place.dead(1000)
    for _ in range(5):
        node.tick()
    assert place.mail.subjects() == ["[segnode] 1 alert"]
    assert "1000 jobs are dead: 1000 by worker-lost (such as 000000000000)" in place.mail.text()
    assert place.hook.alerts == [[("dead-letter", "raised")]]


def test_more_dead_jobs_are_told_together_when_the_quiet_time_is_over(place: Place) -> None:
    node = place.started()
    place.dead(1)
    node.tick()
    place.dead(20, first=1)
    place.passes(HOUR_S / 2)
    place.dead(20, first=21)
    node.tick()
    assert len(place.mail.mails) == 1
    place.passes(HOUR_S / 2)
    node.tick()
    assert place.hook.alerts == [[("dead-letter", "raised")], [("dead-letter", "lasting")]]
    assert "41 jobs are dead" in place.mail.text()
    for _ in range(3):
        place.passes(HOUR_S * 2)
        node.tick()
    assert len(place.mail.mails) == 2, "nothing became worse"


def test_that_it_is_over_is_told_once(place: Place) -> None:
    node = place.started()
    place.dead(3)
    node.tick()
    place.revived()
    for _ in range(5):
        node.tick()
        place.passes(200)
    assert place.mail.subjects() == ["[segnode] 1 alert", "[segnode] 1 alert over"]
    assert place.hook.alerts[1:] == [[("dead-letter", "over")]]
    place.passes(HOUR_S * 2)
    node.tick()
    place.dead(1, first=10)
    node.tick()
    assert place.mail.subjects()[2:] == ["[segnode] 1 alert"]


def test_all_that_is_wrong_at_once_is_one_mail(place: Place) -> None:
    place.dead(1)
    place.passes(500, "other-1-2/1")
    place.started(free_mb=100.0).tick()
    assert place.mail.subjects() == ["[segnode] 3 alerts"]
    assert "worker-lost (since " in place.mail.text()
    assert "100 MB left for the node's data" in place.mail.text()


def test_a_lost_worker_is_told_of_and_one_that_ends_in_good_order_is_not(place: Place) -> None:
    node = place.started()
    WorkerLedger(place.ledger, "host-1-2/2").seen("ready")
    WorkerLedger(place.ledger, "host-1-2/2").gone()
    place.passes(500, "other-1-2/3")
    node.tick()
    assert f"A worker is lost: {WORKER} (8 min silent)" in place.mail.text()
    after_the_restart_of_its_machine = "host-5-6/9"
    for _ in range(3):
        place.passes(310, "other-1-2/3", after_the_restart_of_its_machine)
        node.tick()
    assert place.hook.alerts == [[("worker-lost", "raised")], [("worker-lost", "over")]]


def test_a_restart_tells_nothing_twice(place: Place) -> None:
    place.dead(2)
    for _ in range(3):
        place.started().tick()
    assert len(place.mail.mails) == len(place.hook.bodies) == 1


def test_a_mail_server_that_was_away_tells_once_when_it_is_back(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    node = place.started(smtp_port=port)
    place.dead(2)
    with caplog.at_level(logging.WARNING, "segnode_plugin"):
        for _ in range(3):
            node.tick()
    assert {record.code for record in caplog.records} == {"mail-unreachable"}  # type: ignore[attr-defined] # a field of ours
    assert len(place.hook.bodies) == 1, "the webhook was told, and not again"
    place.passes(100)
    assert AlertLedger(place.ledger).held(HOUR_S) == {"dead-letter": ("email",)}
    with mail_server(port=port) as mail:
        for _ in range(3):
            node.tick()
    assert mail.subjects() == ["[segnode] 1 alert"]
    assert AlertLedger(place.ledger).held(HOUR_S) == {"dead-letter": ()}


def test_what_came_and_went_while_the_mail_server_was_away_is_told_as_over(place: Place) -> None:
    port = free_port()
    node = place.started(smtp_port=port)
    place.dead(2)
    node.tick()
    place.revived()
    node.tick()
    place.passes(400)
    with mail_server(port=port) as mail:
        for _ in range(3):
            node.tick()
    assert mail.subjects() == ["[segnode] 1 alert over"]


def test_a_channel_that_fails_is_left_alone_for_longer_and_longer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerting, "_BACK_OFF_S", (30.0, 300.0))
    clock = [1000.0]
    monkeypatch.setattr(alerting.time, "monotonic", lambda: clock[0])
    node = place.started()
    place.hook.status = 503
    place.dead(1)
    tries = []
    for _ in range(70):
        node.tick()
        tries.append(len(place.hook.bodies))
        clock[0] += 10
    assert [tries.index(nth) * 10 for nth in range(1, 5)] == [0, 30, 330, 630]
    assert len(place.mail.mails) == 1, "the mail server works"


def test_a_fault_of_our_own_leaves_the_alert_untold(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = place.started(webhook="")
    place.dead(1)
    with monkeypatch.context() as broken:
        broken.setattr("segnode_plugin.telling.EmailMessage", None)
        with pytest.raises(TypeError):
            node.tick()
    node.tick()
    assert len(place.mail.mails) == 1


_PROCESS = """
import sys
from dataclasses import replace
from pathlib import Path
from segnode_contract.alerts import Alerts
from segnode_contract.ledger import Ledger
from segnode_contract.settings import load_settings
from segnode_plugin.alerting import Alerting
from segnode_plugin.telling import channels

url, config, port = sys.argv[1:]
alerts = Alerts(
    email_to=("it@hospital.example",), email_from="n@hospital.example", smtp_host="127.0.0.1",
    smtp_port=int(port), smtp_tls="none",
)
settings = replace(load_settings(Path(config)), alerts=alerts)
ledger = Ledger.open(url)
node = Alerting(ledger, settings, channels(alerts, {}), lambda: 100.0)
print("ready", flush=True)
sys.stdin.readline()
node.tick()
ledger.close()
"""


def test_of_several_orthancs_one_tells(place: Place, ledger_url: str) -> None:
    place.dead(5)
    words = [sys.executable, "-c", _PROCESS, ledger_url, str(CONFIG), str(place.mail.port)]
    pipe = subprocess.PIPE
    nodes = [subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for node in nodes:
        assert node.stdout is not None and node.stdout.readline() == "ready\n"
    for node in nodes:
        node.communicate("go\n", timeout=60)
    assert [node.returncode for node in nodes] == [0, 0, 0]
    assert place.mail.subjects() == ["[segnode] 2 alerts"]


def test_no_patient_is_in_what_is_told_or_noted(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    node = place.started(smtp_port=free_port())
    with caplog.at_level(logging.DEBUG):
        place.dead(3)
        node.tick()
        place.started().tick()
    with place.ledger.read() as connection:
        rows = str(connection.execute(select(schema.alert)).all())
    told = [place.mail.mails[0].as_string(), str(place.hook.bodies)]
    logged = [str(vars(record)) for record in caplog.records if "segnode" in record.name]
    for text in (rows, *told, *logged):
        assert CANARY not in text
        assert "1.2.826.0.1.3680043.99" not in text
    assert "alert told" in str(logged)


def test_with_nobody_to_tell_nothing_is_looked_at(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.dead(1)
    place.started().tick()
    assert AlertLedger(place.ledger).held(HOUR_S) != {}

    def looked(*_: Any) -> None:
        raise AssertionError("nobody is to be told")

    monkeypatch.setattr(alerting, "read_state", looked)
    off = Alerting(place.ledger, load_settings(CONFIG), (), lambda: None)
    off.tick()
    off.tick()
    assert AlertLedger(place.ledger).held(HOUR_S) == {}, "what nobody is told of does not stay"


def test_the_room_for_data_is_that_of_its_disk(tmp_path: Any) -> None:
    free_mb: Callable[[], float | None] = free_mb_of(tmp_path)
    room = free_mb()
    assert room is not None and room > 1
    assert free_mb_of(tmp_path / "none")() is None


def test_a_retry_by_hand_ends_the_alert(place: Place) -> None:
    node = place.started()
    place.dead(1)
    node.tick()
    assert ActLedger(place.ledger).retry(f"{0:012x}" + "d" * 52, "operator")
    for _ in range(2):
        node.tick()
        place.passes(310)
    node.tick()
    assert place.hook.alerts[-1] == [("dead-letter", "over")]
