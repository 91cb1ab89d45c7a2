"""Days as pages count them, and the ranges of days that they show."""

from __future__ import annotations

from datetime import UTC, datetime

from flask import abort, request

from segnode_contract.ledger.statistics import DAY_S, Statistics

RANGES = (7, 30, 90)
_USUAL = "30"


def asked_days(statistics: Statistics) -> range:
    """Return the days that the address asks for, today the last."""
    count = request.args.get("days", _USUAL)
    if count not in map(str, RANGES):
        abort(404)
    return statistics.last_days(int(count))


def day_text(day: int) -> str:
    """Return a day, by its number since 1970, as ``2026-11-24``."""
    return datetime.fromtimestamp(day * DAY_S, UTC).strftime("%Y-%m-%d")
