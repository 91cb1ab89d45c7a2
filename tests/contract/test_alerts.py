"""Alerts: what is wrong, who may be told, and how often."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Column, Table, insert, select, update

from segnode_contract.alerts import SMTP_LOGIN, WEBHOOK_TOKEN, Alerts
from segnode_contract.errors import SettingsError
from segnode_contract.job import JobState, Priority
from segnode_contract.ledger import LeaseLedger, Ledger, WorkerLedger, schema
from segnode_contract.ledger.alerts import AlertLedger
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.node_state import read_state
from segnode_contract.settings import Background, Limits, load_settings
from segnode_contract.standing import Standing, plan
from segnode_contract.troubles import (
    DeadJobs,
    NodeState,
    Trouble,
    Waiting,
    WorkerSeen,
    troubles,
)

from ..plugin.rows import claim_job, queue_job

GOOD = '[node]\nname = "n"\n[alerts]\n'
MAIL = 'email_to = ["it@x.example"]\nemail_from = "n@x.example"\nsmtp_host = "mail.x.example"\n'
ALERTS = Alerts()
KEY = "0123456789abcdef"
NOW = 1_790_000_000.0
QUIET_S = 3600.0
DEAD = Trouble(name="dead-letter", sentence="1 job is dead.", news_at=NOW)


def load(folder: Path, text: str) -> Alerts:
    (folder / "segnode.toml").write_text(text)
    return load_settings(folder / "segnode.toml").alerts


def test_alerts_are_off_as_they_stand(tmp_path: Path) -> None:
    for text in ("", MAIL, 'webhook = "https://chat.example/x"\n'):
        alerts = load(tmp_path, GOOD + text)
        assert (alerts.email_to != (), alerts.webhook != "") == ("to" in text, "chat" in text)


@pytest.mark.parametrize(("tls", "port"), [("starttls", 587), ("tls", 465)])
def test_a_mail_server_has_the_port_of_its_kind(tmp_path: Path, tls: str, port: int) -> None:
    assert load(tmp_path, GOOD + MAIL + f"smtp_tls = '{tls}'\n").port == port
    assert load(tmp_path, GOOD + MAIL + "smtp_port = 2525\n").port == 2525


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("email = 'x'\n", "unknown key 'email'"),
        ("email_to = 'it@x.example'\n", "email_to is 'it@x.example'; a list of texts"),
        ('email_to = ["it@x.example"]\n', "has 'email_to' and no 'email_from'"),
        ('smtp_host = "mail"\n', "has 'smtp_host' and no 'email_to'"),
        (MAIL.replace("it@", "it "), "email_to holds 'it x.example'; an address"),
        (MAIL.replace("it@x.example", "it@x.example\\nBcc: y@z"), "email_to holds 'it@x.*Bcc"),
        (MAIL.replace("n@x", "n\\n@x"), r"email_from holds 'n\\n@x.example'"),
        (MAIL.replace("mail.x", "smtp://mail.x"), "smtp_host is 'smtp://mail.x.example'"),
        (MAIL + "smtp_tls = 'startls'\n", "'starttls' was probably meant"),
        (MAIL + "smtp_tls = 'none'\n", "another machine"),
        (MAIL + "smtp_port = 70000\n", "smtp_port is 70000"),
        ("webhook = 'http://chat.example/s3cret'\n", "webhook is no https:// address"),
        ("webhook = 'https://u:s3cret@chat.example/'\n", "webhook is no https:// address"),
        ("webhook = 'file:///etc/s3cret'\n", "webhook is no https:// address"),
        ("webhook = 'https://chat.example/ s3cret'\n", "webhook is no https:// address"),
        ("webhook = 'https:///s3cret'\n", "webhook is no https:// address"),
        ("certificate = 'authority.pem'\n", "a whole path is needed"),
        ("quiet_s = 5\n", "quiet_s is 5; 60 is the least"),
        ("worker_lost_s = 20\n", "worker_lost_s is 20; 60 is the least, since a worker whose"),
        ("backlog_s = -1\n", "backlog_s is -1; it cannot be negative"),
        ("free_mb = -1\n", "free_mb is -1; it cannot be negative"),
    ],
)
def test_what_cannot_be_meant_stops_the_start_by_name(
    tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(SettingsError, match=named) as refused:
        load(tmp_path, GOOD + text)
    assert "[alerts]" in refused.value.sentence
    assert "s3cret" not in refused.value.sentence


def test_mail_in_the_clear_goes_to_this_machine_or_where_that_is_accepted(tmp_path: Path) -> None:
    plain = GOOD + MAIL + "smtp_tls = 'none'\n"
    assert load(tmp_path, plain.replace("mail.x.example", "localhost")).port == 25
    accepted = load(tmp_path, plain + "insecure = true\n")
    with pytest.raises(SettingsError, match="SEGNODE_SMTP_PASSWORD would go to mail"):
        accepted.secrets(dict.fromkeys(SMTP_LOGIN, "s3cret"))


def test_secrets_are_those_of_what_is_used(tmp_path: Path) -> None:
    environ = dict.fromkeys((*SMTP_LOGIN, WEBHOOK_TOKEN, "PATH"), "word")
    assert Alerts().secrets(environ) == {}
    assert set(load(tmp_path, GOOD + MAIL).secrets(environ)) == set(SMTP_LOGIN)
    assert set(Alerts(webhook="https://x.example/").secrets(environ)) == {WEBHOOK_TOKEN}
    with pytest.raises(SettingsError, match="SEGNODE_SMTP_PASSWORD is not; the mail server"):
        load(tmp_path, GOOD + MAIL).secrets({SMTP_LOGIN[0]: "node"})
    with pytest.raises(SettingsError, match="SEGNODE_WEBHOOK_TOKEN holds more than printable"):
        Alerts(webhook="https://x.example/").secrets({WEBHOOK_TOKEN: "a\r\nb"})


def worker(name: str = "gpu1-0a1b2c3d-f0000000/7", **more: float | str) -> WorkerSeen:
    usual = {"name": name, "state": "ready", "started_at": NOW - 9000, "seen_at": NOW - 5}
    return WorkerSeen(**{**usual, **more})  # type: ignore[arg-type] # as there


LOST = worker("gpu2-0a1b2c3d-f0000000/7", seen_at=NOW - 400)
LONGEST = Waiting(key=KEY, since=NOW - 2700, code="")


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (
            NodeState(
                now=NOW, dead=(DeadJobs(code="worker-lost", count=1, key=KEY, newest_at=NOW),)
            ),
            "1 job is dead: 1 by worker-lost (such as 0123456789ab). Their pages say why; mend the "
            "cause, then retry them.",
        ),
        (
            NodeState(
                now=NOW,
                dead=(
                    DeadJobs(code="worker-lost", count=998, key=KEY, newest_at=NOW),
                    DeadJobs(code="internal", count=2, key=KEY, newest_at=NOW),
                ),
            ),
            "1000 jobs are dead: 998 by worker-lost (such as 0123456789ab), 2 by internal (such as "
            "0123456789ab). Their pages say why; mend the cause, then retry them.",
        ),
        (
            NodeState(now=NOW, undelivered=2, undelivered_at=NOW),
            "2 deliveries to other archives failed; `segnode deliveries` says which, and why.",
        ),
        (
            NodeState(now=NOW, waiting=12, oldest=LONGEST),
            "12 jobs wait, the oldest (0123456789ab) for 45 min, where 30 min is the limit. The "
            "first page says whether workers live and take jobs.",
        ),
        (
            NodeState(
                now=NOW, waiting=1, oldest=replace(LONGEST, since=NOW - 9000, code="archive")
            ),
            "1 job waits, the oldest (0123456789ab) for 2.5 h, where 30 min is the limit; its last "
            "try ended with archive. The first page says whether workers live and take jobs.",
        ),
        (
            NodeState(now=NOW, workers=(worker(), LOST)),
            "A worker is lost: gpu2-0a1b2c3d-f0000000/7 (6 min silent). See whether its machine "
            "runs, and the worker's log.",
        ),
        (
            NodeState(now=NOW, workers=(LOST,)),
            "A worker is lost: gpu2-0a1b2c3d-f0000000/7 (6 min silent). None is left, so that jobs "
            "wait. See whether its machine runs, and the worker's log.",
        ),
        (
            NodeState(now=NOW, free_mb=812.4, workers=(worker(free_mb=100.0),)),
            "Space is low (4096 MB are the limit): 812 MB left for the node's data, 100 MB left "
            "for results of worker gpu1-0a1b2c3d-f0000000/7. Make room before images and results "
            "are refused.",
        ),
        (
            NodeState(now=NOW, free_mb=9000.0, workers=(worker(state="no-space"),)),
            "Space is low (4096 MB are the limit): worker gpu1-0a1b2c3d-f0000000/7 has no room for "
            "results and takes no jobs. Make room before images and results are refused.",
        ),
    ],
    ids=["one", "many", "deliveries", "wait", "tries", "lost", "none left", "space", "no space"],
)
def test_a_trouble_says_its_value_and_what_to_do(state: NodeState, sentence: str) -> None:
    assert [trouble.sentence for trouble in troubles(state, ALERTS)] == [sentence]


@pytest.mark.parametrize(
    "state",
    [
        NodeState(now=NOW),
        NodeState(now=NOW, waiting=1, oldest=replace(LONGEST, since=NOW - 1700)),
        NodeState(now=NOW, workers=(worker(), replace(LOST, seen_at=NOW - 90000))),
        NodeState(now=NOW, workers=(worker("gpu2-9f8e7d6c-f0000001/9", started_at=NOW - 30), LOST)),
        NodeState(now=NOW, workers=(worker(free_mb=5000.0), replace(LOST, seen_at=NOW - 90000))),
        NodeState(now=NOW, free_mb=5000.0, workers=(worker(state="no-model"),)),
    ],
    ids=["nothing", "soon", "forgotten", "came again", "room", "no model"],
)
def test_what_is_as_it_should_be_is_no_trouble(state: NodeState) -> None:
    assert troubles(state, ALERTS) == ()


def test_what_a_silent_worker_said_of_its_room_counts_no_more() -> None:
    silent = worker(seen_at=NOW - 65, free_mb=1.0)
    state = NodeState(now=NOW, workers=(silent, worker("gpu2-0a1b2c3d-f0000000/7")))
    assert troubles(state, Alerts(worker_lost_s=0)) == ()


def test_one_worker_stands_for_one_lost_one() -> None:
    again = worker("gpu2-9f8e7d6c-f0000001/9", started_at=NOW - 30)
    other = worker("gpu2-0a1b2c3d-f0000000/8", seen_at=NOW - 300)
    (trouble,) = troubles(NodeState(now=NOW, workers=(again, LOST, other)), ALERTS)
    assert trouble.sentence.startswith("A worker is lost: gpu2-0a1b2c3d-f0000000/8 (5 min")


def test_no_worker_is_forgotten_while_none_is_left() -> None:
    long_lost = replace(LOST, seen_at=NOW - 90000)
    (trouble,) = troubles(NodeState(now=NOW, workers=(long_lost,)), ALERTS)
    assert "25.0 h silent" in trouble.sentence


def test_a_kind_of_alert_can_be_turned_off() -> None:
    state = NodeState(now=NOW, waiting=1, oldest=LONGEST, workers=(LOST,), free_mb=0.0)
    off = Alerts(backlog_s=0, worker_lost_s=0, free_mb=0)
    assert len(troubles(state, ALERTS)) == 3
    assert troubles(state, off) == ()


def told(story: list[tuple[float, Trouble | None]], quiet_s: float = QUIET_S) -> list[str]:
    """Return what is told when, of looks at these times; `NOW` is the first time."""
    standing: dict[str, Standing] = {}
    said = []
    for at, trouble in story:
        for step in plan(standing, {trouble.name: trouble} if trouble else {}, NOW + at, quiet_s):
            standing = {step.name: step.after} if step.after else {}
            if step.news:
                said.append(f"{at:g} {step.news.state}")
    return said


def lasting(until: float, every: float = 10.0, start: float = 0.0) -> list[tuple[float, Trouble]]:
    """Looks at a trouble that is news each time."""
    times = [start + n * every for n in range(int((until - start) / every) + 1)]
    return [(at, replace(DEAD, news_at=NOW + at)) for at in times]


def test_what_lasts_is_told_again_after_the_quiet_time_only() -> None:
    assert told(lasting(7210)) == ["0 raised", "3600 lasting", "7200 lasting"]


def test_what_gets_no_worse_is_told_once() -> None:
    assert told([(at, DEAD) for at in range(0, 90_000, 600)]) == ["0 raised"]


def test_what_got_worse_in_the_quiet_time_is_told_after_it() -> None:
    worse = replace(DEAD, news_at=NOW + 20)
    assert told([(0, DEAD), (30, worse), (3590, worse), (3610, worse), (9000, worse)]) == [
        "0 raised",
        "3610 lasting",
    ]


def test_what_is_over_is_told_once() -> None:
    gone = [(at, None) for at in range(100, 9000, 10)]
    assert told([*lasting(90), *gone]) == ["0 raised", "400 over"]


def test_what_comes_and_goes_is_one_alert() -> None:
    story = [(at, trouble if at % 20 else None) for at, trouble in lasting(7300)]
    assert told(story) == ["10 raised", "3610 lasting", "7210 lasting"]


def test_what_comes_back_is_told_after_the_quiet_time() -> None:
    story = [*lasting(90), *((at, None) for at in range(100, 600, 10)), *lasting(9000, start=600)]
    assert told(story) == ["0 raised", "400 over", "4000 raised", "7600 lasting"]


def test_what_comes_back_much_later_is_told_at_once() -> None:
    story = [*lasting(90), *((at, None) for at in range(100, 9000, 10)), *lasting(9010, start=9000)]
    assert told(story) == ["0 raised", "400 over", "9000 raised"]


def test_what_came_and_went_in_quiet_is_not_told() -> None:
    gone = [(at, None) for at in range(100, 600, 10)]
    again = [*lasting(700, start=600), *((at, None) for at in range(710, 9000, 10))]
    assert told([*lasting(90), *gone, *again]) == ["0 raised", "400 over"]


def shift(ledger: Ledger, seconds: float) -> None:
    """Let time pass."""
    with ledger.write() as connection:
        for table in (schema.job, schema.worker, schema.run, schema.alert, schema.delivery):
            connection.execute(update(table).values(_earlier(table, seconds)))


def _earlier(table: Table, seconds: float) -> dict[Column[float], object]:
    names = ("tried_since", "not_before", "lease_until")
    times = [c for c in table.c if c.name.endswith("_at") or c.name in names]
    return {c: c - seconds for c in times}


def copies(ledger: Ledger, key: str, count: int, **values: object) -> None:
    """Make other jobs like one."""
    job = schema.job
    with ledger.write() as connection:
        row = connection.execute(select(job).where(job.c.key == key)).one()._asdict()
        for number in range(count):
            other = {"key": f"{number:012x}" + "f" * 52}
            connection.execute(insert(job).values({**row, **other, **values}))


def test_a_job_that_took_its_workers_down_is_seen_as_dead(ledger: Ledger) -> None:
    key = queue_job(ledger)
    claim_job(ledger)
    shift(ledger, 100)
    leases = LeaseLedger(ledger, Limits(deliveries=1))
    assert leases.take_back(leases.expired(), "reaper") == [key]
    shift(ledger, 3)
    state = read_state(ledger, Background(), 5000.0)
    (dead,) = state.dead
    assert (dead.code, dead.count, dead.key) == ("worker-lost", 1, key)
    assert state.now - 10 < dead.newest_at <= state.now
    assert state.free_mb == 5000.0


def test_what_failed_for_good_or_waits_is_counted(ledger: Ledger) -> None:
    key = queue_job(ledger)
    copies(ledger, key, 7, state=JobState.DEAD, error_code="internal")
    shift(ledger, 2000)
    state = read_state(ledger, Background(), None)
    assert [(dead.code, dead.count) for dead in state.dead] == [("internal", 7)]
    assert state.waiting == 1
    assert state.oldest is not None
    assert state.oldest.key == key
    assert state.now - state.oldest.since == pytest.approx(2000, abs=20)


def test_a_job_between_two_tries_waits_from_the_first_on(ledger: Ledger) -> None:
    queue_job(ledger)
    shift(ledger, 2000)
    later = {"attempts": 3, "error_code": "archive-unavailable"}
    with ledger.write() as connection:
        job = schema.job
        values = {**later, "not_before": job.c.not_before + 2900}
        connection.execute(update(job).values(values))
    oldest = read_state(ledger, Background(), None).oldest
    assert oldest is not None
    assert oldest.code == "archive-unavailable"


def test_background_work_may_wait_while_it_is_not_its_time_or_some_is_done(ledger: Ledger) -> None:
    key = queue_job(ledger)
    shift(ledger, 2000)
    with ledger.write() as connection:
        connection.execute(update(schema.job).values(priority=int(Priority.BACKGROUND)))
    hour = time.localtime().tm_hour
    closed = Background(from_hour=(hour + 2) % 24, to_hour=(hour + 4) % 24)
    assert read_state(ledger, closed, None).oldest is None
    always = read_state(ledger, Background(), None)
    assert always.oldest is not None
    assert always.now - always.oldest.since > 1900
    opened = read_state(ledger, Background(from_hour=hour, to_hour=(hour + 2) % 24), None)
    assert opened.oldest is not None
    assert opened.oldest.since >= opened.now - 3660
    copies(ledger, key, 1, priority=int(Priority.STAT))
    claim_job(ledger)
    begun = read_state(ledger, Background(), None)
    assert begun.oldest is not None
    assert begun.now - begun.oldest.since < 20


def test_workers_are_seen_with_their_room(ledger: Ledger) -> None:
    WorkerLedger(ledger, "m-1-2/1").seen("ready", report={"free_mb": 700})
    WorkerLedger(ledger, "m-1-2/2").seen("no-space", "no room", report={"free_mb": "?"})
    WorkerLedger(ledger, "m-1-2/3").seen("ready")
    WorkerLedger(ledger, "m-1-2/3").gone()
    seen = {each.name: each for each in read_state(ledger, Background(), None).workers}
    assert {name: each.free_mb for name, each in seen.items()} == {"m-1-2/1": 700, "m-1-2/2": None}


SPACE = Trouble(name="space-low", sentence="Space is low.", news_at=NOW)


def test_of_many_who_look_at_once_one_has_the_word(ledger: Ledger) -> None:
    alerts = AlertLedger(ledger)
    for number in range(10):
        barrier = threading.Barrier(4)
        words: list[str] = []
        wrong: list[Exception] = []

        def look(nth: int, barrier: threading.Barrier = barrier) -> None:
            try:
                barrier.wait(30)
                at = NOW + number * 10_000 + nth  # noqa: B023 # the threads end in this turn
                with alerts.telling("email", [DEAD, SPACE], at, QUIET_S) as news:
                    words.extend(each.name for each in news)  # noqa: B023
            except Exception as error:
                wrong.append(error)  # noqa: B023

        threads = [threading.Thread(target=look, args=(nth,)) for nth in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []
        assert sorted(words) == ["dead-letter", "space-low"]
        with ledger.write() as connection:
            connection.execute(schema.alert.delete())


def test_what_could_not_be_told_is_given_back_and_shown(ledger: Ledger) -> None:
    alerts = AlertLedger(ledger)
    now = time.time() - 100
    for at in (now, now + 30):
        with (
            pytest.raises(OSError, match="away"),
            alerts.telling("email", [DEAD], at, QUIET_S) as news,
        ):
            assert [each.name for each in news] == ["dead-letter"]
            raise OSError("away")
    with alerts.telling("webhook", [DEAD], now, QUIET_S) as news:
        assert [each.name for each in news] == ["dead-letter"]
    assert alerts.held(QUIET_S) == {"dead-letter": ("email",)}
    alerts.keep(["webhook"])
    assert alerts.held(QUIET_S) == {"dead-letter": ()}
    with alerts.telling("webhook", [], now + 40, QUIET_S) as news:
        assert news == []
    assert alerts.held(QUIET_S) == {}
    alerts.keep([])
    with ledger.read() as connection:
        assert connection.execute(select(schema.alert)).all() == []


def test_what_somebody_had_in_hand_who_ended_is_told_minutes_later(ledger: Ledger) -> None:
    with ledger.read() as connection:
        now = connection.execute(select(now_s())).scalar_one()
    alerts = AlertLedger(ledger)
    ended = alerts.telling("email", [DEAD], now, QUIET_S)
    assert [each.state for each in ended.__enter__()] == ["raised"]  # and never leaves it
    told = []
    for later in (30, 290, 310, 320, 4000):
        with alerts.telling("email", [DEAD], now + later, QUIET_S) as news:
            told += [(later, each.state) for each in news]
    assert told == [(310, "raised")]
