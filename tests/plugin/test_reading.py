"""Pages whose archive fails at some of what they ask."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from segnode_contract.ledger import Ledger, schema
from segnode_contract.settings import load_settings
from segnode_plugin.web import by_hand
from segnode_plugin.web.reading import ReadingArchive
from segnode_plugin.web.site import Site

from .pages import CONFIG, Named, client, token
from .rows import finish_job, queue_job


class Refused(Exception):
    """As `orthanc.OrthancException`."""


class Broken(Named):
    """An archive whose index cannot be read for the study 1.2."""

    def study(self, study_uid: str) -> dict[str, Any] | None:
        if study_uid == "1.2":
            raise Refused("CANARY^NAME")
        return super().study(study_uid)

    def series_named(self, series_uid: str) -> list[str]:
        raise Refused

    def studies_with(self, keyword: str, value: str) -> list[str]:
        raise Refused


class Twice(Named):
    """An archive that has a Study Instance UID for two patients."""

    def studies_named(self, study_uid: str) -> list[str]:
        return ["a", "b"]


@pytest.fixture
def pages(ledger: Ledger) -> FlaskClient:
    for number, study_uid in ((1, "1.2"), (2, "1.3")):
        queue_job(ledger, number=number, study_uid=study_uid)
        finish_job(ledger)
    return client(ledger, ReadingArchive(Broken(), Refused), user="admin")


def test_a_study_that_cannot_be_read_takes_no_page_away(pages: FlaskClient) -> None:
    for address in ("jobs", "jobs/00000001", "studies/1.2"):
        answer = pages.get(f"/segnode/{address}")
        assert answer.status_code == 200, address
        assert "CANARY^NAME" not in answer.text
        assert "The archive could not be read just now" in answer.text
    assert "&lt;script&gt;" in pages.get("/segnode/jobs").text  # the other study's name


def test_what_cannot_be_read_is_not_called_unknown(ledger: Ledger) -> None:
    archive = ReadingArchive(Broken(), Refused)
    site = Site(ledger=ledger, settings=load_settings(CONFIG), archive=archive)
    pages = client(ledger, archive, user="admin", blueprints=[by_hand.pages(site)])
    answer = pages.get("/segnode/series/1.2.3/run")
    assert (answer.status_code, "could not be read" in answer.text) == (503, True)


def test_a_search_that_fails_is_no_answer_but_is_on_record(
    pages: FlaskClient, ledger: Ledger
) -> None:
    form = {"token": token(pages.get("/segnode/jobs").text), "by": "patient", "value": "4711"}
    answer = pages.post("/segnode/search", data=form)
    assert answer.status_code == 200
    assert "The archive could not search just now" in answer.text
    with ledger.read() as connection:
        event = schema.event
        kinds = connection.scalars(select(event.c.kind).where(event.c.person)).all()
    assert "search" in kinds


def test_of_two_patients_under_one_uid_neither_is_named(ledger: Ledger) -> None:
    key = queue_job(ledger)
    pages = client(ledger, Twice(), user="admin")
    for address in ("jobs", f"jobs/{key}"):
        text = pages.get(f"/segnode/{address}").text
        assert "(2 studies in the archive have this UID)" in text
        assert "&lt;script&gt;alert" not in text
