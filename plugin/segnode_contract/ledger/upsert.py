"""Insert or update in one statement, in both dialects: two writers must not both insert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


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
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values({**key, **values, **(at_first or {})})
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=dict(values)))
