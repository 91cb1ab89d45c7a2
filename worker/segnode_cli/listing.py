"""What Orthanc's index lists, read as an administrator.

Not by QIDO-RS: with `LimitFindResults` at 500 Orthanc 1.10 finds no more than 501 series or
instances, whatever limit and offset a search names, and it reads a file for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import urllib3

from segnode_contract.errors import ArchiveUnavailable, SetupError
from segnode_contract.settings import Settings
from segnode_worker.archive import trust_in

_PAGE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedSeries:
    """A series in the archive."""

    orthanc_id: str
    series_uid: str
    modality: str
    manufacturer: str
    instance_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """An administrator at the archive of a node."""

    url: str
    """Of its DICOMweb."""
    user: str
    password: str
    certificate: str
    """PEM file that it is trusted by, empty for the public authorities."""


def administrator(settings: Settings, known: Mapping[str, str]) -> Login:
    """Return the first administrator that has a password in the node's variables.

    Raises
    ------
    SetupError
        If none has.
    """
    for user in settings.users:
        password = known.get(f"SEGNODE_PASSWORD_{user.name.upper()}")
        if user.role == "administrator" and password:
            return Login(
                url=known["SEGNODE_ARCHIVE_URL"],
                user=user.name,
                password=password,
                certificate=known.get("SEGNODE_ARCHIVE_CERTIFICATE", ""),
            )
    raise SetupError(
        "The node's file `environment` has no password of an administrator; start the node again."
    )


class Listing:
    """Orthanc's own REST interface, reading only."""

    def __init__(self, login: Login) -> None:
        trust = trust_in(login.certificate)
        self._url = login.url.removesuffix("/dicom-web").rstrip("/")
        self._headers = urllib3.make_headers(
            basic_auth=f"{login.user}:{login.password}", accept_encoding="identity"
        )
        self._pool = urllib3.PoolManager(
            ssl_context=trust,
            assert_hostname=False if trust else None,
            timeout=urllib3.Timeout(connect=10, read=120),
        )

    def series(self) -> Iterator[ListedSeries]:
        """Give every series that is there at the first moment, and not deleted meanwhile."""
        missing: dict[str, None] = dict.fromkeys(self.get("/series") or ())
        for since in range(0, len(missing), _PAGE):
            for item in self.get(f"/series?expand&since={since}&limit={_PAGE}") or ():
                if item["ID"] in missing:
                    del missing[item["ID"]]
                    yield _listed(item)
        # pages move when a series is deleted
        for orthanc_id in missing:
            if item := self.get(f"/series/{orthanc_id}"):
                yield _listed(item)

    def instances(self, orthanc_id: str) -> list[str]:
        """Return the SOP Instance UIDs of a series."""
        found = self.get(f"/series/{orthanc_id}/instances") or ()
        return [item["MainDicomTags"]["SOPInstanceUID"] for item in found]

    def study_uid(self, orthanc_id: str) -> str:
        """Return the Study Instance UID of a series, empty where it was deleted."""
        study = self.get(f"/series/{orthanc_id}/study")
        return str(study["MainDicomTags"]["StudyInstanceUID"]) if study else ""

    def has_series(self, orthanc_id: str) -> bool:
        """Return whether the archive still has a series."""
        return self.get(f"/series/{orthanc_id}") is not None

    def has_study(self, study_uid: str) -> bool:
        """Return whether the archive has any instance of a study."""
        return bool(self.get(f"/dicom-web/studies?StudyInstanceUID={study_uid}&limit=1"))

    def studies(self) -> Iterator[dict[str, Any]]:
        """Give what Orthanc says of every study that is there, and not deleted meanwhile."""
        missing: dict[str, None] = dict.fromkeys(self.get("/studies") or ())
        for since in range(0, len(missing), _PAGE):
            for item in self.get(f"/studies?expand&since={since}&limit={_PAGE}") or ():
                if item["ID"] in missing:
                    del missing[item["ID"]]
                    yield item
        # pages move when a study is deleted
        for orthanc_id in missing:
            if item := self.get(f"/studies/{orthanc_id}"):
                yield item

    def studies_named(self, study_uid: str) -> list[str]:
        """Return Orthanc's ids of all studies of a Study Instance UID."""
        return self._named("Study", study_uid)

    def series_named(self, series_uid: str) -> list[str]:
        """Return Orthanc's ids of all series of a Series Instance UID."""
        return self._named("Series", series_uid)

    def get(self, path: str) -> Any:
        """Return the JSON at `path`, None where the archive has nothing there.

        Raises
        ------
        ArchiveUnavailable
            If it does not answer, or not as it should.
        SetupError
            If it refuses the administrator.
        """
        return self._ask("GET", path)

    def _named(self, level: str, uid: str) -> list[str]:
        found = self._ask("POST", "/tools/lookup", uid.encode())
        return [item["ID"] for item in found or () if item["Type"] == level]

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        try:
            answer = self._pool.request(method, self._url + path, body=body, headers=self._headers)
        except urllib3.exceptions.HTTPError as error:
            raise ArchiveUnavailable(
                f"The archive at {self._url} does not answer ({type(error).__name__}); is the node "
                "up? segnode up starts it."
            ) from error
        if answer.status in (204, 404):
            return None
        if answer.status in (401, 403):
            raise SetupError(
                f"The archive at {self._url} refuses the administrator ({answer.status}); its "
                "password is not the one in the node's file `environment`."
            )
        if answer.status != 200:
            raise ArchiveUnavailable(
                f"The archive at {self._url} answers {answer.status}; see its log."
            )
        return answer.json()


def _listed(item: Mapping[str, Any]) -> ListedSeries:
    tags = item["MainDicomTags"]
    return ListedSeries(
        orthanc_id=item["ID"],
        series_uid=tags["SeriesInstanceUID"],
        modality=tags.get("Modality", "").strip(),
        manufacturer=tags.get("Manufacturer", "").strip(),
        instance_count=len(item["Instances"]),
    )
