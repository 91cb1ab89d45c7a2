"""What the frames' own writer writes is what highdicom would have written, element by element."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from io import BytesIO

import highdicom as hd
import numpy as np
import pytest
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom import DataElement, Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.card import Card, Code, Segment
from segnode_contract.findings import Findings
from segnode_contract.identity import derived_uid
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.stack import Stack, stack_series

from .odd_series import ball_series, corners, enhanced

SHAPES = [  # slices, rows, columns, segments, orientation
    (1, 8, 8, 1, "HPL"),
    (1, 7, 5, 1, "HPL"),
    (2, 3, 3, 2, "FPL"),
    (3, 16, 16, 1, "HPL"),
    (3, 16, 16, 5, "HPL"),
    (5, 9, 11, 3, "PFL"),
    (8, 17, 13, 5, "LPF"),
    (17, 10, 10, 4, "HAR"),
    (40, 31, 29, 5, "HPL"),
]
OUR_OWN = {
    # who made it and when, and a UID that is derived
    *("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"),
    *("SeriesDate", "SeriesTime", "SoftwareVersions", "ContributingEquipmentSequence"),
    *("DimensionOrganizationSequence", "DimensionIndexSequence"),
    # of type 2, so that it is there and empty
    "ContentCreatorName",
    # compared apart
    *("PerFrameFunctionalGroupsSequence", "PixelData"),
}


MADE_AT = datetime(2026, 2, 3)
LOSSY = {
    "LossyImageCompression": "01",
    "LossyImageCompressionRatio": [7.5],
    "LossyImageCompressionMethod": ["ISO_10918_1"],
}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_frames_and_head_are_those_of_highdicom(
    shape: tuple[int, int, int, int, str], card: Card, identity: ResultIdentity
) -> None:
    *size, count, orientation = shape
    card = replace(card, segments=card.segments[:count])
    images = ct_series(
        np.zeros(size, np.int16), spacing_mm=(3, 1.5, 1.25), orientation=orientation, seed="same"
    )
    stack = stack_series([as_file(image) for image in images])
    by_uid = {image.SOPInstanceUID: image for image in images}
    _compare(stack, [by_uid[s.uid] for s in stack.sources], card, identity)


@pytest.mark.parametrize("count", [1, 5])
def test_frames_of_a_multi_frame_image_are_referred_to_as_highdicom_does(
    count: int, card: Card, identity: ResultIdentity
) -> None:
    card = replace(card, segments=card.segments[:count])
    images = ball_series(corners([0, 12, 4, 20, 16, 8]))  # not in the order in which they lie
    whole = enhanced(images)
    stack = stack_series([as_file(whole)])
    assert [s.frame for s in stack.sources] != list(range(1, 7))
    ours = _compare(stack, [whole], card, identity)
    named = {
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for frame in ours.PerFrameFunctionalGroupsSequence
    }
    assert len(named) > 3
    assert named <= set(range(1, 7))


@pytest.mark.parametrize("whole", [False, True], ids=["single-frame", "multi-frame"])
def test_lossy_compression_of_the_images_is_said_as_by_highdicom(
    whole: bool, card: Card, identity: ResultIdentity
) -> None:
    images = ball_series(corners([0, 4, 8]))
    if whole:
        images = [enhanced(images)]
    for image in images:
        for keyword, value in LOSSY.items():
            setattr(image, keyword, value)
    stack = stack_series([as_file(image) for image in images])
    by_uid = {image.SOPInstanceUID: image for image in images}
    ours = _compare(
        stack, [by_uid[uid] for uid in dict.fromkeys(s.uid for s in stack.sources)], card, identity
    )
    assert {keyword: _said(ours, keyword) for keyword in LOSSY} == {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": [7.5],
        "LossyImageCompressionMethod": "ISO_10918_1",
    }


def _compare(stack: Stack, images: list[Dataset], card: Card, identity: ResultIdentity) -> Dataset:
    """Compare our segmentation with highdicom's, and return ours."""
    labels = _labels(card, stack.values.shape)
    pieces = encode(stack, labels, card, Findings(), identity, MADE_AT)
    ours = dcmread(BytesIO(b"".join(pieces)))
    in_order = labels
    if stack.sources[0].frame is not None:  # highdicom wants them as the frames of the image are
        in_order = labels[:, np.argsort([s.frame for s in stack.sources])]
    theirs = _by_highdicom(images, in_order, card, identity)
    assert ours.NumberOfFrames == theirs.NumberOfFrames
    # highdicom 0.28.2 pads with a digit 0, where PS3.5 6.2 has a zero byte
    bits = (ours.NumberOfFrames * ours.Rows * ours.Columns + 7) // 8
    assert ours.PixelData[:bits] == theirs.PixelData[:bits]
    assert ours.PixelData[bits:] == bytes(bits % 2)
    pairs = zip(
        ours.PerFrameFunctionalGroupsSequence, theirs.PerFrameFunctionalGroupsSequence, strict=True
    )
    shared = theirs.SharedFunctionalGroupsSequence[0]
    one = len(card.segments) == 1
    for place, (our_frame, their_frame) in enumerate(pairs):
        if one:  # it stands in the shared groups there, where OHIF does not look for it
            their_frame.SegmentIdentificationSequence = shared.SegmentIdentificationSequence
        assert list(_flat(our_frame)) == list(_flat(their_frame)), place
    different = {
        keyword
        for keyword in set(ours.dir()) | set(theirs.dir())
        if _said(ours, keyword) != _said(theirs, keyword)
    }
    assert different <= OUR_OWN | ({"SharedFunctionalGroupsSequence"} if one else set())
    pointers = [[d.DimensionIndexPointer for d in s.DimensionIndexSequence] for s in (ours, theirs)]
    assert pointers[0] == pointers[1]
    return ours


