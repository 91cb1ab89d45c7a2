"""Which jobs an address, or a form, asks for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from segnode_contract.job import JobState
from segnode_contract.ledger.listing import Wanted

FIELDS = ("state", "model", "route", "modality", "code", "from", "to")
"""Names in an address."""
_WORD = re.compile(r"[^\x00-\x1f\x7f]{1,64}")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_ONE_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked for."""

    wanted: Wanted
    fields: dict[str, str]
    """Those that were understood, as they stand in an address."""
    left_out: list[str] = field(default_factory=list)
    """A sentence for each that was not."""

    def address(self, **changes: str | int) -> str:
        """Return the address of the list with these fields, and others beside or instead of them;
        an empty one takes a field out."""
        pairs = {key: value for key, value in (self.fields | changes).items() if value}
        return f"/segnode/jobs?{urlencode(pairs)}" if pairs else "/segnode/jobs"


def asked(get: Callable[[str], str | None]) -> Asked:
    """Read the fields of an address or a form.

    Parameters
    ----------
    get
        Gives a field by name, None where there is none.
    """
    given = {name: (get(name) or "").strip() for name in FIELDS}
    days = {name: _day(given[name]) for name in ("from", "to")}
    good = {name: text for name, text in given.items() if text and _understood(name, text, days)}
    since, last = days["from"], days["to"]
    return Asked(
        wanted=Wanted(
            state=good.get("state", ""),
            model=good.get("model", ""),
            route=good.get("route", ""),
            modality=good.get("modality", ""),
            code=good.get("code", ""),
            since=since.timestamp() if since else None,
            until=(last + _ONE_DAY).timestamp() if last else None,
        ),
        fields=good,
        left_out=[
            _sentence(name, text) for name, text in given.items() if text and name not in good
        ],
    )


def _understood(name: str, text: str, days: dict[str, datetime | None]) -> bool:
    if name in days:
        return days[name] is not None
    return text in set(JobState) if name == "state" else bool(_WORD.fullmatch(text))


def _day(text: str) -> datetime | None:
    """Return the begin of a day, UTC; None for no day with one before and one after it."""
    try:
        day = (
            datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
            if _DAY.fullmatch(text)
            else None
        )
        return day if day and day - _ONE_DAY and day + _ONE_DAY else None
    except (ValueError, OverflowError):
        return None


def _sentence(name: str, text: str) -> str:
    shown = "".join(sign for sign in text[:40] if sign.isprintable())
    wanted = {
        "state": f"one of {', '.join(JobState)} is needed",
        "from": "a day such as 2026-11-24 is needed",
        "to": "a day such as 2026-11-24 is needed",
    }
    reason = wanted.get(name, "64 letters at most are looked for")
    return f"{name} is '{shown}'; {reason}. It was left out."
