"""What is wrong in a settings file, with line and column."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from segnode_contract.card import Card
from segnode_contract.condition import FACTS, TESTS, Clause, Condition, clauses
from segnode_contract.errors import SettingsError
from segnode_contract.keywords import attribute_hint
from segnode_contract.route import Route
from segnode_contract.settings import Settings, load_settings
from segnode_contract.spelling import hint

_NUMBERS = ("DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV")
_TOML_PLACE = re.compile(r"at line (\d+), column (\d+)")
_TABLE = re.compile(r"\[\[(routes|priorities|users|modalities)\]\] (\d+)")
_OTHER_HEAD = re.compile(r"\s*\[(?!\[?routes\.)[\w\[\"]")
_TESTED = re.compile(rf" ({'|'.join(TESTS)}) is ")
_QUOTED = re.compile(r"'([^']+)'")
_KEY = re.compile(r"\]\] \d+ (\w+) is ")


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
    sentences = [*about_keywords(settings, dictionary), *_about_models(settings, cards)]
    return [_placed(config, f"{config}: {sentence}") for sentence in sentences]


def about_keywords(settings: Settings, dictionary: Dictionary) -> Iterator[str]:
    """Give what is wrong with the attributes that conditions ask for."""
    for number, route in enumerate(settings.routes, 1):
        for condition in (route.where, *(one.where for one in route.series)):
            yield from _about(f"[[routes]] {number}", condition, dictionary)
    for number, rule in enumerate(settings.priorities, 1):
        yield from _about(f"[[priorities]] {number}", rule.where, dictionary)


def _about_models(settings: Settings, cards: Mapping[str, Card | None]) -> Iterator[str]:
    models = {route.name: route.model for route in settings.routes}
    for number, route in enumerate(settings.routes, 1):
        where = f"[[routes]] {number}"
        if route.model not in cards:
            meant = hint(route.model, cards)
            yield f"{where} wants the model '{route.model}', which is not here{meant}."
            continue
        card = cards[route.model]
        if card is None:
            continue
        given = models.get(route.after, "")
        if card.builds_on != given:
            yield (
                f"{where} wants the model '{route.model}', which builds on the result of "
                f"{card.builds_on or 'no other model'}; 'after' gives {given or 'none'}."
            )
        yield from _about_roles(where, route, card)


def _about_roles(where: str, route: Route, card: Card) -> Iterator[str]:
    given = [one.role for one in route.series]
    takes = [one.role for one in card.inputs]
    needs = {one.role for one in card.inputs if not one.optional}
    if given[:1] != takes[:1] or not needs <= set(given) <= set(takes):
        yield (
            f"{where} wants the model '{route.model}', which takes "
            f"{', '.join(takes) or 'one series'}; 'series' gives {', '.join(given) or 'one'}."
        )


def _about(where: str, condition: Condition | None, dictionary: Dictionary) -> Iterator[str]:
    for clause in clauses(condition) if condition else ():
        for sentence in _about_attribute(clause, dictionary):
            yield f"{where} {sentence}"


def _about_attribute(clause: Clause, dictionary: Dictionary) -> Iterator[str]:
    if clause.is_fact:
        return
    *path, last = clause.subject.split(".")
    for keyword in (*path, last):
        if dictionary.vr(keyword) is None:
            meant = attribute_hint(keyword, FACTS)
            yield f"where asks for '{keyword}', which DICOM does not know{meant}."
            return
    for keyword in path:
        if dictionary.vr(keyword) != "SQ":
            yield f"where looks into '{keyword}', which is no sequence."
            return
    kind = dictionary.vr(last) or ""
    if kind == "SQ":
        yield f"where asks for the sequence '{last}'; name an attribute of its items after a dot."
    for test, _ in clause.tests:
        if test in ("at_least", "at_most") and kind.split(" or ")[0] not in _NUMBERS:
            yield f"where has {test} for '{last}', which is no number but {kind}."


def _placed(config: Path, sentence: str) -> Complaint:
    """Find the word that a sentence complains of, in the route that it names."""
    sentence = sentence.removeprefix(f"{config}: ")
    found = _TOML_PLACE.search(sentence)
    if found:
        return Complaint(line=int(found[1]), column=int(found[2]), sentence=sentence)
    lines = config.read_text(encoding="utf-8", errors="replace").splitlines()
    if "at end of document" in sentence:
        return Complaint(line=max(len(lines), 1), column=1, sentence=sentence)
    first, last = _section(lines, sentence)
    words = (_TESTED, _KEY, _QUOTED)
    for word in (word for pattern in words for word in pattern.findall(sentence)):
        pattern = re.compile(rf"(?<![\w.]){re.escape(word)}(?!\w)|\.{re.escape(word)}(?!\w)")
        for number in range(first, last):
            code = _without_comment(lines[number])
            hit = pattern.search(code)
            if hit:
                column = hit.start() + (2 if hit[0].startswith(".") else 1)
                return Complaint(line=number + 1, column=column, sentence=sentence)
    return Complaint(line=first + 1, column=1, sentence=sentence)


def _section(lines: list[str], sentence: str) -> tuple[int, int]:
    """Return the lines of the table that a sentence names, of all where it names none."""
    found = _TABLE.search(sentence)
    head = f"[[{found[1]}]]" if found else "[background]"
    heads = [n for n, line in enumerate(lines) if line.strip().startswith(head)]
    number = int(found[2]) if found else 1
    if head not in sentence or number > len(heads):
        return 0, len(lines)
    first = heads[number - 1]
    after = (n for n in range(first + 1, len(lines)) if _OTHER_HEAD.match(lines[n]))
    return first, next(after, len(lines))


def _without_comment(line: str) -> str:
    quoted = False
    for place, sign in enumerate(line):
        quoted ^= sign == '"'
        if sign == "#" and not quoted:
            return line[:place]
    return line
