"""Where studies live: any archive with DICOMweb. Success is what reads back, never a status."""

from __future__ import annotations

import json
import secrets
import ssl
import warnings
from collections.abc import Iterable, Mapping
from io import BytesIO
from mmap import mmap
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import quote

import urllib3
from pydicom import Dataset, dcmread
from urllib3.exceptions import HTTPError, MaxRetryError, SSLError

from segnode_contract.errors import (
    ArchiveUnavailable,
    SettingsError,
    StoreRefused,
    TransientError,
    UidCollision,
)
from segnode_contract.pictures import hand_over_path
from segnode_worker.multipart import BrokenMultipart, body, parts
from segnode_worker.rewritten import same_object

_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_CHUNK = 1 << 18  # larger than an image, it would leave holes between the images
_LATER = (408, 425, 429)
_OUT_OF_RESOURCES = 0xA7  # the high byte of a failure reason, PS3.4 B.2.3
_DUPLICATES = (0x0111, 45070)  # PS3.7 C.5; what Azure says instead
_PAGE = 1000
_ROOT = "/dicom-web"
_PICTURE_S = 3.0


class LoginRefused(ArchiveUnavailable):
    """The archive refuses our user, or asks for one."""

    code = "archive-password"

    def __init__(self, sentence: str, *, status: int = 401) -> None:
        super().__init__(sentence)
        self.status = status


class AlreadyStored(StoreRefused):
    """The archive has an object of this UID, and keeps that one."""


class Archive(Protocol):
    """Where studies live. `DicomWebArchive` in service, `FolderArchive` without a server."""

    def fetch_series(self, study_uid: str, series_uid: str) -> list[bytes]:
        """Return the instances as Part 10 files, none where the archive lacks the series."""

    def fetch_instance(self, study_uid: str, series_uid: str, instance_uid: str) -> bytes | None:
        """Return one instance as a Part 10 file, None where the archive lacks it."""

    def store(self, study_uid: str, data: bytes | mmap) -> None:
        """Hand over one instance; whether it is there is for `confirm` to say."""

    def keep_picture(self, instance_uid: str, number: int, picture: bytes) -> None:
        """Have a key picture of a stored segmentation kept, where somebody may look at it."""


def trust_in(certificate: str) -> ssl.SSLContext | None:
    """Return a TLS context that takes this one certificate, whatever name it bears.

    A node reaches its own Orthanc by an address that the certificate need not name. None for no
    certificate: the public authorities and their names count then.

    Raises
    ------
    SettingsError
        If the file cannot be read, or holds no certificate.
    """
    if not certificate:
        return None
    try:
        context = ssl.create_default_context(cafile=certificate)
    except OSError as error:
        why = "no certificate is in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise SettingsError(
            f"The certificate {certificate}, by which the archive is to be trusted, cannot be read "
            f"({why}); SEGNODE_ARCHIVE_CERTIFICATE names it."
        ) from error
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


