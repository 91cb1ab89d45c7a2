"""What all tests share: a ledger on SQLite and on a PostgreSQL of our own."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from segnode_contract.ledger import Ledger

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that of several processes none is left with it."""
    items.sort(key=lambda item: Path(__file__).parent / "system" not in item.path.parents)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real images beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data, the folder of real images, is not here")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def no_node_of_this_shell() -> None:
    """Keep commands without --data away from the node of whoever runs the tests."""
    os.environ.pop("SEGNODE_DATA", None)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests of a process, which cannot have two."""
    from .system.browser import CHROMIUM, running_chromium

    if not Path(CHROMIUM).exists():
        if os.environ.get("CI"):
            pytest.fail("Chromium is not installed; `make test` installs it")
        pytest.skip("Chromium is not installed; `make test` installs it")
    with running_chromium() as browser:
        yield browser


def free_port() -> int:
    """Return a port that nobody has, below those of outgoing connections."""
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a PostgreSQL server of our own, without a database name."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed; `make test` installs it")
        pytest.skip("PostgreSQL is not installed; `make test` installs it")
    # its server refuses to run as root
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="segnode-pg-", dir="/tmp"))
    if user:
        shutil.chown(folder, "postgres")
    port = free_port()
    data = str(folder / "data")
    subprocess.run(
        [*user, programs[-1] / "initdb", "-D", data, "-U", "segnode", "-A", "trust", "-N"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd="/",
    )
    options = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*user, programs[-1] / "postgres", "-D", data, *options], stderr=log, cwd="/"
        )
    try:
        ready = [programs[-1] / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready, stdout=subprocess.DEVNULL, check=False).returncode != 0:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"postgresql+psycopg://segnode@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite"
    from sqlalchemy import create_engine, text

    server = request.getfixturevalue("postgresql")
    name = f"test_{uuid.uuid4().hex}"
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"create database {name}"))
    engine.dispose()
    return f"{server}/{name}"


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """An empty ledger with today's schema."""
    ledger = Ledger(ledger_url)
    ledger.migrate()
    yield ledger
    ledger.close()
