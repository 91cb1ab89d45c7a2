"""The archive as pages read it: what it cannot give now must not take the rest of a page away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from flask import g, has_app_context

from segnode_contract.errors import ArchiveUnavailable
from segnode_plugin.web.site import Archive

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReadingArchive:
    """An archive whose failures to read are logged, and count as nothing there; pages say so.

    Parameters
    ----------
    archive
        The one to ask.
    refusal
        What it raises: ``orthanc.OrthancException``.
    """

    archive: Archive
    refusal: type[Exception]

    def get(self, uri: str) -> Any:
        """Return the JSON at `uri`, None where there is nothing to be had."""
        return self._read(lambda: self.archive.get(uri), None)

    def archive_id(self) -> str:
        """Return the id of the archive."""
        return self.archive.archive_id()

    def study(self, study_uid: str) -> dict[str, Any] | None:
        """Return what the archive says of a study, None where that is nothing."""
        return self._read(lambda: self.archive.study(study_uid), None)

    def studies_named(self, study_uid: str) -> list[str]:
        """Return the Orthanc ids of a study."""
        return self._read(lambda: self.archive.studies_named(study_uid), [])

    def series_named(self, series_uid: str) -> list[str]:
        """Return the Orthanc ids of a series."""
        return self._read(lambda: self.archive.series_named(series_uid), [])

    def studies_with(self, keyword: str, value: str) -> list[str]:
        """Return the studies with a value.

        Raises
        ------
        ArchiveUnavailable
            If they cannot be had: none would be a wrong answer.
        """
        try:
            return self.archive.studies_with(keyword, value)
        except self.refusal as error:
            raise ArchiveUnavailable(
                "The archive could not search just now; see Orthanc's log, and search again."
            ) from error

    def delete_instances(self, instance_uids: Iterable[str]) -> int:
        """Delete instances; raises as the archive does."""
        return self.archive.delete_instances(instance_uids)

    def _read(self, ask: Callable[[], T], nothing: T) -> T:
        try:
            return ask()
        except self.refusal as error:  # its text may quote a DICOM file
            log.warning("archive not read", extra={"error": type(error).__name__})
            if has_app_context():
                g.unread = True
            return nothing
