"""From findings to a structured report: the document, and all that it was made from."""

from __future__ import annotations

import warnings
from datetime import datetime

from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from segnode_contract.card import Card
from segnode_contract.findings import Findings
from segnode_worker.imprint import ascii_text, by_series, nobody, set_dates, written
from segnode_worker.measures import PRIVATE_SCHEME
from segnode_worker.report_content import content_of
from segnode_worker.segmentation import ResultIdentity, series_description, software_versions
from segnode_worker.stack import Stack

_AFTER_SEGMENTATIONS = 1000
"""Series Numbers of segmentations are 9000 to 9999, so that no report has that of another model's
segmentation, and all reports stand below them."""


def report(
    stack: Stack, card: Card, findings: Findings, identity: ResultIdentity, made_at: datetime
) -> bytes:
    """Return the measurements as a Part 10 file: Comprehensive 3D SR (PS3.3 A.35.13, TID 1500).

    The same arguments give the same bytes. Every segment of the card has its group (TID 1411),
    which refers to it in the SEG of the same `identity` and carries its tracking identifiers. What
    is left out, in doubt or absent says so in a comment; what holds of the result as a whole
    stands in the comments at the end.

    Raises
    ------
    BrokenInstance
        If patient or study of the images are of no kind that can be copied.
    """
    with warnings.catch_warnings():
        # pydicom's warnings quote values, which may be a patient's
        warnings.simplefilter("ignore")
        content = content_of(stack, card, findings, identity)
        head = _head(stack, card, identity, content)
        set_dates(head, made_at)
        return written(head, stack.sources[0].header)


def _head(
    stack: Stack, card: Card, identity: ResultIdentity, content: sr.MeasurementReport
) -> Dataset:
    """Let highdicom write all but the content, which it would copy three times.

    The patient is not shown to it, and need not be valid.
    """
    empty = sr.ContainerContentItem(codes.cid7021.ImagingMeasurementReport)
    empty.ContentSequence = sr.ContentSequence()
    made = sr.Comprehensive3DSR(
        evidence=[_segmentation(stack, identity)],
        content=empty,
        series_instance_uid=identity.uid("sr-series"),
        series_number=identity.series_number + _AFTER_SEGMENTATIONS,
        sop_instance_uid=identity.uid("sr"),
        instance_number=1,
        manufacturer="segnode",
        manufacturer_model_name=ascii_text(card.name),
        software_versions="segnode",
        device_serial_number=ascii_text(identity.node_id),
        is_complete=True,
        content_qualification="RESEARCH",
        coding_schemes=[PRIVATE_SCHEME],
        series_description=series_description(card, identity, "report"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set=None,
    )
    head = Dataset(made)
    head.preamble, head.file_meta = made.preamble, made.file_meta
    head.SoftwareVersions = software_versions(card, identity)
    head.update(content[0])
    head.CurrentRequestedProcedureEvidenceSequence = [_evidence(stack, identity)]
    return head


def _segmentation(stack: Stack, identity: ResultIdentity) -> Dataset:
    """Return what highdicom must know of the SEG, which the groups refer to."""
    segmentation = nobody()
    segmentation.SOPClassUID = identity.form.storage
    segmentation.SOPInstanceUID = identity.uid("seg")
    segmentation.SeriesInstanceUID = identity.uid("series")
    segmentation.StudyInstanceUID = stack.sources[0].header.StudyInstanceUID
    return segmentation


def _evidence(stack: Stack, identity: ResultIdentity) -> Dataset:
    """Name the SEG and every image that the report is made from (PS3.3 C.17.2)."""
    segmentation = (identity.uid("series"), identity.uid("seg"), identity.form.storage)
    images = ((s.series_uid, s.uid, s.class_uid) for s in stack.sources)
    study = Dataset()
    study.StudyInstanceUID = stack.sources[0].header.StudyInstanceUID
    study.ReferencedSeriesSequence = by_series([segmentation, *images], "ReferencedSOPSequence")
    return study
