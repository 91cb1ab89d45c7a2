"""Settings that all workers of a node follow, wherever they run: the plugin writes them here.

So a worker on another machine needs no copy of `segnode.toml`, and none can be out of date.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from segnode_contract.errors import LedgerUnavailable
from segnode_contract.ledger import schema
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.upsert import upsert
from segnode_contract.settings import Shared

_NAME = "settings"


def write_shared(ledger: Ledger, shared: Shared) -> None:
    """Say what counts from now on."""
    with ledger.write() as connection:
        upsert(connection, schema.shared, {"name": _NAME}, {"value": shared.to_json()})


def read_shared(ledger: Ledger) -> Shared:
    """Return what counts now.

    Raises
    ------
    LedgerUnavailable
        If the plugin has not said it yet.
    """
    with ledger.read() as connection:
        shared = shared_in(connection)
    if shared is None:
        raise LedgerUnavailable(
            "The ledger does not hold the node's settings yet; Orthanc with the plugin writes them "
            "when it starts."
        )
    return shared


def shared_in(connection: Connection, *, kept: bool = False) -> Shared | None:
    """Return what counts now, None where the plugin has not said it yet.

    With `kept` nobody says otherwise before the transaction ends.
    """
    table = schema.shared
    query = select(table.c.value).where(table.c.name == _NAME)
    value = connection.scalar(query.with_for_update(read=True) if kept else query)
    return None if value is None else Shared.from_json(value)
