"""Other archives to send to: dcmtk's storescp, and peers that answer as they are told."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.encaps import encapsulate
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE, evt

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.destination import Destination

from ..conftest import free_port


def images(count: int = 3) -> list[bytes]:
    """Return small CT images as Part 10 files."""
    series = ct_series(np.zeros((count, 8, 8), np.int16), spacing_mm=(1.0, 1.0, 1.0), seed="s")
    return [as_file(image) for image in series]


def seg(syntax: str = ExplicitVRLittleEndian, sop_class: str = SegmentationStorage) -> bytes:
    """Return an object that says it is a Segmentation, and is one as far as peers look."""
    instance = dcmread(BytesIO(images(1)[0]))
    instance.SOPClassUID = sop_class
    instance.SOPInstanceUID = "2.25.1"
    instance.SeriesInstanceUID = "2.25.2"
    instance.Modality = "SEG"
    for keyword in ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID"):
        setattr(instance.file_meta, keyword, instance[keyword.removeprefix("MediaStorage")].value)
    instance.file_meta.TransferSyntaxUID = UID(syntax)
    if instance.file_meta.TransferSyntaxUID.is_compressed:
        instance.PixelData = encapsulate([b"\0\0"])
    file = BytesIO()
    dcmwrite(file, instance, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return file.getvalue()


@contextmanager
def storescp(folder: Path, *options: str, port: int = 0) -> Iterator[Destination]:
    """Run dcmtk's receiver; what it takes lies in `folder`."""
    program = shutil.which("storescp", path="/usr/bin")  # pynetdicom has one of that name
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("dcmtk is not installed; `make test` installs it")
        pytest.skip("dcmtk is not installed; `make test` installs it")
    folder.mkdir(exist_ok=True)
    port = port or free_port()
    command = [program, "-od", str(folder), "-aet", "INBOX", *options, str(port)]
    receiver = subprocess.Popen(command)
    try:
        await_port(port)
        yield Destination(name="inbox", aet="INBOX", host="127.0.0.1", port=port)
    finally:
        receiver.terminate()
        receiver.wait()


def only(folder: Path, *sop_classes: str) -> list[str]:
    """Return the options by which storescp takes these SOP classes alone."""
    contexts = "\n".join(
        f"PresentationContext{number} = {name}\\Plain" for number, name in enumerate(sop_classes, 1)
    )
    config = folder / "profile.cfg"
    config.write_text(
        "[[TransferSyntaxes]]\n[Plain]\n"
        "TransferSyntax1 = LocalEndianExplicit\nTransferSyntax2 = LittleEndianImplicit\n"
        f"[[PresentationContexts]]\n[Some]\n{contexts}\n"
        "[[Profiles]]\n[Only]\nPresentationContexts = Some\n"
    )
    return ["-xf", str(config), "Only"]


@contextmanager
def peer_that_answers(*statuses: int, knows: str = "") -> Iterator[Destination]:
    """Run a peer that answers to one object after another with these, then with success.

    Parameters
    ----------
    knows
        The only AE title that it talks to; empty for all.
    """
    left = list(statuses)
    peer = AE(ae_title="ODD")
    peer.require_calling_aet = [knows] if knows else []
    for sop_class in (CTImageStorage, SegmentationStorage):
        peer.add_supported_context(sop_class)
    handlers = [(evt.EVT_C_STORE, lambda _: left.pop(0) if left else 0)]
    server = peer.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        port = server.server_address[1]
        yield Destination(name="odd", aet="ODD", host="127.0.0.1", port=port)
    finally:
        server.shutdown()


def await_port(port: int) -> None:
    """Wait until something listens."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}")


def received(folder: Path) -> list[Dataset]:
    """Return what storescp took."""
    return [dcmread(path) for path in sorted(folder.iterdir())]


def classes(batch: Sequence[Dataset]) -> list[str]:
    """Return the names of the SOP classes of objects, sorted."""
    return sorted(instance.SOPClassUID.name for instance in batch)
