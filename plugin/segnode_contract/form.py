"""In which form a result holds its voxels."""

from __future__ import annotations

from enum import StrEnum

from segnode_contract.card import Card

AUTO = "auto"

FEW_SEGMENTS = 30
"""Up to so many segments OHIF 3.13.2 shows both forms equally soon, and every viewer knows
`BINARY`; with more it takes longer, and more memory than browsers allow (README, *Measured*).
"""


class Form(StrEnum):
    """Segmentation Type of a result (PS3.3 C.8.20.2)."""

    BINARY = "BINARY"
    """A frame for each segment and slice; every viewer knows it, and segments may overlap."""
    LABELMAP = "LABELMAP"
    """A frame for each slice, whose values are Segment Numbers, RLE-compressed; a storage class of
    its own, which came with Supplement 243 in 2024."""

    @property
    def storage(self) -> str:
        """SOP Class UID of such results (PS3.4 B.5)."""
        return f"1.2.840.10008.5.1.4.1.1.66.{4 if self is Form.BINARY else 7}"


SETTINGS = (AUTO, *Form)


def form_of(card: Card, setting: str) -> Form:
    """Return the form of the results of a model.

    The card alone decides, never the images: a series that is segmented again gets the same form.

    Parameters
    ----------
    setting
        One of `SETTINGS`. Segments of several planes may overlap, which a label map cannot hold, so
        that they are `BINARY` whatever it says.
    """
    if card.planes > 1 or setting == Form.BINARY:
        return Form.BINARY
    if setting == Form.LABELMAP or len(card.segments) > FEW_SEGMENTS:
        return Form.LABELMAP
    return Form.BINARY
