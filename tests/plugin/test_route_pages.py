"""What an administrator sees of routes, and what starts a replay."""

from __future__ import annotations

import html
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from segnode_cli.routes import Keywords
from segnode_contract.ledger import IntakeLedger, Ledger, LedgerView
from segnode_plugin.intake import Intake
from segnode_plugin.route_file import RouteFile
from segnode_plugin.web.routes import RoutePages

from .pages import client, token
from .rows import queue_job
from .test_intake import Archive, announce

SCRIPT = "<script>alert(1)</script>"
FILE = """\
[node]
name = "test"
[intake]
quiet_s = 0
[[users]]
name = "admin"
role = "administrator"
[[users]]
name = "viewer"
role = "viewer"
[[priorities]]
priority = "stat"
where = { fact = "calling_aet", equals = "ER" }
[[routes]]
name = "thin"
model = "ct-tissue"
modality = "CT"
where.all = [
  { attribute = "SeriesDescription", contains = "thin" },
  { not = { attribute = "ImageType", equals = "LOCALIZER" } },
]
[[routes]]
name = "trial"
model = "ct-lung-density"
modality = "CT"
shadow = true
scouts = true
trigger = "study"
prefer = ["most_images"]
"""


class Listed(Archive):
    """The archive as the pages ask it."""

    def __init__(self) -> None:
        super().__init__()
        self.updated = "20261124T120000"

    def get(self, uri: str) -> Any:
        if uri == "/studies":
            return ["gone", "study"]
        if uri == "/studies/gone":
            return None
        if uri == "/studies/study":
            return super().get(uri) | {"ID": "study", "LastUpdate": self.updated}
        return super().get(uri)

    def studies_named(self, study_uid: str) -> list[str]:
        return ["study"] if study_uid == "1.2" else []

    def vr(self, keyword: str) -> str | None:
        return Keywords().vr(keyword)


@pytest.fixture
def archive() -> Listed:
    archive = Listed()
    archive.add("7", "1.7.0", SeriesNumber="7", SeriesDescription=f"thin {SCRIPT}")
    archive.add("8", "1.8.0", SeriesNumber="8", SeriesDescription="thick")
    return archive


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "segnode.toml").write_text(FILE)
    return tmp_path / "segnode.toml"


@pytest.fixture
def pages(ledger: Ledger, archive: Listed, file: Path) -> FlaskClient:
    announce(ledger)
    routes = RouteFile(file, archive)
    made = RoutePages(
        archive=archive,
        file=routes,
        intake=IntakeLedger(ledger),
        view=LedgerView(ledger),
        settings=routes.settings,
    )
    return client(ledger, settings=routes.settings, blueprints=[made.blueprint()])


def read(pages: FlaskClient, address: str, user: str = "viewer") -> str:
    answer = pages.get(f"/segnode/{address}", environ_overrides={"REMOTE_USER": user})
    assert answer.status_code == 200, answer.text
    assert SCRIPT not in answer.text
    return html.unescape(re.sub(r"\s+", " ", answer.text))


def test_the_routes_are_shown_as_they_are_followed(pages: FlaskClient) -> None:
    text = read(pages, "routes")
    assert "Nothing is wrong" not in text
    for words in (
        "SeriesDescription is a text with THIN and not (ImageType is LOCALIZER)",
        "whole studies",
        "The best by</dt><dd>most_images",
        "the result is kept out of the archive",
        "CT, scouts too",
        "(no worker has announced it)",
        "<td>stat</td><td>calling_aet is ER</td>",
    ):
        assert words in text


def test_when_the_routes_were_read_is_shown_in_utc_and_what_else_they_are_for(
    pages: FlaskClient,
) -> None:
    text = read(pages, "routes")
    read_at = re.search(r'read at <time datetime="([^"]+)"', text)
    assert read_at
    assert abs(datetime.now(UTC) - datetime.fromisoformat(read_at[1])) < timedelta(minutes=5)
    assert '<a href="/segnode/replay">Try them on older studies</a>' in text
    assert '<a href="/segnode/jobs">Why not this study? Search it</a>' in text


def test_a_fault_is_shown_with_its_place(pages: FlaskClient) -> None:
    text = read(pages, "routes")
    place = '<td class="number">24</td><td class="number">1</td>'
    assert f"{place}<td>[[routes]] 2 model is 'ct-lung-density', which is not here" in text


def test_a_broken_file_is_told_of_and_the_old_routes_are_shown(
    pages: FlaskClient, file: Path
) -> None:
    file.write_text(FILE.replace("SeriesDescription", "SeriesDescripton"))
    text = read(pages, "routes")
    assert "'SeriesDescripton', which DICOM does not know; 'SeriesDescription' was" in text
    assert "are followed until the file is mended" in text
    assert "SeriesDescription is a text with THIN" in text


