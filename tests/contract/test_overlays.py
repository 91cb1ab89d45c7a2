"""What a viewer shows of a study's results."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import insert

from segnode_contract.ledger import Ledger, schema
from segnode_contract.ledger.overlays import StudyOverlays, study_overlays

ARCHIVE = "archive-1"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    made.migrate()
    with made.write() as connection:
        connection.execute(
            insert(schema.archive).values(archive_id=ARCHIVE, last_change=0, seen_at=0.0)
        )
    return made


def give(
    ledger: Ledger,
    key: str,
    *,
    state: str = "done",
    model: str = "ct-tissue",
    version: str = "1.0",
    series: str = "1.2.1",
    rank: int = 0,
    at: float = 0.0,
    roles: tuple[str, ...] = ("SEG", "SR"),
    confirmed: bool = True,
) -> None:
    """Have a job with a result; its objects lie in the series ``KEY/ROLE``."""
    job = {
        "key": key,
        "archive_id": ARCHIVE,
        "study_uid": "1.2",
        "series_uids": series,
        "content": key,
        "instance_count": 1,
        "last_instance_at": 0.0,
        "route": f"route {rank}",
        "route_rank": rank,
        "model": model,
        "model_version": version,
        "model_digest": "d",
        "lane": "default",
        "state": state,
        "tried_since": 0.0,
        "not_before": 0.0,
        "attempts": 1,
        "deliveries": 1,
        "lease_epoch": 1,
        "created_at": at,
        "updated_at": at,
    }
    objects = [
        {
            "instance_uid": f"{key}/{role}/1",
            "job_key": key,
            "role": role,
            "series_uid": f"{key}/{role}",
            "digest": "d",
            "bytes": 1,
            "stored_at": at,
            "confirmed_at": at if confirmed else None,
        }
        for role in roles
    ]
    with ledger.write() as connection:
        connection.execute(insert(schema.job).values(job))
        connection.execute(insert(schema.result), objects)


def shown(found: StudyOverlays) -> list[tuple[str, str, str]]:
    return [(one.series_uid, one.seg_series_uid, one.version) for one in found.overlays]


def test_of_each_model_the_newest_valid_result_is_shown(ledger: Ledger) -> None:
    give(ledger, "a", version="1.0", at=1.0)
    give(ledger, "b", version="2.0", at=2.0)
    give(ledger, "c", model="ct-lung-density", rank=1, at=3.0)
    assert shown(study_overlays(ledger, "1.2")) == [
        ("1.2.1", "b/SEG", "2.0"),
        ("1.2.1", "c/SEG", "1.0"),
    ]


def test_each_series_has_results_of_its_own(ledger: Ledger) -> None:
    give(ledger, "a", series="1.2.1", at=1.0)
    give(ledger, "b", series="1.2.2", at=2.0)
    assert {one[:2] for one in shown(study_overlays(ledger, "1.2"))} == {
        ("1.2.1", "a/SEG"),
        ("1.2.2", "b/SEG"),
    }


def test_a_result_made_from_several_series_lies_on_the_first(ledger: Ledger) -> None:
    give(ledger, "a", series="1.2.1\\1.2.2")
    assert [one[0] for one in shown(study_overlays(ledger, "1.2"))] == ["1.2.1"]


def test_all_stacks_are_of_one_job_even_if_an_older_one_had_more(ledger: Ledger) -> None:
    give(ledger, "old", at=1.0, roles=("SEG", "SEG 2", "SEG 3"))
    give(ledger, "new", at=2.0, roles=("SEG", "SEG 2", "SR"))
    assert [one[1] for one in shown(study_overlays(ledger, "1.2"))] == ["new/SEG", "new/SEG 2"]


@pytest.mark.parametrize("state", ["superseded", "withdrawn"])
def test_a_result_that_holds_no_more_is_hidden_with_its_report(ledger: Ledger, state: str) -> None:
    give(ledger, "old", state=state, at=2.0)
    give(ledger, "valid", at=1.0)
    found = study_overlays(ledger, "1.2")
    assert [one[1] for one in shown(found)] == ["valid/SEG"]
    assert found.hidden == ("old/SEG", "old/SR")


@pytest.mark.parametrize("state", ["queued", "running", "failed", "dead", "cancelled"])
def test_a_result_that_is_not_certain_is_hidden_too(ledger: Ledger, state: str) -> None:
    give(ledger, "a", state=state)
    found = study_overlays(ledger, "1.2")
    assert (found.overlays, found.hidden) == ((), ("a/SEG", "a/SR"))


def test_a_result_is_shown_once_it_was_read_back(ledger: Ledger) -> None:
    give(ledger, "a", confirmed=False)
    assert study_overlays(ledger, "1.2").overlays == ()


def test_another_study_has_none_of_it(ledger: Ledger) -> None:
    give(ledger, "a")
    give(ledger, "b", state="withdrawn")
    assert study_overlays(ledger, "1.3") == StudyOverlays(overlays=(), hidden=())
