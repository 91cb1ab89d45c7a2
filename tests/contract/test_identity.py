"""Identities depend on what decides the result, and on nothing else."""

from __future__ import annotations

import pytest
from pydicom.uid import UID

from segnode_contract.identity import derived_uid, job_key

BASE = {
    "series_uids": ["1.2"],
    "instance_uids": ["1.2.1", "1.2.2"],
    "model": "ct-tissue",
    "model_digest": "d",
    "parameters": {},
    "form": "BINARY",
}


def test_order_of_arrival_does_not_matter() -> None:
    assert job_key(**BASE) == job_key(**{**BASE, "instance_uids": ["1.2.2", "1.2.1"]})


@pytest.mark.parametrize(
    "change",
    [
        {"instance_uids": ["1.2.1", "1.2.2", "1.2.3"]},
        {"model_digest": "e"},
        {"parameters": {"threshold": 1}},
        {"writer_version": "0"},
    ],
    ids=["one more slice", "new model", "parameter", "mended writer"],
)
def test_what_decides_the_result_makes_a_new_job(change: dict[str, object]) -> None:
    assert job_key(**BASE) != job_key(**{**BASE, **change})


def test_derived_uids_are_valid_and_differ_by_role() -> None:
    series, seg = derived_uid("k", "series"), derived_uid("k", "seg")
    assert UID(series).is_valid
    assert series != seg
    assert series == derived_uid("k", "series")
