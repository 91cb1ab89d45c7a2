"""Texts in ASCII, which every character set of images has: results keep that of theirs."""

from __future__ import annotations

import unicodedata

_WHOLE = str.maketrans(
    {
        **{"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "þ": "th", "Þ": "Th"},
        **{"ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D"},
        **{"ı": "i", "µ": "u", "μ": "u", "×": "x", "⁄": "/", "−": "-", "–": "-", "—": "-"},
        **{"‘": "'", "’": "'", "“": '"', "”": '"'},
    }
)
"""Signs that do not fall apart into ASCII and an accent, and what stands for them."""


def without_accents(text: str) -> str:
    """Return a text with ASCII in place of what can be said in it; what cannot stays as it is."""
    parts = unicodedata.normalize("NFKD", text.translate(_WHOLE))
    return "".join(c for c in parts if not unicodedata.combining(c)).translate(_WHOLE)


def beyond_ascii(text: str) -> str:
    """Return the characters of a text that one value of an object cannot hold, each once.

    A backslash would make two values of it (PS3.5 6.2).
    """
    kept = [c for c in unicodedata.normalize("NFC", text) if not _fits(without_accents(c))]
    return "".join(dict.fromkeys(kept))


def _fits(text: str) -> bool:
    return all(" " <= c <= "~" and c != "\\" for c in text)
