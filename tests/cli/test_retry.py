"""`segnode retry` and `segnode deliveries`, for results that are to be sent on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from segnode_cli.jobs import print_deliveries, retry_jobs
from segnode_contract.destination import Destination
from segnode_contract.ledger import DeliveryLedger, Ledger, LedgerView, write_shared
from segnode_contract.settings import Background, Limits, Node, Shared

from ..plugin.rows import finish_job, queue_job

PACS = Destination(name="pacs", aet="PACS", host="127.0.0.1", port=1)
LIMITS = Limits()


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """The ledger of the node in `tmp_path`."""
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    monkeypatch.setenv("SEGNODE_LEDGER_URL", url)
    ledger = Ledger(url)
    ledger.migrate()
    shared = Shared(
        node=Node(name="n"), limits=LIMITS, background=Background(), destinations=(PACS,)
    )
    write_shared(ledger, shared)
    yield ledger
    ledger.close()


def claimed(ledger: Ledger) -> str:
    """Have a sender take the result of a job, and return the job's key."""
    key = queue_job(ledger)
    finish_job(ledger)
    assert DeliveryLedger(ledger, "s1", LIMITS).claim("pacs") is not None
    return key


def test_what_a_sender_has_in_hand_is_said(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = claimed(ledger)
    retry_jobs(tmp_path, [key])
    assert "in a sender's hands just now" in " ".join(capsys.readouterr().err.split())


def test_what_a_dead_sender_held_is_sent_again(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = claimed(ledger)
    with ledger.write() as connection:
        connection.exec_driver_sql("update delivery set lease_until = lease_until - 61")
    retry_jobs(tmp_path, [key])
    assert "is sent to pacs again" in " ".join(capsys.readouterr().err.split())
    [found] = LedgerView(ledger).deliveries(key)
    assert (found.state, found.attempts) == ("waiting", 0)


def test_what_counts_no_more_is_not_listed(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = claimed(ledger)
    print_deliveries(tmp_path, as_json=True)
    assert key in capsys.readouterr().out
    with ledger.write() as connection:
        connection.exec_driver_sql("update job set state = 'superseded'")
    print_deliveries(tmp_path, as_json=True)
    assert capsys.readouterr().out.strip() == "[]"
