"""What the viewer is told of a study, again and again."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from segnode_contract.ledger import Ledger
from segnode_plugin.web.overlays import overlay_pages

from .rows import finish_job, queue_job

ADDRESS = "/segnode/api/overlays?StudyInstanceUIDs="


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    made.migrate()
    queue_job(made)
    finish_job(made)
    return made


@pytest.fixture
def client(ledger: Ledger) -> FlaskClient:
    app = Flask(__name__)
    app.register_blueprint(overlay_pages(ledger))
    return app.test_client()


def test_the_viewer_learns_model_version_and_route(client: FlaskClient) -> None:
    [overlay] = client.get(ADDRESS + "1.2").get_json()["overlays"]
    assert overlay == {
        "series_uid": "1.2.3",
        "seg_series_uid": "2.1",
        "model": "ct-tissue",
        "version": overlay["version"],
        "route": "tissue",
    }
    assert overlay["version"].count(".")


def test_an_answer_that_is_known_is_not_sent_again(client: FlaskClient) -> None:
    first = client.get(ADDRESS + "1.2")
    again = client.get(ADDRESS + "1.2", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_a_withdrawn_result_is_news(client: FlaskClient, ledger: Ledger) -> None:
    first = client.get(ADDRESS + "1.2")
    with ledger.write() as connection:
        connection.execute(text("update job set state = 'withdrawn'"))
    again = client.get(ADDRESS + "1.2", headers={"If-None-Match": first.headers["ETag"]})
    assert again.get_json() == {"overlays": [], "hidden": ["2.1"]}


@pytest.mark.parametrize("uid", ["", "1.2.x", "1.2%20", "1" * 65])
def test_what_is_no_uid_is_not_looked_up(client: FlaskClient, uid: str) -> None:
    assert client.get(ADDRESS + uid).status_code == 404
