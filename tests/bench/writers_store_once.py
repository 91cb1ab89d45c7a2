"""One object to the archive and back: `-m tests.bench.writers_store_once TOOL URL FILE`.

It goes there under a UID of its own, since an archive keeps what it has.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

from .writers_once import forget_peak, memory_mb


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Where the archive is, and who we are to it."""

    dicomweb: str
    user: str
    password: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A tool that has the object, and knows its archive."""

    store: Callable[[], None]
    confirm: Callable[[], bool]
    """Return whether what the archive has is what was stored."""


def segnode(login: Login, path: Path) -> Way:
    """Return the node's own way."""
    from segnode_worker.archive import DicomWebArchive, confirm
    from segnode_worker.spool import Spool

    archive = DicomWebArchive(login.dicomweb, login.user, login.password)
    data = Spool(path.parent).take(path.stem)
    assert data is not None
    study = str(dcmread(path, specific_tags=["StudyInstanceUID"]).StudyInstanceUID)
    return Way(
        store=lambda: archive.store(study, data),
        confirm=lambda: bool(confirm(archive, study, data)),
    )


def dicomweb_client(login: Login, path: Path) -> Way:
    """Return the way of dicomweb-client, with the object as highdicom or pydicom give it."""
    client = client_of(login)
    made = dcmread(path)
    return Way(
        store=lambda: check_stored(client.store_instances([made])),
        confirm=lambda: kept_as(client, made),
    )


def plain_requests(login: Login, path: Path) -> Way:
    """Return the way of requests with its defaults, and multipart by hand (PS3.18 8.6.1.2.1)."""
    import requests

    session = requests.Session()
    session.auth = (login.user, login.password)
    data, head = path.read_bytes(), dcmread(path, stop_before_pixels=True)
    study = f"{login.dicomweb}/studies/{head.StudyInstanceUID}"
    parts = 'multipart/related; type="application/dicom"'

    def store() -> None:
        start = b"--part\r\nContent-Type: application/dicom\r\n\r\n"
        headers = {"Content-Type": f"{parts}; boundary=part", "Accept": "application/dicom+json"}
        body = start + data + b"\r\n--part--\r\n"
        answer = session.post(study, data=body, headers=headers)
        answer.raise_for_status()
        check_stored(Dataset.from_json(answer.json()))

    def confirm() -> bool:
        url = f"{study}/series/{head.SeriesInstanceUID}/instances/{head.SOPInstanceUID}"
        answer = session.get(url, headers={"Accept": f"{parts}; transfer-syntax=*"})
        answer.raise_for_status()
        return data in answer.content

    return Way(store=store, confirm=confirm)


STORES: Mapping[str, Callable[[Login, Path], Way]] = {
    "segnode": segnode,
    "dicomweb-client": dicomweb_client,
    "requests": plain_requests,
}


def client_of(login: Login) -> Any:
    """Return a client as dicomweb-client's documentation makes one."""
    import requests
    from dicomweb_client.api import DICOMwebClient

    session = requests.Session()
    session.auth = (login.user, login.password)
    return DICOMwebClient(login.dicomweb, session=session)


def check_stored(answer: Dataset) -> None:
    """Trust the list of what was stored, not the status (PS3.18 I.2.2)."""
    assert len(answer.ReferencedSOPSequence) == 1, answer


def kept_as(client: Any, made: Dataset) -> bool:
    """Retrieve an object and return whether its pixel data are ours."""
    kept = client.retrieve_instance(
        made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID
    )
    return bool(kept.PixelData == made.PixelData)


def login_of(url: str) -> Login:
    """Return the login that this process was started with."""
    return Login(
        dicomweb=f"{url}/dicom-web",
        user=os.environ["BENCH_USER"],
        password=os.environ["BENCH_PASSWORD"],
    )


def main() -> None:
    """Store, read back, and print the seconds of both as one line of JSON."""
    warnings.simplefilter("ignore")
    tool, url, path = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        way = STORES[tool](login_of(url), _under_another_uid(path, Path(folder)))
        forget_peak()
        began = time.perf_counter()
        way.store()
        stored = time.perf_counter()
        assert way.confirm(), "the archive has something else"
        ended = time.perf_counter()
    said = {"store": stored - began, "confirm": ended - stored, "both": ended - began}
    print(json.dumps({**said, "peak_mb": memory_mb("VmHWM")}))


def _under_another_uid(path: Path, folder: Path) -> Path:
    """Write a file anew under a UID of the same length, into a spool."""
    from segnode_worker.spool import Spool

    uid = str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
    other = re.sub(r"\d{12}$", lambda _: f"{secrets.randbelow(10**12):012}", uid)
    data = path.read_bytes().replace(uid.encode(), other.encode())
    return folder / f"{Spool(folder).put([data]).digest}.dcm"


if __name__ == "__main__":
    main()
