"""The judge: what lies in the archive, by QIDO-RS and WADO-RS alone, against what was sent."""

from __future__ import annotations

import base64
import http.client
import json
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from email import message_from_bytes
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from .phantom import Series

_SEG = "1.2.840.10008.5.1.4.1.1.66.4"
_BODY = 1
"""Segment Number of the body in `ct-tissue`."""
_NEAR = 0.05
MODEL = "ct-tissue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that must not be."""

    kind: str
    """``lost``, ``doubled`` or ``half-stored``."""
    series_uid: str
    text: str


class ArchiveAway(Exception):
    """No answer, which is no verdict."""


class Judge:
    """Reads an archive at a port of this machine."""

    def __init__(self, port: int, user: str, password: str) -> None:
        self._port = port
        word = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._login = {"Authorization": f"Basic {word}"}

    def has_result(self, series: Series) -> bool:
        """Return whether a result covers what was sent last of `series`."""
        return any(_covered(seg) == series.contents[-1] for seg, _ in self.results(series))

    def findings(self, sent: Iterable[Series]) -> list[Finding]:
        """Return what is wrong with what became of `sent`."""
        return [finding for series in sent for finding in self._of(series)]

    def strays(self, sent: Iterable[Series]) -> list[Finding]:
        """Return results in studies that nobody sent."""
        known = {series.study_uid for series in sent}
        found = {_text(study, "0020000D") for study in self._search("/studies")}
        return [
            Finding(kind="doubled", series_uid=uid, text="a study that nobody sent")
            for uid in sorted(found - known)
        ]

    def results(self, series: Series) -> list[tuple[Dataset, bytes]]:
        """Return all segmentations in the study; one that cannot be read is an empty object."""
        return self._made(series, "SEG")

    def reports(self, series: Series) -> list[Dataset]:
        """Return all reports in the study."""
        return [report for report, _ in self._made(series, "SR")]

    def _made(self, series: Series, modality: str) -> list[tuple[Dataset, bytes]]:
        found = []
        for one in self._search(f"/studies/{series.study_uid}/series"):
            uid = _text(one, "0020000E")
            if _text(one, "00080060") != modality or uid == series.series_uid:
                continue
            for instance in sorted(self._instances(series.study_uid, uid)):
                file = self._file(f"/studies/{series.study_uid}/series/{uid}/instances/{instance}")
                found.append((parsed(file), file))
        return found

    def _of(self, series: Series) -> list[Finding]:
        def finding(kind: str, text: str) -> Finding:
            return Finding(kind=kind, series_uid=series.series_uid, text=text)

        wrong = []
        missing = series.contents[-1] - self._instances(series.study_uid, series.series_uid)
        if missing:
            wrong.append(finding("lost", f"{len(missing)} images are not in the archive"))
        results: Counter[frozenset[str]] = Counter()
        reported = Counter(uid for report in self.reports(series) for uid in _reported(report))
        for seg, file in self.results(series):
            seen = flaw(seg, file, series)
            if seen:
                wrong.append(finding("half-stored", seen))
            results[_covered(seg)] += 1
            count = reported.pop(str(seg.get("SOPInstanceUID")), 0)
            if count != 1:
                wrong.append(finding("half-stored", f"{count} reports of a result"))
        if reported:
            wrong.append(finding("half-stored", "a report without its result"))
        for content, count in results.items():
            if content not in series.contents:
                wrong.append(finding("half-stored", f"covers {len(content)} images, never sent so"))
            elif count > 1:
                wrong.append(finding("doubled", f"{count} results of {len(content)} images"))
        if not results[series.contents[-1]] and not series.codes:
            wrong.append(finding("lost", "no result"))
        return wrong

    def _instances(self, study_uid: str, series_uid: str) -> frozenset[str]:
        rows = self._search(f"/studies/{study_uid}/series/{series_uid}/instances")
        return frozenset(_text(row, "00080018") for row in rows)

    def _search(self, path: str) -> list[dict[str, Any]]:
        status, _, body = self._get(path, "application/dicom+json")
        if status == 404:
            return []
        if status >= 500 or status == 204:
            if status == 204:
                return []
            raise ArchiveAway(f"{path} gives {status}")
        rows: list[dict[str, Any]] = json.loads(body)
        return rows

    def _file(self, path: str) -> bytes:
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        status, kind, body = self._get(path, accept)
        if status != 200:
            return b""
        whole = message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
        boundary = str(whole.get_boundary()).encode()
        part = body.split(b"--" + boundary)[1]
        return part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")

    def _get(self, path: str, accept: str) -> tuple[int, str, bytes]:
        link = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            link.request("GET", f"/dicom-web{path}", headers={**self._login, "Accept": accept})
            answer = link.getresponse()
            return answer.status, answer.headers.get("Content-Type", ""), answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ArchiveAway(type(error).__name__) from error
        finally:
            link.close()


