"""The frames of a label map: one for each slice, whose values are Segment Numbers.

They are RLE-compressed (PS3.5 G), which makes a label map some thirty times smaller.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card
from segnode_worker.frames import (
    PIXEL_DATA,
    UNDEFINED_LENGTH,
    Body,
    content,
    derivation,
    element,
    end_of_items,
    item,
    left_out_and_given,
    position,
)
from segnode_worker.plausible import counts_of
from segnode_worker.stack import Source

_HEADER = struct.pack("<16I", 1, 64, *[0] * 14)
"""Of a frame of 8-bit pixels: one segment, right behind the header (PS3.5 G.5)."""
_LONGEST_RUN = 128


def labelmap_body(
    labels: NDArray[np.uint8], card: Card, withheld: Mapping[int, str], sources: Sequence[Source]
) -> Body:
    """Return a frame for each slice that holds voxels, and one at least.

    Parameters
    ----------
    labels
        One plane: what overlaps cannot stand in one label map. So there are 255 segments at most,
        and 8 bits hold their numbers.

    Raises
    ------
    ModelFailed
        If there are voxels of a segment that the model says it left out.
    """
    (plane,), (counts,) = labels, counts_of(labels)
    numbers = np.zeros(256, np.uint8)
    for segment in card.segments:
        numbers[segment.value] = segment.number
    found: set[int] = set()
    slices = []
    for place, count in enumerate(counts):
        held = np.unique(numbers[np.flatnonzero(count)])
        if held.any():
            slices.append(place)
            found |= set(held.tolist())
            for number in sorted(found & set(withheld)):
                raise left_out_and_given(card, number, place)
    slices = slices or [0]
    return Body(
        found=found - {0},
        frames=len(slices),
        groups=[
            item(derivation(sources[place]), content(rank), position(sources[place]))
            for rank, place in enumerate(slices, 1)
        ],
        pixel_data=element(
            PIXEL_DATA, b"OB", UNDEFINED_LENGTH, _encapsulated(plane, slices, numbers)
        ),
    )


def _encapsulated(
    plane: NDArray[np.uint8], slices: Sequence[int], numbers: NDArray[np.uint8]
) -> Iterator[bytes]:
    """Give each frame as one fragment, as RLE must have it; so that the table of offsets, which
    would have to come first, may be empty (PS3.5 A.4, A.4.2).
    """
    yield item()
    for place in slices:
        yield item(_HEADER, run_lengths(numbers[plane[place]]))
    yield end_of_items()


def run_lengths(frame: NDArray[np.uint8]) -> bytes:
    """Return a frame as an RLE segment (PS3.5 G.3), always of an even length.

    A literal run is never longer than one pixel: single pixels are few in a label map, and so all
    runs can be found at once.
    """
    starts = np.ones(frame.shape, np.bool_)
    np.not_equal(frame[:, 1:], frame[:, :-1], out=starts[:, 1:])
    starts[:, ::_LONGEST_RUN] = True
    first = np.flatnonzero(starts)
    runs = np.empty((len(first), 2), np.uint8)
    # 2 to 128 pixels alike are written as minus their number plus 1, modulo 256; one is a 0
    runs[:, 0] = 257 - np.diff(first, append=frame.size)
    runs[:, 1] = frame.reshape(-1)[first]
    return runs.tobytes()
