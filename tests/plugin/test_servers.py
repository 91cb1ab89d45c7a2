"""Whether servers that are up, down, slow or odd are told apart, and no page waits for it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from segnode_contract.errors import LedgerUnavailable
from segnode_contract.ledger import Ledger
from segnode_contract.settings import Connections, load_settings
from segnode_contract.troubles import Trouble
from segnode_plugin.web.servers import Reading, Servers, servers_of

from ..conftest import free_port
from .pages import CONFIG

SECRET = "SECRET-WORD"
TROUBLE = Trouble(name="backlog", sentence="Jobs wait.", news_at=0.0)
AWAY = Ledger("sqlite:///none/none.sqlite")


def connections(archive: str, broker: str = "") -> Connections:
    return Connections(
        data=Path("/tmp"),
        ledger_url="",
        broker_url=broker or "redis://127.0.0.1:9/0",
        archive_url=archive,
        archive_user="",
        archive_password="",
    )


def readings(
    *, archive: str = "http://127.0.0.1:9/dicom-web", broker: str = "", free_mb: int = 1
) -> dict[str, Reading]:
    settings = load_settings(CONFIG)
    settings = replace(settings, alerts=replace(settings.alerts, free_mb=free_mb))
    servers = servers_of(AWAY, settings, connections(archive, broker))
    assert servers.readings == ()
    servers.tick()
    return {reading.name: reading for reading in servers.readings}


@pytest.fixture
def answering() -> Iterator[tuple[str, list[int], list[str]]]:
    """The address of a server, the status that it answers with, and what it was asked."""
    status: list[int] = [200]
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status[0])
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *said: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/dicom-web", status, asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "up"), [(200, True), (401, True), (500, False), (302, False)])
def test_an_archive_is_up_when_it_answers_or_wants_a_login(
    answering: tuple[str, list[int], list[str]], status: int, up: bool
) -> None:
    address, given, asked = answering
    given[0] = status
    archive = readings(archive=address)["Archive"]
    assert archive.good is up
    assert asked == ["/system"]
    assert up or f"It answers {status}" in archive.words


def test_an_archive_that_is_down_is_told_with_a_cure() -> None:
    archive = readings(archive=f"http://127.0.0.1:{free_port()}/dicom-web")["Archive"]
    assert not archive.good
    assert archive.words.startswith("It does not answer (Connection refused)")
    assert "`segnode up` starts it" in archive.words


def test_an_archive_that_says_nothing_is_not_waited_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        archive = readings(archive=f"http://127.0.0.1:{silent.getsockname()[1]}/")["Archive"]
        assert "(TimeoutError)" in archive.words
        assert time.monotonic() - began < 4


class Within:
    def get(self, uri: str) -> object:
        if uri != "/system":
            raise AssertionError(uri)
        return {"Version": "1.12.11"}


class Broken:
    def get(self, uri: str) -> object:
        raise RuntimeError("CANARY^NAME")


def test_an_archive_that_we_run_in_says_its_version() -> None:
    for archive, good, words in ((Within(), True, "Orthanc 1.12.11"), (Broken(), False, "fails")):
        servers = servers_of(AWAY, load_settings(CONFIG), connections(""), archive)
        servers.tick()
        assert servers.readings[0].good is good
        assert words in servers.readings[0].words
        assert "CANARY" not in servers.readings[0].words


@pytest.fixture(scope="module")
def redis_port() -> Iterator[int]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed; `make test` installs it")
    port = free_port()
    server = subprocess.Popen(
        [
            program,
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--requirepass",
            SECRET,
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while not _listens(port):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_redis_is_up_when_it_takes_our_password(redis_port: int) -> None:
    assert readings(broker=f"redis://:{SECRET}@127.0.0.1:{redis_port}/0")["Redis"].good


def test_a_password_that_redis_does_not_take_is_not_said(redis_port: int) -> None:
    redis = readings(broker=f"redis://:{SECRET}-old@127.0.0.1:{redis_port}/0")["Redis"]
    assert not redis.good
    assert "does not take the password in SEGNODE_BROKER_URL" in redis.words
    assert SECRET not in redis.words


@pytest.mark.parametrize("broker", ["nonsense://x", f"redis://:{SECRET}@127.0.0.1:1/0"])
def test_redis_that_is_down_says_that_nothing_is_lost(broker: str) -> None:
    redis = readings(broker=broker)["Redis"]
    assert not redis.good
    assert "none is lost" in redis.words or "no address of a Redis" in redis.words
    assert SECRET not in redis.words


def test_a_disk_that_fills_up_is_told_with_what_is_wanted() -> None:
    assert readings(free_mb=1)["Data folder"].good
    full = readings(free_mb=10**9)["Data folder"]
    assert not full.good
    assert "make room" in full.words


def test_troubles_are_looked_for_each_ten_seconds_and_kept_while_the_ledger_is_away() -> None:
    found: list[tuple[Trouble, ...] | LedgerUnavailable] = [
        (TROUBLE,),
        LedgerUnavailable("away"),
        (),
    ]

    def judge() -> tuple[Trouble, ...]:
        one = found.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    servers = Servers([], judge)
    for ago_s, left, troubles in ((0, 2, (TROUBLE,)), (9, 2, (TROUBLE,)), (10, 1, (TROUBLE,))):
        servers._looked = float("-inf")
        servers._judged -= ago_s
        servers.tick()
        assert (len(found), servers.troubles) == (left, troubles)
        servers._judged = time.monotonic()
    servers._looked = servers._judged = float("-inf")
    servers.tick()
    assert servers.troubles == ()


def test_servers_are_asked_every_five_seconds_only() -> None:
    asked: list[int] = []

    def probe() -> Reading:
        asked.append(1)
        return Reading(name="x", good=True, words="")

    servers = Servers([probe])
    for _ in range(10):
        servers.tick()
    assert len(asked) == 1
    servers._looked -= 5
    servers.tick()
    assert len(asked) == 2


def test_since_when_it_is_so_is_kept_until_it_changes() -> None:
    good = [True]
    servers = Servers([lambda: Reading(name="x", good=good[0], words=f"{time.monotonic()}")])
    seen = []
    for state in (True, True, False):
        good[0] = state
        servers._looked = float("-inf")
        servers.tick()
        seen.append(servers.readings[0].since)
        time.sleep(0.01)
    assert seen[0] == seen[1] < seen[2]
