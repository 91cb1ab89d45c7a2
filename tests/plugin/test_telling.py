"""E-mail and webhook, told to real servers."""

from __future__ import annotations

import json
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from segnode_contract.alerts import Alerts
from segnode_contract.errors import NotTold, SettingsError
from segnode_contract.standing import LASTING, OVER, RAISED, News
from segnode_plugin import telling
from segnode_plugin.notice import Notice
from segnode_plugin.telling import channels

from ..conftest import free_port
from .receivers import hook_server, mail_server, self_signed, tls_with

LOGIN = {"SEGNODE_SMTP_USER": "node", "SEGNODE_SMTP_PASSWORD": "a-secret"}
TOKEN = {"SEGNODE_WEBHOOK_TOKEN": "a-secret"}
DEAD = News(name="dead-letter", state=RAISED, sentence="3 jobs are dead.", since=1_790_000_000.5)
GONE = News(name="space-low", state=OVER, sentence="Space is low.", since=1_790_000_000.0)
NOTICE = Notice(node="reading room", alerts=(DEAD, GONE), quiet_s=3600)


def by_mail(port: int, **more: object) -> Alerts:
    usual = {
        "email_to": ("it@hospital.example", "night@hospital.example"),
        "email_from": "segnode@hospital.example",
        "smtp_host": "127.0.0.1",
        "smtp_port": port,
        "smtp_tls": "none",
    }
    return Alerts(**{**usual, **more})  # type: ignore[arg-type] # as there


def tell(alerts: Alerts, notice: Notice = NOTICE, **environ: str) -> None:
    for channel in channels(alerts, environ):
        channel.tell(notice)


def refusal(alerts: Alerts, **environ: str) -> str:
    """Return why nothing could be told: with the code, and never with a secret."""
    with pytest.raises(NotTold) as refused:
        tell(alerts, **environ)
    assert "a-secret" not in refused.value.sentence
    return f"{refused.value.code}: {refused.value.sentence}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def tls(certificate: Path) -> ssl.SSLContext:
    return tls_with(certificate)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "_TIMEOUT_S", 0.5)


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes a connection and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()[1]


def test_nobody_is_told_where_nobody_is_named() -> None:
    assert channels(Alerts(), LOGIN | TOKEN) == ()


def test_one_mail_tells_all_alerts_to_all_recipients() -> None:
    with mail_server() as server:
        tell(by_mail(server.port))
    (mail,) = server.mails
    assert mail["Subject"] == "[reading room] 1 alert, 1 over"
    assert mail["From"] == "segnode@hospital.example"
    assert server.recipients == [["it@hospital.example", "night@hospital.example"]]
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Message-ID"].endswith("@hospital.example>")
    assert mail.get_content_type() == "text/plain"
    assert "dead-letter (since 2026-09-2" in server.text()
    assert "3 jobs are dead." in server.text()
    assert "space-low (over, since" in server.text()
    assert "told again after 60 min, not before" in server.text()


@pytest.mark.parametrize(
    ("states", "subject"),
    [
        ([RAISED], "1 alert"),
        ([RAISED, LASTING], "2 alerts"),
        ([OVER], "1 alert over"),
        ([OVER, OVER], "2 alerts over"),
        ([LASTING, OVER, OVER], "1 alert, 2 over"),
    ],
)
def test_a_subject_counts_what_holds_and_what_is_over(states: list[str], subject: str) -> None:
    alerts = tuple(replace(DEAD, state=state) for state in states)
    assert Notice(node="n", alerts=alerts, quiet_s=60).subject == f"[n] {subject}"


def test_a_node_s_name_cannot_make_a_header() -> None:
    name = "Lesesaal\x1b Süd\r\nBcc: thief@evil.example\r\n\r\nCome"
    with mail_server() as server:
        tell(by_mail(server.port), replace(NOTICE, node=name))
    (mail,) = server.mails
    assert mail["Bcc"] is None
    assert mail["Subject"].startswith("[Lesesaal Süd Bcc: thief@evil.example Come] 1 alert")
    assert server.recipients == [["it@hospital.example", "night@hospital.example"]]


def test_mail_goes_encrypted_with_a_login(certificate: Path, tls: ssl.SSLContext) -> None:
    with mail_server(starttls=tls, password="a-secret") as server:
        alerts = by_mail(server.port, smtp_tls="starttls", certificate=str(certificate))
        tell(alerts, **LOGIN)
        assert "with TLS" in channels(alerts, LOGIN)[0].check()
        wrong = refusal(alerts, **{**LOGIN, "SEGNODE_SMTP_PASSWORD": "a-secret-of-old"})
    assert server.encrypted == [True]
    assert "mail-password" in wrong
    assert "SEGNODE_SMTP_USER" in wrong


def test_mail_goes_by_tls_from_the_first_byte_on(certificate: Path, tls: ssl.SSLContext) -> None:
    with mail_server(tls=tls) as server:
        tell(by_mail(server.port, smtp_tls="tls", certificate=str(certificate)))
    assert len(server.mails) == 1


@pytest.mark.parametrize("kind", ["starttls", "tls"])
def test_a_mail_server_that_nobody_vouches_for_gets_nothing(tls: ssl.SSLContext, kind: str) -> None:
    with mail_server(**{kind: tls}) as server:
        said = refusal(by_mail(server.port, smtp_tls=kind))
    assert said.startswith("mail-certificate")
    assert "[alerts] certificate" in said
    assert server.mails == []


