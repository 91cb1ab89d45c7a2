"""Orthanc as the plugin sees it: REST calls inside the process, and one global property."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any, Protocol

from segnode_contract.errors import ArchiveUnavailable
from segnode_plugin.facts import RETIRED

_ARCHIVE_ID = 5357  # a global property of ours; Orthanc keeps those below 1024 for itself
_MOST = 100  # studies of one search
_UNKNOWN_RESOURCE = (7, 17)  # InexistentItem, UnknownResource: orthanc.ErrorCode
_REVISION = 43  # BadRevision


class OrthancModule(Protocol):
    """The part of the `orthanc` module that reaches the archive (plugin 4.0 to 7.1)."""

    OrthancException: type[Exception]

    ValueRepresentation: Any
    """Numbers of the representations, by name."""

    def LookupDictionary(self, name: str) -> Any: ...  # Orthanc's name
    def RestApiGet(self, uri: str) -> bytes: ...  # Orthanc's name
    def RestApiGetAfterPlugins(self, uri: str) -> bytes: ...  # Orthanc's name
    def RestApiPost(self, uri: str, body: str) -> bytes: ...  # Orthanc's name
    def RestApiPut(self, uri: str, body: bytes) -> bytes: ...  # Orthanc's name
    def RestApiDelete(self, uri: str) -> None: ...  # Orthanc's name
    def GetGlobalProperty(self, number: int, default: str) -> str: ...
    def SetGlobalProperty(self, number: int, value: str) -> None: ...


class OrthancArchive:
    """The archive that this plugin runs in."""

    def __init__(self, orthanc: OrthancModule) -> None:
        self._orthanc = orthanc

    def get(self, uri: str) -> Any:
        """Return the JSON at `uri`, None where the archive has nothing there."""
        found = self._bytes(uri)
        return None if found is None else json.loads(found)

    def attach(self, instance_uid: str, number: int, data: bytes) -> bool:
        """Keep `data` beside an instance; return whether there is such an instance.

        Orthanc replaces what was under the number. One that is set to check revisions wants that
        of the old content in a header, which no call from within can send: it keeps the old then.
        """
        ids = self._named("Instance", instance_uid)
        if not ids:
            return False
        try:
            self._orthanc.RestApiPut(f"/instances/{ids[0]}/attachments/{number}", data)
        except self._orthanc.OrthancException as error:
            if error.args[:1] != (_REVISION,):
                raise
        return True

    def attached(self, instance_uid: str, number: int) -> bytes | None:
        """Return what was kept beside an instance under `number`, None for nothing."""
        ids = self._named("Instance", instance_uid)
        return self._bytes(f"/instances/{ids[0]}/attachments/{number}/data") if ids else None

    def _bytes(self, uri: str) -> bytes | None:
        try:
            return self._orthanc.RestApiGet(uri)
        except self._orthanc.OrthancException as error:
            if error.args and error.args[0] in _UNKNOWN_RESOURCE:
                return None
            raise

    def vr(self, keyword: str) -> str | None:
        """Return the value representation of a keyword (PS3.6), None for one that is not known."""
        entry = self._entry(keyword) or self._entry(f"{RETIRED}{keyword}")
        if entry is None:
            return None
        number = entry["ValueRepresentation"]
        names = self._orthanc.ValueRepresentation
        known = {int(getattr(names, name)): name for name in dir(names) if len(name) == 2}
        return known.get(int(number), "UN")

    def _entry(self, name: str) -> Any:
        try:
            return self._orthanc.LookupDictionary(name)
        except (TypeError, self._orthanc.OrthancException):  # the first by plugin 4.0
            return None

    def archive_id(self) -> str:
        """Return the id that this index carries, giving it one at the first meeting.

        A replaced index has none, so that its changes are read from the start.
        """
        known = self._orthanc.GetGlobalProperty(_ARCHIVE_ID, "")
        if known:
            return known
        new = str(uuid.uuid4())
        self._orthanc.SetGlobalProperty(_ARCHIVE_ID, new)
        return new

    def study(self, study_uid: str) -> dict[str, Any] | None:
        """Return what Orthanc says of a study, by its Study Instance UID."""
        ids = self.studies_named(study_uid)
        study: dict[str, Any] | None = self.get(f"/studies/{ids[0]}") if ids else None
        return study

    def studies_named(self, study_uid: str) -> list[str]:
        """Return Orthanc's ids of all studies of a Study Instance UID."""
        return self._named("Study", study_uid)

    def series_named(self, series_uid: str) -> list[str]:
        """Return Orthanc's ids of all series of a Series Instance UID.

        They are several where the same UID came in two studies, or for two patients.
        """
        return self._named("Series", series_uid)

    def studies_with(self, keyword: str, value: str) -> list[str]:
        """Return the Study Instance UIDs of studies with a value, letter by letter.

        Parameters
        ----------
        keyword
            ``PatientID`` or ``AccessionNumber``.
        """
        wanted = value.replace("\\", "").replace("*", "").replace("?", "")
        query = {"Level": "Study", "Expand": True, "Limit": _MOST, "Query": {keyword: wanted}}
        found = json.loads(self._orthanc.RestApiPost("/tools/find", json.dumps(query)))
        return [study["MainDicomTags"]["StudyInstanceUID"] for study in found]

    def delete_instances(self, instance_uids: Iterable[str]) -> int:
        """Delete instances, by their SOP Instance UIDs; return how many were deleted.

        Raises
        ------
        ArchiveUnavailable
            If Orthanc deletes one of them not; those before it are gone.
        """
        deleted = 0
        for uid in instance_uids:
            try:
                deleted += sum(self._delete(one) for one in self._named("Instance", uid))
            except self._orthanc.OrthancException as error:
                raise ArchiveUnavailable(
                    f"Orthanc does not delete the instance {uid}; see its log."
                ) from error
        return deleted

    def _delete(self, orthanc_id: str) -> bool:
        """Delete an instance; return whether it was there."""
        try:
            self._orthanc.RestApiDelete(f"/instances/{orthanc_id}")
        except self._orthanc.OrthancException as error:
            if error.args and error.args[0] in _UNKNOWN_RESOURCE:
                return False  # somebody else did
            raise
        return True

    def _named(self, level: str, uid: str) -> list[str]:
        found = json.loads(self._orthanc.RestApiPost("/tools/lookup", uid))
        return [item["ID"] for item in found if item["Type"] == level]
