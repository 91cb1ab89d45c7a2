"""Where each value of a TOML file stands: `tomllib` tells it of its errors only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r'''(?P<text>"""(?:[^\\]|\\.)*?"{3,5}|\'{3}.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')'''
    r"""|(?P<line>(?:\#[^\n]*)?\n|\#[^\n]*\Z)|(?P<sign>[\[\]{}=,])|(?P<bare>[^\s\[\]{}=,\#"']+)""",
    re.DOTALL,
)
_PART = re.compile(r"""(?P<quote>["'])(?P<quoted>(?:[^"'\\\n]|\\.)*)(?P=quote)|(?P<bare>[\w-]+)""")

Token = tuple[str, int, int]
"""Kind, and where it begins and ends."""


@dataclass(slots=True)
class Place:
    """A table, a list or a value, and where it begins: with its key, where it has one."""

    at: int
    text: str = ""
    """What is written between quotes."""
    text_at: int = 0
    inside: dict[str | int, Place] = field(default_factory=dict)
    """By key, or by number from 1."""


def places(text: str) -> Place:
    """Return the places of what stands in a file that `tomllib` takes."""
    return _Reader(text).document()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[Token] = [
            (found.lastgroup or "", found.start(), found.end()) for found in _TOKEN.finditer(text)
        ]
        self._next = 0

    def document(self) -> Place:
        root = table = Place(0)
        while self._skip():
            if self._sign() == "[":
                table = self._head(root)
            else:
                self._pair(table)
        return root

    def _head(self, root: Place) -> Place:
        """Open ``[table]``, or one more of ``[[tables]]``."""
        at = self._take()[1]
        doubled = self._sign() == "["
        *path, (last, _) = self._key("]")
        self._next += doubled
        table = _descend(root, path)
        if not doubled:
            table = table.inside.setdefault(last, Place(at))
            table.at = at
            return table
        every = table.inside.setdefault(last, Place(at))
        one = every.inside[len(every.inside) + 1] = Place(at)
        return one

    def _pair(self, table: Place) -> None:
        *path, (last, at) = self._key("=")
        value = self._value()
        value.at = at
        _descend(table, path).inside[last] = value

    def _key(self, end: str) -> Sequence[tuple[str, int]]:
        """Take a key with dots, and the sign after it."""
        start = self._tokens[self._next + (self._sign() == "[")][1]
        while self._sign() != end:
            self._next += 1
        stop = self._take()[1]
        return [
            (part["quoted"] or part["bare"] or "", part.start())
            for part in _PART.finditer(self._text, start, stop)
        ]

    def _value(self) -> Place:
        kind, start, end = self._take()
        sign = self._text[start:end]
        place = Place(start)
        if kind == "sign" and sign == "[":
            while self._skip("]"):
                place.inside[len(place.inside) + 1] = self._value()
        elif kind == "sign":
            while self._skip("}"):
                self._pair(place)
        elif kind == "text":
            quotes = 3 if sign[:3] in ('"""', "'''") else 1
            place.text, place.text_at = sign[quotes:-quotes], start + quotes
        else:  # a date has a space in it
            while self._next < len(self._tokens) and self._kind() == "bare":
                self._next += 1
        return place

    def _skip(self, end: str = "") -> bool:
        """Go to what comes next; say whether there is anything before the end."""
        while self._next < len(self._tokens):
            if self._kind() != "line" and self._sign() != ",":
                if not end or self._sign() != end:
                    return True
                self._next += 1
                return False
            self._next += 1
        return False

    def _take(self) -> Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _kind(self) -> str:
        return self._tokens[self._next][0]

    def _sign(self) -> str:
        kind, start, end = self._tokens[self._next]
        return self._text[start:end] if kind == "sign" else ""


def _descend(table: Place, path: Sequence[tuple[str, int]]) -> Place:
    for key, at in path:
        table = table.inside.setdefault(key, Place(at))
        if table.inside and all(isinstance(each, int) for each in table.inside):
            table = table.inside[len(table.inside)]  # the last of [[tables]]
    return table


def words_place(root: Place, words: Sequence[str]) -> Place:
    """Follow words into a file as far as they are keys and numbers of it."""
    place = root
    for word in words:
        key = int(word) if word.isascii() and word.isdigit() else word
        if key not in place.inside:
            break
        place = place.inside[key]
    return place


def quoted_at(place: Place, quoted: Sequence[str]) -> Iterator[int]:
    """Give where quoted words stand right inside a place: as keys, or in texts."""
    for word in quoted:
        if word in place.inside:
            yield place.inside[word].at
        for each in place.inside.values():
            for one in (each, *each.inside.values()):
                found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", one.text, re.IGNORECASE)
                if found:
                    yield one.text_at + found.start()
