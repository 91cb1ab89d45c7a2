"""What routing may know about a series, gathered from Orthanc's index."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_CODE = re.compile(r"[A-Z0-9_ ./-]{0,64}")
"""As CS (PS3.5 6.2), and what is met in its place. Anything else may be a name."""


class Index(Protocol):
    """What Orthanc holds. `OrthancArchive` in service."""

    def get(self, uri: str) -> Any: ...
    def series_named(self, series_uid: str) -> list[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesFacts:
    """One series, as far as routes ask."""

    study_uid: str
    series_uid: str
    modality: str
    body_part: str
    image_type: tuple[str, ...]
    """Image Type of the first instance, in capitals (PS3.3 C.7.6.1.1.2)."""
    sop_class_uid: str
    copied: bool
    """Whether Orthanc made it from another series, by anonymising or modifying."""
    namesakes: int
    """Other series in the archive with the same UID, in another study or of another patient."""
    instance_uids: tuple[str, ...]


def series_facts(index: Index, orthanc_id: str) -> SeriesFacts | None:
    """Return the facts of a series, None where the archive no longer has it."""
    series = index.get(f"/series/{orthanc_id}")
    instances = index.get(f"/series/{orthanc_id}/instances") if series else None
    study = index.get(f"/studies/{series['ParentStudy']}") if instances else None
    if not instances or not study:
        return None
    tags = index.get(f"/instances/{instances[0]['ID']}/simplified-tags") or {}
    metadata = index.get(f"/series/{orthanc_id}/metadata") or []
    series_uid = _uid(series, "SeriesInstanceUID")
    return SeriesFacts(
        study_uid=_uid(study, "StudyInstanceUID"),
        series_uid=series_uid,
        modality=_text(tags, "Modality"),
        body_part=_text(tags, "BodyPartExamined"),
        image_type=tuple(_text(tags, "ImageType").split("\\")),
        sop_class_uid=_text(tags, "SOPClassUID"),
        copied=not {"AnonymizedFrom", "ModifiedFrom"}.isdisjoint(metadata),
        namesakes=max(len(index.series_named(series_uid)) - 1, 0) if series_uid else 0,
        instance_uids=tuple(_uid(item, "SOPInstanceUID") for item in instances),
    )


def _uid(resource: dict[str, Any], keyword: str) -> str:
    """Return a UID, empty where it is none (PS3.5 9.1): Orthanc takes any text, a path too."""
    value = str(resource["MainDicomTags"].get(keyword, ""))
    return value if len(value) <= 64 and _UID.fullmatch(value) else ""


def _text(tags: dict[str, Any], keyword: str) -> str:
    """Return values in capitals, with ``?`` for what is no code."""
    value = tags.get(keyword)
    parts = value.upper().split("\\") if isinstance(value, str) else [""]
    return "\\".join(p.strip() if _CODE.fullmatch(p.strip()) else "?" for p in parts[:32])
