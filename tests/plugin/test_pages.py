"""What an administrator sees, without an Orthanc."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask.testing import FlaskClient

from segnode_contract.ledger import (
    Ledger,
)

from .pages import SCRIPT, Named, client
from .rows import finish_job, queue_job


@pytest.fixture
def pages(ledger: Ledger) -> FlaskClient:
    return client(ledger, Named())


def add_job(ledger: Ledger) -> str:
    key = queue_job(ledger)
    finish_job(ledger)
    return key


def test_a_finished_list_keeps_still(pages: FlaskClient, ledger: Ledger) -> None:
    key = add_job(ledger)
    for address in (f"jobs/{key}", "studies/1.2"):
        assert "http-equiv" not in pages.get(f"/segnode/{address}").text


def test_a_script_in_a_name_is_text(pages: FlaskClient, ledger: Ledger) -> None:
    key = add_job(ledger)
    for address in ("/segnode/jobs", f"/segnode/jobs/{key}", "/segnode/studies/1.2"):
        page = pages.get(address)
        assert SCRIPT not in page.text
        assert "&lt;script&gt;" in page.text


def test_every_answer_forbids_scripts_frames_and_copies(pages: FlaskClient, ledger: Ledger) -> None:
    key = add_job(ledger)
    addresses = ["", f"jobs/{key}", "studies/1.2", "health", "nothing", "static/icon.svg"]
    for address in [*addresses, "api/overlays?StudyInstanceUIDs=1.2"]:
        headers = pages.get(f"/segnode/{address}", buffered=True).headers
        assert headers["Content-Security-Policy"].startswith(
            "default-src 'none'; script-src 'self'"
        )
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cache-Control"] == ("no-cache" if "static" in address else "no-store")


def test_a_ledger_that_does_not_answer_is_said_plainly(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/no-such-folder/ledger.sqlite")
    for address in ("", "jobs", "jobs/00000001", "studies/1.2", "health", "api/overlays"):
        page = client(ledger).get(f"/segnode/{address}", query_string={"StudyInstanceUIDs": "1.2"})
        assert page.status_code == 503
        assert "Check SEGNODE_LEDGER_URL" in page.text
    ledger.close()


def test_pages_change_nothing(pages: FlaskClient) -> None:
    for address in ("", "now/live", "jobs", "health"):
        assert pages.post(f"/segnode/{address}").status_code == 403


@pytest.mark.parametrize(
    "address",
    [
        "jobs/zz",
        "studies/1.2'or'1",
        "api/overlays",
        "api/overlays?StudyInstanceUIDs=<x>",
        "nothing",
    ],
)
def test_an_address_that_names_nothing_is_not_found(pages: FlaskClient, address: str) -> None:
    assert pages.get(f"/segnode/{address}").status_code == 404
