"""Times as pages show them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from segnode_contract.ledger.view import StageTime, StoredObject
from segnode_plugin.web.timing import age, bars, confirmed_words, duration, stage_name

from .test_timeline import ROW

SEG = StoredObject(
    role="SEG", instance_uid="1", series_uid="2", digest="d", bytes=1, confirmed_at=142.5
)


def test_bars_lie_one_after_another_and_the_open_one_lasts_until_now() -> None:
    stages = [
        StageTime(stage="queued", started_at=100.0, seconds=5.0),
        StageTime(stage="fetch", started_at=105.0, seconds=None),
    ]
    queued, fetch = bars(stages, until=125.0)
    assert (queued.left, queued.width) == (0.0, 20.0)
    assert (fetch.left, fetch.width) == (20.0, 80.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "\u2026"),
        (0.03, "0.03 s"),
        (9.994, "9.99 s"),
        (12.34, "12.3 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (12_000, "3 h 20 min"),
        (86_399.7, "1 d 0 h"),
        (100_000, "1 d 3 h"),
    ],
)
def test_durations_are_words(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0 s"),
        (12.9, "12 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (86399, "23 h 59 min"),
        (100_000, "1 d 3 h"),
    ],
)
def test_ages_are_words(seconds: float, words: str) -> None:
    assert age(seconds) == words


def test_a_stage_has_one_name() -> None:
    assert stage_name("turn") == "wait for the model"
    assert stage_name("infer") == "infer"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "22.5 s after the last image"),
        ({"revision": 1}, "12.5 s after somebody asked for it"),
        ({"route": "by hand"}, "12.5 s after somebody asked for it"),
        ({"priority": "background"}, "12.5 s after the job was made"),
        ({"objects": (replace(SEG, confirmed_at=None),)}, ""),
        ({"objects": ()}, ""),
    ],
    ids=["by itself", "made anew", "by hand", "replayed", "not yet", "no result"],
)
def test_how_long_it_took_counts_from_what_made_it_necessary(
    row: dict[str, object], words: str
) -> None:
    assert confirmed_words(replace(ROW, **({"objects": (SEG,)} | row))) == words
