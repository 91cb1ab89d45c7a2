"""`segnode dashboard`: the pages without Orthanc, on this machine only."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flask import Blueprint, Flask, Response, redirect
from waitress.server import create_server
from werkzeug.wrappers import Response as Redirect

from segnode_cli.node import CONFIG, PARTS, node_variables, password_in, read_environment
from segnode_cli.show import say
from segnode_contract.errors import (
    LedgerSchemaError,
    LedgerUnavailable,
    SettingsError,
    SetupError,
)
from segnode_contract.events import EventLines, log_events
from segnode_contract.ledger import Ledger
from segnode_contract.settings import Connections, Settings, load_connections, load_settings
from segnode_plugin.service import Service
from segnode_plugin.web import by_hand
from segnode_plugin.web.app import create_app
from segnode_plugin.web.login import Login
from segnode_plugin.web.servers import servers_of
from segnode_plugin.web.site import Site

_HERE = "127.0.0.1"
_SERVER = {
    "ident": None,
    "max_request_body_size": 1 << 20,  # forms are small
    "max_request_header_size": 1 << 16,
    "channel_timeout": 30,  # s
}
_ALONE = (
    "This is the dashboard on its own: it shows the ledger, which has no patient's name, and "
    "nothing that only the archive knows."
)


def serve_dashboard(data: Path, port: int) -> None:
    """Serve the pages of the node in `data` until Ctrl-C, whether or not Orthanc runs.

    Raises
    ------
    SetupError
        If there is no node, none of its users has a password, or the port is in use.
    LedgerSchemaError
        If the ledger is older or newer than this program.
    """
    variables = _variables(data)
    settings = load_settings(Path(variables.get("SEGNODE_CONFIG") or CONFIG / "segnode.toml"))
    passwords = _passwords(settings, variables)
    _log()
    url = variables["SEGNODE_LEDGER_URL"]
    opening = Opening(url=url)
    try:
        opening()
    except LedgerUnavailable as error:
        say(f"{error.sentence} The pages say so until it does.")
    with closing(_listening(port)) as listening, closing(Ledger(url)) as ledger:
        servers = servers_of(ledger, settings, _connections(variables))
        site = Site(
            ledger=ledger,
            settings=settings,
            trouble=lambda: _ALONE,
            parts=Path(variables.get("SEGNODE_PARTS") or PARTS),
            servers=servers,
        )
        server = create_server(
            Login(_pages(site, opening), passwords), sockets=[listening], **_SERVER
        )
        Service([servers.tick]).start()
        say(f"dashboard  http://{_HERE}:{listening.getsockname()[1]}/segnode/")
        say(f"log in as  {', '.join(passwords)}; the passwords are those of `segnode up`")
        say("Ctrl-C ends it")
        server.run()  # returns at Ctrl-C


@dataclass(slots=True, kw_only=True)
class Opening:
    """Sees once that the ledger is there and has the schema that the pages were written for."""

    url: str
    done: bool = False

    def __call__(self) -> None:
        """Raise what `Ledger.open` raises, until it does not."""
        if not self.done:
            Ledger.open(self.url).close()
            self.done = True


def _pages(site: Site, opening: Opening) -> Flask:
    start = Blueprint("start", __name__)

    @start.get("/")
    def first_page() -> Redirect:
        return redirect("/segnode/")

    app = create_app(site, [start, by_hand.pages(site)])
    app.before_request(opening)
    app.register_error_handler(LedgerSchemaError, _other_schema)
    return app


def _connections(variables: Mapping[str, str]) -> Connections | None:
    """Return where the servers are, None where the variables name the ledger alone."""
    try:
        return load_connections(variables)
    except SettingsError:
        return None


def _other_schema(error: LedgerSchemaError) -> Response:
    return Response(f"{error.sentence}\n", status=503, content_type="text/plain; charset=utf-8")


def _variables(data: Path) -> Mapping[str, str]:
    """Return the node's variables: those of its folder, or else this shell's."""
    if not read_environment(data) and os.environ.get("SEGNODE_LEDGER_URL"):
        return os.environ
    return node_variables(data)


def _passwords(settings: Settings, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the passwords of people; a worker has no business here."""
    people = [user.name for user in settings.users if user.role != "worker"]
    found = {name: password_in(variables, name) for name in people}
    if not any(found.values()):
        raise SetupError(
            f"None of the users {', '.join(people)} has a password here; `segnode up` writes them "
            "to the file `environment` in its data folder, which --data names."
        )
    return {name: password for name, password in found.items() if password}


def _listening(port: int) -> socket.socket:
    """Return a socket that this machine alone reaches; port 0 takes a free one."""
    found = socket.socket()
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((_HERE, port))
    except OSError as error:
        found.close()
        raise SetupError(
            f"Port {port} cannot be had ({error.strerror}); name another, or none for a free one."
        ) from error
    return found


def _log() -> None:
    """Let the server's lines look like ours; what it says of a failure is its kind alone."""
    log_events()
    handler = logging.StreamHandler()
    handler.setFormatter(EventLines())
    handler.addFilter(_kind)
    server = logging.getLogger("waitress")
    server.handlers, server.propagate = [handler], False
    server.setLevel(logging.ERROR)


def _kind(record: logging.LogRecord) -> bool:
    if record.exc_info and record.exc_info[0]:
        record.error = record.exc_info[0].__name__
    return True
