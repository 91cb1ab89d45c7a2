"""Other archives as they are sent to: by C-STORE or by STOW-RS."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from typing import Protocol

import urllib3
from pydicom import Dataset, dcmread
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
)
from urllib3.exceptions import HTTPError

from segnode_contract.destination import Destination
from segnode_contract.errors import (
    ArchiveUnavailable,
    PeerRefused,
    PeerUnavailable,
    SettingsError,
    StoreRefused,
)
from segnode_worker.archive import AlreadyStored, DicomWebArchive, LoginRefused, trust_in
from segnode_worker.dicom_link import (
    HAD_IT,
    LABEL_MAP,
    Kind,
    Peer,
    associated,
    kind_of,
    name_of,
    refusal,
    warned,
)

_ECHO: Kind = ("1.2.840.10008.1.1", ExplicitVRLittleEndian)  # PS3.4 A.4
_RESULTS: list[Kind] = [
    (SegmentationStorage, ExplicitVRLittleEndian),
    (Comprehensive3DSRStorage, ExplicitVRLittleEndian),
]
_LABEL_MAP: Kind = (LABEL_MAP, RLELossless)
_UNASKED = "whether it takes results shows when one is sent"

Took = Callable[[str, int, str], None]
"""Is told of each object that was taken: its UID, its bytes, and what was said of it."""


class Receiver(Protocol):
    """A destination that can be sent to."""

    def send(self, study_uid: str, batch: Mapping[str, bytes], took: Took) -> None:
        """Send Part 10 files of one study, which stand under their SOP Instance UIDs.

        Raises
        ------
        PeerRefused
            If some are not taken and never will be, for the first; the others were sent.
        PeerUnavailable
            If trying again may help.
        """

    def check(self) -> str:
        """Ask, without a change there, whether it can be sent to; return what it said.

        Raises
        ------
        SegnodeError
            With the cure, if not.
        """


def receiver_of(destination: Destination, calling: str, environ: Mapping[str, str]) -> Receiver:
    """Return what sends to a destination.

    Parameters
    ----------
    calling
        Our AE title.
    environ
        Holds user and password, where `Destination.variables` say.

    Raises
    ------
    SettingsError
        If its certificate cannot be read, or the user has no password.
    """
    if destination.url:
        return StowReceiver(destination, *destination.login(environ))
    return CStoreReceiver(destination, calling)


class LateReceiver:
    """A destination whose settings could not be followed: each use tries `receiver_of` again."""

    def __init__(self, destination: Destination, calling: str, environ: Mapping[str, str]) -> None:
        self._make = partial(receiver_of, destination, calling, environ)
        self._made: Receiver | None = None

    def send(self, study_uid: str, batch: Mapping[str, bytes], took: Took) -> None:
        """Send a batch as soon as it can be sent; see `Receiver`."""
        if self._made is None:
            try:
                self._made = self._make()
            except SettingsError as error:
                raise PeerUnavailable(error.sentence, code="peer-settings") from error
        self._made.send(study_uid, batch, took)

    def check(self) -> str:
        """Ask as `Receiver` says."""
        return self._make().check()


class CStoreReceiver:
    """A peer of the DICOM upper layer (PS3.8)."""

    def __init__(self, destination: Destination, calling: str) -> None:
        self._peer = Peer(aet=destination.aet, host=destination.host, port=destination.port)
        self._calling = calling

    def send(self, study_uid: str, batch: Mapping[str, bytes], took: Took) -> None:
        """Send a batch over one association; see `Receiver`."""
        kinds = dict.fromkeys(map(_kind, batch.values()))
        refused: PeerRefused | None = None
        with associated(self._peer, self._calling, kinds) as link:
            for uid, data in batch.items():
                try:
                    note = link.store(_read(data))
                except PeerRefused as error:
                    refused = refused or error
                else:
                    took(uid, len(data), note)
        if refused is not None:
            raise refused

    def check(self) -> str:
        """Open an association for what results are, and C-ECHO; see `Receiver`."""
        kinds = [*_RESULTS, _LABEL_MAP, _ECHO]
        with associated(self._peer, self._calling, kinds) as link:
            if link.takes(_ECHO):
                link.echo()
            for kind in _RESULTS:
                if not link.takes(kind):
                    raise refusal(self._peer, kind)
            if link.takes(_LABEL_MAP):
                return f"{self._peer} takes results of every form"
        return f"{self._peer} takes results, but none whose form is LABELMAP"


class StowReceiver:
    """An archive with DICOMweb (PS3.18 10.5)."""

    def __init__(self, destination: Destination, user: str, password: str) -> None:
        self._destination = destination
        self._login = f"{user}:{password}" if user else None
        certificate = destination.certificate
        try:
            self._trust = trust_in(certificate)
            self._archive = DicomWebArchive(
                destination.url, user, password, certificate=certificate
            )
        except SettingsError as error:
            raise SettingsError(
                f"The certificate {certificate} of destination {destination.peer} cannot be read, "
                "or holds none; name another file in segnode.toml."
            ) from error

    def send(self, study_uid: str, batch: Mapping[str, bytes], took: Took) -> None:
        """Send a batch, one object a request; see `Receiver`."""
        refused: PeerRefused | None = None
        for uid, data in batch.items():
            try:
                note = self._stored(study_uid, data)
            except StoreRefused as error:
                sop_class = name_of(_kind(data)[0])
                said = f"{self._destination.url} refused {sop_class}: {error.sentence}"
                refused = refused or PeerRefused(said)
            except ArchiveUnavailable as error:
                raise self._unavailable(error) from error
            else:
                took(uid, len(data), note)
        if refused is not None:
            raise refused

    def _stored(self, study_uid: str, data: bytes) -> str:
        """Store one object and return what was said of it, empty for plain success."""
        try:
            warning = self._archive.hand_over(study_uid, data)
        except AlreadyStored:
            return HAD_IT
        return warned(warning) if warning else ""

    def check(self) -> str:
        """Search for one study: what it takes cannot be asked without storing; see `Receiver`."""
        url = self._destination.url.rstrip("/")
        pool = urllib3.PoolManager(
            ssl_context=self._trust,
            assert_hostname=False if self._trust else None,
            timeout=10,
            retries=False,
        )
        headers = {"Accept": "application/dicom+json"}
        if self._login:
            headers |= urllib3.make_headers(basic_auth=self._login)
        try:
            answer = pool.request("GET", f"{url}/studies?limit=1", headers=headers, redirect=False)
        except HTTPError as error:
            raise PeerUnavailable(
                f"{url} does not answer ({type(error).__name__}); is it running, is the address "
                "right, and the certificate?"
            ) from error
        if answer.status == 401:
            raise self._wrong_password(answer.status)
        if answer.status == 403:
            return (
                f"{url} answers; our user may not search there, which sending does not need, and "
                f"{_UNASKED}"
            )
        if answer.status not in (200, 204):
            raise PeerUnavailable(
                f"{url} answers {answer.status} to a search; the address of its DICOMweb root is "
                "needed.",
                code="peer-address",
            )
        return f"{url} answers to a search; {_UNASKED}"

    def _unavailable(self, error: ArchiveUnavailable) -> PeerUnavailable:
        where = self._destination.url
        if isinstance(error, LoginRefused):
            return self._wrong_password(error.status)
        match error.code:
            case "archive-certificate":
                return PeerUnavailable(
                    f"{where} is not trusted: its certificate is not the one that `certificate` "
                    "of the destination names, nor does a public authority vouch for it.",
                    code="peer-certificate",
                )
            case "archive-address":
                return PeerUnavailable(error.sentence, code="peer-address")
        return PeerUnavailable(error.sentence)

    def _wrong_password(self, status: int) -> PeerUnavailable:
        says = "refuses our user" if self._login else "does not let us in without a user"
        return PeerUnavailable(
            f"{self._destination.url} {says} ({status}); set "
            f"{' and '.join(self._destination.variables)} as it has them, and let the user store.",
            code="peer-password",
        )


def _kind(data: bytes) -> Kind:
    with warnings.catch_warnings():
        # pydicom's warnings quote values, which may be a patient's
        warnings.simplefilter("ignore")
        head = dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=["SOPClassUID"])
    return kind_of(head)


def _read(data: bytes) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dcmread(BytesIO(data))
