"""QIDO-RS as a node's administrator: every series, and every result, page after page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import urllib3

from segnode_contract.errors import ArchiveUnavailable, SetupError
from segnode_worker.archive import trust_in

Item = Mapping[str, Any]
"""One thing found, in the DICOM JSON model (PS3.18 F.2)."""

MODALITY, SERIAL, PATIENT_ID = "00080060", "00181000", "00100020"
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
COUNT = "00201209"  # Number of Series Related Instances
OURS = "segnode"  # Manufacturer of every result
_PAGE = 200  # below Orthanc's LimitFindResults, which cuts an answer without saying so


class Search:
    """QIDO-RS (PS3.18 10.6), page after page."""

    def __init__(self, url: str, user: str, password: str, certificate: str) -> None:
        trust = trust_in(certificate)
        self._url = url
        self._headers = {
            **urllib3.make_headers(basic_auth=f"{user}:{password}", accept_encoding="identity"),
            "Accept": "application/dicom+json",
        }
        self._pool = urllib3.PoolManager(
            ssl_context=trust,
            assert_hostname=False if trust else None,
            timeout=urllib3.Timeout(connect=10, read=300),
        )

    def objects_of_ours(self, modality: str) -> Iterator[Item]:
        """Give the results in the archive, of this node and of others."""
        asked = f"Modality={modality}&Manufacturer={OURS}&includefield=DeviceSerialNumber"
        return self._pages(f"/instances?{asked}", PATIENT_ID, STUDY, SERIES, INSTANCE)

    def series(self) -> Iterator[Item]:
        """Give every series."""
        return self._pages(f"/series?includefield={COUNT}", PATIENT_ID, STUDY, SERIES)

    def has(self, query: str) -> bool:
        """Return whether a search finds anything."""
        return bool(self._get(f"{query}&limit=1"))

    def _pages(self, query: str, *identity: str) -> Iterator[Item]:
        seen: set[tuple[str, ...]] = set()
        offset = 0
        while page := self._get(f"{query}&limit={_PAGE}&offset={offset}"):
            offset += len(page)
            new = [item for item in page if tuple(value(item, t) for t in identity) not in seen]
            if not new:
                return  # an archive without paging gives the same again
            seen.update(tuple(value(item, tag) for tag in identity) for item in new)
            yield from new

    def _get(self, path: str) -> list[Item]:
        try:
            answer = self._pool.request("GET", self._url + path, headers=self._headers)
        except urllib3.exceptions.HTTPError as error:
            raise ArchiveUnavailable(
                f"The archive at {self._url} does not answer ({type(error).__name__}); is the node "
                "up? segnode up starts it."
            ) from error
        if answer.status == 204:  # nothing found, PS3.18 table 10.6.3-1
            return []
        if answer.status in (401, 403):
            raise SetupError(
                f"The archive at {self._url} refuses the administrator ({answer.status}); its "
                "password is not the one in the node's file `environment`."
            )
        if answer.status != 200:
            raise ArchiveUnavailable(
                f"The archive at {self._url} answers a search with {answer.status}; see its log."
            )
        found: list[Item] = answer.json()
        return found


def value(item: Item, tag: str) -> str:
    """Return the first value of an attribute, empty where there is none."""
    values = item.get(tag, {}).get("Value") or [""]
    return str(values[0]).strip()
