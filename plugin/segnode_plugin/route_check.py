"""What is wrong in a settings file, with line and column."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from segnode_contract.card import Card
from segnode_contract.condition import FACTS, Clause, Condition
from segnode_contract.errors import SettingsError
from segnode_contract.keywords import attribute_hint
from segnode_contract.route import Route
from segnode_contract.settings import Settings, load_settings
from segnode_contract.spelling import hint
from segnode_plugin.toml_places import places, quoted_at, words_place

_NUMBERS = ("DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV")
_TOML_PLACE = re.compile(r"at line (\d+), column (\d+)")
_QUOTED = re.compile(r"'([^']+)'")


class Dictionary(Protocol):
    """Attributes of PS3.6. Orthanc's in the plugin, pydicom's in the command."""

    def vr(self, keyword: str) -> str | None:
        """Return the value representation of a keyword, None for one that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """Something wrong, and where it stands; line and column are counted from 1."""

    line: int
    column: int
    sentence: str


def check_routes(
    config: Path, dictionary: Dictionary, cards: Mapping[str, Card | None]
) -> list[Complaint]:
    """Return what is wrong in the settings file; of what keeps it from being read, the first.

    Parameters
    ----------
    cards
        Of the models that there are, None for one whose card is not known.

    Raises
    ------
    SettingsError
        If the file cannot be opened.
    """
    try:
        settings = load_settings(config)
    except SettingsError as error:
        if not config.is_file():
            raise
        return [_placed(config, error.sentence)]
    sentences = (
        *about_keywords(settings, dictionary),
        *_about_values(settings, dictionary),
        *_about_models(settings, cards),
    )
    return [_placed(config, sentence) for sentence in sentences]


def about_keywords(settings: Settings, dictionary: Dictionary) -> Iterator[str]:
    """Give what is wrong with the attributes that conditions ask for."""
    for where, clause in _clauses(settings):
        for sentence in _about_attribute(clause, dictionary):
            yield f"{where} {sentence}"


def _about_values(settings: Settings, dictionary: Dictionary) -> Iterator[str]:
    """Give the texts that no value is ever equal to, or has in it."""
    for where, clause in _clauses(settings):
        last = clause.subject.rsplit(".", 1)[-1]
        kind = "" if clause.is_fact else dictionary.vr(last) or ""
        for test, wanted in clause.tests:
            texts = wanted if isinstance(wanted, tuple) else (wanted,)
            for text in texts if test in ("equals", "one_of", "contains") else ():
                if isinstance(text, str) and (fault := _about_text(test, text, kind)):
                    yield f"{where} {test} has '{text}', {fault}."


def _about_text(test: str, text: str, kind: str) -> str:
    if "\\" in text:
        return "with a backslash: it stands between two values, and each is compared alone"
    if text != text.strip() and test == "contains":
        return "with a space at an end, found inside a value only; 'matches' knows \\b for words"
    if text != text.strip():
        return "with a space at an end; values are compared without"
    if text and test != "contains" and _is_number(kind):
        return f"in quotes, and the attribute is a number ({kind}); 120 equals 120.0 without them"
    return ""


def _clauses(settings: Settings) -> Iterator[tuple[str, Clause]]:
    """Give every clause, with its place in words."""
    for number, route in enumerate(settings.routes, 1):
        yield from _placed_clauses(route.where, f"[[routes]] {number} where")
        for place, one in enumerate(route.series, 1):
            yield from _placed_clauses(one.where, f"[[routes]] {number} series {place} where")
    for number, rule in enumerate(settings.priorities, 1):
        yield from _placed_clauses(rule.where, f"[[priorities]] {number} where")


def _placed_clauses(condition: Condition | None, where: str) -> Iterator[tuple[str, Clause]]:
    if isinstance(condition, Clause):
        yield where, condition
    elif condition is not None:
        for number, part in enumerate(condition.parts, 1):
            place = "not" if condition.kind == "not" else f"{condition.kind} {number}"
            yield from _placed_clauses(part, f"{where} {place}")


def _about_models(settings: Settings, cards: Mapping[str, Card | None]) -> Iterator[str]:
    models = {route.name: route.model for route in settings.routes}
    for number, route in enumerate(settings.routes, 1):
        where = f"[[routes]] {number}"
        if route.model not in cards:
            meant = hint(route.model, cards)
            yield f"{where} model is '{route.model}', which is not here{meant}."
            continue
        card = cards[route.model]
        if card is None:
            continue
        given = models.get(route.after, "")
        if card.builds_on != given:
            yield (
                f"{where} model is '{route.model}', which builds on the result of "
                f"{card.builds_on or 'no other model'}; 'after' gives {given or 'none'}."
            )
        yield from _about_roles(where, route, card)
        yield from _about_modality(where, route, card)


def _about_modality(where: str, route: Route, card: Card) -> Iterator[str]:
    takes = {one.role: one.modality for one in card.inputs}
    asked = [
        (f"{where} series {number}" if one.modality else where, one.modality, takes.get(one.role))
        for number, one in enumerate(route.series, 1)
    ]
    for place, given, needed in asked or [(where, "", card.modality)]:
        modality = given or route.modality
        if needed and modality.upper() != needed.upper():
            yield f"{place} modality is {modality}; the model '{route.model}' takes {needed}."


def _about_roles(where: str, route: Route, card: Card) -> Iterator[str]:
    given = [one.role for one in route.series]
    takes = [one.role for one in card.inputs]
    needs = {one.role for one in card.inputs if not one.optional}
    if given[:1] != takes[:1] or not needs <= set(given) <= set(takes):
        yield (
            f"{where} model is '{route.model}', which takes "
            f"{', '.join(takes) or 'one series'}; 'series' gives {', '.join(given) or 'one'}."
        )


def _about_attribute(clause: Clause, dictionary: Dictionary) -> Iterator[str]:
    if clause.is_fact:
        return
    *path, last = clause.subject.split(".")
    for keyword in (*path, last):
        if dictionary.vr(keyword) is None:
            meant = attribute_hint(keyword, FACTS)
            yield f"asks for '{keyword}', which DICOM does not know{meant}."
            return
    for keyword in path:
        if dictionary.vr(keyword) != "SQ":
            yield f"looks into '{keyword}', which is no sequence."
            return
    kind = dictionary.vr(last) or ""
    if kind == "SQ":
        yield f"asks for the sequence '{last}'; name an attribute of its items after a dot."
    for test, _ in clause.tests:
        if test in ("at_least", "at_most") and not _is_number(kind):
            yield f"has {test} for '{last}', which is no number but {kind}."


def _is_number(kind: str) -> bool:
    return kind.partition(" or ")[0] in _NUMBERS


def _placed(config: Path, sentence: str) -> Complaint:
    """Find what a sentence complains of: it begins with a path, ``[[routes]] 1 where all 2``."""
    sentence = sentence.removeprefix(str(config)).lstrip(": ")
    found = _TOML_PLACE.search(sentence)
    if found and sentence.startswith("The settings file"):
        return Complaint(line=int(found[1]), column=int(found[2]), sentence=sentence)
    text = config.read_text(encoding="utf-8-sig", errors="replace")
    place = words_place(places(text), [word.strip("[]:") for word in sentence.split()])
    at = next(quoted_at(place, _QUOTED.findall(sentence)), place.at)
    column = at - text.rfind("\n", 0, at)
    return Complaint(line=text.count("\n", 0, at) + 1, column=column, sentence=sentence)
