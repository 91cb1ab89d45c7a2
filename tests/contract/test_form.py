"""In which form results are written: by the model's card and one setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from segnode_contract.errors import SettingsError
from segnode_contract.form import FEW_SEGMENTS, Form, form_of
from segnode_contract.identity import job_key
from segnode_contract.ledger import Ledger, WorkLedger
from segnode_contract.settings import Limits

from ..worker.many_segments import card_of
from .test_ledger import DIGEST, arrive, new_job
from .test_settings import GOOD, load


@pytest.mark.parametrize(
    ("segments", "setting", "form"),
    [
        (1, "auto", "BINARY"),
        (FEW_SEGMENTS, "auto", "BINARY"),
        (FEW_SEGMENTS + 1, "auto", "LABELMAP"),
        (104, "auto", "LABELMAP"),
        (104, "BINARY", "BINARY"),
        (1, "LABELMAP", "LABELMAP"),
    ],
)
def test_the_setting_and_the_number_of_segments_decide(
    segments: int, setting: str, form: str
) -> None:
    assert form_of(card_of(segments), setting) is Form(form)


@pytest.mark.parametrize("setting", ["auto", "LABELMAP"])
def test_segments_that_may_overlap_are_binary_whatever_the_setting_says(setting: str) -> None:
    card = card_of(104, planes=2)
    assert card.planes == 2
    assert form_of(card, setting) is Form.BINARY


def test_without_a_word_the_form_is_chosen_by_the_node(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).results.form == "auto"


@pytest.mark.parametrize("form", ["auto", "BINARY", "LABELMAP"])
def test_the_setting_is_read(tmp_path: Path, form: str) -> None:
    assert load(tmp_path, GOOD + f"[results]\nform = '{form}'\n").results.form == form


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("form = 'labelmap'", "form is 'labelmap'; .* BINARY, LABELMAP; 'LABELMAP' was probably"),
        (
            "form = 'FRACTIONAL'",
            r"form is 'FRACTIONAL'; it must be one of auto, BINARY, LABELMAP\.",
        ),
        ("form = true", "form is True; a text in quotes is needed"),
        ("forms = 'auto'", "unknown key 'forms'; 'form' was probably meant"),
    ],
)
def test_another_word_is_refused(tmp_path: Path, table: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load(tmp_path, GOOD + f"[results]\n{table}\n")


@pytest.mark.parametrize("form", Form)
def test_a_worker_is_told_the_form_that_the_job_was_made_for(ledger: Ledger, form: Form) -> None:
    arrive(ledger, replace(new_job(), form=form))
    claim = WorkLedger(ledger, "w", Limits()).claim("default", [DIGEST])
    assert claim is not None
    assert claim.form is form


def test_a_job_of_before_there_were_forms_is_binary(ledger: Ledger) -> None:
    arrive(ledger, new_job())
    with ledger.write() as connection:
        names = connection.execute(text("select * from job")).keys()
        old = ", ".join(name for name in names if name != "form")
        connection.execute(text(f"create table kept as select {old} from job"))
        connection.execute(text("delete from outbox"))
        connection.execute(text("delete from event"))
        connection.execute(text("delete from job"))
        connection.execute(text(f"insert into job ({old}) select {old} from kept"))
    claim = WorkLedger(ledger, "w", Limits()).claim("default", [DIGEST])
    assert claim is not None
    assert claim.form is Form.BINARY


def test_another_form_is_another_job_that_takes_the_first_ones_place(ledger: Ledger) -> None:
    parts: dict[str, Any] = {
        "series_uids": ["1"],
        "instance_uids": ["1.1"],
        "model": "m",
        "model_digest": "d",
        "parameters": {},
    }
    first, second = (job_key(form=form, **parts) for form in Form)
    assert first == job_key(form="BINARY", **parts)
    assert arrive(ledger, replace(new_job(), key=first)) == [first]
    assert arrive(ledger, replace(new_job(), key=second, form=Form.LABELMAP)) == [second]
    claim = WorkLedger(ledger, "w", Limits()).claim("default", [DIGEST])
    assert claim is not None
    assert claim.key == second