def _labels(card: Card, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return noise, in which some segments lack in some slices."""
    rng = np.random.default_rng(sum(shape))
    labels = np.zeros((2, *shape), np.uint8)
    for segment in card.segments:
        here = rng.random(shape) < 0.3
        here[rng.random(shape[0]) < 0.3] = False
        here[0, 0, 0] = True
        labels[segment.plane][here] = segment.value
    for number, segment in enumerate(card.segments):  # the last may have hidden the others
        labels[segment.plane, 0, 1, number] = segment.value
    return labels


def _by_highdicom(
    images: list[Dataset], labels: NDArray[np.uint8], card: Card, identity: ResultIdentity
) -> Dataset:
    """Write the same by highdicom alone, from the card."""
    masks = [labels[segment.plane] == segment.value for segment in card.segments]
    made = hd.seg.Segmentation(
        source_images=images,
        pixel_array=np.stack(masks, axis=-1).astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[_described(segment, card) for segment in card.segments],
        series_instance_uid=derived_uid(identity.job_key, "series"),
        series_number=9000,
        sop_instance_uid=derived_uid(identity.job_key, "seg"),
        instance_number=1,
        manufacturer="segnode",
        manufacturer_model_name="test-tissue",
        software_versions="1",
        device_serial_number="node-1",
        content_label="TEST_TISSUE",
        content_description="Made by a machine, for research; verified by nobody",
        content_qualification="RESEARCH",
        series_description="AI test-tissue v1.2 - unverified, research",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    stream = BytesIO()
    made.save_as(stream)
    return dcmread(BytesIO(stream.getvalue()))


def _described(segment: Segment, card: Card) -> hd.seg.SegmentDescription:
    """Describe a segment as its card does, and none of our modules."""
    lightness, *others = segment.colour  # PS3.3 C.10.7.1.1
    colour = CIELabColor(lightness * 100 / 65535, *(v * 255 / 65535 - 128 for v in others))
    description = hd.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.label,
        segmented_property_category=_coded(segment.category),
        segmented_property_type=_coded(segment.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="test-tissue",
            version="1.2",
            family=codes.cid7162.MorphologicalOperations,
            source="segnode",
            parameters={"digest": f"sha256:{'cd' * 32}"},
        ),
        tracking_id=f"test-tissue/{segment.number}/{'ab' * 8}",
        tracking_uid=derived_uid("ab" * 32, f"tracking/{segment.number}"),
        display_color=colour,
    )
    if segment.modifiers:  # which highdicom 0.28.2 has no argument for
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_coded(m) for m in segment.modifiers]
    return description


def _coded(code: Code) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _flat(dataset: Dataset) -> Iterator[tuple[str, object]]:
    """Give every element, those of nested items too, in the order in which they stand."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield (element.keyword, "item")
                yield from _flat(item)
        else:
            yield (element.keyword, _plain(element))


def _plain(element: DataElement) -> object:
    if element.VR == "DS":
        values = element.value if element.VM > 1 else [element.value]
        return [round(float(value), 6) for value in values]
    return element.value


def _said(dataset: Dataset, keyword: str) -> object:
    if keyword not in dataset:
        return None
    element = dataset[keyword]
    if element.VR == "SQ":
        return [list(_flat(item)) for item in element.value]
    return _plain(element)
