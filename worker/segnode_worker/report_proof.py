"""Proof that a report says what was found, by another way than the one that wrote it.

Nothing here uses highdicom or the writer's own modules: the codes stand here once more.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from mmap import mmap
from typing import TypeGuard

from pydicom import Dataset, dcmread

from segnode_contract.card import Card, Segment
from segnode_contract.errors import ProofFailed
from segnode_contract.findings import Findings, Measurement
from segnode_worker.archive import as_stream
from segnode_worker.proof import bytes_of
from segnode_worker.stack import Stack

_SAME = ("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "AccessionNumber")
_FLAGS = {"CompletionFlag": "COMPLETE", "VerificationFlag": "UNVERIFIED", "Modality": "SR"}
_MEASUREMENTS, _GROUP, _EVALUATIONS = "126010", "125007", "C0034375"
_SEGMENT, _SERIES, _FINDING, _COMMENT = "121191", "121232", "121071", "121106"
_TRACKING, _TRACKING_UID, _DERIVATION, _FAILURE = "112039", "112040", "121401", "114006"
_SITE = "363698007"
_SHOWN = {"CT": "112031", "MR": "110852"}
_NAMES = {"Volume": "118565006", "LAA-950": "LAA950PCT"}
_OTHER = "of another name"
_DERIVED = {"Mean": "373098007", "Mean density": "373098007", "Standard deviation": "386136009"}
_COMPARED = 900

Said = tuple[str, str, str, float]
"""Codes of a measurement's name, derivation and unit, and its value."""


def prove_report(
    data: bytes | mmap, seg: bytes | mmap, stack: Stack, card: Card, findings: Findings
) -> None:
    """Compare a report with what was found, and with the segmentation that it belongs to.

    Parameters
    ----------
    data
        What `report` gave.
    seg
        The segmentation of the same labels, itself proved.
    stack, card, findings
        What `report` was given.

    Raises
    ------
    ProofFailed
        Naming the segment that differs.
    """
    with warnings.catch_warnings():
        # pydicom's warnings quote values, which may be a patient's
        warnings.simplefilter("ignore")
        made = dcmread(as_stream(data))
        wanted = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SegmentSequence"]
        segmentation = dcmread(as_stream(seg), stop_before_pixels=True, specific_tags=wanted)
        _prove_head(made, stack)
        _prove_evidence(made, segmentation, stack)
        _prove_limitations(made, (*findings.limitations, *card.limitations))
        groups = _items(_one(made, _MEASUREMENTS), _GROUP)
        if len(groups) != len(card.segments):
            raise ProofFailed(
                f"The report has {len(groups)} groups, and its model {len(card.segments)} segments."
            )
        for group, segment in zip(groups, card.segments, strict=True):
            _prove_reference(group, segment, segmentation, stack)
            _prove_values(group, segment, findings, str(stack.sources[0].header.Modality))
            _prove_doubts(group, segment, findings)


def _prove_head(made: Dataset, stack: Stack) -> None:
    source = stack.sources[0].header
    same = all(bytes_of(made, keyword) == bytes_of(source, keyword) for keyword in _SAME)
    if not same or made.get("SpecificCharacterSet") != source.get("SpecificCharacterSet"):
        raise ProofFailed("Patient or study of the report are not those of its images.")
    for keyword, value in _FLAGS.items():
        if made.get(keyword) != value:
            raise ProofFailed(f"The report's {keyword} is {made.get(keyword)}, not {value}.")
    if "VerifyingObserverSequence" in made:
        raise ProofFailed("The report names somebody who verified it; nobody did.")


