"""What the objects of a result have alike: how texts, codes and dates are written into them."""

from __future__ import annotations

import unicodedata
from datetime import datetime
from io import BytesIO

import highdicom as hd
from pydicom import Dataset, dcmwrite

from segnode_contract.card import Code
from segnode_contract.errors import BrokenInstance
from segnode_worker.attributes import BROKEN
from segnode_worker.study import copy_study

VERIFIED_BY_NOBODY = "Made by a machine, for research; verified by nobody"


def ascii_text(text: str, limit: int = 64) -> str:
    """Return a text of ours as any character set of the images can hold it."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return plain.encode("ascii", "replace").decode()[:limit].strip()


def concept(code: Code) -> hd.sr.CodedConcept:
    """Return a code of a card as an item of a sequence."""
    return hd.sr.CodedConcept(code.value, code.scheme, ascii_text(code.meaning))


def set_dates(head: Dataset, made_at: datetime) -> None:
    """Write the one date of a result, in the zone that it has, over those that highdicom wrote."""
    date, time = made_at.strftime("%Y%m%d"), made_at.strftime("%H%M%S.%f")
    for what in ("InstanceCreation", "Content", "Series"):
        setattr(head, f"{what}Date", date)
        setattr(head, f"{what}Time", time)
    for equipment in head.ContributingEquipmentSequence:
        equipment.ContributionDateTime = date + time


def written(head: Dataset, source: Dataset) -> bytes:
    """Return a Part 10 file of `head` with the patient and the study of an image.

    Raises
    ------
    BrokenInstance
        If they are of no kind that can be copied.
    """
    stream = BytesIO()
    try:
        copy_study(source, head)
        dcmwrite(stream, head, enforce_file_format=True)
    except BROKEN as error:
        raise BrokenInstance(
            f"Patient and study of the image {source.SOPInstanceUID} cannot be copied "
            f"({type(error).__name__}); send the image again from where it came."
        ) from error
    return stream.getvalue()
