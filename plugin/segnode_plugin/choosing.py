"""Which series of those that fit a route takes: every one, the best, or several together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from segnode_contract.condition import Condition, Group
from segnode_contract.ledger.intake import Verdict
from segnode_contract.route import RequiredSeries, Route
from segnode_plugin.facts import SeriesFacts
from segnode_plugin.routing import verdict

_UNKNOWN = float("inf")
_BY_TEXT = {
    "soft_kernel": ("kernel", ("SOFT", "UNKNOWN", "SHARP")),
    "sharp_kernel": ("kernel", ("SHARP", "UNKNOWN", "SOFT")),
    "without_contrast": ("contrast", ("NO", "UNKNOWN", "YES")),
    "with_contrast": ("contrast", ("YES", "UNKNOWN", "NO")),
}
_BY_NUMBER: dict[str, tuple[str, int, str]] = {
    "thin_slices": ("slice_spacing_mm", 1, " mm"),
    "most_images": ("instances", -1, " images"),
    "largest_coverage": ("coverage_mm", -1, " mm"),
}
"""Fact, the sign by which less is better, and the unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a route makes of several series."""

    verdicts: tuple[Verdict, ...]
    """One for each series."""
    groups: tuple[tuple[SeriesFacts, ...], ...] = ()
    """The series of each job that is to be."""
    roles: tuple[str, ...] = ()
    """What the series of a group are to the model, where it takes several."""
    waits: bool = False
    """Whether a required series may come yet."""


def choose(
    route: Route,
    series: Sequence[SeriesFacts],
    idle_s: float,
    *,
    min_slices: int = 0,
    quote: bool = False,
) -> Choice:
    """Choose among series: those that arrived, or all of one study.

    Parameters
    ----------
    idle_s
        How long ago the last instance of the study came.
    min_slices, quote
        As of `routing.verdict`.
    """
    if route.series:
        return _together(route, series, idle_s, min_slices, quote=quote)
    said = [verdict(route, facts, min_slices=min_slices, quote=quote) for facts in series]
    if route.prefer:
        best, said = _best(route.prefer, series, said)
        return Choice(verdicts=tuple(said), groups=((best,),) if best else ())
    pairs = zip(series, said, strict=True)
    return Choice(verdicts=tuple(said), groups=tuple((facts,) for facts, one in pairs if one.taken))


def fits(route: Route, facts: SeriesFacts, *, min_slices: int = 0, quote: bool = False) -> Verdict:
    """Say whether a series may be taken once its study is complete."""
    if not route.series:
        return verdict(route, facts, min_slices=min_slices, quote=quote)
    said = [said for [said] in _by_role(route, [facts], min_slices, quote=quote)]
    return _first_taken(route, said) or _unfit(route, said)


def _by_role(
    route: Route, series: Sequence[SeriesFacts], min_slices: int, *, quote: bool
) -> list[list[Verdict]]:
    """Say for each role which series may have it; the model's slices are those of the first."""
    return [
        [
            verdict(
                _as_route(route, one), facts, min_slices=0 if place else min_slices, quote=quote
            )
            for facts in series
        ]
        for place, one in enumerate(route.series)
    ]


def _together(
    route: Route, series: Sequence[SeriesFacts], idle_s: float, min_slices: int, *, quote: bool
) -> Choice:
    """Find a series for each role."""
    every = _by_role(route, series, min_slices, quote=quote)
    chosen = _match(route.series, series, every)
    for one, said in zip(route.series, every, strict=True):
        best = chosen.get(one.role)
        if best is not None:
            said[:] = [
                replace(each, taken=False, reason=_worse(one.prefer, facts, best))
                if each.taken and facts is not best
                else each
                for each, facts in zip(said, series, strict=True)
            ]
    missing = [one.role for one in route.series if one.role not in chosen]
    waits = bool(missing) and idle_s < route.wait_s
    goes_on = not missing or (
        not waits and route.missing == "proceed" and route.series[0].role in chosen
    )
    role_of = {id(facts): role for role, facts in chosen.items()}
    verdicts = []
    for place, facts in enumerate(series):
        role = role_of.get(id(facts))
        if role is None:
            verdicts.append(_unfit(route, [said[place] for said in every]))
        else:
            verdicts.append(_as_role(route, role, missing, waits=waits, goes_on=goes_on))
    return Choice(
        verdicts=tuple(verdicts),
        groups=(tuple(chosen.values()),) if goes_on and chosen else (),
        roles=tuple(chosen),
        waits=waits and bool(chosen),
    )


