"""Workers elsewhere follow the node's settings by the ledger."""

from __future__ import annotations

import pytest

from segnode_contract.errors import LedgerUnavailable
from segnode_contract.ledger import Ledger, read_shared, write_shared
from segnode_contract.settings import Background, Limits, Node, Shared

SHARED = Shared(
    node=Node(name="reading room"),
    limits=Limits(lease_s=7.5, back_off_s=(1.0, 2.0)),
    background=Background(from_hour=20.0, to_hour=6.0),
)


def test_what_the_plugin_wrote_is_what_a_worker_reads(ledger: Ledger) -> None:
    write_shared(ledger, SHARED)
    assert read_shared(ledger) == SHARED


def test_a_restarted_plugin_changes_it(ledger: Ledger) -> None:
    write_shared(ledger, SHARED)
    other = Shared(node=Node(name="other"), limits=Limits(), background=Background())
    write_shared(ledger, other)
    assert read_shared(ledger) == other


def test_a_ledger_without_them_is_named(ledger: Ledger) -> None:
    with pytest.raises(LedgerUnavailable, match="Orthanc with the plugin writes them"):
        read_shared(ledger)