def test_a_server_without_starttls_gets_nothing_in_the_clear() -> None:
    with mail_server() as server:
        said = refusal(by_mail(server.port, smtp_tls="starttls"))
    assert said.startswith("mail-refused")
    assert "smtp_tls" in said
    assert server.mails == []


def test_a_mail_that_is_refused_is_not_told() -> None:
    with mail_server(answer="554 spam") as server:
        assert "mail-refused" in refusal(by_mail(server.port))
        assert "answers 554" in refusal(by_mail(server.port))


def test_one_bad_address_keeps_no_other_from_the_mail(caplog: pytest.LogCaptureFixture) -> None:
    with mail_server(refuses=("night@hospital.example",)) as server:
        with caplog.at_level(logging.WARNING, "segnode_plugin"):
            tell(by_mail(server.port))
        assert server.recipients == [["it@hospital.example"]]
        assert [record.getMessage() for record in caplog.records] == ["alert not told to all"]
        assert caplog.records[0].codes == "550"  # type: ignore[attr-defined] # a field of ours
        server.refuses = ("it@hospital.example", "night@hospital.example")
        assert "refuses every recipient (550)" in refusal(by_mail(server.port))


def test_a_mail_that_was_taken_is_told_though_the_server_hangs_up() -> None:
    with mail_server(hangs_up=True) as server:
        tell(by_mail(server.port))
    assert len(server.mails) == 1


@pytest.mark.usefixtures("impatient")
def test_a_mail_server_that_is_silent_or_away_is_not_waited_for(silent: int) -> None:
    assert refusal(by_mail(silent)).startswith("mail-unreachable")
    assert "Connection refused" in refusal(by_mail(free_port()))


def test_a_check_of_the_mail_server_sends_nothing() -> None:
    with mail_server() as server:
        (mail,) = channels(by_mail(server.port), {})
        assert mail.check() == f"127.0.0.1:{server.port} without encryption"
    assert server.mails == []
    with pytest.raises(NotTold, match="mail server"):
        mail.check()


def test_a_webhook_gets_one_post_of_json() -> None:
    with hook_server() as hook:
        tell(Alerts(webhook=f"http://127.0.0.1:{hook.port}/hook"), **TOKEN)
    (body,), (headers,) = hook.bodies, hook.headers
    assert body["node"] == "reading room"
    assert body["alerts"] == [
        {
            "name": "dead-letter",
            "state": "raised",
            "sentence": "3 jobs are dead.",
            "since": "2026-09-21T14:13:20+00:00",
        },
        {
            "name": "space-low",
            "state": "over",
            "sentence": "Space is low.",
            "since": "2026-09-21T14:13:20+00:00",
        },
    ]
    assert "3 jobs are dead." in body["text"]
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Bearer a-secret"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_webhook_that_points_elsewhere_is_not_followed(status: int) -> None:
    with hook_server() as elsewhere:
        there = f"http://127.0.0.1:{elsewhere.port}/"
        with hook_server(status=status, location=there) as hook:
            said = refusal(Alerts(webhook=f"http://127.0.0.1:{hook.port}/a-secret"), **TOKEN)
    assert f"answers {status}" in said
    assert elsewhere.bodies == []


def test_a_webhook_s_failure_is_told_by_code_without_its_path(silent: int) -> None:
    with hook_server(status=503) as hook:
        said = refusal(Alerts(webhook=f"http://127.0.0.1:{hook.port}/services/a-secret"))
    assert said.startswith("webhook-refused")
    assert "answers 503" in said
    away = refusal(Alerts(webhook=f"http://127.0.0.1:{free_port()}/services/a-secret"))
    assert away.startswith("webhook-unreachable")


@pytest.mark.usefixtures("impatient")
def test_a_webhook_that_is_silent_is_not_waited_for(silent: int) -> None:
    assert refusal(Alerts(webhook=f"http://127.0.0.1:{silent}/")).startswith("webhook-unreachable")


def test_a_webhook_must_be_vouched_for(certificate: Path, tls: ssl.SSLContext) -> None:
    with hook_server(tls=tls) as hook:
        alerts = Alerts(webhook=f"https://127.0.0.1:{hook.port}/hook")
        assert refusal(alerts).startswith("webhook-certificate")
        with pytest.raises(NotTold, match="not trusted"):
            channels(alerts, {})[0].check()
        assert hook.bodies == []
        known = replace(alerts, certificate=str(certificate))
        assert channels(known, {})[0].check() == f"127.0.0.1:{hook.port} with TLS"
        assert hook.bodies == []
        tell(known)
    assert len(hook.bodies) == 1


def test_no_proxy_of_the_environment_sees_an_alert(monkeypatch: pytest.MonkeyPatch) -> None:
    with hook_server() as proxy, hook_server() as hook:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        tell(Alerts(webhook=f"http://127.0.0.1:{hook.port}/"))
    assert (len(hook.bodies), proxy.bodies) == (1, [])


def test_a_certificate_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    for text, why in ((None, "No such file"), ("hello", "no certificate is in it")):
        path = tmp_path / "authority.pem"
        if text:
            path.write_text(text)
        with pytest.raises(SettingsError, match=rf"\[alerts\] certificate names .*{why}"):
            channels(Alerts(webhook="https://chat.example/", certificate=str(path)), {})


def test_what_a_webhook_gets_holds_no_more_than_is_told() -> None:
    assert set(NOTICE.to_json()) == {"node", "alerts", "text"}
    assert "secret" not in json.dumps(NOTICE.to_json())
