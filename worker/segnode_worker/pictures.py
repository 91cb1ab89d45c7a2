"""Key pictures of a result: what it looks like, to be seen without a viewer."""

from __future__ import annotations

import textwrap
from io import BytesIO
from typing import Any

import numpy as np
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segnode_contract.card import Card
from segnode_contract.pictures import LARGEST
from segnode_worker.imprint import ascii_text
from segnode_worker.stack import Stack

_LONGEST = 512
"""Pixels of a picture's longer side."""
_WARNING = "AI, unverified, research use"
_SOFT, _LUNG = (40.0, 400.0), (-600.0, 1500.0)
"""Centre and width of a window in HU."""
_AIRY = -500.0
"""What is less dense is lung, or gas."""
_FONT, _LINE, _EDGE = 14, 18, 4
"""Of what is written, in pixels."""


def pictures(stack: Stack, labels: NDArray[np.uint8], card: Card) -> tuple[bytes, ...]:
    """Draw up to three slices with their labels over them.

    They are those at 25, 50 and 75 % of the labelled voxels, in the order of the slices; each comes
    once, and where nothing is labelled there is none. A picture lies as viewers show the image, its
    first row at the top, its pixels made square. Of the patient it says nothing.

    Parameters
    ----------
    stack
        The images, with their voxels.
    labels
        Shape ``(planes, slices, rows, columns)``, on the slices of `stack`, without what is
        withheld. Planes that overlap show through each other.
    card
        Of the model that made them.

    Returns
    -------
    tuple of bytes
        PNG files of at most `LARGEST` bytes, which hold their pixels and nothing else.
    """
    shown = _key_slices(labels)
    if not shown:
        return ()
    images, over = stack.values[shown], labels[:, shown]
    greys = _greys(images, np.any(over, axis=0), stack)
    colours = _colours(card)
    return tuple(
        _png(_coloured(grey, over[:, number], colours), stack.plane.spacing_mm, card)
        for number, grey in enumerate(greys)
    )


def _key_slices(labels: NDArray[np.uint8]) -> list[int]:
    counts = [[np.count_nonzero(one) for one in plane] for plane in labels]
    reached = np.cumsum(np.array(counts).sum(axis=0))
    if not reached[-1]:
        return []
    quarters = np.searchsorted(4 * reached, reached[-1] * np.array([1, 2, 3]))
    return list(dict.fromkeys(quarters.tolist()))


def _greys(images: NDArray[Any], labelled: NDArray[np.bool_], stack: Stack) -> NDArray[np.uint8]:
    """Return what a screen shows of the images, by one window for all."""
    header = stack.sources[0].header
    if header.Modality == "CT":
        airy = np.count_nonzero(images[labelled] < _AIRY) > np.count_nonzero(labelled) / 2
        centre, width = _LUNG if airy else _SOFT
        low, high = centre - width / 2, centre + width / 2
    else:
        low, high = np.percentile(images, (1, 99))
    share = (images.astype(np.float32) - low) / max(high - low, 1e-6)
    if header.get("PhotometricInterpretation") == "MONOCHROME1":  # PS3.3 C.7.6.3.1.2
        share = 1 - share
    greys: NDArray[np.uint8] = (np.nan_to_num(share).clip(0, 1) * 255).round().astype(np.uint8)
    return greys


def _colours(card: Card) -> NDArray[np.uint16]:
    """Return red, green and blue of each value, shape ``(planes, 256, 3)``."""
    colours = np.zeros((card.planes, 256, 3), np.uint16)
    for segment in card.segments:
        shade = CIELabColor.from_dicom_value(segment.colour)
        # a card may have a colour that no screen has
        colours[segment.plane, segment.value] = shade.to_rgb(clip=True)
    return colours


def _coloured(
    grey: NDArray[np.uint8], over: NDArray[np.uint8], colours: NDArray[np.uint16]
) -> NDArray[np.uint8]:
    """Return one slice with the colours of its labels half-transparent, plane after plane."""
    seen = np.repeat(grey[..., np.newaxis].astype(np.uint16), 3, axis=2)
    for plane, colour in zip(over, colours, strict=True):
        where = plane > 0
        seen[where] = (seen[where] + colour[plane[where]] + 1) // 2
    return seen.astype(np.uint8)


def _png(pixels: NDArray[np.uint8], spacing_mm: tuple[float, float], card: Card) -> bytes:
    size_mm = (pixels.shape[1] * spacing_mm[1], pixels.shape[0] * spacing_mm[0])
    width, height = (max(1, round(side * _LONGEST / max(size_mm))) for side in size_mm)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    _write_on(image, f"{_WARNING}: {ascii_text(card.name)} {ascii_text(card.version)}")
    data = _saved(image)
    if len(data) <= LARGEST:
        return data
    return _saved(image.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))


def _saved(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)  # of noise, the quickest is the smallest, too
    return file.getvalue()


def _write_on(image: Image.Image, text: str) -> None:
    """Write along the lower edge, white on black."""
    font = ImageFont.load_default(_FONT)
    columns = int((image.width - 2 * _EDGE) // font.getlength("0"))
    lines = textwrap.wrap(text, max(1, columns))
    top = image.height - _LINE * len(lines)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, top, image.width, image.height), fill="black")
    for number, line in enumerate(lines):
        draw.text((_EDGE, top + _LINE * number), line, fill="white", font=font)
