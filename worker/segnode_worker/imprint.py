"""What the objects of a result have alike: how texts, codes and dates are written into them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from io import BytesIO

import highdicom as hd
from pydicom import Dataset, dcmwrite

from segnode_contract.card import Code
from segnode_contract.errors import BrokenInstance
from segnode_contract.plain_text import without_accents
from segnode_worker.attributes import BROKEN
from segnode_worker.study import copy_study

VERIFIED_BY_NOBODY = "Made by a machine, for research; verified by nobody"

_PATIENT = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)


def ascii_text(text: str, limit: int = 64) -> str:
    """Return a text of ours as any character set of the images can hold it.

    What cannot be said in ASCII becomes a question mark; a card has no such names (`parse_card`).
    """
    return without_accents(text).encode("ascii", "replace").decode()[:limit].strip()


def concept(code: Code) -> hd.sr.CodedConcept:
    """Return a code of a card as an item of a sequence."""
    return hd.sr.CodedConcept(code.value, code.scheme, ascii_text(code.meaning))


def nobody() -> Dataset:
    """Return a dataset that has what highdicom asks of patient and study, and says nothing of them.

    `written` copies both, which need not be valid, from the images.
    """
    made = Dataset()
    for keyword in _PATIENT:
        setattr(made, keyword, None)
    return made


def by_series(objects: Iterable[tuple[str, str, str]], instances: str) -> list[Dataset]:
    """Return an item for each series that refers to its objects, each once.

    Parameters
    ----------
    objects
        Series, SOP Instance and SOP Class UID of each.
    instances
        Keyword of the sequence of references, which one module calls otherwise than another
        (PS3.3 C.12.2, C.17.2).
    """
    series: dict[str, dict[str, Dataset]] = {}
    for series_uid, instance_uid, class_uid in objects:
        reference = Dataset()
        reference.ReferencedSOPClassUID = class_uid
        reference.ReferencedSOPInstanceUID = instance_uid
        series.setdefault(series_uid, {})[instance_uid] = reference
    items = []
    for series_uid, references in series.items():
        item = Dataset()
        item.SeriesInstanceUID = series_uid
        setattr(item, instances, list(references.values()))
        items.append(item)
    return items


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
