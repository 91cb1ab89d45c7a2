"""Conditions of a route: data from `segnode.toml`, checked as they are read, never code.

where.all = [
  { fact = "slice_spacing_mm", at_most = 3 },
  { attribute = "SeriesDescription", contains = "lung" },
  { not = { attribute = "ImageType", equals = "LOCALIZER" } },
]
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from re import _parser  # type: ignore[attr-defined] # what a pattern is made of has no other door
from typing import Any

from segnode_contract.errors import SettingsError
from segnode_contract.keywords import attribute_hint, fact_hint
from segnode_contract.spelling import hint, plain

NUMBERS = (
    "instances",
    "slice_spacing_mm",  # median distance of neighbouring slices, from their positions
    "largest_gap_mm",
    "coverage_mm",  # from the first slice to the last, with one slice's spacing
    "obliquity_deg",  # between the slices' normal and the nearest axis of the patient
    "arrival_hour",  # of the last instance: 22.5 for half past ten in the evening
)
"""Facts that are numbers."""
TEXTS: Mapping[str, tuple[str, ...]] = {
    "orientation": ("AXIAL", "CORONAL", "SAGITTAL", "OBLIQUE"),
    "kernel": ("SOFT", "SHARP", "UNKNOWN"),
    "contrast": ("YES", "NO", "UNKNOWN"),
    "calling_aet": (),
    "called_aet": (),
}
"""Facts that are texts, with all their values where they are known."""
FACTS = (*NUMBERS, *TEXTS)
GROUPS = ("all", "any", "not")
_RANGES = {
    "instances": (1.0, float("inf")),
    "arrival_hour": (0.0, math.nextafter(24.0, 0.0)),
    # a normal is nowhere farther from all three axes than on the diagonal
    "obliquity_deg": (0.0, math.degrees(math.acos(3**-0.5))),
}
"""What numbers there may be, where it is not anything from 0."""
_MOST_REPEATS = 3
_SHORT = 8
"""A repeat of at most so many is none that matters."""
_TEXT_TESTS = ("equals", "one_of", "contains", "matches", "present")
_NUMBER_TESTS = ("equals", "one_of", "at_least", "at_most", "present")
_OTHER_WORDS = {
    "'at_least' with 'at_most'": ("between", "range"),
    "'at_most'": ("lessthan", "below", "under", "lt", "lte", "le", "max", "maximum"),
    "'at_least'": ("greaterthan", "morethan", "above", "over", "gt", "gte", "ge", "min", "minimum"),
    "'equals'": ("is", "eq"),
    "'one_of'": ("in", "anyof"),
    "'matches'": ("regex", "regexp", "like", "startswith", "endswith"),
    "'present'": ("exists", "missing"),
}
"""Tests by what other programs call them."""
TESTS = tuple(dict.fromkeys((*_TEXT_TESTS, *_NUMBER_TESTS)))
_KEYWORD = re.compile(r"[A-Z][A-Za-z0-9]*(\.[A-Z][A-Za-z0-9]*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One question about a series; every test in it must hold."""

    subject: str
    """A fact, or an attribute's keyword (PS3.6); keywords of sequences before it, with dots."""
    is_fact: bool
    tests: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Several conditions as one; `not` has one part."""

    kind: str
    parts: tuple[Condition, ...]


Condition = Clause | Group


def read_condition(data: Any, where: str) -> Condition:
    """Return the condition that a table of `segnode.toml` describes.

    Parameters
    ----------
    where
        The place of the table, for people.

    Raises
    ------
    SettingsError
        Naming what is unknown, missing or impossible, and what was probably meant.
    """
    if not isinstance(data, dict) or not data:
        raise SettingsError(
            f"{where} is {data!r}; a condition is a table, like "
            '{ fact = "slice_spacing_mm", at_most = 3 }.'
        )
    found = [key for key in GROUPS if key in data]
    if not found:
        return _clause(data, where)
    if len(data) > 1:
        raise SettingsError(f"{where} has '{found[0]}' beside other keys; it stands alone.")
    kind, inside = found[0], data[found[0]]
    if kind == "not":
        return Group(kind=kind, parts=(read_condition(inside, f"{where} not"),))
    if not isinstance(inside, list) or not inside:
        raise SettingsError(f"{where} {kind} is {inside!r}; a list of conditions is needed.")
    parts = enumerate(inside, 1)
    return Group(
        kind=kind,
        parts=tuple(read_condition(part, f"{where} {kind} {number}") for number, part in parts),
    )


def _clause(data: Mapping[str, Any], where: str) -> Clause:
    for key in data:
        if key not in ("attribute", "fact", *TESTS):
            raise SettingsError(f"{where} has an unknown key '{key}'{_key_hint(key)}.")
    if ("attribute" in data) == ("fact" in data):
        raise SettingsError(f"{where} needs either 'attribute' or 'fact'.")
    is_fact = "fact" in data
    subject = data["fact" if is_fact else "attribute"]
    _check_subject(subject, is_fact, where)
    tests = tuple((key, data[key]) for key in data if key in TESTS)
    if not tests:
        raise SettingsError(f"{where} asks nothing of '{subject}'; add one of {', '.join(TESTS)}.")
    if "present" in data and len(tests) > 1:
        raise SettingsError(f"{where} has 'present' beside another test; it stands alone.")
    wanted = {test: _wanted(subject, is_fact, test, value, where) for test, value in tests}
    if not _possible(subject, is_fact, wanted):
        raise SettingsError(
            f"{where} wants '{subject}' to be {_range(wanted)}, which no series satisfies."
        )
    return Clause(subject=subject, is_fact=is_fact, tests=tuple(wanted.items()))


def _key_hint(key: str) -> str:
    test = next((test for test, words in _OTHER_WORDS.items() if plain(key) in words), None)
    meant = f"; {test} was probably meant" if test else ""
    return meant or hint(key, ("attribute", "fact", *TESTS))


def _possible(subject: str, is_fact: bool, wanted: Mapping[str, Any]) -> bool:
    """Return whether any series has a number as it is wanted."""
    least, most = wanted.get("at_least", float("-inf")), wanted.get("at_most", float("inf"))
    if not is_fact or subject not in NUMBERS:
        return bool(least <= most)
    lowest, highest = _RANGES.get(subject, (0.0, float("inf")))
    least, most = max(least, lowest), min(most, highest)
    named = wanted.get("one_of", (wanted["equals"],) if "equals" in wanted else (least,))
    return least <= most and any(least <= number <= most for number in named)


def _range(wanted: Mapping[str, Any]) -> str:
    """Return the tests for numbers in words."""
    values = {
        test: value if isinstance(value, tuple) else (value,) for test, value in wanted.items()
    }
    return " and ".join(
        f"{test.replace('_', ' ') if test[:3] == 'at_' else ''} "
        f"{' or '.join(f'{number:g}' for number in numbers)}".strip()
        for test, numbers in values.items()
    )


def _check_subject(subject: Any, is_fact: bool, where: str) -> None:
    if not isinstance(subject, str):
        raise SettingsError(f"{where} names {subject!r}; a text is needed.")
    if is_fact and subject not in FACTS:
        raise SettingsError(f"{where} has an unknown fact '{subject}'{fact_hint(subject, FACTS)}.")
    if not is_fact and not _KEYWORD.fullmatch(subject):
        meant = attribute_hint(subject, FACTS)
        like = "; BodyPartExamined is one, and ProcedureCodeSequence.CodeValue"
        raise SettingsError(
            f"{where} has the attribute '{subject}', which is no keyword{meant or like}."
        )


def _wanted(subject: str, is_fact: bool, test: str, value: Any, where: str) -> Any:
    """Return what a test wants: texts in capitals, patterns compiled, numbers as float."""
    of_number = is_fact and subject in NUMBERS
    if is_fact and test not in (_NUMBER_TESTS if of_number else _TEXT_TESTS):
        kind = "number" if of_number else "text"
        raise SettingsError(f"{where}: '{test}' is no test for '{subject}', which is a {kind}.")
    if test == "present":
        return _of_type(value, bool, test, where)
    if test == "one_of":
        if not isinstance(value, list) or not value:
            raise SettingsError(f"{where} one_of is {value!r}; a list of values is needed.")
        return tuple(_value(subject, is_fact, test, item, where) for item in value)
    if test in ("at_least", "at_most"):
        return _number(value, test, where)
    if test == "matches":
        return _pattern(_of_type(value, str, test, where), where)
    if test == "contains":
        text: str = _of_type(value, str, test, where)
        return text.upper()
    return _value(subject, is_fact, test, value, where)


def _value(subject: str, is_fact: bool, test: str, value: Any, where: str) -> Any:
    if (is_fact and subject in NUMBERS) or (not is_fact and type(value) in (int, float)):
        return _number(value, test, where)
    text: str = _of_type(value, str, test, where).upper()
    known = TEXTS.get(subject, ()) if is_fact else ()
    if known and text not in known:
        raise SettingsError(
            f"{where} wants '{value}' of '{subject}', which is one of "
            f"{', '.join(known).lower()}{hint(text, known)}."
        )
    return text


def _of_type(value: Any, kind: type, test: str, where: str) -> Any:
    if type(value) is not kind:
        wanted = {bool: "true or false", str: "a text in quotes"}[kind]
        raise SettingsError(f"{where} {test} is {value!r}; {wanted} is needed.")
    return value


def _number(value: Any, test: str, where: str) -> float:
    if type(value) not in (int, float) or value != value:  # noqa: PLR0124 # NaN, which TOML has
        raise SettingsError(f"{where} {test} is {value!r}; a number is needed.")
    try:
        return float(value)
    except OverflowError as error:
        raise SettingsError(f"{where} {test} is a number that is too large.") from error


def _pattern(text: str, where: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text, re.IGNORECASE)
        repeats, nested = _repeats(_parser.parse(text))
    except (re.error, OverflowError, RecursionError) as error:
        raise SettingsError(
            f"{where} matches is {text!r}, which is no regular expression: {error}."
        ) from error
    if nested or repeats > _MOST_REPEATS:
        raise SettingsError(
            f"{where} matches is {text!r}, which may take for ever: it has a repeat within a "
            f"repeat, or more than {_MOST_REPEATS} repeats without end."
        )
    return pattern


def _repeats(parsed: Any) -> tuple[int, bool]:
    """Return how many long repeats a parsed pattern has, and whether one holds another.

    With these, backtracking takes time beyond all bounds in the length of a text that a DICOM file
    chooses, and holds Python's lock meanwhile.
    """
    count, nested = 0, False
    for sign, inside in parsed:
        inner, inner_nested = 0, False
        for part in _patterns(inside):
            more, deep = _repeats(part)
            inner, inner_nested = inner + more, inner_nested or deep
        if str(sign) in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and inside[1] > _SHORT:
            nested = nested or inner > 0
            inner += 1
        count, nested = count + inner, nested or inner_nested
    return count, nested


def _patterns(inside: Any) -> Iterator[Any]:
    if isinstance(inside, _parser.SubPattern):
        yield inside
    elif isinstance(inside, list | tuple):
        for part in inside:
            yield from _patterns(part)
