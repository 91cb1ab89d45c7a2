"""C-STORE with a progress bar (PS3.4 B)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from rich.progress import track

from segnode_cli.node import read_environment
from segnode_cli.show import console, say
from segnode_contract.errors import SetupError

CALLING = "SEGNODE_SEND"
_MOST_CONTEXTS = 128  # PS3.8 9.3.2.2: odd numbers from 1 to 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    aet: str
    host: str
    port: int


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
        If there is nothing to send, or the peer does not take the association.
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
    link = _associate(peer, kinds[:_MOST_CONTEXTS])
    stored, refused, studies = 0, 0, set[str]()
    series = set[str]()
    try:
        for file in track(files, "sending", console=console):
            reason = _store(link, file)
            if reason is None:
                stored += 1
                studies.add(str(headers[file].StudyInstanceUID))  # type: ignore[union-attr] # read
                series.add(str(headers[file].SeriesInstanceUID))  # type: ignore[union-attr] # read
            else:
                refused += 1
                say(f"{file.name} was not sent: {reason}")
    finally:
        if link.is_established:
            link.release()
    if not stored:
        raise SetupError(f"{peer.aet} took none of the {len(files)} files; see the lines above.")
    return Sent(
        stored=stored,
        refused=refused,
        study_uids=tuple(sorted(studies)),
        series_uids=tuple(sorted(series)),
    )


def _associate(peer: Peer, kinds: Iterable[tuple[str, str]]) -> Association:
    entity = AE(ae_title=CALLING)
    entity.requested_contexts = [build_context(sop_class, syntax) for sop_class, syntax in kinds]
    link = entity.associate(
        peer.host, peer.port, ae_title=peer.aet, evt_handlers=[(evt.EVT_CONN_OPEN, _at_once)]
    )
    if link.is_established:
        _keep_answers(link)
        return link
    where = f"{peer.aet} at {peer.host}:{peer.port}"
    if link.is_rejected:
        raise SetupError(
            f"{where} refused the association; it must know our AE title {CALLING}, and its own "
            f"must be {peer.aet}."
        )
    raise SetupError(f"{where} does not answer; is it running, and are host and port right?")


def _keep_answers(link: Association) -> None:
    """Give back answers that pynetdicom's own thread takes by mistake.

    `send_c_store` has that thread pause, and can take an earlier pause for the one that it asked
    for (3.0.4). The thread then drops the answer as unexpected, and the sender waits for half a
    minute and gives up.
    """
    serve = link._serve_request

    def kept(message: Any, context_id: int) -> None:
        if message.is_valid_request:
            serve(message, context_id)
        else:
            link.dimse.msg_queue.put((context_id, message))

    vars(link)["_serve_request"] = kept


def _at_once(event: evt.Event) -> None:
    """Send each part of a message as it comes: the peer acknowledges it 40 ms late (Nagle)."""
    transport = event.assoc.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _store(link: Association, file: Path) -> str | None:
    if not link.is_established:
        return "the connection was lost"
    try:
        status = link.send_c_store(pydicom.dcmread(file))
    except (ValueError, AttributeError, OSError) as error:
        # no accepted presentation context, or not to be encoded
        return (
            f"{type(error).__name__}, no presentation context was accepted for it or it is broken"
        )
    if "Status" not in status:
        return "no answer came"
    code = int(status.Status)
    return None if code == 0 or code & 0xF000 == 0xB000 else f"status 0x{code:04X}"


def _header(file: Path) -> Dataset | None:
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True)
    except (InvalidDicomError, OSError, ValueError, AttributeError, KeyError, NotImplementedError):
        if os.path.splitext(file)[1].lower() in (".dcm", ".ima"):  # noqa: PTH122
            say(f"{file.name} is broken and is left out")
        return None
    known = "StudyInstanceUID" in header and "TransferSyntaxUID" in header.file_meta
    return header if known and header.file_meta.get("MediaStorageSOPClassUID") else None