class DicomWebArchive:
    """An archive that speaks DICOMweb (PS3.18 10.4, 10.5).

    Nothing is asked for or sent with gzip: Orthanc 1.10 takes seven times as long to send it, and
    every version tried answers 200 to a compressed store and keeps nothing.

    Parameters
    ----------
    url
        Its root, ``http://127.0.0.1:8042/dicom-web``, say.
    user, password
        For HTTP's basic authentication; both empty where the archive asks for none.
    timeout_s
        How long an answer may stay silent.
    certificate
        PEM file of the only certificate to trust; empty where a public authority vouches for it.
    """

    def __init__(
        self, url: str, user: str, password: str, timeout_s: float = 120, certificate: str = ""
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = urllib3.make_headers(
            basic_auth=f"{user}:{password}" if user else None, accept_encoding="identity"
        )
        trust = trust_in(certificate)
        self._pool = urllib3.PoolManager(
            ssl_context=trust,
            assert_hostname=False if trust else None,
            timeout=urllib3.Timeout(connect=10, read=timeout_s),
            # a kept connection may close just as it is used; only what changes nothing is repeated
            retries=urllib3.Retry(total=2, read=1, allowed_methods={"GET"}, backoff_factor=0.2),
        )

    def fetch_series(self, study_uid: str, series_uid: str) -> list[bytes]:
        """Return the instances in the transfer syntaxes that they are kept in (WADO-RS).

        Raises
        ------
        ArchiveUnavailable
            If it does not answer, breaks off, refuses the password, shows another certificate, or
            does not speak DICOMweb at this address: somebody will mend it, and the job waits.
        """
        return self._get(f"/studies/{quote(study_uid)}/series/{quote(series_uid)}")

    def fetch_instance(self, study_uid: str, series_uid: str, instance_uid: str) -> bytes | None:
        """Return one instance; raises as `fetch_series`."""
        series = f"/studies/{quote(study_uid)}/series/{quote(series_uid)}"
        found = self._get(f"{series}/instances/{quote(instance_uid)}")
        return found[0] if found else None

    def instance_uids(self, study_uid: str, series_uid: str) -> list[str]:
        """Return the SOP Instance UIDs of a series, none where the archive lacks it (QIDO-RS).

        Raises as `fetch_series`. An archive may give fewer at once than it is asked for.
        """
        path = f"/studies/{quote(study_uid)}/series/{quote(series_uid)}/instances"
        uids: dict[str, None] = {}
        known = -1
        while len(uids) > known:
            known = len(uids)
            uids |= dict.fromkeys(self._found(f"{path}?limit={_PAGE}&offset={known}"))
        return list(uids)

    def store(self, study_uid: str, data: bytes | mmap) -> None:
        """Store one instance (STOW-RS); raises as `hand_over`."""
        self.hand_over(study_uid, data)

    def hand_over(self, study_uid: str, data: bytes | mmap) -> int:
        """Store one instance, and return the reason of the warning that it got, 0 without one.

        Raises
        ------
        StoreRefused
            If the answer does not list the instance among those stored, whatever its status; as
            `AlreadyStored` where one of its UID was there.
        ArchiveUnavailable
            As `fetch_series`.
        """
        _, instance_uid = result_uids(data)
        boundary = secrets.token_hex(16)
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        length, pieces = body(boundary, data)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(length),
            "Accept": "application/dicom+json",
        }
        answer = self._ask("POST", f"/studies/{quote(study_uid)}", headers, pieces)
        try:
            text = self._read(answer)
        finally:
            answer.release_conn()
        self._check_status(answer.status)
        if answer.status in (404, 405):
            raise self._not_dicomweb(f"answers {answer.status} to a store")
        return _check_stored(text, instance_uid, answer.status)

    def keep_picture(self, instance_uid: str, number: int, picture: bytes) -> None:
        """Send a PNG to the plugin beside the DICOMweb root; asked once, and not for long.

        Raises
        ------
        ArchiveUnavailable
            If it does not take it; the code is ``picture-refused`` where it says so.
        """
        url = self._url.removesuffix(_ROOT) + hand_over_path(instance_uid, number)
        try:
            answer = self._pool.request(
                "POST",
                url,
                headers={**self._headers, "Content-Type": "image/png"},
                body=picture,
                timeout=urllib3.Timeout(total=_PICTURE_S),
                retries=False,
                redirect=False,
            )
        except HTTPError as error:
            raise self._unavailable(error) from error
        self._check_status(answer.status)
        if answer.status >= 300:
            raise ArchiveUnavailable(
                f"The node answers {answer.status} to a picture at {url}; see whether its plugin "
                "is of the worker's version.",
                code="picture-refused",
            )

    def _get(self, path: str) -> list[bytes]:
        answer = self._ask("GET", path, {"Accept": _ACCEPT})
        try:
            if answer.status == 404:
                answer.read(_CHUNK)  # to its end, so that the connection can be used again
                return []
            self._check_status(answer.status)
            if answer.status != 200:
                raise self._not_dicomweb(f"answers {answer.status}")
            return list(parts(answer.headers.get("Content-Type", ""), answer.stream(_CHUNK)))
        except BrokenMultipart as error:
            raise ArchiveUnavailable(
                f"The archive at {self._url} broke off in the middle of an answer: {error}. See "
                "its log."
            ) from error
        except HTTPError as error:
            raise self._unavailable(error) from error
        finally:
            # what is left of an answer must not be taken for the next one
            answer.close()

    def _found(self, path: str) -> list[str]:
        """Return the SOP Instance UIDs that a search gives (PS3.18 10.6)."""
        answer = self._ask("GET", path, {"Accept": "application/dicom+json"})
        try:
            text = self._read(answer)
        finally:
            answer.release_conn()
        self._check_status(answer.status)
        if answer.status in (204, 404):
            return []
        try:
            return [found["00080018"]["Value"][0] for found in json.loads(text)]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise self._not_dicomweb(f"answers {answer.status} to a search") from error

    def _ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: Iterable[bytes] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(
                method,
                self._url + path,
                headers={**self._headers, **headers},
                body=content,
                preload_content=False,
                redirect=False,
            )
        except HTTPError as error:
            raise self._unavailable(error) from error

    def _read(self, answer: urllib3.BaseHTTPResponse) -> bytes:
        try:
            return answer.read()
        except HTTPError as error:
            raise self._unavailable(error) from error

    def _check_status(self, status: int) -> None:
        if status in (401, 403):
            raise LoginRefused(
                f"The archive at {self._url} refuses the worker's user ({status}); set its name "
                "and password as the archive has them.",
                status=status,
            )
        if status >= 500 or status in _LATER:
            raise ArchiveUnavailable(
                f"The archive at {self._url} answers {status}; see its log, and whether its disk "
                "is full."
            )
        if 300 <= status < 400:
            raise self._not_dicomweb(f"answers {status}, a redirect")

    def _not_dicomweb(self, what: str) -> ArchiveUnavailable:
        return ArchiveUnavailable(
            f"The archive at {self._url} {what}; set the address of its DICOMweb root.",
            code="archive-address",
        )

    def _unavailable(self, error: HTTPError) -> ArchiveUnavailable:
        reason = error.reason if isinstance(error, MaxRetryError) else error
        if isinstance(reason, SSLError):
            return ArchiveUnavailable(
                f"The archive at {self._url} is not trusted: its certificate is not the one that "
                "SEGNODE_ARCHIVE_CERTIFICATE names, nor does a public authority vouch for it.",
                code="archive-certificate",
            )
        return ArchiveUnavailable(
            f"The archive at {self._url} does not answer ({type(error).__name__}); see whether it "
            "runs and whether this is its address."
        )


