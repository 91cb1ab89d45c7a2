"""The ledger: jobs and their history, in SQLite or PostgreSQL.

Each side has its own door: `IntakeLedger` and `OutboxLedger` in the plugin, `WorkLedger` in a
worker child, `WorkerLedger` in its parent, `LeaseLedger` in both, `DeliveryLedger` in the sender,
`ActLedger`, `LedgerView` and `PictureLedger` for commands and pages.
"""

from segnode_contract.ledger.acts import ActLedger
from segnode_contract.ledger.deliveries import DeliveryLedger
from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.intake import IntakeLedger
from segnode_contract.ledger.leases import LeaseLedger
from segnode_contract.ledger.outbox import OutboxLedger
from segnode_contract.ledger.pictures import PictureLedger
from segnode_contract.ledger.shared import read_shared, write_shared
from segnode_contract.ledger.view import LedgerView
from segnode_contract.ledger.work import WorkLedger
from segnode_contract.ledger.worker import WorkerLedger

__all__ = [
    "ActLedger",
    "DeliveryLedger",
    "IntakeLedger",
    "LeaseLedger",
    "Ledger",
    "LedgerView",
    "OutboxLedger",
    "PictureLedger",
    "WorkLedger",
    "WorkerLedger",
    "read_shared",
    "write_shared",
]
