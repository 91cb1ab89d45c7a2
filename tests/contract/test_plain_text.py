"""Texts of ours in ASCII, which the character set of any image has."""

from __future__ import annotations

import pytest

from segnode_contract.plain_text import beyond_ascii, without_accents


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Gefäße groß, GROẞ", "Gefasse gross, GROSS"),
        ("œdème, Œsophage", "oedeme, OEsophage"),
        ("æble på Øresund", "aeble pa Oresund"),
        ("Łydka, płuco", "Lydka, pluco"),
        ("e\u0301", "e"),
        ("ﬁbröse – ‘so’ “so” …", "fibrose - 'so' \"so\" ..."),
        ("10 µm × 2²", "10 um x 22"),
        ("ｌｉｖｅｒ", "liver"),
    ],
)
def test_what_can_be_said_in_ascii_is(text: str, plain: str) -> None:
    assert without_accents(text) == plain
    assert beyond_ascii(text) == ""


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("肝臓肝", "肝臓"),
        ("Leber печень", "печнь"),
        ("한국", "한국"),
        ("a\\b", "\\"),
        ("a\x1b[2J\n", "\x1b\n"),
    ],
)
def test_what_cannot_be_said_is_named_once(text: str, lost: str) -> None:
    assert beyond_ascii(text) == lost
