"""`segnode routes check`: what is wrong in a settings file, with line and column."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword

from segnode_contract.condition import TESTS, Clause, clauses
from segnode_contract.errors import SettingsError
from segnode_contract.route import Route
from segnode_contract.settings import load_settings
from segnode_contract.spelling import hint
from segnode_models.registry import builtin_cards

_NUMBERS = ("DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV")
_KEYWORDS = tuple(keyword_dict)
_TOML_PLACE = re.compile(r"at line (\d+), column (\d+)")
_ROUTE = re.compile(r"\[\[routes\]\] (\d+)")
_OTHER_HEAD = re.compile(r"\s*\[(?!\[?routes\.)[\w\[\"]")
_TESTED = re.compile(rf" ({'|'.join(TESTS)}) is ")
_QUOTED = re.compile(r"'([^']+)'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """Something wrong, and where it stands; line and column are counted from 1."""

    line: int
    column: int
    sentence: str


def check_routes(config: Path) -> list[Complaint]:
    """Return what is wrong in the settings file; of what keeps it from being read, the first.

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
    return [
        _placed(config, f"{config}: [[routes]] {number} {sentence}")
        for number, route in enumerate(settings.routes, 1)
        for sentence in _complaints(route)
    ]


def _complaints(route: Route) -> Iterator[str]:
    models = tuple(card.name for card, _ in builtin_cards())
    if route.model not in models:
        yield f"wants the model '{route.model}', which is not here{hint(route.model, models)}."
    if route.where is not None:
        for clause in clauses(route.where):
            yield from _about_attribute(clause)


def _about_attribute(clause: Clause) -> Iterator[str]:
    if clause.is_fact:
        return
    *path, last = clause.subject.split(".")
    for keyword in (*path, last):
        if tag_for_keyword(keyword) is None:
            meant = hint(keyword, _KEYWORDS)
            yield f"where asks for '{keyword}', which DICOM does not know{meant}."
            return
    for keyword in path:
        if dictionary_VR(keyword) != "SQ":
            yield f"where looks into '{keyword}', which is no sequence."
            return
    kind = dictionary_VR(last)
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
    for word in (*_TESTED.findall(sentence), *_QUOTED.findall(sentence)):
        pattern = re.compile(rf"(?<![\w.]){re.escape(word)}(?!\w)|\.{re.escape(word)}(?!\w)")
        for number in range(first, last):
            code = _without_comment(lines[number])
            hit = pattern.search(code)
            if hit:
                column = hit.start() + (2 if hit[0].startswith(".") else 1)
                return Complaint(line=number + 1, column=column, sentence=sentence)
    return Complaint(line=first + 1, column=1, sentence=sentence)


def _section(lines: list[str], sentence: str) -> tuple[int, int]:
    """Return the lines of the route that a sentence names, of all where it names none."""
    found = _ROUTE.search(sentence)
    heads = [n for n, line in enumerate(lines) if line.strip().startswith("[[routes]]")]
    if not found or int(found[1]) > len(heads):
        return 0, len(lines)
    first = heads[int(found[1]) - 1]
    after = (n for n in range(first + 1, len(lines)) if _OTHER_HEAD.match(lines[n]))
    return first, next(after, len(lines))


def _without_comment(line: str) -> str:
    quoted = False
    for place, sign in enumerate(line):
        quoted ^= sign == '"'
        if sign == "#" and not quoted:
            return line[:place]
    return line
