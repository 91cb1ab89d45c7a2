"""A folder of files in place of an archive: for `segnode segment`."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from mmap import mmap
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from segnode_contract.errors import BrokenInstance, SetupError
from segnode_worker.archive import result_uids
from segnode_worker.attributes import BROKEN, valid_uid
from segnode_worker.instance import inflated

_TAGS = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality"]
_META = 1 << 12


class FolderArchive:
    """Reads images from one folder and below it, and writes results to another.

    Parameters
    ----------
    folder_in
        The images, or one file.
    folder_out
        Gets a file per result, named by its SOP Instance UID; one of an earlier run is replaced.
    """

    def __init__(self, folder_in: Path, folder_out: Path) -> None:
        self._in = folder_in
        self._out = folder_out

    def series(self) -> Counter[tuple[str, str, str]]:
        """Return the study and series UID and modality of every series, with its instances' number.

        Raises
        ------
        SetupError
            If there is no such folder, or no DICOM file in it.
        BrokenInstance
            Naming a DICOM file that does not parse.
        """
        found = Counter((*uids, modality) for _, uids, modality in self._images())
        if not found:
            raise SetupError(
                f"There is no DICOM file in {self._in}; name a folder that has some.",
                code="no-dicom",
            )
        return found

    def fetch_series(self, study_uid: str, series_uid: str) -> list[bytes]:
        """Return the files of one series; raises as `series`."""
        wanted = (study_uid, series_uid)
        return [path.read_bytes() for path, uids, _ in self._images() if uids == wanted]

    def fetch_instance(self, study_uid: str, series_uid: str, instance_uid: str) -> bytes | None:
        """Return one result; study and series are of no account here."""
        path = self._out / f"{instance_uid}.dcm"
        return path.read_bytes() if path.is_file() else None

    def store(self, study_uid: str, data: bytes | mmap) -> None:
        """Write one result, whole or not at all, for its owner alone to read.

        Raises
        ------
        SetupError
            If the folder cannot be written, or the disk is full.
        """
        _, instance_uid = result_uids(data)
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            _write_whole(self._out / f"{instance_uid}.dcm", data)
        except OSError as error:
            raise SetupError(
                f"The result cannot be written to {self._out}: {error.strerror}.", code="folder"
            ) from error

    def keep_picture(self, instance_uid: str, number: int, picture: bytes) -> None:
        """Keep none: there is no page here that shows them."""

    def _images(self) -> Iterator[tuple[Path, tuple[str, str], str]]:
        """Give the path, the study and series UID, and the modality of every image."""
        if not self._in.exists():
            raise SetupError(f"There is no folder {self._in}.", code="no-folder")
        paths = [self._in] if self._in.is_file() else sorted(self._in.rglob("*"))
        for path in paths:
            if path.is_file() and (found := _identity(path)) is not None:
                yield path, *found


def _identity(path: Path) -> tuple[tuple[str, str], str] | None:
    """Return what tells series apart, None where the file is something else, a DICOMDIR say."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # pydicom's warnings quote values, which may be a patient's
            warnings.simplefilter("ignore")
            start = file.read(_META)
            if start[128:132] != b"DICM":
                return None
            file.seek(0)
            deflated = DeflatedExplicitVRLittleEndian.encode() in start
            whole = BytesIO(inflated(file.read())) if deflated else file
            head = dcmread(whole, stop_before_pixels=True, specific_tags=list(_TAGS))
            if head.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                return None
            study_uid, series_uid, _ = (valid_uid(head.get(keyword)) for keyword in _TAGS[:3])
            return (study_uid, series_uid), str(head.get("Modality") or "")
    except BROKEN as error:
        raise BrokenInstance(
            f"The file {path} cannot be read as DICOM ({type(error).__name__}); take it out of the "
            "folder, or send it again from where it came."
        ) from error


def _write_whole(path: Path, data: bytes | mmap) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
