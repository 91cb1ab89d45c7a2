"""Insert or else update, in both dialects and in one statement: two must not both insert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def inserted(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an ``INSERT`` that may say what is done where the row is there already."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def upsert(
    connection: Connection,
    table: Table,
    key: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    at_first: Mapping[str, Any] | None = None,
) -> None:
    """Write the row of `key`.

    Parameters
    ----------
    values
        Written in any case.
    at_first
        Written only where the row is new.
    """
    statement = inserted(connection, table).values({**key, **values, **(at_first or {})})
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=dict(values)))
