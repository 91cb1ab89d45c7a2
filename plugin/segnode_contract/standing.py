"""When an alert is told of: at once, again after a quiet time, and once when it is over.

Decided for each channel by itself, so that one that fails owes what another told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from segnode_contract.troubles import Trouble

RAISED, LASTING, OVER = "raised", "lasting", "over"
_SETTLED_S = 300.0
"""What was away for this long is over; what comes and goes is one alert."""
_LATE_S = 60.0
"""A channel that did not tell within this time has trouble itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """An alert, as one channel knows it."""

    name: str
    sentence: str
    raised_at: float
    over_at: float | None = None
    """Since when it is away, None while it holds."""
    told_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What a channel is to tell of an alert."""

    name: str
    state: str
    """`RAISED`, `LASTING` or `OVER`."""
    sentence: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one look makes of an alert."""

    name: str
    before: Standing | None
    after: Standing | None
    """None where nothing is to be kept."""
    news: News | None = None


def plan(
    standing: Mapping[str, Standing], troubles: Mapping[str, Trouble], now: float, quiet_s: float
) -> list[Step]:
    """Return the steps that change anything, by name.

    Parameters
    ----------
    standing
        The alerts as they stood, by name.
    troubles
        What is wrong now, by name.
    quiet_s
        The same alert is told again after this long, not before.
    """
    names = sorted({*standing, *troubles})
    steps = [_step(name, standing.get(name), troubles.get(name), now, quiet_s) for name in names]
    return [step for step in steps if step.after != step.before]


def overdue(alert: Standing, now: float, quiet_s: float) -> bool:
    """Return whether an alert holds that ought to have been told long since."""
    if alert.over_at is not None:
        return False
    if alert.told_at is None:
        return now - alert.raised_at > _LATE_S
    quiet_until = max(alert.raised_at, alert.told_at + quiet_s)
    return alert.told_at < alert.raised_at and now - quiet_until > _LATE_S


def _step(
    name: str, before: Standing | None, trouble: Trouble | None, now: float, quiet_s: float
) -> Step:
    after = _followed(before, trouble, now)
    state = _owed(after, trouble, now, quiet_s) if after else None
    if after is None or (state is None and _forgotten(after, now, quiet_s)):
        return Step(name=name, before=before, after=None)
    if state is None:
        return Step(name=name, before=before, after=after)
    news = News(name=name, state=state, sentence=after.sentence, since=after.raised_at)
    return Step(name=name, before=before, after=replace(after, told_at=now), news=news)


def _followed(before: Standing | None, trouble: Trouble | None, now: float) -> Standing | None:
    if trouble is None:
        if before is None or before.over_at is not None:
            return before
        return replace(before, over_at=max(now, before.told_at or 0.0))
    if before is None or _said_over(before):
        told_at = before.told_at if before else None
        name, sentence = trouble.name, trouble.sentence
        return Standing(name=name, sentence=sentence, raised_at=now, told_at=told_at)
    return replace(before, sentence=trouble.sentence, over_at=None)


def _owed(alert: Standing, trouble: Trouble | None, now: float, quiet_s: float) -> str | None:
    told_at = alert.told_at
    if alert.over_at is not None:
        # of which one spoke, or had no chance to
        known = told_at is None or alert.raised_at <= told_at <= alert.over_at
        settled = now - alert.over_at >= min(_SETTLED_S, quiet_s)
        return OVER if known and settled else None
    if told_at is None:
        return RAISED
    if now - told_at < quiet_s:
        return None
    if told_at < alert.raised_at:
        return RAISED
    return LASTING if trouble is not None and trouble.news_at > told_at else None


def _said_over(alert: Standing) -> bool:
    return alert.over_at is not None and (alert.told_at or 0.0) > alert.over_at


def _forgotten(alert: Standing, now: float, quiet_s: float) -> bool:
    """Return whether an alert is over for so long that it has no part in any quiet."""
    if alert.over_at is None:
        return False
    return now - max(alert.over_at, alert.told_at or 0.0) > max(quiet_s, _SETTLED_S)
