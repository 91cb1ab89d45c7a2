"""`segnode segment` writes in the form, and under the UIDs, that a node gives."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from segnode_cli import main, segment
from segnode_cli.ct_series import ct_series
from segnode_cli.node import CONFIG
from segnode_contract.card import InputSeries
from segnode_contract.errors import SetupError
from segnode_contract.identity import derived_uid
from segnode_contract.ledger import ActLedger, Ledger
from segnode_contract.settings import load_settings

from ..contract.test_settings import GOOD
from ..plugin import test_deciding as deciding
from ..plugin.rows import finish_job, queue_job
from ..worker.many_segments import card_of
from ..worker.test_pipeline import Bright


class NoService:
    """In the place of a model process."""

    def __init__(self, **settings: object) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


@pytest.mark.parametrize(
    ("setting", "form"), [("auto", "LABELMAP"), ("BINARY", "BINARY"), ("LABELMAP", "LABELMAP")]
)
def test_files_are_segmented_as_a_node_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, form: str
) -> None:
    card = replace(card_of(104), name="ct-tissue")
    images = ct_series(np.full((4, 9, 7), 40, np.int16), spacing_mm=(3, 2, 2), seed="form")
    for image in images:
        image.save_as(tmp_path / f"{image.InstanceNumber}.dcm", enforce_file_format=True)
    (tmp_path / "segnode.toml").write_text(GOOD + f"[results]\nform = '{setting}'\n")
    settings = load_settings(tmp_path / "segnode.toml")
    listed = SimpleNamespace(named=lambda name: SimpleNamespace(card=card, digest="ct-tissue"))
    monkeypatch.setattr(segment, "offer_of", lambda folder: listed)
    monkeypatch.setattr(segment, "ModelService", NoService)
    monkeypatch.setattr(segment, "ModelProcess", lambda service: Bright())

    out = tmp_path / "out"
    segment.segment_folder(tmp_path, "ct-tissue", out, settings, tmp_path / "none")

    made = [dcmread(path) for path in out.iterdir()]
    [seg] = [each for each in made if each.Modality == "SEG"]
    facts = replace(
        deciding.series(1),
        series_uid=images[0].SeriesInstanceUID,
        instance_uids=tuple(image.SOPInstanceUID for image in images),
    )
    known = deciding.known(deciding.SERIES, card=card.source, form=settings.results.form)
    [job] = deciding.decided(known, facts, trigger="series").jobs
    assert (seg.SegmentationType, job.form) == (form, form)
    assert seg.SOPInstanceUID == derived_uid(job.key, "seg")


def test_a_result_that_was_withdrawn_at_the_node_is_not_given_its_uids_again(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    ledger = Ledger(url)
    ledger.migrate()
    key = queue_job(ledger)
    finish_job(ledger)
    (tmp_path / "environment").write_text(f"SEGNODE_LEDGER_URL={url}\n")
    segment._check_not_withdrawn(tmp_path, key)
    ActLedger(ledger).withdraw(key, "ada", "it calls the table bone")
    with pytest.raises(SetupError, match=rf"withdrawn .*segnode retry {key[:12]}"):
        segment._check_not_withdrawn(tmp_path, key)
    anew = ActLedger(ledger).run_anew(key, "ada") or ""
    with pytest.raises(SetupError, match=rf"segnode retry {anew[:12]}"):
        segment._check_not_withdrawn(tmp_path, key)
    ledger.close()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"inputs": [InputSeries(role=r, modality="MR", optional=False) for r in ("t1", "t2")]},
            "takes t1, t2, and .* gives it one series .* a node whose route names these series",
        ),
        ({"builds_on": "ct-body"}, "builds on the result of ct-body, and .* comes after that of"),
    ],
)
def test_a_model_that_needs_more_than_one_series_is_sent_to_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], sentence: str
) -> None:
    card = replace(card_of(2), **change)
    listed = SimpleNamespace(named=lambda name: SimpleNamespace(card=card, digest="several"))
    monkeypatch.setattr(segment, "offer_of", lambda folder: listed)
    settings = load_settings(CONFIG / "segnode.toml")
    with pytest.raises(SetupError, match=sentence):
        segment.segment_folder(tmp_path, "several", tmp_path / "out", settings, tmp_path / "none")


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_an_error_that_nobody_expected_is_one_sentence_without_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    def failing(*arguments: object) -> str:
        raise kind("Doe^Jane has no pixels")

    monkeypatch.setattr(main, "segment_folder", failing)
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    command = ["segnode", "segment", "FOLDER", "--model", "ct-tissue", "--out", "OUT"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"segnode: This failed with {kind.__name__} at test_segment_form.py:")
    assert said.count("\n") == 1
    assert "Jane" not in said
    monkeypatch.setattr(sys, "argv", ["segnode", "--debug", *command[1:]])
    with pytest.raises(kind, match="Jane"):
        main.main()
