"""Whether a series satisfies a route's condition, and if not, which clause failed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from segnode_contract.condition import NUMBERS, Clause, Condition
from segnode_plugin.facts import RETIRED, SeriesFacts

_LONGEST = 128
"""So much of a value is looked at: a pattern's time grows with it."""
_CODE = re.compile(r"[A-Z0-9_ ./+-]{0,64}", re.IGNORECASE)
_TECHNICAL = frozenset(
    (
        "BodyPartExamined",
        "Columns",
        "ConvolutionKernel",
        "ImageType",
        "KVP",
        "Laterality",
        "MRAcquisitionType",
        "Modality",
        "PatientPosition",
        "PixelSpacing",
        "Rows",
        "SOPClassUID",
        "ScanningSequence",
        "SliceThickness",
        "SpacingBetweenSlices",
    )
)
"""What says nothing of a patient, and may be quoted where others read it."""


def refusal(condition: Condition, facts: SeriesFacts, *, quote: bool = False) -> str | None:
    """Return which clause failed, with what was found and wanted; None where the condition holds.

    Parameters
    ----------
    quote
        Show every value that was found. Without it only those that say nothing of a patient.
    """
    if isinstance(condition, Clause):
        return None if _holds(condition, facts) else _found(condition, facts, quote=quote)
    if condition.kind == "not":
        return _held(condition.parts[0], facts, quote=quote)
    reasons = [refusal(part, facts, quote=quote) for part in condition.parts]
    if condition.kind == "all":
        return next((reason for reason in reasons if reason is not None), None)
    if None in reasons:
        return None
    return "none of these holds: " + "; ".join(reason for reason in reasons if reason)


def _held(condition: Condition, facts: SeriesFacts, *, quote: bool) -> str | None:
    """Return which clause held that is not wanted; None where the condition does not hold."""
    if isinstance(condition, Clause):
        return (
            _found(condition, facts, quote=quote, held=True) if _holds(condition, facts) else None
        )
    if condition.kind == "not":
        return refusal(condition.parts[0], facts, quote=quote)
    reasons = [_held(part, facts, quote=quote) for part in condition.parts]
    if condition.kind == "any":
        return next((reason for reason in reasons if reason is not None), None)
    told = [reason for reason in reasons if reason is not None]
    if len(told) < len(reasons):
        return None
    return f"{'together unwanted: ' if len(told) > 1 else ''}{'; '.join(told)}"


def describe(condition: Condition) -> str:
    """Return a condition in words."""
    if isinstance(condition, Clause):
        return f"{condition.subject} is {_wanted(condition)}"
    parts = [describe(part) for part in condition.parts]
    if condition.kind == "not":
        return f"not ({parts[0]})"
    return "(" + (" and " if condition.kind == "all" else " or ").join(parts) + ")"


def _holds(clause: Clause, facts: SeriesFacts) -> bool:
    values = _values(clause, facts)
    tests = dict(clause.tests)
    if "present" in tests:
        return bool(values) is bool(tests["present"])
    # an attribute that is missing equals nothing: equals = ""
    return any(_fits(clause, value) for value in values or [""])


def _fits(clause: Clause, value: str | float) -> bool:
    return all(_test(name, wanted, value) for name, wanted in clause.tests)


def _values(clause: Clause, facts: SeriesFacts) -> list[str | float]:
    """Return all values of the subject; none where it is missing."""
    if clause.is_fact:
        known = facts.numbers if clause.subject in NUMBERS else facts.texts
        value = known.get(clause.subject)
        return [] if value is None or value == "" else [value]
    found = _reach(facts.attributes, clause.subject.split("."))
    return [text for value in found for part in value.split("\\") if (text := _plain(part))]


def _reach(tags: Any, path: list[str]) -> Iterator[str]:
    """Walk through sequences, all items of each, to the texts at the end of `path`."""
    if isinstance(tags, list) and tags and not path:
        yield "a sequence"
    elif isinstance(tags, list):
        for item in tags[:64]:
            yield from _reach(item, path)
    elif isinstance(tags, Mapping) and path:
        yield from _reach(tags.get(path[0], tags.get(f"{RETIRED}{path[0]}")), path[1:])
    elif isinstance(tags, str) and not path:
        yield tags


def _plain(text: str) -> str:
    return text[:_LONGEST].strip()


def _test(name: str, wanted: Any, value: str | float) -> bool:
    match name:
        case "equals":
            return _same(wanted, value)
        case "one_of":
            return any(_same(each, value) for each in wanted)
        case "contains":
            return str(wanted) in str(value).upper() and value != ""
        case "matches":
            return value != "" and wanted.search(str(value)) is not None
    number = _as_number(value)
    if number is None:
        return False
    return bool(number >= wanted if name == "at_least" else number <= wanted)


def _same(wanted: str | float, value: str | float) -> bool:
    return (
        _as_number(value) == wanted if isinstance(wanted, float) else wanted == str(value).upper()
    )


def _as_number(value: str | float) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _found(clause: Clause, facts: SeriesFacts, *, quote: bool, held: bool = False) -> str:
    """Say what was found and wanted, or where it is held against the series, not wanted."""
    every = _values(clause, facts)
    first = every[:4]
    fit = [value for value in every if "present" in dict(clause.tests) or _fits(clause, value)]
    if held and not set(fit) & set(first):
        first[3:] = fit[:1]
    values = [_shown(value) for value in first]
    if not values:
        found = "not known" if clause.is_fact else "missing"
    elif clause.is_fact or quote or clause.subject.rsplit(".", 1)[-1] in _TECHNICAL:
        codes = quote or all(_CODE.fullmatch(value) for value in values)
        found = "\\".join(values) if codes else "no code"
    else:
        found = "a value that fits" if held else "another value"
    return f"{clause.subject} is {found}, {_wanted(clause)} is {'not ' if held else ''}wanted"


def _shown(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value


def _wanted(clause: Clause) -> str:
    return " and ".join(_words(name, wanted) for name, wanted in clause.tests)


def _words(name: str, wanted: Any) -> str:
    match name:
        case "present":
            return "present" if wanted else "missing"
        case "one_of":
            return " or ".join(_shown(each) or "nothing" for each in wanted)
        case "equals":
            return _shown(wanted)
        case "matches":
            return f"a match of {wanted.pattern}"
        case "contains":
            return f"a text with {wanted}"
    return f"{name.replace('_', ' ')} {wanted:g}"
