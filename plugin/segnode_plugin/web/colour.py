"""Colours of segments as a screen shows them."""

from __future__ import annotations

from segnode_contract.card import Card

_WHITE = (95.047, 100.0, 108.883)
"""D65, as the viewer takes it."""
_SRGB = (
    (3.2406, -1.5372, -0.4986),
    (-0.9689, 1.8758, 0.0415),
    (0.0557, -0.2040, 1.0570),
)
"""From XYZ (IEC 61966-2-1)."""


def hex_of(colour: tuple[int, int, int]) -> str:
    """Return a Recommended Display CIELab Value (PS3.3 C.10.7.1.1) as ``#rrggbb``.

    A shade that screens do not have becomes the nearest one that they have.
    """
    lightness = colour[0] / 65535 * 100
    a, b = (part / 65535 * 255 - 128 for part in colour[1:])
    y = (lightness + 16) / 116
    xyz = [
        white / 100 * _linear(part)
        for white, part in zip(_WHITE, (y + a / 500, y, y - b / 200), strict=True)
    ]
    parts = [sum(k * v for k, v in zip(row, xyz, strict=True)) for row in _SRGB]
    return "#" + "".join(f"{_on_screen(part):02x}" for part in parts)


def colours_of(card: Card) -> dict[int, str]:
    """Return the colour of each segment of a model, by Segment Number."""
    return {segment.number: hex_of(segment.colour) for segment in card.segments}


def _linear(part: float) -> float:
    return part**3 if part**3 > 0.008856 else (part - 16 / 116) / 7.787


def _on_screen(light: float) -> int:
    value = 1.055 * light ** (1 / 2.4) - 0.055 if light > 0.0031308 else 12.92 * light
    return round(255 * min(max(value, 0.0), 1.0))