def parsed(file: bytes) -> Dataset:
    """Return a Part 10 file as a data set, an empty one where it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dcmread(BytesIO(file))
        except Exception:  # whatever is wrong with it, it is no result
            return Dataset()


def _covered(seg: Dataset) -> frozenset[str]:
    """Return the instances that a result says it is of (PS3.3 C.12.4)."""
    return frozenset(
        str(reference.ReferencedSOPInstanceUID)
        for series in seg.get("ReferencedSeriesSequence") or []
        for reference in series.get("ReferencedInstanceSequence") or []
    )


def _reported(report: Dataset) -> list[str]:
    """Return the segmentations that a report is about (PS3.3 C.17.2), an empty text for none."""
    about = [
        str(reference.ReferencedSOPInstanceUID)
        for study in report.get("CurrentRequestedProcedureEvidenceSequence") or []
        for series in study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
        if reference.ReferencedSOPClassUID == _SEG
    ]
    return about if about and report.get("ContentSequence") else [""]


def flaw(seg: Dataset, file: bytes, series: Series) -> str:
    """Return what is not whole about a result, empty if nothing."""
    if not file or seg.get("SOPClassUID") != _SEG:
        return "an object that is no readable Segmentation"
    names = {
        algorithm.AlgorithmName
        for segment in seg.SegmentSequence
        for algorithm in segment.SegmentationAlgorithmIdentificationSequence
    }
    if names != {MODEL}:
        return f"a result of {names}"
    try:
        return _flaw_of_frames(seg, seg.pixel_array, series)
    except Exception as error:  # whatever is wrong with it, it cannot be decoded
        return f"not decoded: {type(error).__name__}"


def _flaw_of_frames(seg: Dataset, pixels: NDArray[np.uint8], series: Series) -> str:
    frames = seg.PerFrameFunctionalGroupsSequence
    if not len(frames) == int(seg.NumberOfFrames) == len(pixels):
        return f"{len(pixels)} frames, {len(frames)} descriptions"
    covered = _covered(seg)
    if not covered.issuperset(source for frame in frames for source in _sources(frame)):
        return "a frame of an image that is not among those covered"
    of_body = np.array([_segment(frame) == _BODY for frame in frames])
    voxels = int(np.count_nonzero(pixels[of_body]))
    expected = series.body_voxels * len(covered) / len(series.images)
    if abs(voxels - expected) > _NEAR * expected:
        return f"{voxels} voxels of body, {expected:.0f} are there"
    return ""


def _segment(frame: Dataset) -> int:
    return int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def _sources(frame: Dataset) -> list[str]:
    return [
        str(source.ReferencedSOPInstanceUID)
        for derivation in frame.DerivationImageSequence
        for source in derivation.SourceImageSequence
    ]


def _text(row: dict[str, Any], tag: str) -> str:
    return str((row.get(tag, {}).get("Value") or [""])[0])
