"""What routing may know about a series, gathered from Orthanc's index."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from segnode_plugin.acquisition import contrast, kernel_class
from segnode_plugin.shape import Shape, shape_of

RETIRED = "RETIRED_"
"""What DCMTK, and Orthanc with it, puts before the keyword of a retired attribute."""
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_AE_TITLE = re.compile(r"[ -\[\]-~]{1,16}")
"""PS3.5 6.2: no backslash, no control character."""
_CODE = re.compile(r"[A-Z0-9_ ./-]{0,64}")
"""As CS (PS3.5 6.2), and what is met in its place. Anything else may be a name."""


class Index(Protocol):
    """What Orthanc holds. `OrthancArchive` in service."""

    def get(self, uri: str) -> Any: ...
    def series_named(self, series_uid: str) -> list[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesFacts:
    """One series, as far as routes ask."""

    orthanc_id: str
    study_uid: str
    study_orthanc_id: str
    series_uid: str
    modality: str
    body_part: str
    image_type: tuple[str, ...]
    """Image Type of the usual instance, in capitals (PS3.3 C.7.6.1.1.2)."""
    sop_class_uid: str
    copied: bool
    """Whether Orthanc made it from another series, by anonymising or modifying."""
    namesakes: int
    """Other series in the archive with the same UID, in another study or of another patient."""
    instance_uids: tuple[str, ...]
    received_s: float = 0.0
    """When Orthanc received its first image, in seconds since 1970; 0 where it does not say. Unlike
    `LastUpdate` of the series it does not move when another image comes late or is deleted."""
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    """`condition.NUMBERS`, None where one cannot be told."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """`condition.TEXTS`, in capitals."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Every attribute of the usual instance by keyword: texts, and lists of items."""


def series_facts(
    index: Index, orthanc_id: str, arrived: Mapping[str, Mapping[str, Any]] | None = None
) -> SeriesFacts | None:
    """Return the facts of a series, None where the archive no longer has it.

    Parameters
    ----------
    arrived
        Main DICOM tags of its instances by Orthanc id, as they were read when they came. Where
        they are not those that the series has now, the archive is asked for all of them, which
        takes some ten times as long as the rest.
    """
    series = index.get(f"/series/{orthanc_id}")
    instances = _instances(index, series, orthanc_id, arrived or {}) if series else {}
    study = index.get(f"/studies/{series['ParentStudy']}") if instances else None
    if not instances or not study:
        return None
    first = _usual(instances)
    tags = index.get(f"/instances/{first}/simplified-tags") or {}
    metadata = index.get(f"/series/{orthanc_id}/metadata") or []
    reception = index.get(f"/instances/{first}/metadata?expand") or {}
    received = _moment(reception.get("ReceptionDate"))
    shape = shape_of(instances.values())
    series_uid = _uid(series["MainDicomTags"], "SeriesInstanceUID")
    return SeriesFacts(
        orthanc_id=orthanc_id,
        study_uid=_uid(study["MainDicomTags"], "StudyInstanceUID"),
        study_orthanc_id=series["ParentStudy"],
        series_uid=series_uid,
        modality=_text(tags, "Modality"),
        body_part=_text(tags, "BodyPartExamined"),
        image_type=tuple(_text(tags, "ImageType").split("\\")),
        sop_class_uid=_text(tags, "SOPClassUID"),
        copied=not {"AnonymizedFrom", "ModifiedFrom"}.isdisjoint(metadata),
        namesakes=max(len(index.series_named(series_uid)) - 1, 0) if series_uid else 0,
        instance_uids=tuple(_uid(each, "SOPInstanceUID") for each in instances.values()),
        received_s=received.timestamp() if received else 0.0,
        numbers=_numbers(len(instances), shape, series.get("LastUpdate")),
        texts=_texts(shape, tags, reception),
        attributes=tags,
    )


def _instances(
    index: Index,
    series: Mapping[str, Any],
    orthanc_id: str,
    arrived: Mapping[str, Mapping[str, Any]],
) -> dict[str, Mapping[str, Any]]:
    """Return the main DICOM tags of each instance, in the order in which the series names them."""
    if arrived and arrived.keys() == set(series["Instances"]):
        return {one: arrived[one] for one in series["Instances"]}
    listed = index.get(f"/series/{orthanc_id}/instances") or []
    place = {one: number for number, one in enumerate(series.get("Instances", ()))}
    listed = sorted(listed, key=lambda each: place.get(each["ID"], len(place)))
    return {each["ID"]: each["MainDicomTags"] for each in listed}


def _usual(instances: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the first instance of those that share most directions: not a scout among slices."""
    directions = {one: str(tags.get("ImageOrientationPatient")) for one, tags in instances.items()}
    [(usual, _)] = Counter(directions.values()).most_common(1)
    return next(one for one, direction in directions.items() if direction == usual)


def _numbers(count: int, shape: Shape | None, updated: Any) -> dict[str, float | None]:
    return {
        "instances": float(count),
        "slice_spacing_mm": shape.slice_spacing_mm if shape else None,
        "largest_gap_mm": shape.largest_gap_mm if shape else None,
        "coverage_mm": shape.coverage_mm if shape else None,
        "obliquity_deg": shape.obliquity_deg if shape else None,
        "arrival_hour": _hour(updated),
    }


def _hour(updated: Any) -> float | None:
    """Return the hour of day here for a moment."""
    moment = _moment(updated)
    if moment is None:
        return None
    here = moment.astimezone()
    return here.hour + here.minute / 60


def _moment(words: Any) -> datetime | None:
    """Read Orthanc's words for a moment, which are UTC."""
    try:
        return datetime.strptime(str(words), "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def _texts(
    shape: Shape | None, tags: Mapping[str, Any], reception: Mapping[str, Any]
) -> dict[str, str]:
    return {
        "orientation": shape.orientation if shape else "",
        "kernel": kernel_class(tags.get("ConvolutionKernel")),
        "contrast": contrast(tags.get("ContrastBolusAgent")),
        "calling_aet": _ae_title(reception.get("RemoteAET")),
        "called_aet": _ae_title(reception.get("CalledAET")),
    }


def _ae_title(value: Any) -> str:
    title = value.strip() if isinstance(value, str) else ""
    return title if _AE_TITLE.fullmatch(title) else ""


def _uid(tags: Mapping[str, Any], keyword: str) -> str:
    """Return a UID, empty where it is none (PS3.5 9.1): Orthanc takes any text, a path too."""
    value = str(tags.get(keyword, ""))
    return value if len(value) <= 64 and _UID.fullmatch(value) else ""


def _text(tags: Mapping[str, Any], keyword: str) -> str:
    """Return values in capitals, with ``?`` for what is no code."""
    value = tags.get(keyword)
    parts = value.upper().split("\\") if isinstance(value, str) else [""]
    return "\\".join(p.strip() if _CODE.fullmatch(p.strip()) else "?" for p in parts[:32])
