"""Withdrawing a wrong result from the dashboard, with or without its objects in the archive."""

from __future__ import annotations

import html
import re

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from segnode_contract.errors import ArchiveUnavailable
from segnode_contract.identity import revised
from segnode_contract.ledger import Ledger, LedgerView
from segnode_contract.ledger.revisions import reason_of

from .pages import client, token
from .rows import fail_job, finish_job, queue_job
from .shelf import Shelf

WHY = "The liver is <b>on the left</b>."


@pytest.fixture
def shelf() -> Shelf:
    shelf = Shelf()
    shelf.add("o1", "1.2.3")
    shelf.add("r1", "2.1", "2.1.1", Modality="SEG")
    return shelf


@pytest.fixture
def pages(ledger: Ledger, shelf: Shelf) -> FlaskClient:
    return client(ledger, shelf, user="admin")


@pytest.fixture
def key(ledger: Ledger) -> str:
    """A job that is done."""
    made = queue_job(ledger)
    finish_job(ledger)
    return made


def read(pages: FlaskClient, address: str) -> str:
    answer = pages.get(f"/segnode/{address}")
    assert answer.status_code == 200, answer.text
    return html.unescape(re.sub(r"\s+", " ", answer.text))


def post(pages: FlaskClient, key: str, what: str = "withdraw", **fields: str) -> TestResponse:
    word = token(pages.get(f"/segnode/jobs/{key}/withdraw").text)
    return pages.post(f"/segnode/jobs/{key}/{what}", data={"token": word, **fields})


def state(ledger: Ledger, key: str) -> str:
    found = LedgerView(ledger).job(key)
    assert found is not None
    return found.row.state


def test_the_page_says_who_withdrew_it_when_and_why(pages: FlaskClient, key: str) -> None:
    answer = post(pages, key, reason=WHY)
    assert answer.status_code == 302
    assert answer.headers["Location"] == f"/segnode/jobs/{key}"
    assert WHY not in pages.get(f"/segnode/jobs/{key}").text  # it is text, no markup
    text = read(pages, f"jobs/{key}")
    assert re.search(rf"By admin at <time.*?</time>: {re.escape(WHY)}", text)
    assert "The viewer does not open it any more" in text
    assert "Open in OHIF" not in text


def test_the_viewer_is_told_of_it_no_more(pages: FlaskClient, key: str) -> None:
    address = "/segnode/api/overlays?StudyInstanceUIDs=1.2"
    before = pages.get(address).json
    assert before is not None
    assert [each["seg_series_uid"] for each in before["overlays"]] == ["2.1"]
    post(pages, key, reason=WHY)
    assert pages.get(address).json == {"overlays": [], "hidden": ["2.1"]}


def test_its_objects_stay_in_the_archive(pages: FlaskClient, key: str, shelf: Shelf) -> None:
    post(pages, key, reason=WHY)
    assert "r1" in shelf.series
    assert "Its objects stay in the archive" in read(pages, f"jobs/{key}")


@pytest.mark.parametrize("reason", ["", "no", "   x   ", "a" * 501, "a\x00bcdef", "a\u202ebcdef"])
def test_without_a_reason_nothing_is_withdrawn(
    pages: FlaskClient, ledger: Ledger, key: str, reason: str
) -> None:
    answer = post(pages, key, reason=reason)
    assert "A reason of 5 to 500 characters is needed" in answer.text
    assert state(ledger, key) == "done"


def test_a_reason_is_kept_as_one_line() -> None:
    assert reason_of("  left\r\nand\tright ") == "left and right"
    assert reason_of("Leber auf der falschen Seite: ärgerlich") != ""


def test_what_was_typed_is_still_there_after_a_refusal(pages: FlaskClient, key: str) -> None:
    answer = post(pages, key, what="withdraw-and-delete", reason="wrong side", confirm="wrong")
    assert ">wrong side</textarea>" in answer.text


def test_a_job_without_a_result_cannot_be_withdrawn(pages: FlaskClient, ledger: Ledger) -> None:
    key = queue_job(ledger)
    fail_job(ledger)
    text = read(pages, f"jobs/{key}/withdraw")
    assert "The job is failed: only a result that was stored is withdrawn." in text
    assert "<form" not in text


