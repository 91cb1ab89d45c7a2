"""From label planes to a DICOM Segmentation: all segments of a card in one object."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless
from pydicom.valuerep import DSfloat

from segnode_contract.card import Card, Segment
from segnode_contract.findings import Findings
from segnode_contract.form import Form
from segnode_contract.identity import derived_uid
from segnode_worker.frames import binary_body, element
from segnode_worker.imprint import (
    VERIFIED_BY_NOBODY,
    ascii_text,
    by_series,
    concept,
    nobody,
    set_dates,
    written,
)
from segnode_worker.labelmap import labelmap_body
from segnode_worker.stack import Source, Stack

SERIES_NUMBERS = 9000
"""Results are numbered from here, below the images in a viewer's list."""

_PER_FRAME_GROUPS = 0x52009230
_LOSSY = (
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultIdentity:
    """Who made a result, and under which identity."""

    job_key: str
    model_digest: str
    node_id: str
    form: Form = Form.BINARY
    """Of the segmentation, as the job was made for it."""
    series_number: int = SERIES_NUMBERS
    stack: int = 1
    stacks: int = 1
    """Which of how many stacks of its series a result is of."""
    node_version: str = field(default_factory=lambda: version("segnode"))

    def role(self, kind: str) -> str:
        """Return what an object is to its job: one SEG or SR, or one of each stack."""
        return kind if self.stack == 1 else f"{kind} {self.stack}"

    def uid(self, role: str) -> str:
        """Return the UID of `role`, as of `derived_uid`, for this stack."""
        return derived_uid(self.job_key, role if self.stack == 1 else f"{role}/stack-{self.stack}")


def encode(  # noqa: PLR0917 - the arguments follow the road of a job
    stack: Stack,
    labels: NDArray[np.uint8],
    card: Card,
    findings: Findings,
    identity: ResultIdentity,
    made_at: datetime,
) -> Iterator[bytes]:
    """Give the segmentation as a Part 10 file, piece by piece (PS3.3 A.51, C.8.20).

    The same arguments give the same bytes. Every segment of the card is listed under its number;
    one that the model left out, or did not find, has no frames and says so in its description. A
    segment left out, or in doubt, says so in its label too, since that is what viewers show. Where
    nothing at all was found there is one empty frame, since an object must have one.

    A label map has its background as a last item, number 0 (PS3.3 C.8.20.2.3.3).

    Parameters
    ----------
    stack
        The images.
    labels
        Shape ``(planes, slices, rows, columns)``, on the slices of `stack`.
    card, findings
        Of the model that made the labels.
    identity
        Decides every UID of the object.
    made_at
        Written as the date of content, series and instance, in the zone that it has.

    Raises
    ------
    BrokenInstance
        If patient or study of the images are of no kind that can be copied.
    ModelFailed
        If there are voxels of a segment that `findings` says was left out.
    """
    withheld = {item.segment: item.reason for item in findings.withheld}
    body_of = labelmap_body if identity.form is Form.LABELMAP else binary_body
    with warnings.catch_warnings():
        # pydicom's warnings quote values, which may be a patient's
        warnings.simplefilter("ignore")
        body = body_of(labels, card, withheld, stack.sources)
        head = _head(stack, card, _descriptions(body.found, card, findings, identity), identity)
        set_dates(head, made_at)
        head.SegmentsOverlap = "YES" if _overlap(labels) else "NO"
        head.NumberOfFrames = body.frames
        start = written(head, stack.sources[0].header)
    # both tags are higher than any of the head, so that they stand at the file's end
    yield start
    yield from element(_PER_FRAME_GROUPS, b"SQ", sum(map(len, body.groups)), body.groups)
    yield from body.pixel_data


def _head(
    stack: Stack,
    card: Card,
    descriptions: Sequence[hd.seg.SegmentDescription],
    identity: ResultIdentity,
) -> Dataset:
    """Let highdicom write all but the frames, from an object of one frame.

    It sees the geometry of one image, and not the patient, whose attributes need not be valid.
    """
    spacing_mm = stack.plane.slice_spacing_mm
    one_frame = np.zeros((1, stack.plane.rows, stack.plane.columns), np.uint8)
    one_frame[0, 0, 0] = 1
    made = hd.seg.Segmentation(
        source_images=[_geometry_of(stack)],
        pixel_array=one_frame,
        segmentation_type=identity.form,
        segment_descriptions=descriptions,
        series_instance_uid=identity.uid("series"),
        series_number=identity.series_number,
        sop_instance_uid=identity.uid("seg"),
        instance_number=1,
        manufacturer="segnode",
        manufacturer_model_name=ascii_text(card.name),
        software_versions="segnode",
        device_serial_number=ascii_text(identity.node_id),
        content_label=card.content_label,
        content_description=VERIFIED_BY_NOBODY,
        content_qualification="RESEARCH",
        series_description=series_description(card, identity),
        transfer_syntax_uid=(
            RLELossless if identity.form is Form.LABELMAP else ExplicitVRLittleEndian
        ),
        specific_character_set=None,
    )
    head = Dataset(made)
    head.preamble, head.file_meta = made.preamble, made.file_meta
    head.ContentCreatorName = None  # of type 2, PS3.3 table 10-12
    head.SoftwareVersions = software_versions(card, identity)
    del head.PerFrameFunctionalGroupsSequence, head.PixelData
    shared = head.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]
    measures.pop("SpacingBetweenSlices", None)
    if spacing_mm is not None:
        measures.SpacingBetweenSlices = DSfloat(spacing_mm, auto_format=True)
    # highdicom puts these there where there is one segment
    shared.pop("SegmentIdentificationSequence", None)
    head.pop("DimensionOrganizationType", None)
    if identity.form is Form.LABELMAP:
        # highdicom puts the background first, and OHIF 3.13.2 then gives each segment the colour
        # of the one before it; the standard wants an item of every pixel value, in no order
        background, *segments = head.SegmentSequence
        head.SegmentSequence = [*segments, background]
        head["PixelPaddingValue"].VR = "US"  # pydicom finds out where there are pixels only
    _refer_to(stack.sources, head)
    dimensions = identity.uid("dimensions")
    for item in (*head.DimensionOrganizationSequence, *head.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    return head


def _geometry_of(stack: Stack) -> Dataset:
    """Return a single-frame image of the same geometry, whatever the images themselves are."""
    header, plane = stack.sources[0].header, stack.plane
    image = nobody()
    for keyword in _LOSSY:
        if keyword in header:
            image[keyword] = header[keyword]
    image.SOPClassUID = CTImageStorage
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"):
        setattr(image, keyword, header[keyword].value)
    image.FrameOfReferenceUID = stack.volume.frame_of_reference_uid
    image.Rows, image.Columns = plane.rows, plane.columns
    image.ImagePositionPatient = _decimals(stack.sources[0].position)
    image.ImageOrientationPatient = _decimals(plane.orientation)
    image.PixelSpacing = _decimals(plane.spacing_mm)
    image.SliceThickness = _decimals([plane.thickness_mm or stack.volume.spacing_between_slices])[0]
    return image


def _decimals(values: Sequence[float]) -> list[DSfloat]:
    return [DSfloat(value, auto_format=True) for value in values]


def _refer_to(sources: Sequence[Source], head: Dataset) -> None:
    """Name every image (PS3.3 C.12.2); viewers find the images of a result by this."""
    head.ReferencedSeriesSequence = by_series(
        ((s.series_uid, s.uid, s.class_uid) for s in sources),
        "ReferencedInstanceSequence",
    )
    head.SourceImageSequence = [
        image
        for series in head.ReferencedSeriesSequence
        for image in series.ReferencedInstanceSequence
    ]


def _descriptions(
    found: Set[int],
    card: Card,
    findings: Findings,
    identity: ResultIdentity,
) -> list[hd.seg.SegmentDescription]:
    withheld = {item.segment: item.reason for item in findings.withheld}
    marked = {item.segment: item.reason for item in findings.marked}
    descriptions = []
    for segment in card.segments:
        number = segment.number
        description = _description(segment, card, identity)
        if number in withheld:
            description.SegmentLabel = ascii_text(segment.label, 51) + " (left out)"
            description.SegmentDescription = ascii_text(withheld[number], 1024)
        elif number in marked:
            description.SegmentLabel = ascii_text(segment.label, 50) + " (implausible)"
            description.SegmentDescription = ascii_text(marked[number], 1024)
        elif number not in found:
            description.SegmentDescription = "Not found in these images."
        descriptions.append(description)
    return descriptions


def _description(
    segment: Segment, card: Card, identity: ResultIdentity
) -> hd.seg.SegmentDescription:
    algorithm = hd.AlgorithmIdentificationSequence(
        name=ascii_text(card.name),
        version=ascii_text(card.version),
        family=algorithm_family(card),
        source="segnode",
        parameters={"digest": f"sha256:{identity.model_digest}"},
    )
    description = hd.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=ascii_text(segment.label),
        segmented_property_category=concept(segment.category),
        segmented_property_type=concept(segment.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_id=tracking_id(segment, card, identity),
        tracking_uid=tracking_uid(segment, identity),
    )
    description.RecommendedDisplayCIELabValue = list(segment.colour)
    if segment.modifiers:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [concept(m) for m in segment.modifiers]
    return description


def algorithm_family(card: Card) -> Code:
    """Return what kind of algorithm a model is (PS3.16 CID 7162)."""
    family: Code = (
        codes.cid7162.MorphologicalOperations
        if card.kind == "builtin"
        else codes.cid7162.ArtificialIntelligence
    )
    return family


def software_versions(card: Card, identity: ResultIdentity) -> list[str]:
    """Return what made a result: the node, the model, and the model's bytes."""
    model = ascii_text(f"{card.name} {card.version}")
    return [f"segnode {identity.node_version}", model, identity.model_digest[:16]]


def tracking_id(segment: Segment, card: Card, identity: ResultIdentity) -> str:
    """Return the Tracking ID of a segment, the same in every object of a result."""
    return f"{ascii_text(card.name)}/{segment.number}/{identity.job_key[:16]}"


def tracking_uid(segment: Segment, identity: ResultIdentity) -> str:
    """Return the Tracking UID of a segment, the same in every object of a result."""
    return identity.uid(f"tracking/{segment.number}")


def series_description(card: Card, identity: ResultIdentity, what: str = "") -> str:
    """Return the Series Description of an object, which says `what` it is where that is given."""
    tail = f"{what and ' ' + what} - unverified, research"
    if identity.stacks > 1:
        tail = f" (stack {identity.stack} of {identity.stacks}){tail}"
    return ascii_text(f"AI {card.name} v{card.version}", 64 - len(tail)) + tail


def _overlap(labels: NDArray[np.uint8]) -> bool:
    """Return whether any voxel lies in segments of two planes."""
    return len(labels) > 1 and any(
        np.count_nonzero(labels[:, number], axis=0).max() > 1 for number in range(labels.shape[1])
    )
