"""`segnode segment` writes in the form, and under the UIDs, that a node gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom import dcmread

from segnode_cli import segment
from segnode_cli.ct_series import ct_series
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
