"""The ledger: jobs and their history, in SQLite or PostgreSQL.

Each side has its own door: `IntakeLedger` and `OutboxLedger` in the plugin, `WorkLedger` in a
worker child, `LedgerView` for pages and commands.
"""

from segnode_contract.ledger.engine import Ledger
from segnode_contract.ledger.intake import IntakeLedger
from segnode_contract.ledger.outbox import OutboxLedger
from segnode_contract.ledger.view import LedgerView
from segnode_contract.ledger.work import WorkLedger

__all__ = ["IntakeLedger", "Ledger", "LedgerView", "OutboxLedger", "WorkLedger"]
