"""One series from the archive to a volume: `-m tests.bench.fetch_once TOOL URL USER STUDY SERIES`.

It imports no more than the tool needs, for what is loaded counts in the peak memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import urllib3
from numpy.typing import NDArray

CONNECTIONS = 8


class Segnode:
    """The node's own way."""

    def __init__(self, url: str, user: str, password: str) -> None:
        from segnode_worker.archive import DicomWebArchive
        from segnode_worker.stack import stack_series

        self._stack = stack_series
        self.fetch: Callable[[str, str], Any] = DicomWebArchive(
            f"{url}/dicom-web", user, password
        ).fetch_series

    def stack(self, files: Sequence[bytes]) -> NDArray[Any]:
        return self._stack(files).values


class Rest(Segnode):
    """The node's own way with the files from Orthanc's REST, over kept connections."""

    def __init__(self, url: str, user: str, password: str) -> None:
        super().__init__(url, user, password)
        login = urllib3.make_headers(basic_auth=f"{user}:{password}", accept_encoding="identity")
        self._pool = urllib3.PoolManager(headers=login, maxsize=CONNECTIONS)
        self._url = url
        self.fetch = self._fetch

    def _fetch(self, _study: str, series: str) -> list[bytes]:
        ask, url = self._pool.request, self._url
        [found] = ask("POST", f"{url}/tools/lookup", body=series).json()
        names = ask("GET", f"{url}/series/{found['ID']}").json()["Instances"]
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            return list(threads.map(lambda n: ask("GET", f"{url}/instances/{n}/file").data, names))


class Straightforward:
    """As the documentation of dicomweb-client and pydicom shows it."""

    def __init__(self, url: str, user: str, password: str) -> None:
        import requests
        from dicomweb_client.api import DICOMwebClient

        session = requests.Session()
        session.auth = (user, password)
        self.fetch = DICOMwebClient(f"{url}/dicom-web", session=session).retrieve_series

    def stack(self, images: list[Any]) -> NDArray[Any]:
        images.sort(key=lambda image: -image.ImagePositionPatient[2])
        return np.stack([i.pixel_array * i.RescaleSlope + i.RescaleIntercept for i in images])


TOOLS: dict[str, Callable[[str, str, str], Segnode | Straightforward]] = {
    "segnode": Segnode,
    "segnode REST": Rest,
    "dicomweb-client + pydicom": Straightforward,
}


def main() -> None:
    """Fetch, stack, and print the seconds of each step as one line of JSON."""
    warnings.simplefilter("ignore")
    tool, url, user, study, series = sys.argv[1:]
    way = TOOLS[tool](url, user, os.environ["BENCH_PASSWORD"])
    began = time.perf_counter()
    images = way.fetch(study, series)
    fetched = time.perf_counter()
    values = way.stack(images)
    ended = time.perf_counter()
    said = {"fetch": fetched - began, "stack": ended - fetched, "both": ended - began}
    said["peak_mb"] = _peak_mb()  # before the check makes a copy
    print(json.dumps({**said, "voxels": zlib.crc32(values.astype(np.int16).data)}))


def _peak_mb() -> int:
    status = Path("/proc/self/status").read_text()
    [line] = [row for row in status.splitlines() if row.startswith("VmHWM")]
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    main()
