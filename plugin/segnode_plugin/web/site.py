"""What the pages are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from segnode_contract.ledger import ActLedger, Ledger, LedgerView
from segnode_contract.settings import Settings
from segnode_plugin.web.servers import Servers


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyWords:
    """What people call a study; asked of the archive for each page, never kept."""

    patient_name: str
    description: str
    accession: str


class Archive(Protocol):
    """The archive behind the pages. `OrthancArchive` in service."""

    def get(self, uri: str) -> Any: ...
    def archive_id(self) -> str: ...
    def study(self, study_uid: str) -> dict[str, Any] | None: ...
    def studies_named(self, study_uid: str) -> list[str]: ...
    def series_named(self, series_uid: str) -> list[str]: ...
    def studies_with(self, keyword: str, value: str) -> list[str]: ...
    def delete_instances(self, instance_uids: Iterable[str]) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The ledger's doors, the settings, and the archive where there is one.

    Without an archive (`segnode dashboard`, for when Orthanc is down) pages show what the ledger
    knows: no patient's name, and no search by one.
    """

    ledger: Ledger
    settings: Settings
    archive: Archive | None = None
    trouble: Callable[[], str] = str
    """Gives what the first page warns of, beside workers; empty for nothing."""
    parts: Path | None = None
    """Folder of the scripts of others, as `setup/front.py` fetched them."""
    servers: Servers | None = None
    """What is known of the servers and of troubles, looked at in the background."""

    @property
    def view(self) -> LedgerView:
        """The ledger, reading."""
        return LedgerView(self.ledger)

    @property
    def acts(self) -> ActLedger:
        """What people may write."""
        return ActLedger(self.ledger)

    def words(self, study_uid: str) -> StudyWords | None:
        """Return what people call a study, None where the archive does not have it."""
        if self.archive is None:
            return None
        several = len(self.archive.studies_named(study_uid))
        if several > 1:  # of two patients, say: one of both names would be wrong
            said = f"({several} studies in the archive have this UID)"
            return StudyWords(patient_name=said, description="", accession="")
        study = self.archive.study(study_uid)
        if study is None:
            return None
        tags = study["MainDicomTags"]
        return StudyWords(
            patient_name=study["PatientMainDicomTags"].get("PatientName", ""),
            description=tags.get("StudyDescription", ""),
            accession=tags.get("AccessionNumber", ""),
        )
