"""Whether an object is still the same where an archive wrote it anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.decoders.base import get_decoder

from segnode_worker.attributes import BROKEN
from segnode_worker.pixels import plugin_for

_COMPRESSED = "DerivationDescription"


def same_object(kept: Dataset, sent: Dataset) -> bool:
    """Return whether two datasets say the same, in whatever transfer syntax each is written.

    Another transfer syntax may have other bytes of the same pixels, and Pixel Data in Implicit VR
    is OW where ours is OB (PS3.5 A.1, A.2); so the pixels are compared apart, and by their values
    where their bytes differ. Who compresses may add a Derivation Description that says so, as DCMTK
    does for JPEG. Both datasets lose what is compared apart.
    """
    if not _same_pixels(kept, sent):
        return False
    apart = ["PixelData"] if _coding(kept) == _coding(sent) else ["PixelData", _COMPRESSED]
    for dataset in (kept, sent):
        for keyword in apart:
            dataset.pop(keyword, None)
    return bool(kept == sent)


def _same_pixels(kept: Dataset, sent: Dataset) -> bool:
    if "PixelData" not in kept or "PixelData" not in sent:
        return "PixelData" not in kept and "PixelData" not in sent
    if _coding(kept) == _coding(sent) and kept.PixelData == sent.PixelData:
        return True
    try:
        pairs = zip(_frames(kept), _frames(sent), strict=True)
        return all(np.array_equal(one, other) for one, other in pairs)
    except BROKEN:
        return False


def _coding(dataset: Dataset) -> str:
    """Return what tells how pixels are laid out as bytes: nothing where they are native."""
    syntax = dataset.file_meta.TransferSyntaxUID
    native = syntax.is_little_endian and not syntax.is_encapsulated
    return "" if native else str(syntax)


def _frames(dataset: Dataset) -> Iterator[NDArray[Any]]:
    syntax = dataset.file_meta.TransferSyntaxUID
    decoder = get_decoder(syntax)
    for frame, _ in decoder.iter_array(dataset, raw=True, decoding_plugin=plugin_for(syntax)):
        yield frame
