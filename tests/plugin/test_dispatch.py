"""How often a lane is rung."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from segnode_contract.ledger import IntakeLedger, LeaseLedger, Ledger, OutboxLedger
from segnode_contract.settings import Limits
from segnode_plugin.dispatch import Dispatch
from segnode_plugin.intake import Intake

from .test_intake import Archive, announce, settings


class Bell:
    """A queue that no worker reads."""

    def __init__(self) -> None:
        self.held = 0

    def ring(self, lane: str) -> None:
        self.held += 1

    def waiting(self, lane: str) -> int:
        return self.held


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def dispatch(ledger: Ledger, bell: Bell) -> Dispatch:
    limits = Limits()
    return Dispatch(OutboxLedger(ledger, limits), LeaseLedger(ledger, limits), bell, limits.lease_s)


def queue(ledger: Ledger, archive: Archive, *series: str) -> None:
    for one in series:
        archive.add(one, f"1.{one}.1")
    Intake(archive, IntakeLedger(ledger), settings()).tick()


def test_each_new_job_has_its_ring_while_those_of_others_wait(
    ledger: Ledger, bell: Bell, dispatch: Dispatch
) -> None:
    announce(ledger)
    archive = Archive()
    queue(ledger, archive, "7", "8", "9")
    dispatch.tick()
    assert bell.held == 3
    queue(ledger, archive, "10", "11")
    dispatch.tick()
    assert bell.held == 5


def test_a_ring_that_nobody_heard_is_not_piled_on_another(
    ledger: Ledger, bell: Bell, dispatch: Dispatch
) -> None:
    announce(ledger)
    queue(ledger, Archive(), "7", "8", "9")
    dispatch.tick()
    with ledger.write() as connection:
        connection.execute(text("update outbox set published_at = published_at - 100"))
        connection.execute(text("update job set not_before = not_before - 100"))
    bell.held = 1  # Redis forgot two of them
    dispatch.tick()
    assert bell.held == 3
