"""A card of any number of segments, and boxes that tell each of them from the rest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card, parse_card

_HEAD = """
name = "many-parts"
version = "1"
kind = "builtin"
intended_use = "Tests."
limitations = ["It knows boxes only."]
licence = "AGPL-3.0-or-later"
memory_bytes = 1000000
time_limit_s = 10
[input]
modality = "CT"
orientation = "HPL"
min_slices = 1
"""


def card_of(
    count: int,
    names: Mapping[int, str] | None = None,
    colours: Mapping[int, tuple[int, int, int]] | None = None,
    planes: int = 1,
) -> Card:
    """Return a card whose label values are not its segment numbers: they run downwards.

    Parameters
    ----------
    names, colours
        By segment number; a grey where none is given.
    planes
        The segments take turns in them.
    """
    text = _HEAD
    for number in range(1, count + 1):
        label = (names or {}).get(number, f"Part {number}")
        colour = (colours or {}).get(number, (40000, 32896, 32896))
        text += f'[[segments]]\nnumber = {number}\nlabel = "{label}"\n'
        text += f"plane = {number % planes}\n"
        text += f"value = {count + 1 - number}\ncolour = {list(colour)}\n"
        for key in ("category", "type"):
            text += f'{key} = {{ value = "{number}-{key}", scheme = "99TEST", meaning = "X" }}\n'
    return parse_card(text, where="a test's card")


def boxes(card: Card, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return one plane of labels with a box of each segment; later ones cover earlier ones.

    The first and the last slice are empty, and so is one in the middle.
    """
    values = np.zeros(shape, np.uint8)
    random = np.random.default_rng(3)
    for segment in card.segments:
        corner = random.integers([0, 0, 0], shape)
        size = random.integers([2, 2, 2], [6, 9, 9])
        values[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = segment.value
    values[[0, shape[0] // 2, -1]] = 0
    return values[None]
