"""Attributes by tag and keyword (PS3.6), for what was probably meant by another word.

Orthanc's dictionary knows an attribute by its keyword, and lists none. `keywords.txt` holds those
of pydicom: a tag in hexadecimal digits and a keyword on each line.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from segnode_contract.spelling import near, plain

_TAG = re.compile(r"\(?\s*([0-9a-f]{4})[\s,]*([0-9a-f]{4})\s*\)?", re.IGNORECASE)


@lru_cache(maxsize=1)
def keywords() -> dict[str, str]:
    """Return keywords by tag: eight digits, in capitals."""
    text = Path(__file__).with_name("keywords.txt").read_text(encoding="ascii")
    return {line[:8]: line[9:] for line in text.splitlines()}


def attribute_hint(subject: str, facts: Collection[str]) -> str:
    """Return what was probably meant by an attribute that is none, as `spelling.hint`."""
    fact = next((each for each in facts if plain(each) == plain(subject)), None)
    if fact is not None:
        return f'; this is a fact: fact = "{fact}"'
    parts = [_meant(part) for part in subject.split(".")]
    meant = ".".join(part for part in parts if part is not None)
    return "" if None in parts or meant == subject else f"; '{meant}' was probably meant"


def fact_hint(subject: str, facts: Collection[str]) -> str:
    """Return what was probably meant by a fact that is none, as `spelling.hint`."""
    keyword = _by_tag(subject) or _exactly(subject)
    if keyword is not None:
        return f'; this is an attribute: attribute = "{keyword}"'
    fact = near(subject, facts)
    return f"; '{fact}' was probably meant" if fact else ""


def _meant(word: str) -> str | None:
    return _by_tag(word) or near(word, keywords().values())


def _by_tag(word: str) -> str | None:
    tag = _TAG.fullmatch(word.strip())
    return keywords().get((tag[1] + tag[2]).upper()) if tag else None


def _exactly(word: str) -> str | None:
    return next((each for each in keywords().values() if plain(each) == plain(word)), None)