def test_what_builds_on_it_is_named_before_and_after(
    pages: FlaskClient, ledger: Ledger, key: str
) -> None:
    child = queue_job(ledger, number=2)
    with ledger.write() as connection:
        connection.exec_driver_sql(f"update job set builds_on = '{key}' where key = '{child}'")
    assert f'is withdrawn too: <a href="/segnode/jobs/{child}">' in read(
        pages, f"jobs/{key}/withdraw"
    )
    post(pages, key, reason=WHY)
    assert f'With it, what builds on it: <a href="/segnode/jobs/{child}">' in read(
        pages, f"jobs/{key}"
    )
    assert state(ledger, child) == "withdrawn"


def test_where_it_was_sent_already_is_said(pages: FlaskClient, ledger: Ledger, key: str) -> None:
    with ledger.write() as connection:
        connection.exec_driver_sql(
            "insert into delivery (job_key, destination, state, tried_since, due_at, attempts, "
            "losses, lease_epoch, objects, updated_at) "
            f"values ('{key}', 'pacs', 'done', 0, 0, 1, 0, 0, 2, 0)"
        )
    assert "pacs has got it already, and is not asked to give it back" in read(
        pages, f"jobs/{key}/withdraw"
    )
    post(pages, key, reason=WHY)
    assert "pacs has got it and is not asked to give it back" in read(pages, f"jobs/{key}")


def test_made_anew_it_is_the_next_revision_and_both_lead_to_each_other(
    pages: FlaskClient, key: str
) -> None:
    post(pages, key, reason=WHY)
    text = pages.get(f"/segnode/jobs/{key}").text
    assert "Make it anew" in text
    answer = pages.post(
        "/segnode/jobs/retry", data={"token": token(text), "keys": key, "back": "job"}
    )
    new = revised(key, 1)
    assert answer.headers["Location"].startswith(f"/segnode/jobs/{new}")
    assert f'<a href="/segnode/jobs/{new}">revision 1</a>' in read(pages, f"jobs/{key}")
    assert f'<a href="/segnode/jobs/{key}">revision 0</a>' in read(pages, f"jobs/{new}")
    assert "until it was made anew" in read(pages, f"jobs/{new}")
    assert "Make it anew" not in read(pages, f"jobs/{key}")


def test_what_has_a_newer_job_in_its_place_is_not_offered_to_be_made_anew(
    pages: FlaskClient, ledger: Ledger, key: str
) -> None:
    post(pages, key, reason=WHY)
    other = queue_job(ledger, number=2)
    with ledger.write() as connection:
        connection.exec_driver_sql(f"update job set series_uids = '1.2.3' where key = '{other}'")
    text = read(pages, f"jobs/{key}")
    assert "Make it anew" not in text
    answer = pages.post(
        "/segnode/jobs/retry",
        data={"token": token(text), "keys": key, "back": "job"},
        follow_redirects=True,
    )
    assert "a newer job has its place, or what it builds on is withdrawn." in answer.text


def test_nor_is_what_builds_on_a_withdrawn_result(
    pages: FlaskClient, ledger: Ledger, key: str
) -> None:
    child = queue_job(ledger, number=2)
    with ledger.write() as connection:
        connection.exec_driver_sql(f"update job set builds_on = '{key}' where key = '{child}'")
    post(pages, key, reason=WHY)
    assert "Make it anew" not in read(pages, f"jobs/{child}")
    assert "Make it anew" in read(pages, f"jobs/{key}")


def test_an_administrator_deletes_the_objects_too(
    pages: FlaskClient, key: str, shelf: Shelf
) -> None:
    post(pages, key, what="withdraw-and-delete", reason=WHY, confirm=key[:8])
    assert shelf.deleted == ["2.1.1"]
    assert "o1" in shelf.series  # the images are left alone
    text = read(pages, f"jobs/{key}")
    assert f"1 of 1 objects were in the archive and are deleted: {WHY}, by admin" in text
    assert "Its objects stay in the archive" not in text


