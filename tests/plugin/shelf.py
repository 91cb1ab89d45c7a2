"""An archive in memory that answers what pages, and the facts of series, ask of Orthanc."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .pages import SCRIPT


@dataclass(kw_only=True)
class Shelved:
    """One series, under its Orthanc id."""

    study: str
    tags: dict[str, str]
    instances: list[str]
    attachments: list[str] = field(default_factory=list)


class Shelf:
    """Studies of one patient, whose name is hostile."""

    def __init__(self) -> None:
        self.series: dict[str, Shelved] = {}
        self.placed: dict[str, dict[str, str]] = {}
        """What instances say of where they lie."""
        self.deleted: list[str] = []
        self.refuses: Exception | None = None
        """Raised where something is to be deleted."""

    def add(
        self,
        orthanc_id: str,
        series_uid: str,
        *instance_uids: str,
        study: str = "1.2",
        attachments: Iterable[int] = (),
        **tags: str,
    ) -> None:
        """Have a series under an Orthanc id; its instances' ids are their UIDs."""
        uids = instance_uids or tuple(f"{series_uid}.{n}" for n in range(1, 4))
        self.series[orthanc_id] = Shelved(
            study=study,
            tags={"SeriesInstanceUID": series_uid, "Modality": "CT", **tags},
            instances=list(uids),
            attachments=["dicom", *(str(number) for number in attachments)],
        )

    def archive_id(self) -> str:
        return "a"

    def studies_named(self, study_uid: str) -> list[str]:
        known = any(each.study == study_uid for each in self.series.values())
        return [f"study {study_uid}"] if known else []

    def study(self, study_uid: str) -> dict[str, Any] | None:
        ids = self.studies_named(study_uid)
        return self.get(f"/studies/{ids[0]}") if ids else None

    def series_named(self, series_uid: str) -> list[str]:
        return [
            orthanc_id
            for orthanc_id, each in self.series.items()
            if each.tags["SeriesInstanceUID"] == series_uid
        ]

    def studies_with(self, keyword: str, value: str) -> list[str]:
        return []

    def delete_instances(self, instance_uids: Iterable[str]) -> int:
        if self.refuses:
            raise self.refuses
        uids = set(instance_uids)
        count = 0
        for each in self.series.values():
            count += len(uids.intersection(each.instances))
            each.instances = [uid for uid in each.instances if uid not in uids]
        self.series = {key: each for key, each in self.series.items() if each.instances}
        self.deleted += sorted(uids)
        return count

    def get(self, uri: str) -> Any:  # noqa: PLR0911 # one line per address
        match uri.partition("?")[0].strip("/").split("/"):
            case ["studies", study]:
                return self._study(study)
            case ["studies", study, "series"]:
                return [
                    self._listed(key)
                    for key, each in self.series.items()
                    if f"study {each.study}" == study
                ]
            case ["series", key]:
                return self._listed(key) if key in self.series else None
            case ["series", key, "metadata"]:
                return []
            case ["series", key, "instances"]:
                uids = self.series[key].instances if key in self.series else []
                tags = [{"SOPInstanceUID": uid, **self.placed.get(uid, {})} for uid in uids]
                return [
                    {"ID": uid, "MainDicomTags": each} for uid, each in zip(uids, tags, strict=True)
                ]
            case ["instances", uid, "attachments"]:
                return self._of(uid).attachments
            case ["instances", uid, "simplified-tags"]:
                return self._of(uid).tags
            case ["instances", _, "metadata"]:
                return {"ReceptionDate": "20261124T120000"}
        raise AssertionError(uri)

    def _of(self, uid: str) -> Shelved:
        return next(each for each in self.series.values() if uid in each.instances)

    def _listed(self, key: str) -> dict[str, Any]:
        each = self.series[key]
        return {
            "ID": key,
            "ParentStudy": f"study {each.study}",
            "MainDicomTags": each.tags,
            "Instances": each.instances,
        }

    def _study(self, study: str) -> dict[str, Any]:
        return {
            "ID": study,
            "MainDicomTags": {
                "StudyInstanceUID": study.removeprefix("study "),
                "StudyDescription": f"d {SCRIPT}",
                "AccessionNumber": "a",
            },
            "PatientMainDicomTags": {"PatientName": SCRIPT},
        }
