"""`segnode dashboard`, as a process of its own: no Orthanc was ever started here."""

from __future__ import annotations

import base64
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest

from segnode_cli.node import CONFIG
from segnode_contract.ledger import Ledger, LedgerView

from ..plugin.pages import token
from ..plugin.rows import fail_job, queue_job

SEGNODE = str(Path(sys.executable).parent / "segnode")
on_sqlite = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
"""For what no database has a part in."""
PASSWORDS = {"admin": "a-made-up", "operator": "o-made-up", "viewer": "v-mäde-up"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    port: int
    process: subprocess.Popen[str]

    def ask(
        self,
        path: str,
        user: str | None = "viewer",
        *,
        password: str | None = None,
        method: str = "GET",
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request with the path exactly as it stands."""
        sent = dict(headers or {})
        if user is not None:
            word = f"{user}:{password or PASSWORDS.get(user, 'none')}".encode()
            sent["Authorization"] = f"Basic {base64.b64encode(word).decode()}"
        if form is not None:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            link.request(method, path, urlencode(form) if form is not None else None, sent)
            answer = link.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(status=answer.status, headers=named, text=answer.read().decode())
        finally:
            link.close()


def node_in(folder: Path, ledger_url: str) -> Path:
    """Leave in a folder what `segnode up` leaves there."""
    kept = {"SEGNODE_CONFIG": str(CONFIG / "segnode.toml"), "SEGNODE_LEDGER_URL": ledger_url}
    kept |= {f"SEGNODE_PASSWORD_{name.upper()}": word for name, word in PASSWORDS.items()}
    kept |= {
        "SEGNODE_PASSWORD_WORKER": "w-made-up",
        "SEGNODE_DATA": str(folder),
        "SEGNODE_BROKER_URL": "redis://:r-made-up@127.0.0.1:1/0",
        "SEGNODE_ARCHIVE_URL": "http://127.0.0.1:1/dicom-web",
        "SEGNODE_ARCHIVE_USER": "worker",
        "SEGNODE_ARCHIVE_PASSWORD": "w-made-up",
    }
    (folder / "environment").write_text("".join(f"{k}={v}\n" for k, v in kept.items()))
    return folder


@contextmanager
def running(data: Path) -> Iterator[Dashboard]:
    process = subprocess.Popen(
        [SEGNODE, "dashboard", "--data", str(data)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        said = ""
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/segnode/", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        yield Dashboard(port=int(found[1]), process=process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def dashboard(ledger: Ledger, ledger_url: str, tmp_path: Path) -> Iterator[Dashboard]:
    """The dashboard of a node with one failed job."""
    queue_job(ledger)
    fail_job(ledger)
    with running(node_in(tmp_path, ledger_url)) as found:
        yield found


def test_jobs_are_shown_while_orthanc_is_down(dashboard: Dashboard) -> None:
    first = dashboard.ask("/segnode/")
    assert first.status == 200
    assert "dashboard on its own" in first.text
    assert "/segnode/routes" not in first.text
    assert "00000001" in dashboard.ask("/segnode/jobs").text
    assert dashboard.ask("/").headers["location"] == "/segnode/"
    assert dashboard.ask("/segnode/static/segnode.css").headers["content-type"].startswith("text/c")


@on_sqlite
def test_first_page_says_that_orthanc_and_redis_are_down(dashboard: Dashboard) -> None:
    end = time.monotonic() + 20
    while "Archive: It does not answer" not in (text := dashboard.ask("/segnode/").text):
        assert time.monotonic() < end, text
        time.sleep(0.2)
    assert "Redis: It does not answer" in text


@on_sqlite
def test_search_by_patient_says_that_the_archive_is_needed(dashboard: Dashboard) -> None:
    form = {"token": token(dashboard.ask("/segnode/jobs", "operator").text)}
    form |= {"by": "patient", "value": "CANARY"}
    answer = dashboard.ask("/segnode/search", "operator", method="POST", form=form)
    assert answer.status == 200
    assert "Only the archive knows patients" in answer.text


@on_sqlite
def test_stranger_is_asked_to_log_in(dashboard: Dashboard) -> None:
    for answer in (
        dashboard.ask("/segnode/", None),
        dashboard.ask("/segnode/", "nobody"),
        dashboard.ask("/segnode/", password="wrong"),
        dashboard.ask("/segnode/", None, headers={"Authorization": "Basic %%"}),
        dashboard.ask("/segnode/static/segnode.css", None),
        dashboard.ask("/segnode/", "worker", password="w-made-up"),
    ):
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == 'Basic realm="segnode", charset="UTF-8"'
        assert answer.text.endswith(".\n") or answer.text.endswith("again.\n")
        assert answer.headers["x-content-type-options"] == "nosniff"


@on_sqlite
def test_ten_wrong_passwords_lock_a_user_out_and_nobody_else(dashboard: Dashboard) -> None:
    tries = [dashboard.ask("/segnode/", password=f"wrong{number}").status for number in range(11)]
    assert tries == [401] * 10 + [429]
    right = dashboard.ask("/segnode/")
    assert right.status == 429
    assert "try again in 5 min" in right.text
    assert 290 <= int(right.headers["retry-after"]) <= 300
    assert dashboard.ask("/segnode/", "operator").status == 200


@on_sqlite
@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "", "a, b"])
def test_other_sites_name_for_this_machine_is_refused(dashboard: Dashboard, host: str) -> None:
    answer = dashboard.ask("/segnode/", headers={"Host": host.format(port=dashboard.port)})
    assert answer.status == 403
    assert f"http://127.0.0.1:{dashboard.port}/segnode/" in answer.text
    assert dashboard.ask("/segnode/", headers={"Host": f"localhost:{dashboard.port}"}).status == 200


def test_operator_retries_a_job_with_the_pages_token_only(
    dashboard: Dashboard, ledger: Ledger
) -> None:
    [job] = LedgerView(ledger).jobs()
    page = dashboard.ask(f"/segnode/jobs/{job.key}", "operator").text
    chosen = {"keys": job.key}
    forms = chosen | {"token": token(page)}

    without = dashboard.ask("/segnode/jobs/retry", "operator", method="POST", form=chosen)
    viewers = dashboard.ask("/segnode/jobs/retry", "viewer", method="POST", form=forms)
    foreign = dashboard.ask(
        "/segnode/jobs/retry",
        "operator",
        method="POST",
        form=forms,
        headers={"Origin": "http://evil.example"},
    )
    assert [without.status, viewers.status, foreign.status] == [403, 403, 403]
    assert [job.state for job in LedgerView(ledger).jobs()] == ["failed"]

    done = dashboard.ask("/segnode/jobs/retry", "operator", method="POST", form=forms)
    assert (done.status, done.headers["location"][:13]) == (302, "/segnode/jobs")
    found = LedgerView(ledger).job(job.key)
    assert found is not None
    assert found.row.state == "queued"
    assert found.events[-1].actor == "operator"


@on_sqlite
def test_viewer_is_shown_no_acts(dashboard: Dashboard, ledger: Ledger) -> None:
    [job] = LedgerView(ledger).jobs()
    assert "/segnode/jobs/retry" not in dashboard.ask(f"/segnode/jobs/{job.key}", "viewer").text


@on_sqlite
def test_only_this_machine_reaches_it(dashboard: Dashboard) -> None:
    elsewhere = {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None)}
    for address in elsewhere - {"127.0.0.1", "127.0.1.1", "::1"}:
        family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
        with socket.socket(family) as probe:
            probe.settimeout(5)
            assert probe.connect_ex((str(address), dashboard.port)) != 0
    listening = Path("/proc/net/tcp").read_text()
    assert f"0100007F:{dashboard.port:04X} 00000000:0000 0A" in listening
    assert f" 00000000:{dashboard.port:04X} " not in listening


@on_sqlite
def test_overlong_request_is_refused(dashboard: Dashboard) -> None:
    length = {"Content-Length": str(4 << 30)}
    answer = dashboard.ask("/segnode/jobs/retry", "operator", method="POST", headers=length)
    assert answer.status == 413


@on_sqlite
def test_ctrl_c_ends_it_quietly(dashboard: Dashboard) -> None:
    dashboard.ask("/segnode/")
    dashboard.process.send_signal(signal.SIGINT)
    _, said = dashboard.process.communicate(timeout=30)
    assert dashboard.process.returncode == 0
    assert "Traceback" not in said


def test_ledger_that_is_away_is_said_until_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    with running(node_in(tmp_path, f"sqlite:///{folder}/ledger.sqlite")) as dashboard:
        away = dashboard.ask("/segnode/jobs")
        assert (away.status, away.headers["content-type"]) == (503, "text/plain; charset=utf-8")
        assert away.text.startswith("The ledger does not answer: unable to open database file.")

        folder.mkdir()
        (folder / "ledger.sqlite").touch()
        old = dashboard.ask("/segnode/jobs")
        assert (old.status, old.text[:31]) == (503, "The ledger's schema is empty, t")

        ledger = Ledger(f"sqlite:///{folder}/ledger.sqlite")
        ledger.migrate()
        ledger.close()
        assert dashboard.ask("/segnode/jobs").status == 200


def test_database_server_that_is_away_is_said(tmp_path: Path) -> None:
    nobody = "postgresql+psycopg://segnode:l-made-up@127.0.0.1:1/segnode"
    with running(node_in(tmp_path, nobody)) as dashboard:
        away = dashboard.ask("/segnode/")
    assert (away.status, away.text[:29]) == (503, "The ledger does not answer: c")
    assert "l-made-up" not in away.text


def refused(*arguments: str, **environment: str) -> str:
    """Return what the command says as it gives up."""
    done = subprocess.run(
        [SEGNODE, "dashboard", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("segnode: ")
    assert "Traceback" not in done.stderr
    return done.stderr


def test_older_schema_stops_it(ledger_url: str, tmp_path: Path) -> None:
    old = Ledger(ledger_url)
    old.migrate("0001")
    old.close()
    assert "schema is 0001" in refused("--data", str(node_in(tmp_path, ledger_url)))


@on_sqlite
def test_port_in_use_is_named(ledger: Ledger, ledger_url: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = refused("--port", port, "--data", str(node_in(tmp_path, ledger_url)))
    assert f"Port {port} cannot be had" in said


@on_sqlite
def test_node_without_passwords_is_refused(ledger: Ledger, ledger_url: str, tmp_path: Path) -> None:
    assert "There is no node in" in refused("--data", str(tmp_path))
    said = refused("--data", str(tmp_path), SEGNODE_LEDGER_URL=ledger_url)
    assert "None of the users admin, operator, viewer has a password here" in said
