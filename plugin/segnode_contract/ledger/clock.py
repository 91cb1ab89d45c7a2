"""The database's clock, so that the hosts' clocks do not matter."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Double, Integer, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class now_s(FunctionElement[float]):  # used like the SQL functions in sqlalchemy.func
    """Seconds since 1970, UTC, at the moment of the statement."""

    type = Double()
    inherit_cache = True


@compiles(now_s, "sqlite")
def _sqlite(element: now_s, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_s, "postgresql")
def _postgresql(element: now_s, compiler: Any, **options: Any) -> str:
    return "extract(epoch from clock_timestamp())::float8"


class day_of(FunctionElement[int]):
    """The day, since 1970 and in UTC, of seconds since 1970."""

    type = Integer()
    inherit_cache = True


@compiles(day_of, "sqlite")
def _sqlite_day(element: day_of, compiler: Any, **options: Any) -> str:
    return f"cast({compiler.process(element.clause_expr, **options)} / 86400 as integer)"


@compiles(day_of, "postgresql")
def _postgresql_day(element: day_of, compiler: Any, **options: Any) -> str:
    return f"floor({compiler.process(element.clause_expr, **options)} / 86400)::int"


def local_hour(connection: Connection) -> float:
    """Return the hour of the day by the database's clock, in this process's time zone."""
    now = datetime.fromtimestamp(connection.execute(select(now_s())).scalar_one())
    return now.hour + now.minute / 60
