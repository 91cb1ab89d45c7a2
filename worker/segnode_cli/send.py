"""C-STORE with a progress bar (PS3.4 B)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from rich.progress import track

from segnode_cli.node import read_environment
from segnode_cli.show import console, say
from segnode_contract.errors import PeerRefused, PeerUnavailable, SetupError
from segnode_worker.dicom_link import Link, Peer, associated

__all__ = ["CALLING", "Peer", "Sent", "dicom_files", "parse_peer", "send_paths"]

CALLING = "SEGNODE_SEND"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    stored: int
    refused: int
    study_uids: tuple[str, ...]
    series_uids: tuple[str, ...]


def parse_peer(text: str, data: Path) -> Peer:
    """Read ``AET@HOST:PORT``; empty means the node whose data folder is `data`.

    Raises
    ------
    SetupError
        If it is neither.
    """
    if not text:
        port = read_environment(data).get("SEGNODE_DICOM_PORT")
        if port is None:
            raise SetupError(
                f"There is no node in {data}; start one with `segnode up`, or say --to."
            )
        return Peer(aet="SEGNODE", host="127.0.0.1", port=int(port))
    aet, at, address = text.partition("@")
    host, colon, port = address.rpartition(":")
    if not (aet and at and host and colon and port.isdigit()):
        raise SetupError(f"--to is '{text}'; AET@HOST:PORT is needed, PACS@10.0.0.5:104 say.")
    return Peer(aet=aet, host=host, port=int(port))


def dicom_files(paths: Iterable[Path]) -> list[Path]:
    """Return the DICOM files with an image or object in them, folders searched whole.

    Raises
    ------
    SetupError
        If there is none, or a path does not exist.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise SetupError(f"{path} does not exist.")
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        found += [file for file in inside if _header(file) is not None]
    if not found:
        raise SetupError(f"No DICOM file was found in {', '.join(map(str, paths))}.")
    return found


def send_paths(paths: Sequence[Path], peer: Peer) -> Sent:
    """Send files; each one that cannot be sent is named, the others go on.

    Raises
    ------
    SetupError
        If there is nothing to send, or the peer took nothing.
    PeerUnavailable, PeerRefused
        If the peer does not take the association, or none of the objects' SOP classes.
    """
    files = dicom_files(paths)
    headers = {file: _header(file) for file in files}
    kinds = sorted(
        {
            (h.file_meta.MediaStorageSOPClassUID, h.file_meta.TransferSyntaxUID)
            for h in headers.values()
            if h
        }
    )
    stored, refused, studies = 0, 0, set[str]()
    series = set[str]()
    with associated(peer, CALLING, kinds) as link:
        for file in track(files, "sending", console=console):
            reason = _store(link, file)
            if reason is None:
                stored += 1
                studies.add(str(headers[file].StudyInstanceUID))  # type: ignore[union-attr] # read
                series.add(str(headers[file].SeriesInstanceUID))  # type: ignore[union-attr] # read
            else:
                refused += 1
                say(f"{file.name} was not sent: {reason}")
    if not stored:
        raise SetupError(f"{peer.aet} took none of the {len(files)} files; see the lines above.")
    return Sent(
        stored=stored,
        refused=refused,
        study_uids=tuple(sorted(studies)),
        series_uids=tuple(sorted(series)),
    )


def _store(link: Link, file: Path) -> str | None:
    try:
        link.store(pydicom.dcmread(file))
    except (PeerRefused, PeerUnavailable) as error:
        return error.sentence
    except (ValueError, AttributeError, OSError) as error:
        return f"{type(error).__name__}, it is broken"
    return None


def _header(file: Path) -> Dataset | None:
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True)
    except (InvalidDicomError, OSError, ValueError, AttributeError, KeyError, NotImplementedError):
        if os.path.splitext(file)[1].lower() in (".dcm", ".ima"):  # noqa: PTH122
            say(f"{file.name} is broken and is left out")
        return None
    known = "StudyInstanceUID" in header and "TransferSyntaxUID" in header.file_meta
    return header if known and header.file_meta.get("MediaStorageSOPClassUID") else None
