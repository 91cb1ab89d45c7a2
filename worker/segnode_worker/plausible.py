"""Whether volumes can be true: what lies outside a card's ranges is withheld or marked."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card, Segment
from segnode_contract.findings import Findings, Marked, Measurement, Withheld

_VOLUME = "Volume"


def counts_of(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many pixels of each slice have each value, shape ``(planes, slices, 256)``.

    Slice by slice, since `numpy.bincount` makes eight bytes of each.
    """
    return np.array(
        [[np.bincount(one.reshape(-1), minlength=256) for one in plane] for plane in labels]
    )


def judged(
    labels: NDArray[np.uint8],
    counts: NDArray[np.int64],
    card: Card,
    findings: Findings,
    slice_ml: NDArray[np.float64],
) -> Findings:
    """Hold the volume of each segment against the card, and measure those that nobody measured.

    A segment without a voxel is absent, which is always plausible: the images may not show it. The
    volume of one that is withheld is not measurable, so that every segment has one. What a model
    measured and is no number is not measurable either.

    Parameters
    ----------
    labels
        Shape ``(planes, slices, rows, columns)``. Segments that are withheld are erased in it.
    counts
        As of `counts_of`.
    slice_ml
        The volume that a pixel of each slice stands for.

    Returns
    -------
    Findings
        Those of the model, and what was found here.
    """
    given = tuple(finite(m, f"the model {card.name}") for m in findings.measurements)
    findings = replace(findings, measurements=given)
    withheld = {item.segment: item.reason for item in findings.withheld}
    for segment in card.segments:
        if segment.number in withheld:
            findings = _with_volume(findings, segment, None, withheld[segment.number])
            continue
        volume_ml = float(counts[segment.plane, :, segment.value] @ slice_ml)
        doubt = _doubt(segment, volume_ml)
        if doubt and card.implausible == "withhold":
            plane = labels[segment.plane]
            plane[plane == segment.value] = 0
            findings = _withheld(findings, segment, doubt)
        else:
            findings = _with_volume(findings, segment, volume_ml)
            findings = _marked(findings, segment, doubt) if doubt else findings
    return findings


def finite(measurement: Measurement, source: str) -> Measurement:
    """Return a measurement as it is, or as not measurable where `source` gave NaN or infinity.

    Neither is a number in JSON, nor to a reader.
    """
    if measurement.value is None or math.isfinite(measurement.value):
        return measurement
    reason = f"Not measurable: {source} gave {measurement.value} in place of a number."
    return replace(measurement, value=None, reason=reason)


def _doubt(segment: Segment, volume_ml: float) -> str:
    if segment.plausible_ml is None or not volume_ml:
        return ""
    least, most = segment.plausible_ml
    if least <= volume_ml <= most:
        return ""
    return (
        f"Implausible: {volume_ml:.4g} ml, and the model's card says that {least:g} to {most:g} ml "
        "can be true."
    )


def _withheld(findings: Findings, segment: Segment, doubt: str) -> Findings:
    measurements = [
        replace(m, value=None, reason=doubt) if m.segment == segment.number else m
        for m in findings.measurements
    ]
    findings = replace(
        findings,
        withheld=(*findings.withheld, Withheld(segment=segment.number, reason=doubt)),
        measurements=tuple(measurements),
    )
    return _with_volume(findings, segment, None, doubt)


def _with_volume(
    findings: Findings, segment: Segment, volume_ml: float | None, reason: str = ""
) -> Findings:
    """Add the volume of a segment where nobody said it."""
    number = segment.number
    if any(m.segment == number and m.name == _VOLUME for m in findings.measurements):
        return findings
    volume = Measurement(segment=number, name=_VOLUME, value=volume_ml, unit="ml", reason=reason)
    return replace(findings, measurements=(*findings.measurements, volume))


def _marked(findings: Findings, segment: Segment, doubt: str) -> Findings:
    return replace(
        findings, marked=(*findings.marked, Marked(segment=segment.number, reason=doubt))
    )
