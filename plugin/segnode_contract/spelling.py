"""What was probably meant by a word that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that names the nearest known word; empty if none is near."""
    meant = near(word, known)
    return f"; '{meant}' was probably meant" if meant else ""


def near(word: str, known: Iterable[str]) -> str | None:
    """Return the nearest known word, None if none is near; spaces and capitals do not matter."""
    by_plain = {plain(each): each for each in known}
    found = difflib.get_close_matches(plain(word), by_plain, n=1)
    return by_plain[found[0]] if found else None


def plain(word: str) -> str:
    """Return a word in small letters, without spaces and what stands for them."""
    return "".join(sign for sign in word.lower() if sign not in " _-\t")