def _prove_evidence(made: Dataset, segmentation: Dataset, stack: Stack) -> None:
    """Compare the objects that the report as a whole says it was made from."""
    meant = {(s.series_uid, s.uid, s.class_uid) for s in stack.sources}
    seg = segmentation
    meant.add((seg.SeriesInstanceUID, seg.SOPInstanceUID, seg.SOPClassUID))
    said = {
        (
            series.SeriesInstanceUID,
            instance.ReferencedSOPInstanceUID,
            instance.ReferencedSOPClassUID,
        )
        for study in made.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    if said != meant:
        raise ProofFailed(
            f"The report refers to {len(said)} objects, of which {len(said & meant)} are among the "
            f"{len(meant)} that it was made from."
        )


def _prove_limitations(made: Dataset, limitations: Iterable[str]) -> None:
    comments = _texts(_one(made, _EVALUATIONS))
    if not any("verified by nobody" in text for text in comments):
        raise ProofFailed("The report does not say that nobody verified it.")
    for text in limitations:
        if not _among(text, comments):
            raise ProofFailed(f"The report lacks the limitation '{text}'")


def _prove_reference(group: Dataset, segment: Segment, segmentation: Dataset, stack: Stack) -> None:
    """Compare which segment a group is of; numbers under another's name are the worst of errors."""
    (described,) = (
        item for item in segmentation.SegmentSequence if item.SegmentNumber == segment.number
    )
    reference = _one(group, _SEGMENT).ReferencedSOPSequence[0]
    said = (
        reference.ReferencedSOPClassUID,
        reference.ReferencedSOPInstanceUID,
        reference.ReferencedSegmentNumber,
        _one(group, _SERIES).UID,
        _one(group, _TRACKING).TextValue,
        _one(group, _TRACKING_UID).UID,
        _code(_one(group, _FINDING).ConceptCodeSequence),
    )
    meant = (
        segmentation.SOPClassUID,
        segmentation.SOPInstanceUID,
        segment.number,
        stack.sources[0].series_uid,
        described.TrackingID,
        described.TrackingUID,
        _code(described.SegmentedPropertyTypeCodeSequence),
    )
    if said != meant:
        raise ProofFailed(f"Group {segment.number} of the report is of {said}, not of {meant}.")
    modifiers = {
        _code(item.ConceptCodeSequence)
        for site in _items(group, _SITE)
        for item in site.get("ContentSequence") or []
    }
    if modifiers != {modifier.value for modifier in segment.modifiers}:
        raise ProofFailed(
            f"The report modifies segment {segment.number} by {sorted(modifiers)}, and its model's "
            f"card by {sorted(m.value for m in segment.modifiers)}."
        )


def _prove_values(group: Dataset, segment: Segment, findings: Findings, modality: str) -> None:
    own = [m for m in findings.measurements if m.segment == segment.number]
    meant = [(*_codes(m, modality), m.unit, float(m.value)) for m in own if _is_number(m.value)]
    said = [_said(item) for item in group.ContentSequence if item.ValueType == "NUM"]
    if said != meant:
        raise ProofFailed(
            f"The report says of segment {segment.number} {said}, and measured was {meant}."
        )
    missing = [m for m in own if not _is_number(m.value)]
    failed = [
        item
        for item in group.ContentSequence
        if item.ValueType == "CODE" and _code(item.ConceptCodeSequence) == _FAILURE
    ]
    if [(_name(f), _derivation(f)) for f in failed] != [_codes(m, modality) for m in missing]:
        raise ProofFailed(
            f"The report says of segment {segment.number} that {len(failed)} things were not "
            f"measurable; {[m.name for m in missing]} were not."
        )
    for item, measurement in zip(failed, missing, strict=True):
        if not _among(measurement.reason, _texts(item)):
            raise ProofFailed(
                f"The report does not say of segment {segment.number} why {measurement.name} was "
                f"not measurable: {measurement.reason}"
            )


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _prove_doubts(group: Dataset, segment: Segment, findings: Findings) -> None:
    comments = _texts(group)
    reasons = [
        *(w.reason for w in findings.withheld if w.segment == segment.number),
        *(m.reason for m in findings.marked if m.segment == segment.number),
    ]
    for reason in reasons:
        if not _among(reason, comments):
            raise ProofFailed(f"The report does not say of segment {segment.number}: {reason}")


def _said(item: Dataset) -> Said:
    """Return what a NUM says; its two forms of the value must agree (PS3.3 C.18.1)."""
    (value,) = item.MeasuredValueSequence
    exact = float(value.FloatingPointValue)
    if not math.isclose(exact, float(value.NumericValue), rel_tol=1e-9):
        raise ProofFailed(
            f"The report has a value of {value.NumericValue} and of {exact} in one place."
        )
    return _name(item), _derivation(item), _code(value.MeasurementUnitsCodeSequence), exact


def _codes(measurement: Measurement, modality: str) -> tuple[str, str]:
    """Return the codes of a measurement's name and derivation."""
    if measurement.name in _DERIVED:
        return _SHOWN.get(modality, ""), _DERIVED[measurement.name]
    return _NAMES.get(measurement.name, _OTHER), ""


def _name(item: Dataset) -> str:
    """Return the code of an item's name; those of other names than ours are made up."""
    (concept,) = item.ConceptNameCodeSequence
    made_up = concept.CodingSchemeDesignator == "99SEGNODE"
    return _OTHER if made_up and concept.CodeValue not in _NAMES.values() else concept.CodeValue


def _derivation(item: Dataset) -> str:
    found = _items(item, _DERIVATION)
    return _code(found[0].ConceptCodeSequence) if found else ""


def _items(parent: Dataset, code: str) -> list[Dataset]:
    """Return the children of an item whose names have the code."""
    children: Sequence[Dataset] = parent.get("ContentSequence") or []
    return [c for c in children if _code(c.ConceptNameCodeSequence) == code]


def _one(parent: Dataset, code: str) -> Dataset:
    found = _items(parent, code)
    if len(found) != 1:
        raise ProofFailed(f"The report has {len(found)} items of the code {code} in one place.")
    return found[0]


def _code(sequence: Sequence[Dataset]) -> str:
    (item,) = sequence
    return str(item.CodeValue)


def _texts(parent: Dataset) -> list[str]:
    return [str(item.TextValue) for item in _items(parent, _COMMENT)]


def _among(text: str, comments: Iterable[str]) -> bool:
    """Return whether a comment says it, up to where it is longer or other than ASCII."""
    meant = re.split(r"[^ -~]", text[:_COMPARED])[0].strip()
    return any(meant in said for said in comments)
