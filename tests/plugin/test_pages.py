"""What an administrator sees, without an Orthanc."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask.testing import FlaskClient

from segnode_contract.errors import UnsuitableSeries
from segnode_contract.findings import Findings, Measurement, Withheld
from segnode_contract.identity import content_digest
from segnode_contract.job import NewJob, Stage
from segnode_contract.ledger import IntakeLedger, Ledger, LedgerView, WorkLedger
from segnode_contract.ledger.intake import Decision, Verdict
from segnode_contract.settings import load_settings
from segnode_models.registry import builtin_cards
from segnode_plugin.web.app import StudyWords, create_app

CONFIG = Path(__file__).parents[2] / "orthanc-config" / "segnode.toml"
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def pages(ledger: Ledger) -> FlaskClient:
    app = create_app(
        LedgerView(ledger),
        settings=load_settings(CONFIG),
        describe=lambda uid: StudyWords(patient_name=SCRIPT, description="d", accession="a"),
    )
    app.testing = True
    return app.test_client()


def add_job(ledger: Ledger, *, error: bool = False) -> str:
    card, digest = next(c for c in builtin_cards() if c[0].name == "ct-tissue")
    work, intake = WorkLedger(ledger, "w1"), IntakeLedger(ledger)
    work.announce(card.name, card.version, digest, card.source)
    intake.note("a", 1, ["o1"])
    [quiet] = intake.quiet("a", 0)
    key = ("f" if error else "e") * 64
    job = NewJob(
        key=key,
        study_uid="1.2",
        series_uids=("1.2.3",),
        content=content_digest(["1"]),
        instance_count=1,
        route="tissue",
        route_rank=0,
        model=card.name,
        model_version=card.version,
        model_digest=digest,
        lane="default",
        last_instance_at=quiet.last_instance_at,
    )
    verdicts = (
        Verdict(route="tissue", taken=True, reason="every condition holds"),
        Verdict(route="chest", taken=False, reason="Body Part Examined is HEAD, CHEST is wanted"),
    )
    intake.decide(
        "a",
        Decision(
            orthanc_id="o1",
            last_instance_at=quiet.last_instance_at,
            study_uid="1.2",
            series_uid="1.2.3",
            instance_count=1,
            verdicts=verdicts,
            jobs=(job,),
        ),
    )
    claim = work.claim("default", [digest], 60)
    assert claim is not None
    if error:
        with pytest.raises(UnsuitableSeries), work.stage(claim, Stage.STACK):
            raise UnsuitableSeries("x")
        sentence = "The gantry is tilted by 18.5 degrees; <b>this</b> is refused."
        work.failed(claim, UnsuitableSeries(sentence, code="gantry-tilt"), 100)
    else:
        work.will_store(claim, role="SEG", instance_uid="2.1", series_uid="2.0", data=b"x")
        work.confirmed(claim, "2.1")
        volume = Measurement(segment=3, name="Volume", value=1234.5, unit="ml")
        bone = Withheld(segment=5, reason="Contrast medium is likely.")
        work.done(claim, Findings(measurements=(volume,), withheld=(bone,)), 100)
    return key


def test_an_empty_node_says_what_to_do_next(pages: FlaskClient) -> None:
    assert "segnode send" in pages.get("/segnode/").text


def test_a_failed_job_shows_its_code_stage_and_sentence(pages: FlaskClient, ledger: Ledger) -> None:
    key = add_job(ledger, error=True)
    for address in ("/segnode/", "/segnode/?state=failed", f"/segnode/jobs/{key}"):
        text = pages.get(address).text
        assert "gantry-tilt" in text
        assert "stack" in text
        assert "18.5 degrees; &lt;b&gt;this" in text


def test_a_done_job_shows_findings_by_name_and_the_viewer(
    pages: FlaskClient, ledger: Ledger
) -> None:
    text = pages.get(f"/segnode/jobs/{add_job(ledger)}").text
    assert "Adipose tissue" in text
    assert "1234.5 ml" in text
    assert "Contrast medium is likely." in text
    assert "/ohif/viewer?StudyInstanceUIDs=1.2" in text


def test_a_study_shows_the_clause_that_decided(pages: FlaskClient, ledger: Ledger) -> None:
    add_job(ledger)
    assert "Body Part Examined is HEAD, CHEST is wanted" in pages.get("/segnode/studies/1.2").text


def test_a_script_in_a_name_is_text(pages: FlaskClient, ledger: Ledger) -> None:
    key = add_job(ledger)
    for address in ("/segnode/", f"/segnode/jobs/{key}", "/segnode/studies/1.2"):
        page = pages.get(address)
        assert "<script" not in page.text
        assert "&lt;script&gt;" in page.text
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]


def test_the_viewer_is_told_which_overlay_to_show(pages: FlaskClient, ledger: Ledger) -> None:
    add_job(ledger)
    told = pages.get("/segnode/api/overlays?StudyInstanceUIDs=1.2").json
    expected = {
        "series_uid": "1.2.3",
        "seg_series_uid": "2.0",
        "model": "ct-tissue",
        "route": "tissue",
    }
    assert told == {"overlays": [expected]}


@pytest.mark.parametrize(
    "address",
    [
        "jobs/../../x",
        "jobs/zz",
        "studies/1.2'or'1",
        "studies/9.9",
        "?state=x",
        "api/overlays",
        "api/overlays?StudyInstanceUIDs=<x>",
        "nothing",
    ],
)
def test_an_address_that_names_nothing_is_not_found(pages: FlaskClient, address: str) -> None:
    assert pages.get(f"/segnode/{address}").status_code == 404
