"""`segnode withdraw`, and `segnode retry` of what was withdrawn."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path

import pytest

from segnode_cli.jobs import retry_jobs, withdraw_jobs
from segnode_contract.errors import SetupError
from segnode_contract.identity import revised
from segnode_contract.ledger import ActLedger, Ledger, LedgerView

from ..plugin.rows import fail_job, finish_job, queue_job

WHY = "the liver is on the left"


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """The ledger of the node in `tmp_path`."""
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    monkeypatch.setenv("SEGNODE_LEDGER_URL", url)
    ledger = Ledger(url)
    ledger.migrate()
    yield ledger
    ledger.close()


@pytest.fixture
def key(ledger: Ledger) -> str:
    """A job that is done."""
    made = queue_job(ledger)
    finish_job(ledger)
    return made


def state(ledger: Ledger, key: str) -> str:
    found = LedgerView(ledger).job(key)
    assert found is not None
    return found.row.state


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_result_is_withdrawn_and_what_stays_is_said(
    ledger: Ledger, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    withdraw_jobs(tmp_path, [key[:12]], WHY)
    words = said(capsys)
    assert f"the result of job {key[:12]} is withdrawn" in words
    assert "The objects stay in the archive" in words
    found = LedgerView(ledger).job(key)
    assert found is not None
    last = found.events[-1]
    assert last.actor == f"command line, {getpass.getuser()}"
    assert (found.row.state, last.detail) == ("withdrawn", WHY)


def test_what_builds_on_it_is_named(
    ledger: Ledger, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    child = queue_job(ledger, number=2)
    with ledger.write() as connection:
        connection.exec_driver_sql(f"update job set builds_on = '{key}' where key = '{child}'")
    withdraw_jobs(tmp_path, [key], WHY)
    assert f"so is that of job {child[:12]}, which builds on it" in said(capsys)


@pytest.mark.parametrize("reason", ["", "no", "x" * 501, "a\x07bcdef"])
def test_without_a_reason_nothing_is_withdrawn(
    ledger: Ledger, tmp_path: Path, key: str, reason: str
) -> None:
    with pytest.raises(SetupError, match="5 to 500 printable characters"):
        withdraw_jobs(tmp_path, [key], reason)
    assert state(ledger, key) == "done"


def test_a_failed_job_is_not_withdrawn(ledger: Ledger, tmp_path: Path) -> None:
    key = queue_job(ledger)
    fail_job(ledger)
    with pytest.raises(SetupError, match="is failed; only a result that was stored"):
        withdraw_jobs(tmp_path, [key], WHY)


def test_one_unknown_key_withdraws_nothing(ledger: Ledger, tmp_path: Path, key: str) -> None:
    with pytest.raises(SetupError, match="No single job's key begins with 'ffff'"):
        withdraw_jobs(tmp_path, [key, "ffff"], WHY)
    assert state(ledger, key) == "done"


def test_a_retry_makes_it_anew(
    ledger: Ledger, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    withdraw_jobs(tmp_path, [key], WHY)
    retry_jobs(tmp_path, [key])
    new = revised(key, 1)
    assert f"is made anew as job {new[:12]}" in said(capsys)
    assert (state(ledger, key), state(ledger, new)) == ("withdrawn", "queued")
    with pytest.raises(SetupError, match="a newer job has its place"):
        retry_jobs(tmp_path, [key])


def test_what_builds_on_a_withdrawn_result_is_not_made_anew_alone(
    ledger: Ledger, tmp_path: Path, key: str
) -> None:
    child = queue_job(ledger, number=2)
    finish_job(ledger)
    with ledger.write() as connection:
        connection.exec_driver_sql(f"update job set builds_on = '{key}' where key = '{child}'")
    ActLedger(ledger).withdraw(key, "ada", WHY)
    with pytest.raises(SetupError, match="what it builds on is withdrawn too"):
        retry_jobs(tmp_path, [child])
