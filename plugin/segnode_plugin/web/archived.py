"""Series as the archive has them: what pages call them, and nothing that is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from segnode_contract.ledger.view import StoredObject
from segnode_contract.pictures import MOST
from segnode_plugin.web.pictures import FIRST_ATTACHMENT
from segnode_plugin.web.site import Archive


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedSeries:
    """One series; its words came from anywhere."""

    orthanc_id: str
    series_uid: str
    number: str
    modality: str
    description: str
    images: int

    @property
    def title(self) -> str:
        """Number, modality and description, as far as there are any."""
        return " ".join(filter(None, (self.number, self.modality, self.description)))


def series_named(archive: Archive | None, series_uid: str) -> list[ArchivedSeries]:
    """Return the series of a UID: several where the UID came in two studies."""
    ids = archive.series_named(series_uid) if archive else []
    found = [archive.get(f"/series/{each}") for each in ids] if archive else []
    return [_series(each) for each in found if each]


def series_of_study(archive: Archive | None, study_uid: str) -> list[ArchivedSeries]:
    """Return the series of a study, by number."""
    studies = archive.studies_named(study_uid) if archive else []
    listed = [archive.get(f"/studies/{each}/series") or [] for each in studies] if archive else []
    return sorted((_series(each) for some in listed for each in some), key=_by_number)


def pictures_of(archive: Archive | None, objects: Iterable[StoredObject]) -> dict[str, list[int]]:
    """Return the numbers of the key pictures that lie beside each segmentation, by its UID."""
    if archive is None:
        return {}
    found = {
        each.instance_uid: _numbers(archive, each)
        for each in objects
        if each.role.startswith("SEG")
    }
    return {uid: numbers for uid, numbers in found.items() if numbers}


def _numbers(archive: Archive, wanted: StoredObject) -> list[int]:
    for series in archive.series_named(wanted.series_uid):
        for instance in archive.get(f"/series/{series}/instances") or []:
            if instance["MainDicomTags"].get("SOPInstanceUID") == wanted.instance_uid:
                kept = archive.get(f"/instances/{instance['ID']}/attachments") or []
                numbers = range(1, MOST + 1)
                return [n for n in numbers if str(FIRST_ATTACHMENT + n - 1) in kept]
    return []


def _series(listed: Mapping[str, Any]) -> ArchivedSeries:
    tags = listed["MainDicomTags"]
    return ArchivedSeries(
        orthanc_id=listed["ID"],
        series_uid=tags.get("SeriesInstanceUID", ""),
        number=tags.get("SeriesNumber", "").strip(),
        modality=tags.get("Modality", "").strip(),
        description=tags.get("SeriesDescription", "").strip(),
        images=len(listed.get("Instances", ())),
    )


def _by_number(series: ArchivedSeries) -> tuple[int, str]:
    plain = series.number
    return int(plain) if plain.isascii() and plain.isdigit() else 1 << 31, series.series_uid
