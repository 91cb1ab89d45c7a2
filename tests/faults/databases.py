"""A PostgreSQL server of our own, which can be restarted."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return found[-1] if found else None


class Postgresql:
    """A server in `folder`; its superuser is ``segnode``, on loopback, without a password."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # its server refuses to run as root
        self._user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self._programs = programs() or Path()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://segnode@127.0.0.1:{self._port}/postgres"

    def create(self) -> None:
        """Make its data folder."""
        if self._user:
            shutil.chown(self._folder, "postgres")
        self._run("initdb", "-D", f"{self._folder}/data", "-U", "segnode", "-A", "trust", "-N")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1"
        data, log = f"{self._folder}/data", f"{self._folder}/log"
        self._run("pg_ctl", "-w", "-D", data, "-l", log, "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """End it, as by a crash, or ``fast``."""
        self._run("pg_ctl", "-w", "-D", f"{self._folder}/data", "-m", mode, "stop")

    def restart(self, away_s: float = 2.0) -> None:
        """Be away, as after a crash."""
        self.stop()
        time.sleep(away_s)
        self.start()

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [*self._user, self._programs / name, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )


@contextmanager
def postgresql() -> Iterator[Postgresql]:
    """Run a server inside the ``with``."""
    folder = Path(tempfile.mkdtemp(prefix="segnode-faults-pg-", dir="/tmp"))
    server = Postgresql(folder)
    server.create()
    server.start()
    try:
        yield server
    finally:
        server.stop("fast")
        shutil.rmtree(folder)
