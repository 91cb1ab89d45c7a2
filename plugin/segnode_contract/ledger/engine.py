"""The door to the database: transactions, schema, clock."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import ArgumentError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import NullPool

from segnode_contract.errors import LedgerSchemaError, LedgerUnavailable, SettingsError

MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 5_357_110  # any number of our own, for PostgreSQL's advisory lock

_NOTICED = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # ms
}
"""A server that is gone without a word is noticed within half a minute; Linux alone takes hours."""


class Ledger:
    """A database with our schema. Make one per process, after fork.

    Parameters
    ----------
    url
        SQLAlchemy URL, ``sqlite:///folder/ledger.sqlite`` or ``postgresql+psycopg://…``.
    forks
        Whether this process forks while threads of it use the ledger: no connection is open then
        at a fork, since a child that inherits one of SQLite's finds the database locked for ever.
    """

    def __init__(self, url: str, *, forks: bool = False) -> None:
        self._quiet: AbstractContextManager[object] = nullcontext()
        options: dict[str, Any] = {"pool_pre_ping": not url.startswith("sqlite")}
        if url.startswith("postgresql"):
            options["connect_args"] = _NOTICED
        if forks:
            lock = threading.Lock()
            os.register_at_fork(
                before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
            )
            self._quiet = lock
            options["poolclass"] = NullPool
        try:
            self.engine = create_engine(url, hide_parameters=True, **options)
        except (ArgumentError, NoSuchModuleError) as error:
            raise SettingsError(
                "SEGNODE_LEDGER_URL is not an address that SQLAlchemy knows; "
                "sqlite:///FILE and postgresql+psycopg://… are."
            ) from error
        if self.engine.dialect.name == "sqlite":
            _prepare_sqlite(self.engine)

    @classmethod
    def open(cls, url: str, *, forks: bool = False) -> Ledger:
        """Return the ledger at `url`, refusing another schema than ours.

        Raises
        ------
        LedgerSchemaError
            If the schema is missing, older or newer; only the plugin migrates.
        LedgerUnavailable
            If the database does not answer.
        """
        ledger = cls(url, forks=forks)
        wanted = _head()
        try:
            found = ledger.schema_version()
        except LedgerUnavailable:
            ledger.close()
            raise
        if found != wanted:
            ledger.close()
            raise LedgerSchemaError(
                f"The ledger's schema is {found or 'empty'}, this program needs {wanted}; start "
                "Orthanc with the plugin of this version first, which brings it up to date."
            )
        return ledger

    def migrate(self, to: str = "head") -> None:
        """Bring the schema up to date, one process at a time.

        Raises
        ------
        LedgerSchemaError
            If the schema is newer than this program.
        """
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self.write() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(text(f"select pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            found = MigrationContext.configure(connection).get_current_revision()
            known = {revision.revision for revision in ScriptDirectory(MIGRATIONS).walk_revisions()}
            if found is not None and found not in known:
                raise LedgerSchemaError(
                    f"The ledger's schema is {found}, which this version does not know; "
                    "it was made by a newer segnode: use that one."
                )
            config.attributes["connection"] = connection
            command.upgrade(config, to)

    def schema_version(self) -> str | None:
        """Return the Alembic revision of the database, None when it is empty."""
        with self.read() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that takes the write lock first (SQLite: ``BEGIN IMMEDIATE``)."""
        with (
            _translated(),
            self._quiet,
            self.engine.connect() as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that only reads."""
        reading = self.engine.execution_options(segnode_reads=True)
        with _translated(), self._quiet, reading.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _head() -> str:
    head = ScriptDirectory(MIGRATIONS).get_current_head()
    assert head is not None  # noqa: S101 # there is a first migration
    return head


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        reason = str(error.orig).strip().splitlines()[0] if error.orig else type(error).__name__
        raise LedgerUnavailable(
            f"The ledger does not answer: {reason}. Check SEGNODE_LEDGER_URL, that its server "
            "runs and that its disk has space."
        ) from error


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None  # we begin ourselves, see `_begin`
        for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"pragma {pragma}").close()
        connection.execute("pragma foreign_keys=on").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # a read turned write fails at once with "database is locked"
        reads = connection.get_execution_options().get("segnode_reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
