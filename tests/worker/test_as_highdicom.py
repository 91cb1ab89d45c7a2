"""What the frames' own writer writes is what highdicom would have written, element by element."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from io import BytesIO

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import DataElement, Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.card import Card
from segnode_contract.findings import Findings
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.stack import stack_series

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
    labels = _labels(card, stack.values.shape)
    ours = dcmread(
        BytesIO(b"".join(encode(stack, labels, card, Findings(), identity, datetime(2026, 2, 3))))
    )
    by_uid = {image.SOPInstanceUID: image for image in images}
    theirs = _by_highdicom([by_uid[s.uid] for s in stack.sources], labels, card, ours)
    assert ours.NumberOfFrames == theirs.NumberOfFrames
    # highdicom 0.28.2 pads with a digit 0, where PS3.5 6.2 has a zero byte
    bits = (ours.NumberOfFrames * ours.Rows * ours.Columns + 7) // 8
    assert ours.PixelData[:bits] == theirs.PixelData[:bits]
    assert ours.PixelData[bits:] == bytes(bits % 2)
    pairs = zip(
        ours.PerFrameFunctionalGroupsSequence, theirs.PerFrameFunctionalGroupsSequence, strict=True
    )
    shared = theirs.SharedFunctionalGroupsSequence[0]
    for place, (our_frame, their_frame) in enumerate(pairs):
        if count == 1:  # it stands in the shared groups there, where OHIF does not look for it
            their_frame.SegmentIdentificationSequence = shared.SegmentIdentificationSequence
        assert list(_flat(our_frame)) == list(_flat(their_frame)), place
    different = {
        keyword
        for keyword in set(ours.dir()) | set(theirs.dir())
        if _said(ours, keyword) != _said(theirs, keyword)
    }
    assert different <= OUR_OWN | ({"SharedFunctionalGroupsSequence"} if count == 1 else set())
    pointers = [[d.DimensionIndexPointer for d in s.DimensionIndexSequence] for s in (ours, theirs)]
    assert pointers[0] == pointers[1]


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
    images: list[Dataset], labels: NDArray[np.uint8], card: Card, ours: Dataset
) -> Dataset:
    """Write the same by highdicom alone; its segments are described as ours are."""
    masks = [labels[segment.plane] == segment.value for segment in card.segments]
    made = hd.seg.Segmentation(
        source_images=images,
        pixel_array=np.stack(masks, axis=-1).astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[
            hd.seg.SegmentDescription.from_dataset(item) for item in ours.SegmentSequence
        ],
        series_instance_uid=ours.SeriesInstanceUID,
        series_number=ours.SeriesNumber,
        sop_instance_uid=ours.SOPInstanceUID,
        instance_number=1,
        manufacturer="segnode",
        manufacturer_model_name=card.name,
        software_versions="1",
        device_serial_number="node-1",
        content_label=ours.ContentLabel,
        content_description=ours.ContentDescription,
        content_qualification="RESEARCH",
        series_description=ours.SeriesDescription,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    stream = BytesIO()
    made.save_as(stream)
    return dcmread(BytesIO(stream.getvalue()))


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