def _match(
    required: Sequence[RequiredSeries],
    series: Sequence[SeriesFacts],
    every: Sequence[Sequence[Verdict]],
) -> dict[str, SeriesFacts]:
    """Give as many roles as can be a series of their own, each the best that is free.

    A role gives its series up only where another would have none, and it has one besides
    (Kuhn's algorithm).
    """
    fit = [_ranked(one.prefer, series, said) for one, said in zip(required, every, strict=True)]
    taken: dict[int, int] = {}

    def find(role: int, tried: set[int]) -> bool:
        for place in fit[role]:
            if place not in taken:
                taken[place] = role
                return True
        for place in fit[role]:
            if place not in tried:
                tried.add(place)
                if find(taken[place], tried):
                    taken[place] = role
                    return True
        return False

    for role in range(len(required)):
        find(role, set())
    of_role = {role: series[place] for place, role in taken.items()}
    return {one.role: of_role[n] for n, one in enumerate(required) if n in of_role}


def _ranked(
    prefer: Sequence[str], series: Sequence[SeriesFacts], said: Sequence[Verdict]
) -> list[int]:
    """Return the places of the series that were taken, the best first."""
    fit = (place for place, one in enumerate(said) if one.taken)
    return sorted(fit, key=lambda place: _order(prefer, series[place]))


def _as_role(
    route: Route, role: str, missing: Sequence[str], *, waits: bool, goes_on: bool
) -> Verdict:
    lacking = " and ".join(f"'{one}'" for one in missing)
    if waits:
        reason = f"fits as '{role}'; waits for {lacking}, {route.wait_s:g} s at most"
    elif not missing:
        reason = f"chosen as '{role}'"
    else:
        reason = f"fits as '{role}', but {lacking} did not come within {route.wait_s:g} s"
    return Verdict(route=route.name, taken=waits or goes_on, reason=reason)


def _as_route(route: Route, one: RequiredSeries) -> Route:
    both = tuple(each for each in (route.where, one.where) if each is not None)
    where: Condition | None = Group(kind="all", parts=both) if both else None
    return replace(route, modality=one.modality or route.modality, where=where)


def _first_taken(route: Route, said: Sequence[Verdict]) -> Verdict | None:
    for one, each in zip(route.series, said, strict=True):
        if each.taken:
            return replace(each, reason=f"fits as '{one.role}'")
    return None


def _unfit(route: Route, said: Sequence[Verdict]) -> Verdict:
    reasons = dict.fromkeys(
        f"as '{one.role}': {each.reason}" for one, each in zip(route.series, said, strict=True)
    )
    return Verdict(route=route.name, taken=False, reason="; ".join(reasons))


def _best(
    prefer: Sequence[str], series: Sequence[SeriesFacts], said: Sequence[Verdict]
) -> tuple[SeriesFacts | None, list[Verdict]]:
    """Return the best of the series that were taken, and why the others were not."""
    fit = [facts for facts, one in zip(series, said, strict=True) if one.taken]
    if not fit:
        return None, list(said)
    best = min(fit, key=lambda facts: _order(prefer, facts))
    if len(fit) == 1:
        return best, list(said)
    return best, [
        one
        if not one.taken
        else replace(one, reason=f"the best of {len(fit)} series that fit")
        if facts is best
        else replace(one, taken=False, reason=_worse(prefer, facts, best))
        for facts, one in zip(series, said, strict=True)
    ]


def _order(prefer: Sequence[str], facts: SeriesFacts) -> tuple[float | str, ...]:
    """Of equals the later comes first: it may be the other one corrected, under new UIDs."""
    return (*(_rank(word, facts) for word in prefer), -facts.received_s, facts.series_uid)


def _rank(word: str, facts: SeriesFacts) -> float:
    """Return how a series stands in one preference: less is better."""
    if word in _BY_NUMBER:
        fact, sign, _ = _BY_NUMBER[word]
        value = facts.numbers.get(fact)
        return _UNKNOWN if value is None else sign * round(value, 2)
    fact, order = _BY_TEXT[word]
    text = facts.texts.get(fact, "UNKNOWN")
    return order.index(text) if text in order else _UNKNOWN


def _worse(prefer: Sequence[str], facts: SeriesFacts, best: SeriesFacts) -> str:
    for word in prefer:
        if _rank(word, facts) != _rank(word, best):
            return (
                f"series {_name(best)} was chosen: {word} wants the one with "
                f"{_shown(word, best)}, this one has {_shown(word, facts)}"
            )
    later = facts.received_s < best.received_s
    why = "it came later" if later else "its Series Instance UID comes first"
    return f"series {_name(best)} was chosen: both are equal in what is preferred, and {why}"


def _name(facts: SeriesFacts) -> str:
    number = facts.attributes.get("SeriesNumber")
    plain = number.strip() if isinstance(number, str) else ""
    return plain if plain.isascii() and plain.isdigit() and len(plain) < 10 else facts.series_uid


def _shown(word: str, facts: SeriesFacts) -> str:
    if word not in _BY_NUMBER:
        fact, _ = _BY_TEXT[word]
        return f"{fact} {facts.texts.get(fact, 'UNKNOWN').lower()}"
    fact, _, unit = _BY_NUMBER[word]
    value = facts.numbers.get(fact)
    return f"{fact} unknown" if value is None else f"{value:.4g}{unit}"
