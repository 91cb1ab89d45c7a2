"""What an administrator sees of the models."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from flask.testing import FlaskClient
from sqlalchemy import update

from segnode_contract.ledger import Ledger, WorkerLedger, schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.ledger.tally import EVER, bucket_of
from segnode_contract.settings import load_settings
from segnode_models.registry import builtin_models

from .pages import CONFIG, SCRIPT, client
from .rows import fail_job, finish_job, queue_job

TISSUE = next(each for each in builtin_models() if each.card.name == "ct-tissue")
DIGEST = TISSUE.digest
CARD = TISSUE.card.source


@pytest.fixture
def pages(ledger: Ledger) -> FlaskClient:
    """The pages as `segnode dashboard` has them, without an archive."""
    return client(ledger)


def announce(ledger: Ledger, name: str = "ct-tissue", card: str = CARD, **more: str) -> None:
    said = {"version": "1.0.0", "digest": DIGEST, "worker": "host/1"} | more
    WorkerLedger(ledger, said["worker"]).announce(name, said["version"], said["digest"], card)


def added_card() -> str:
    """Return the card of a model that an administrator added."""
    card = CARD.replace('name = "ct-tissue"', 'name = "liver"').replace("builtin", "nnunet")
    lines = 'half_precision_checked = "by us"\n[network]\nfolds = ["0"]\ncheckpoint = "best.pth"\n'
    head, rest = card.split("[input]", 1)
    first = rest.split("[[segments]]")[:2]  # all others are values of another plane
    return f"{head}{lines}[input]{'[[segments]]'.join(first)}"


def words(text: str) -> str:
    """Return what a page says, without its tags."""
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_a_node_without_models_says_how_to_get_one(pages: FlaskClient) -> None:
    text = pages.get("/segnode/models").text
    assert "No worker has announced a model yet." in text
    assert "segnode doctor" in text


def test_a_built_in_model_says_so(pages: FlaskClient, ledger: Ledger) -> None:
    announce(ledger)
    text = words(pages.get("/segnode/models").text)
    assert f"ct-tissue 1.0.0 {DIGEST[:12]}" in text
    assert "built in part of segnode" in text
    assert "offered by host/1" in text


def test_an_added_model_says_that_its_files_are_pinned(pages: FlaskClient, ledger: Ledger) -> None:
    announce(ledger, "liver", added_card(), digest="b" * 64)
    assert "added nnunet, files pinned" in words(pages.get("/segnode/models").text)
    text = words(pages.get("/segnode/models/liver").text)
    assert "Workers compare every file with the digest that was pinned" in text
    assert "Network: checkpoint best.pth" in text
    assert "Half precision by us" in text


def test_what_a_worker_refuses_is_said(pages: FlaskClient, ledger: Ledger) -> None:
    announce(ledger)
    refused = "liver/model.ts is not the file that was added; <b>look</b>."
    WorkerLedger(ledger, "host/1").seen("ready", refused)
    text = pages.get("/segnode/models").text
    assert "liver/model.ts is not the file that was added; &lt;b&gt;look" in text


def test_a_model_is_loaded_where_a_worker_says_so(pages: FlaskClient, ledger: Ledger) -> None:
    announce(ledger)
    assert "not in memory" in pages.get("/segnode/models").text
    loaded = [{"model": "ct-tissue", "version": "1.0.0", "digest": DIGEST[:12], "mb": 700}]
    WorkerLedger(ledger, "host/2").seen("ready", "", {"device": "cuda:0", "loaded": loaded})
    for address in ("models", "models/ct-tissue"):
        text = pages.get(f"/segnode/{address}").text
        assert "loaded on host/2, cuda:0, 700 MB" in text
        assert "not in memory" not in text


def test_another_version_is_not_the_one_that_is_loaded(pages: FlaskClient, ledger: Ledger) -> None:
    announce(ledger)
    loaded = [{"model": "ct-tissue", "version": "0.9", "digest": "c" * 12, "mb": 700}]
    WorkerLedger(ledger, "host/2").seen("ready", "", {"device": "cpu", "loaded": loaded})
    assert "not in memory" in pages.get("/segnode/models").text


def test_a_model_that_nobody_offers_any_more_says_since_when(
    pages: FlaskClient, ledger: Ledger
) -> None:
    announce(ledger)
    with ledger.write() as connection:
        connection.execute(update(schema.model).values(announced_at=now_s() - 3600))
    assert "no worker offers it" in pages.get("/segnode/models").text
    text = pages.get("/segnode/models/ct-tissue").text
    assert "No worker offers this model now; jobs that want it wait." in text


def test_a_model_is_offered_while_its_worker_counts_as_alive_whatever_a_lease_lasts(
    ledger: Ledger,
) -> None:
    settings = load_settings(CONFIG)
    patient = replace(settings, limits=replace(settings.limits, lease_s=600.0))
    announce(ledger)
    with ledger.write() as connection:
        connection.execute(update(schema.model).values(announced_at=now_s() - 65))
    assert "no worker offers it" in client(ledger, settings=patient).get("/segnode/models").text


def test_the_version_that_is_offered_comes_before_newer_ones(
    pages: FlaskClient, ledger: Ledger
) -> None:
    announce(ledger)
    announce(ledger, version="2.0.0", digest="d" * 64)
    with ledger.write() as connection:
        gone = update(schema.model).where(schema.model.c.version == "2.0.0")
        connection.execute(gone.values(announced_at=now_s() - 3600))
    text = words(pages.get("/segnode/models").text)
    assert f"ct-tissue 1.0.0 {DIGEST[:12]} , 1 other version" in text
    text = pages.get("/segnode/models/ct-tissue").text
    assert text.index(f"<code>{DIGEST}</code>") < text.index(f"<code>{'d' * 64}</code>")


def test_success_and_times_are_those_of_the_runs(pages: FlaskClient, ledger: Ledger) -> None:
    for number in range(1, 5):
        queue_job(ledger, number=number)
    for _ in range(3):
        finish_job(ledger)
    fail_job(ledger)
    with ledger.write() as connection:
        day = connection.scalar(schema.tally.select().where(schema.tally.c.day > 0))
        took = {"model": "ct-tissue", "measure": "infer", "bucket": bucket_of(90), "count": 1}
        for each in (day, EVER):
            connection.execute(schema.tally.insert().values(day=each, **took))
    text = words(pages.get("/segnode/models").text)
    assert re.search(r"3 1 0 75\.0 % 1 min (29|30|31) s, 1 min (29|30|31) s", text)


def test_a_card_is_shown_in_full(pages: FlaskClient, ledger: Ledger) -> None:
    announce(ledger)
    text = pages.get("/segnode/models/ct-tissue").text
    card = TISSUE.card
    for said in (card.intended_use, *card.limitations, card.licence, DIGEST):
        assert said in text
    for segment in card.segments:
        assert segment.label in text
        assert segment.type.value in text
    assert text.count('class="swatch"') == len(card.segments)
    assert re.search(r'<rect width="100%" height="100%" fill="#[0-9a-f]{6}"/>', text)
    assert "20 to 250,000 ml" in text
    assert "CT, at least 3 slices" in text


def test_times_by_day_are_a_table_and_plots(pages: FlaskClient, ledger: Ledger) -> None:
    queue_job(ledger)
    finish_job(ledger)
    text = pages.get("/segnode/models/ct-tissue?days=7").text
    for name in ("in all", "queued", "store", "confirm"):
        assert f'<th scope="col" class="number">{name}</th>' in text
    assert text.count('class="plot"') == 4
    drawn = re.search(r"data-plot='([^']+)'", text)
    assert drawn
    assert '"name": "p95"' in drawn[1]


def test_days_without_a_run_say_so(pages: FlaskClient, ledger: Ledger) -> None:
    announce(ledger)
    assert "No run of this model ended from" in pages.get("/segnode/models/ct-tissue").text
    assert pages.get("/segnode/models/ct-tissue?days=8").status_code == 404


def test_a_card_of_another_segnode_is_no_crash(pages: FlaskClient, ledger: Ledger) -> None:
    announce(ledger, card="kind = 'holographic'")
    assert "cannot read its card" in pages.get("/segnode/models").text
    assert "cannot be read by this segnode" in pages.get("/segnode/models/ct-tissue").text


def test_an_unknown_model_is_no_page(pages: FlaskClient) -> None:
    assert pages.get("/segnode/models/unknown").status_code == 404


def test_a_script_in_a_card_is_text(pages: FlaskClient, ledger: Ledger) -> None:
    card = CARD.replace('licence = "AGPL-3.0-or-later"', f'licence = "{SCRIPT}\'>"')
    announce(ledger, card=card)
    text = pages.get("/segnode/models/ct-tissue").text
    assert SCRIPT not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#39;&gt;" in text
