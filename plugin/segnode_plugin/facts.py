"""What routing may know about a series, gathered from Orthanc's index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Index(Protocol):
    """Orthanc's REST, reading only."""

    def get(self, uri: str) -> Any: ...


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
    return SeriesFacts(
        study_uid=study["MainDicomTags"]["StudyInstanceUID"],
        series_uid=series["MainDicomTags"]["SeriesInstanceUID"],
        modality=_text(tags, "Modality"),
        body_part=_text(tags, "BodyPartExamined"),
        image_type=tuple(_text(tags, "ImageType").split("\\")),
        sop_class_uid=_text(tags, "SOPClassUID"),
        copied=not {"AnonymizedFrom", "ModifiedFrom"}.isdisjoint(metadata),
        instance_uids=tuple(item["MainDicomTags"]["SOPInstanceUID"] for item in instances),
    )


def _text(tags: dict[str, Any], keyword: str) -> str:
    value = tags.get(keyword)
    return value.strip().upper() if isinstance(value, str) else ""
