"""Settings that all workers of a node follow, wherever they run: the plugin writes them here.

So a worker on another machine needs no copy of `segnode.toml`, and none can be out of date.
"""

from __future__ import annotations

from sqlalchemy import select

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
    table = schema.shared
    with ledger.read() as connection:
        value = connection.scalar(select(table.c.value).where(table.c.name == _NAME))
    if value is None:
        raise LedgerUnavailable(
            "The ledger does not hold the node's settings yet; Orthanc with the plugin writes them "
            "when it starts."
        )
    return Shared.from_json(value)