def test_a_study_is_explained_with_the_values_that_decide(pages: FlaskClient) -> None:
    text = read(pages, "studies/1.2/explain")
    assert "SeriesDescription is thick, a text with THIN is wanted" in text
    assert "every condition holds" in text
    assert '<span class="chip missing">missing</span> ct-tissue' in text
    assert pages.get("/segnode/studies/1.3/explain").status_code == 404
    assert pages.get("/segnode/studies/none/explain").status_code == 404


def test_a_studys_page_leads_to_its_explanation(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    assert 'href="/segnode/studies/1.2/explain"' in read(pages, "studies/1.2")


def start(pages: FlaskClient, user: str, **form: str) -> int:
    data = {"since": "2026-11-24", "first": "0", "count": "1"} | form
    answer = pages.post("/segnode/replay", data=data, environ_overrides={"REMOTE_USER": user})
    return answer.status_code


def test_looking_at_a_replay_starts_nothing(pages: FlaskClient, ledger: Ledger) -> None:
    text = read(pages, "replay?since=2026-11-24", "admin")
    assert "1 missing" in text
    assert "Start what is missing" in text
    assert LedgerView(ledger).jobs() == []
    assert "No route wants anything" in read(pages, "replay?since=2026-11-26", "admin")


def test_a_replays_day_begins_when_it_does_in_utc(
    pages: FlaskClient, archive: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "America/New_York")
        time.tzset()
        archive.updated = "20261124T000000"
        assert "Studies with an image since (UTC)" in read(pages, "replay")
        assert "1 missing" in read(pages, "replay?since=2026-11-24", "admin")
        archive.updated = "20261123T235959"
        assert "1 missing" not in read(pages, "replay?since=2026-11-24", "admin")
    time.tzset()


@pytest.mark.parametrize("day", ["", "2026-13-45", "0000-00-00", "yesterday", "9999-99-99"])
def test_a_day_that_is_none_shows_the_form(pages: FlaskClient, day: str) -> None:
    assert "Studies with an image since" in read(pages, f"replay?since={day}&first=x")


def test_an_administrator_starts_what_is_missing(
    pages: FlaskClient, ledger: Ledger, archive: Listed, file: Path
) -> None:
    file.write_text(FILE.replace('contains = "thin"', 'contains = "other"'))
    routes = RouteFile(file, archive)
    intake = Intake(archive, IntakeLedger(ledger), routes.settings, routes)
    intake.tick()
    assert LedgerView(ledger).jobs() == []
    file.write_text(FILE)
    form = token(read(pages, "replay?since=2026-11-24", "admin"))
    assert start(pages, "admin", token=form) == 302
    intake._asked.clear()
    intake.tick()
    [job] = LedgerView(ledger).jobs()
    assert (job.route, job.priority) == ("thin", "background")
    assert "1 missing" not in read(pages, "replay?since=2026-11-24", "admin")


def test_who_started_a_replay_is_recorded(pages: FlaskClient, ledger: Ledger) -> None:
    from sqlalchemy import text

    IntakeLedger(ledger).note("archive-1", 1, [])
    form = token(read(pages, "replay?since=2026-11-24", "admin"))
    start(pages, "admin", token=form)
    with ledger.read() as connection:
        [row] = connection.execute(text("select actor, detail from event where kind = 'replay'"))
    assert tuple(row) == ("admin", "2 series are decided again")


def test_nobody_else_starts_anything(pages: FlaskClient) -> None:
    assert "An operator or administrator can start" in read(
        pages, "replay?since=2026-11-24", "viewer"
    )
    form = token(read(pages, "replay?since=2026-11-24", "admin"))
    assert start(pages, "viewer", token=form) == 403
    assert start(pages, "", token=form) == 403
    assert start(pages, "admin", token="") == 403
    assert start(pages, "admin", token="é") == 403
    assert start(pages, "admin", token=form, since="never") == 400
    assert start(pages, "admin", token=form, count="1000000") == 400


def test_a_study_is_there_even_where_no_route_is(pages: FlaskClient, file: Path) -> None:
    file.write_text(FILE[: FILE.index("[[routes]]")])
    assert "What the routes say of this study" in read(pages, "studies/1.2/explain")
    assert "No route stands in the settings" in read(pages, "routes")


def test_a_replay_shows_the_priority_that_its_jobs_will_have(pages: FlaskClient) -> None:
    assert "<small>background</small>" in read(pages, "replay?since=2026-11-24", "admin")
    assert "<small>routine</small>" in read(pages, "studies/1.2/explain")
