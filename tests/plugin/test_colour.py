"""Colours of segments on a page are those of the DICOM object."""

from __future__ import annotations

import pytest
from highdicom.color import CIELabColor

from segnode_models.registry import builtin_models
from segnode_plugin.web.colour import colours_of, hex_of

COLOURS = [s.colour for model in builtin_models() for s in model.card.segments]


@pytest.mark.parametrize("colour", [*COLOURS, (0, 32896, 32896), (65535, 32896, 32896)])
def test_a_colour_is_the_one_that_others_make_of_it(colour: tuple[int, int, int]) -> None:
    rgb = CIELabColor.from_dicom_value(colour).to_rgb(clip=True)
    own = tuple(int(hex_of(colour)[place : place + 2], 16) for place in (1, 3, 5))
    assert max(abs(a - b) for a, b in zip(own, rgb, strict=True)) <= 1


def test_a_shade_that_screens_lack_is_the_nearest_one() -> None:
    assert hex_of((32768, 65535, 0)) == "#b700ff"


def test_every_segment_has_its_colour() -> None:
    card = next(each.card for each in builtin_models() if each.card.name == "ct-tissue")
    assert set(colours_of(card)) == {segment.number for segment in card.segments}
