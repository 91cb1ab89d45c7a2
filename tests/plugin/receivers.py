"""A real mail server and a real web server that keep what alerts they get."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

from ..conftest import free_port


def self_signed(folder: Path) -> Path:
    """Make a PEM file of a certificate for this machine that nobody vouches for, and its key."""
    if shutil.which("openssl") is None:
        if os.environ.get("CI"):
            pytest.fail("openssl is not installed; `make test` installs it")
        pytest.skip("openssl is not installed")
    key, made = folder / "key.pem", folder / "certificate.pem"
    kind = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=A machine of a test"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    command = ["openssl", "req", "-x509", *kind, *names, "-keyout", key, "-out", made]
    subprocess.run(command, check=True, capture_output=True)
    made.write_text(made.read_text() + key.read_text())
    return made


def tls_with(certificate: Path) -> ssl.SSLContext:
    """Return what a server with that certificate needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@dataclass(kw_only=True)
class MailServer:
    """What a mail server got, and how it behaves."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    refuses: tuple[str, ...] = ()
    """Recipients that it does not take."""
    answer: str = "250 OK"
    """What it says to a message."""
    hangs_up: bool = False
    """Whether it says no word at the end."""
    password: str = ""
    """Without one nobody need log in."""

    def subjects(self) -> list[str]:
        return [mail["Subject"] for mail in self.mails]

    def text(self) -> str:
        """Return the text of the newest mail."""
        return self.mails[-1].get_content()

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, to: str, _: Any) -> str:
        if to in self.refuses:
            return "550 no such user"
        envelope.rcpt_tos.append(to)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.answer.startswith("250"):
            mail = message_from_bytes(envelope.content, policy=default)
            assert isinstance(mail, EmailMessage)
            self.mails.append(mail)
            self.recipients.append(list(envelope.rcpt_tos))
            self.encrypted.append(session.ssl is not None)
        return self.answer

    async def handle_QUIT(self, server: Any, session: Any, envelope: Any) -> str:
        if self.hangs_up:
            server.transport.abort()
        return "221 Bye"

    def authenticate(self, server: Any, session: Any, envelope: Any, how: str, login: Any) -> Any:
        good = login.login == b"node" and login.password == self.password.encode()
        return AuthResult(success=good, handled=False)


class _Mailbox(Controller):
    """With TLS where `starttls` is a context, and a login where the server has a password."""

    def __init__(self, server: MailServer, starttls: ssl.SSLContext | None, **options: Any) -> None:
        self.server_ = server
        self.starttls = starttls
        super().__init__(server, hostname="127.0.0.1", port=server.port, **options)

    def factory(self) -> SMTP:
        login = self.server_.password != ""
        return SMTP(
            self.server_,
            tls_context=self.starttls,
            require_starttls=self.starttls is not None,
            authenticator=self.server_.authenticate,
            auth_required=login,
            ident="a server of a test",
        )


@contextmanager
def mail_server(
    *,
    port: int = 0,
    starttls: ssl.SSLContext | None = None,
    tls: ssl.SSLContext | None = None,
    **behaviour: Any,
) -> Iterator[MailServer]:
    """Run a mail server inside the ``with``."""
    server = MailServer(port=port or free_port(), **behaviour)
    mailbox = _Mailbox(server, starttls, ssl_context=tls)
    mailbox.start()
    try:
        yield server
    finally:
        mailbox.stop()


@dataclass(kw_only=True)
class HookServer:
    """What a web server got, and what it answers."""

    port: int = 0
    status: int = 200
    location: str = ""
    bodies: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def alerts(self) -> list[list[tuple[str, str]]]:
        """Name and state of the alerts of each request."""
        return [[(a["name"], a["state"]) for a in body["alerts"]] for body in self.bodies]


@contextmanager
def hook_server(
    *, tls: ssl.SSLContext | None = None, port: int = 0, **behaviour: Any
) -> Iterator[HookServer]:
    """Run a web server inside the ``with``."""
    hook = HookServer(**behaviour)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            hook.bodies.append(json.loads(self.rfile.read(length)))
            hook.headers.append(dict(self.headers))
            self.answer()

        def do_GET(self) -> None:
            hook.bodies.append(None)
            self.answer()

        def answer(self) -> None:
            self.send_response(hook.status)
            if hook.location:
                self.send_header("Location", hook.location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that does not trust us

    server = Server(("127.0.0.1", port or free_port()), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    hook.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        thread.join()
        with contextlib.suppress(OSError):
            server.server_close()
