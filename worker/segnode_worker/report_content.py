"""What a report says: measurements of each segment, and what holds of them all (TID 1500)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from highdicom import sr
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from segnode_contract.card import Card, Segment
from segnode_contract.findings import Findings, Measurement
from segnode_contract.identity import derived_uid
from segnode_worker.imprint import VERIFIED_BY_NOBODY, ascii_text, concept
from segnode_worker.measures import measure, unit
from segnode_worker.segmentation import (
    ResultIdentity,
    algorithm_family,
    tracking_id,
    tracking_uid,
)
from segnode_worker.stack import Stack

_LONGEST = 1024
_SIDES = {getattr(codes.cid244, name).value for name in codes.cid244.dir()}
_PROCEDURES = {
    "CT": codes.cid100.CTUnspecifiedBodyRegion,
    "MR": codes.cid100.MRIUnspecifiedBodyRegion,
    "PT": codes.cid100.PETUnspecifiedBodyRegion,
}
_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")


def content_of(
    stack: Stack, card: Card, findings: Findings, identity: ResultIdentity
) -> sr.MeasurementReport:
    """Return the content of a report, as `report.report` says."""
    modality = _modality(stack)
    made = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=_device(card, identity)),
        procedure_reported=_PROCEDURES.get(modality, codes.cid100.ImagingProcedure),
        imaging_measurements=[_group(s, stack, card, findings, identity) for s in card.segments],
    )
    evaluations = sr.ContainerContentItem(_EVALUATIONS, relationship_type="CONTAINS")
    evaluations.ContentSequence = sr.ContentSequence(list(_about_all(card, findings)))
    made[0].ContentSequence.append(evaluations)
    for container in (made[0], *made[0].ContentSequence):
        if container.ValueType == "CONTAINER":
            container.ContinuityOfContent = "SEPARATE"
    return made


def _modality(stack: Stack) -> str:
    return str(stack.sources[0].header.Modality)


def _device(card: Card, identity: ResultIdentity) -> sr.ObserverContext:
    """Say that a device observed this, and no person (TID 1004)."""
    return sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid(identity.node_id, "node"),
            name="segnode",
            manufacturer_name="segnode",
            model_name=ascii_text(card.name),
            serial_number=ascii_text(identity.node_id),
        ),
    )


def _group(
    segment: Segment, stack: Stack, card: Card, findings: Findings, identity: ResultIdentity
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    own = [m for m in findings.measurements if m.segment == segment.number]
    modality = _modality(stack)
    group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            identifier=tracking_id(segment, card, identity), uid=tracking_uid(segment, identity)
        ),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=identity.form.storage,
            sop_instance_uid=identity.uid("seg"),
            segment_number=segment.number,
            source_series=sr.SourceSeriesForSegmentation(stack.sources[0].series_uid),
        ),
        finding_category=concept(segment.category),
        finding_type=concept(segment.type),
        finding_sites=_sites(segment),
        algorithm_id=sr.AlgorithmIdentification(
            name=ascii_text(card.name),
            version=ascii_text(card.version),
            manufacturer="segnode",
            family=algorithm_family(card),
            parameters=[f"digest=sha256:{identity.model_digest}"],
        ),
        measurements=[_number(m, modality) for m in own if _is_number(m)],
    )
    group[0].ContinuityOfContent = "SEPARATE"
    items = [*group[0].ContentSequence]
    items += [_unmeasured(m, modality) for m in own if not _is_number(m)]
    items += [_comment(text) for text in _about(segment, findings)]
    # programs that do not know the class of the SEG skip what comes after the reference to it
    items.sort(key=lambda item: item.ValueType == "IMAGE")
    group[0].ContentSequence = sr.ContentSequence(items)
    return group


def _is_number(measurement: Measurement) -> bool:
    return measurement.value is not None and math.isfinite(measurement.value)


def _sites(segment: Segment) -> list[sr.FindingSite] | None:
    """Return where the segment lies, for those of which the card says more than their kind.

    A site has one laterality and one modifier at most, and there may be several sites (TID 1411).
    """
    if not segment.modifiers:
        return None
    sides: list[sr.CodedConcept | None] = []
    others: list[sr.CodedConcept | None] = []
    for modifier in segment.modifiers:
        (sides if modifier.value in _SIDES else others).append(concept(modifier))
    return [
        sr.FindingSite(
            anatomic_location=concept(segment.type), laterality=side, topographical_modifier=other
        )
        for side, other in product(sides or [None], others or [None])
    ]


def _number(measurement: Measurement, modality: str) -> sr.Measurement:
    """Return a measured value (TID 300)."""
    what = measure(measurement.name, modality)
    return sr.Measurement(
        name=what.name,
        value=float(measurement.value or 0),
        unit=unit(measurement.unit),
        derivation=what.derivation,
        method=what.method,
    )


def _unmeasured(measurement: Measurement, modality: str) -> sr.CodeContentItem:
    """Return what was not measurable, and why, as an evaluation.

    It says in words of CID 42 what a NUM without a value would say in its qualifier. Such a NUM is
    what PS3.3 C.18.1 provides, but highdicom up to 0.28 can open no report that holds one.
    """
    what = measure(measurement.name, modality)
    item = sr.CodeContentItem(what.name, codes.cid42.MeasurementFailure, "CONTAINS")
    item.ContentSequence = sr.ContentSequence()
    if what.derivation is not None:
        item.ContentSequence.append(
            sr.CodeContentItem(codes.DCM.Derivation, what.derivation, "HAS CONCEPT MOD")
        )
    reason = measurement.reason or "Not measurable."
    item.ContentSequence.append(_comment(reason, "HAS PROPERTIES"))
    return item


def _about(segment: Segment, findings: Findings) -> Iterator[str]:
    """Give what a reader must know of a segment, its name first."""
    yield f"Segment {segment.number}: {segment.label}"
    withheld = [w.reason for w in findings.withheld if w.segment == segment.number]
    yield from (f"Left out: {reason}" for reason in withheld)
    marked = (m.reason for m in findings.marked if m.segment == segment.number)
    yield from (f"Shown, but in doubt: {reason}" for reason in marked)
    own = [m for m in findings.measurements if m.segment == segment.number]
    # viewers may show the children of a group only, and not what is below these
    reasons = dict.fromkeys(m.reason for m in own if not _is_number(m))
    yield from (reason for reason in reasons if reason and reason not in withheld)
    if not withheld and any(m.name == "Volume" and m.value == 0 for m in own):
        yield "Not found in these images."


def _about_all(card: Card, findings: Findings) -> Iterator[sr.TextContentItem]:
    yield _comment(f"{VERIFIED_BY_NOBODY}.")
    yield from (_comment(f"Limitation of these images: {text}") for text in findings.limitations)
    yield from (_comment(f"Limitation of {card.name}: {text}") for text in card.limitations)


def _comment(text: str, relationship: str = "CONTAINS") -> sr.TextContentItem:
    return sr.TextContentItem(codes.DCM.Comment, ascii_text(text, _LONGEST), relationship)
