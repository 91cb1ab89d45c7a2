"""Mean and standard deviation of the image in each segment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card
from segnode_contract.findings import Findings, Measurement
from segnode_worker.plausible import finite
from segnode_worker.stack import Stack

_MEAN, _DEVIATION = "Mean", "Standard deviation"
_NAMES = {_MEAN: (_MEAN, "Mean density"), _DEVIATION: (_DEVIATION,)}
"""What models call the same."""
_UNITS = {"CT": "[hnsf'U]", "MR": "1"}


def measured(
    stack: Stack,
    labels: NDArray[np.uint8],
    counts: NDArray[np.int64],
    card: Card,
    findings: Findings,
) -> Findings:
    """Measure the intensities of each segment, as acquired, that nobody measured yet.

    Every voxel of a segment counts once, padding too where a model labelled it, so that the SEG
    and its images give the same numbers; the deviation is that of these voxels, not an estimate
    for others. A segment that is absent or withheld has neither. Where a model says that nothing
    of a segment can be measured, neither can these. Only CT and MR have intensities of known unit.

    Parameters
    ----------
    labels
        Shape ``(planes, slices, rows, columns)``, as `plausible.judged` left them.
    counts
        As of `plausible.counts_of`.
    """
    unit = _UNITS.get(str(stack.sources[0].header.Modality))
    if unit is None:
        return findings
    voxels = counts.sum(axis=1)
    moments = [_moments(stack.values, plane, n) for plane, n in zip(labels, voxels, strict=True)]
    withheld = {item.segment for item in findings.withheld}
    new: list[Measurement] = []
    for segment in card.segments:
        if segment.number in withheld or not voxels[segment.plane, segment.value]:
            continue
        given = [m for m in findings.measurements if m.segment == segment.number]
        values = (float(each[segment.value]) for each in moments[segment.plane])
        for name, value in zip((_MEAN, _DEVIATION), values, strict=True):
            if not any(m.name in _NAMES[name] for m in given):
                one = Measurement(segment=segment.number, name=name, value=value, unit=unit)
                one = finite(one, "the sum of intensities")
                new.append(_unless(_reason_against(given), one))
    return replace(findings, measurements=(*findings.measurements, *new))


def _reason_against(given: list[Measurement]) -> str:
    """Return why a model measured nothing, empty where it measured something or did not try."""
    return given[0].reason if given and all(m.value is None for m in given) else ""


def _unless(against: str, measurement: Measurement) -> Measurement:
    return replace(measurement, value=None, reason=against) if against else measurement


def _moments(
    values: NDArray[Any], labels: NDArray[np.uint8], voxels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation by label value.

    The squares are those of the distance to a value amid the image: their sum stays exact for
    int16, and large intensities do not drown a small deviation.
    """
    middle = float(values[len(values) // 2].mean())
    middle = round(middle) if values.dtype == np.int16 else middle
    first, second = np.zeros(256), np.zeros(256)
    for label, value in _labelled(values, labels):
        away = value - middle
        first += np.bincount(label, away, 256)
        second += np.bincount(label, away * away, 256)
    count = np.maximum(voxels, 1)
    offset = first / count
    variance = np.maximum(second / count - offset * offset, 0)
    return middle + offset, np.sqrt(variance)


def _labelled(
    values: NDArray[Any], labels: NDArray[np.uint8]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64]]]:
    """Give labels and values of the voxels of each slice that have a label."""
    for value, label in zip(values, labels, strict=True):
        here = np.flatnonzero(label)
        if here.size:
            yield (
                label.reshape(-1)[here].astype(np.intp),
                value.reshape(-1)[here].astype(np.float64),
            )