def confirm(archive: Archive, study_uid: str, data: bytes | mmap) -> bytes:
    """Read a stored instance back, compare it with what was sent, and return it.

    An archive may write an object anew, in another transfer syntax even, so that equal content
    counts where the bytes differ.

    Raises
    ------
    ArchiveUnavailable
        If it is not there, or not yet.
    UidCollision
        If the archive holds other content under the same UID.
    """
    series_uid, instance_uid = result_uids(data)
    kept = archive.fetch_instance(study_uid, series_uid, instance_uid)
    if kept is None:
        raise ArchiveUnavailable(f"The archive does not have the result {instance_uid} (yet).")
    if not same_content(kept, data):
        raise collision(instance_uid)
    return kept


def collision(instance_uid: str) -> UidCollision:
    """Return the error for an object of the archive that has our UID and is not ours."""
    return UidCollision(
        f"The archive holds other content under the UID {instance_uid} of this result, and "
        "keeps it; see where it came from, and delete it there if it is wrong."
    )


def result_uids(data: bytes | mmap) -> tuple[str, str]:
    """Return the Series and the SOP Instance UID of a Part 10 file."""
    tags = ["SeriesInstanceUID", "SOPInstanceUID"]
    head = dcmread(as_stream(data), stop_before_pixels=True, specific_tags=tags)
    return str(head.SeriesInstanceUID), str(head.SOPInstanceUID)


def as_stream(data: bytes | mmap) -> BinaryIO:
    """Return a file to read from its start, without a copy where it lies on disk."""
    if isinstance(data, bytes):
        return BytesIO(data)
    data.seek(0)
    return cast("BinaryIO", data)  # it reads and seeks as one


def same_content(kept: bytes, sent: bytes | mmap) -> bool:
    """Return whether two Part 10 files hold the same: an archive may write an object anew."""
    places = range(0, len(kept), _CHUNK)
    if len(kept) == len(sent) and all(
        kept[place : place + _CHUNK] == sent[place : place + _CHUNK] for place in places
    ):
        return True
    with warnings.catch_warnings():
        # pydicom's warnings quote values, which may be a patient's
        warnings.simplefilter("ignore")
        return same_object(dcmread(BytesIO(kept)), dcmread(as_stream(sent)))


def _check_stored(text: bytes, instance_uid: str, status: int) -> int:
    """Look for our instance in the answer to a store (PS3.18 I.2.2); return a warning's reason."""
    try:
        answer = Dataset.from_json(json.loads(text))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ArchiveUnavailable(
            f"The archive answered {status} to the result {instance_uid} and did not say what it "
            "stored; see its log."
        ) from error
    stored = _listed(answer, "ReferencedSOPSequence", "WarningReason")
    if instance_uid in stored:
        return stored[instance_uid] or 0
    reason = _listed(answer, "FailedSOPSequence", "FailureReason").get(instance_uid)
    said = "without a reason" if reason is None else f"for the reason {reason:04X}H"
    refusal: type[StoreRefused | TransientError] = StoreRefused
    # Orthanc names neither object nor reason when its disk is full
    if reason is None or reason >> 8 == _OUT_OF_RESOURCES:
        refusal = ArchiveUnavailable
    elif reason in _DUPLICATES:
        refusal = AlreadyStored
    raise refusal(
        f"The archive answered {status} and did not store the result {instance_uid}, {said}; see "
        "its log, whether its disk is full, and whether it takes Segmentation objects."
    )


def _listed(answer: Dataset, keyword: str, reason: str) -> dict[str, Any]:
    return {
        item.get("ReferencedSOPInstanceUID"): item.get(reason) for item in answer.get(keyword) or []
    }