@pytest.mark.parametrize("confirm", ["", "0", "00000002"])
def test_nothing_is_deleted_without_the_digits(
    pages: FlaskClient, ledger: Ledger, key: str, shelf: Shelf, confirm: str
) -> None:
    answer = post(pages, key, what="withdraw-and-delete", reason=WHY, confirm=confirm)
    assert "Type 00000001 to delete; nothing was changed." in answer.text
    assert state(ledger, key) == "done"
    assert shelf.deleted == []


def test_the_withdrawal_stays_where_the_archive_refuses_to_delete(
    pages: FlaskClient, ledger: Ledger, key: str, shelf: Shelf
) -> None:
    shelf.refuses = ArchiveUnavailable("Orthanc does not delete the instance x; see its log.")
    answer = post(pages, key, what="withdraw-and-delete", reason=WHY, confirm=key[:8])
    assert "The result is withdrawn, but the archive did not delete all of it" in html.unescape(
        answer.text
    )
    assert state(ledger, key) == "withdrawn"
    assert "Orthanc does not delete the instance x" in read(pages, f"jobs/{key}")
    shelf.refuses = None
    post(pages, key, what="withdraw-and-delete", reason="once more", confirm=key[:8])
    assert shelf.deleted == ["2.1.1"]


def test_with_it_go_the_objects_of_what_builds_on_it(
    pages: FlaskClient, ledger: Ledger, key: str, shelf: Shelf
) -> None:
    child = queue_job(ledger, number=2)
    finish_job(ledger)
    with ledger.write() as connection:
        connection.exec_driver_sql(f"update job set builds_on = '{key}' where key = '{child}'")
    post(pages, key, reason=WHY)
    assert shelf.deleted == []
    post(pages, key, what="withdraw-and-delete", reason=WHY, confirm=key[:8])
    assert shelf.deleted == ["2.1.1", "2.2.1"]


def test_without_an_archive_it_is_withdrawn_and_nothing_can_be_deleted(
    ledger: Ledger, key: str
) -> None:
    pages = client(ledger, user="admin")
    assert "can be deleted only while the archive runs" in read(pages, f"jobs/{key}/withdraw")
    answer = post(pages, key, what="withdraw-and-delete", reason=WHY, confirm=key[:8])
    assert "There is no archive here: nothing was changed." in answer.text
    post(pages, key, reason=WHY)
    assert state(ledger, key) == "withdrawn"


@pytest.mark.parametrize(
    ("user", "forms"),
    [
        ("viewer", []),
        ("operator", ["withdraw"]),
        ("admin", ["withdraw", "withdraw-and-delete"]),
    ],
)
def test_each_role_is_shown_what_it_may_do(
    ledger: Ledger, shelf: Shelf, key: str, user: str, forms: list[str]
) -> None:
    pages = client(ledger, shelf, user=user)
    text = pages.get(f"/segnode/jobs/{key}/withdraw").text
    assert re.findall(rf'action="/segnode/jobs/{key}/([^"]+)"', text) == forms


@pytest.mark.parametrize(
    ("user", "what"),
    [
        ("viewer", "withdraw"),
        ("viewer", "withdraw-and-delete"),
        ("operator", "withdraw-and-delete"),
    ],
)
def test_who_may_not_is_refused(
    ledger: Ledger, shelf: Shelf, key: str, user: str, what: str
) -> None:
    other = client(ledger, shelf, user=user)
    answer = other.post(f"/segnode/jobs/{key}/{what}", data={"reason": WHY, "confirm": key[:8]})
    assert answer.status_code == 403
    assert state(ledger, key) == "done"


def test_a_form_of_another_page_is_refused(pages: FlaskClient, ledger: Ledger, key: str) -> None:
    for data in ({"reason": WHY}, {"reason": WHY, "token": "0" * 64}):
        assert pages.post(f"/segnode/jobs/{key}/withdraw", data=data).status_code == 403
    assert state(ledger, key) == "done"


def test_the_reason_names_nobody_by_our_own_words(pages: FlaskClient, key: str) -> None:
    assert "No name, number or date of a patient belongs in it" in read(
        pages, f"jobs/{key}/withdraw"
    )
