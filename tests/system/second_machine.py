"""A node whose servers speak TLS alone, and a second machine beside it: a network namespace."""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import select
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

from segnode_cli.health import pages_answer, redis_answers
from segnode_cli.jobs import view_of
from segnode_cli.node import Node, keep, prepare
from segnode_cli.servers import orthanc_settings, program, redis_settings
from segnode_cli.supervise import check_programs
from segnode_contract.settings import load_settings

from ..conftest import free_port

WITHIN_S = 60.0
"""Whatever is waited for comes within this time, on a busy machine too."""
_SYSTEM = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_ENDS_WITH_US = ("/usr/bin/setpriv", "--pdeathsig", "KILL")
_HOST_NAME = "machine-2"


class NotAllowed(Exception):
    """No network namespace can be made here; the text says why."""


@dataclass(frozen=True, kw_only=True)
class SecondMachine:
    """A network and a host name of its own, with one cable to this machine."""

    space: str
    here: str
    """This machine's address at the cable."""
    there: str

    def command(self, *words: str) -> list[str]:
        """Return what runs a command on the second machine; the process id stays the same."""
        named = f'hostname {_HOST_NAME} && exec "$@"'
        enter = ["ip", "netns", "exec", self.space]
        return [*enter, "unshare", "--uts", "sh", "-c", named, "sh", *words]

    def python(self, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a few lines of Python on the second machine, with our packages."""
        command = self.command(program("python"), "-c", text, *arguments)
        return subprocess.run(command, env=_SYSTEM, capture_output=True, text=True, check=False)


@contextmanager
def second_machine() -> Iterator[SecondMachine]:
    """Lay a cable to a machine that knows nothing of this one.

    Raises
    ------
    NotAllowed
        If the system lets nobody, or not us, do so.
    """
    number, net = secrets.token_hex(3), f"198.18.{random.randrange(256)}"
    # addresses that are kept for tests of networks (RFC 2544)
    machine = SecondMachine(space=f"segnode-{number}", here=f"{net}.1", there=f"{net}.2")
    near, far = f"sg{number}n", f"sg{number}f"
    inside = ("-n", machine.space)
    try:
        _ip("netns", "add", machine.space)
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", machine.space)
        _ip("address", "add", f"{machine.here}/30", "dev", near)
        _ip("link", "set", near, "up")
        _ip(*inside, "address", "add", f"{machine.there}/30", "dev", far)
        _ip(*inside, "link", "set", far, "up")
        _ip(*inside, "link", "set", "lo", "up")
        yield machine
    finally:
        for rest in (("link", "delete", near), ("netns", "delete", machine.space)):
            with suppress(NotAllowed):
                _ip(*rest)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotAllowed(f"ip {' '.join(words)}: {done.stderr.strip()}")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A server's certificate, and the authority that vouches for it."""

    authority: Path
    certificate: Path
    key: Path


def certificate_for(folder: Path, address: str) -> Certificate:
    """Make an authority, and have it vouch for the server at `address`."""
    folder.mkdir()
    ca, ca_key = folder / "authority.pem", folder / "authority.key"
    made, key = folder / "server.pem", folder / "server.key"
    _openssl("-subj", "/CN=An authority of a test", "-keyout", ca_key, "-out", ca)
    signed = ("-CA", ca, "-CAkey", ca_key, "-addext", f"subjectAltName=IP:{address}")
    _openssl("-subj", "/CN=segnode", *signed, "-keyout", key, "-out", made)
    return Certificate(authority=ca, certificate=made, key=key)


def _openssl(*words: str | Path) -> None:
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    subprocess.run(["openssl", "req", "-x509", *kind, *words], check=True, capture_output=True)


@dataclass(frozen=True, kw_only=True)
class TlsNode(Node):
    """A node whose workers may be elsewhere."""

    address: str
    archive_port: int
    ledger: str
    """URL of the database, without what the client trusts."""
    authority: Path

    def environment(self) -> dict[str, str]:
        """Return the variables of this machine's plugin and commands."""
        return Node.environment(self) | self.connections(self.authority)

    def connections(
        self, ledger: Path, broker: Path | None = None, archive: Path | None = None
    ) -> dict[str, str]:
        """Return all that a worker elsewhere is told: addresses, passwords, whom to trust.

        Parameters
        ----------
        ledger, broker, archive
            PEM files of the authority that each is trusted by; that of `ledger` where absent.
        """
        at, (user, password) = self.address, self.login("worker")
        secret = self.passwords["redis"]
        trust = f"ssl_cert_reqs=required&ssl_ca_certs={broker or ledger}"
        return {
            "SEGNODE_LEDGER_URL": f"{self.ledger}?sslmode=verify-full&sslrootcert={ledger}",
            "SEGNODE_BROKER_URL": f"rediss://:{secret}@{at}:{self.redis_port}/0?{trust}",
            "SEGNODE_ARCHIVE_URL": f"https://{at}:{self.archive_port}/dicom-web",
            "SEGNODE_ARCHIVE_USER": user,
            "SEGNODE_ARCHIVE_PASSWORD": password,
            "SEGNODE_ARCHIVE_CERTIFICATE": str(archive or ledger),
        }


@contextmanager
def tls_node(folder: Path, words: str, address: str) -> Iterator[TlsNode]:
    """Run PostgreSQL, Redis, and Orthanc behind a proxy, at `address`, and no worker.

    Parameters
    ----------
    words
        Those of its settings file.
    """
    programs = check_programs()
    certificate = certificate_for(folder / "tls", address)
    config = folder / "segnode.toml"
    config.write_text(words)
    plain = prepare(folder / "node", config, load_settings(config))
    with (
        _postgresql(address, certificate) as ledger,
        _TlsProxy(address, plain.http_port, certificate).running() as archive_port,
    ):
        node = TlsNode(
            **{field.name: getattr(plain, field.name) for field in fields(Node)},
            address=address,
            archive_port=archive_port,
            ledger=ledger,
            authority=certificate.authority,
        )
        keep(node)
        redis, orthanc = node.data / "redis.conf", node.data / "orthanc.json"
        redis.write_text(redis_settings(node) + _redis_tls(node, certificate))
        orthanc.write_text(json.dumps(orthanc_settings(node)))
        with (
            _server(node, [programs["redis-server"], redis], lambda: redis_answers(node)),
            _server(node, [programs["Orthanc"], orthanc], lambda: pages_answer(node)),
        ):
            yield node


def _redis_tls(node: TlsNode, certificate: Certificate) -> str:
    """Return what, coming last, takes the place of Redis's plain port."""
    lines = [
        f"bind {node.address}",
        "port 0",
        f"tls-port {node.redis_port}",
        f'tls-cert-file "{certificate.certificate}"',
        f'tls-key-file "{certificate.key}"',
        f'tls-ca-cert-file "{certificate.authority}"',
        "tls-auth-clients no",
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def _server(node: Node, command: Sequence[str | Path], up: Callable[[], bool]) -> Iterator[None]:
    name = Path(command[0]).name
    log = node.data / "logs" / f"{name}.log"
    environment = {**os.environ, **node.environment()}
    with log.open("w") as said:
        process = subprocess.Popen(
            [*_ENDS_WITH_US, *command], stdout=said, stderr=said, env=environment
        )
    with _ended(process):
        wait_for(lambda: up() or process.poll() is not None, name)
        assert process.poll() is None, log.read_text()
        yield


@contextmanager
def _postgresql(address: str, certificate: Certificate) -> Iterator[str]:
    """Run a server that takes nobody without TLS and password; return its URL."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    folder = Path(tempfile.mkdtemp(prefix="segnode-tls-pg-", dir="/tmp"))
    data, password, port = folder / "data", secrets.token_urlsafe(18), free_port()
    copies = [shutil.copy(path, folder) for path in (certificate.certificate, certificate.key)]
    (folder / "password").write_text(password)
    for path in (folder, folder / "password", *copies):
        # its server refuses to run as root, and a key that others may read
        shutil.chown(path, "postgres")
    Path(copies[1]).chmod(0o600)
    become = ["/usr/bin/setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    initdb: list[str | Path] = [
        programs / "initdb",
        "-D",
        data,
        "-U",
        "segnode",
        "-A",
        "scram-sha-256",
        "-N",
    ]
    settings = {
        "listen_addresses": address,
        "port": port,
        "unix_socket_directories": folder,
        "fsync": "off",
        "ssl": "on",
        "ssl_cert_file": copies[0],
        "ssl_key_file": copies[1],
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    ready: list[str | Path] = [programs / "pg_isready", "-q", "-h", folder, "-p", str(port)]
    try:
        subprocess.run(
            [*become, *initdb, f"--pwfile={folder}/password"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        (data / "pg_hba.conf").write_text("hostssl all all all scram-sha-256\n")
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [*become, *_ENDS_WITH_US, programs / "postgres", "-D", data, *options],
                stderr=log,
                cwd="/",
            )
        with _ended(server, signal.SIGINT):
            wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, "PostgreSQL")
            yield f"postgresql+psycopg://segnode:{password}@{address}:{port}/postgres"
    finally:
        shutil.rmtree(folder)


class _TlsProxy(socketserver.ThreadingTCPServer):
    """Takes TLS at an address, and hands on what it hears to a port of this machine."""

    def __init__(self, address: str, behind: int, certificate: Certificate) -> None:
        self._behind = behind
        self._trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._trust.load_cert_chain(certificate.certificate, certificate.key)
        self._over = threading.Event()
        super().__init__((address, 0), socketserver.BaseRequestHandler)

    @contextmanager
    def running(self) -> Iterator[int]:
        """Serve inside the ``with``; return the port."""
        thread = threading.Thread(target=self.serve_forever, args=(0.1,))
        thread.start()
        try:
            yield self.server_address[1]
        finally:
            self._over.set()
            self.shutdown()
            thread.join()
            self.server_close()

    def finish_request(self, request: object, client_address: object) -> None:
        """Forward one connection until either side ends it, or never spoke TLS."""
        assert isinstance(request, socket.socket)
        request.settimeout(WITHIN_S)
        with (
            suppress(OSError),
            self._trust.wrap_socket(request, server_side=True) as there,
            socket.create_connection(("127.0.0.1", self._behind)) as here,
        ):
            other = {there: here, here: there}
            while not self._over.is_set():
                # what was deciphered already is not seen by select
                ready = [there] if there.pending() else select.select([*other], [], [], 0.1)[0]
                for end in ready:
                    piece = end.recv(1 << 16)
                    if not piece:
                        return
                    other[end].sendall(piece)


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A Celery worker, and what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    def await_words(self, pattern: str) -> str:
        """Wait until the log has a line that matches, and return the line."""
        line = re.compile(f"^.*{pattern}.*$", re.MULTILINE)

        def found() -> re.Match[str] | None:
            return line.search(self.log.read_text())

        wait_for(lambda: found() or self.process.poll() is not None, f"'{pattern}' in a log")
        match = found()
        assert match, self.log.read_text()
        return match[0]

    def name(self, node: Node) -> str:
        """Wait until the worker is in the ledger, and return its name there."""

        def names() -> list[str]:
            with view_of(node.data) as view:
                return [w.name for w in view.workers() if w.name.endswith(f"/{self.process.pid}")]

        wait_for(lambda: names() or self.process.poll() is not None, "a worker")
        assert names(), self.log.read_text()
        return names()[0]


@contextmanager
def worker(
    data: Path, connections: Mapping[str, str], machine: SecondMachine | None = None
) -> Iterator[Worker]:
    """Run the plain `celery` command, on this machine or another; nothing else is told to it.

    Parameters
    ----------
    data
        The worker's own folder, made where it is missing.
    connections
        `SEGNODE_*` variables.
    """
    data.mkdir(exist_ok=True)
    command = ["-A", "segnode_worker.app", "worker", "--queues", "default", "--concurrency", "1"]
    command = [*_ENDS_WITH_US, program("celery"), *command]
    environment = {**_SYSTEM, "HOME": str(data), "SEGNODE_DATA": str(data), **connections}
    log = data / "worker.log"
    with log.open("w") as said:
        process = subprocess.Popen(
            machine.command(*command) if machine else command,
            env=environment,
            cwd=data,
            stdout=said,
            stderr=said,
        )
    with _ended(process):
        yield Worker(process=process, log=log)


@contextmanager
def _ended(process: subprocess.Popen[bytes], by: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    with ExitStack() as rest:
        rest.callback(process.wait)
        rest.callback(process.kill)
        try:
            yield
        finally:
            process.send_signal(by)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)


def wait_for(holds: Callable[[], object], what: str) -> None:
    """Wait until `holds`."""
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, f"waited {WITHIN_S:g} s for {what}"
        time.sleep(0.05)
