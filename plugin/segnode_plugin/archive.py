"""Orthanc as the plugin sees it: REST calls inside the process, and one global property."""

from __future__ import annotations

import json
import uuid
from typing import Any, Protocol

from segnode_plugin.facts import RETIRED

_ARCHIVE_ID = 5357  # a global property of ours; Orthanc keeps those below 1024 for itself
_UNKNOWN_RESOURCE = (7, 17)  # InexistentItem, UnknownResource: orthanc.ErrorCode


class OrthancModule(Protocol):
    """The part of the `orthanc` module that reaches the archive (plugin 4.0 to 7.1)."""

    OrthancException: type[Exception]

    ValueRepresentation: Any
    """Numbers of the representations, by name."""

    def LookupDictionary(self, name: str) -> Any: ...  # Orthanc's name
    def RestApiGet(self, uri: str) -> bytes: ...  # Orthanc's name
    def RestApiGetAfterPlugins(self, uri: str) -> bytes: ...  # Orthanc's name
    def RestApiPost(self, uri: str, body: str) -> bytes: ...  # Orthanc's name
    def GetGlobalProperty(self, number: int, default: str) -> str: ...
    def SetGlobalProperty(self, number: int, value: str) -> None: ...


class OrthancArchive:
    """The archive that this plugin runs in."""

    def __init__(self, orthanc: OrthancModule) -> None:
        self._orthanc = orthanc

    def get(self, uri: str) -> Any:
        """Return the JSON at `uri`, None where the archive has nothing there."""
        try:
            return json.loads(self._orthanc.RestApiGet(uri))
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

    def _named(self, level: str, uid: str) -> list[str]:
        found = json.loads(self._orthanc.RestApiPost("/tools/lookup", uid))
        return [item["ID"] for item in found if item["Type"] == level]
