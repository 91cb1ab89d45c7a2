"""What a SEG must hold (PS3.3 A.51.3), as one table, on other people's series.

A row fails with its attribute, so that the table can be read against the standard.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.uid import SegmentationStorage

from segnode_contract.card import Card

from .test_fixtures import SERIES, images_in, made_of

DCIODVFY = Path("/usr/bin/dciodvfy")

Rule = Callable[[Dataset, Dataset, str], bool]


def same(seg: Dataset, image: Dataset, keyword: str) -> bool:
    """As the image has it, byte by byte; empty where the image lacks it."""
    return _bytes(seg, keyword) == _bytes(image, keyword) and keyword in seg


def as_there(seg: Dataset, image: Dataset, keyword: str) -> bool:
    """As the image has it, and absent where the image lacks it."""
    return _bytes(seg, keyword) == _bytes(image, keyword) and (keyword in seg) == (keyword in image)


def filled(seg: Dataset, image: Dataset, keyword: str) -> bool:
    return keyword in seg and bool(seg[keyword].value)


def present(seg: Dataset, image: Dataset, keyword: str) -> bool:
    return keyword in seg


def is_(value: object) -> Rule:
    def rule(seg: Dataset, image: Dataset, keyword: str) -> bool:
        has = seg.get(keyword)
        return (list(has) if isinstance(value, list) else has) == value

    return rule


def _bytes(dataset: Dataset, keyword: str) -> bytes:
    if keyword not in dataset:
        return b""
    element = dataset.get_item(keyword)
    raw = element.value if isinstance(element, RawDataElement) else str(element.value).encode()
    return (raw or b"").rstrip(b" \0")


HEAD: dict[str, Rule] = {
    # Patient, General Study, Patient Study: M, M, U
    "SpecificCharacterSet": as_there,
    "PatientName": same,
    "PatientID": same,
    "IssuerOfPatientID": as_there,
    "PatientBirthDate": same,
    "PatientSex": same,
    "StudyInstanceUID": same,
    "StudyDate": same,
    "StudyTime": same,
    "StudyID": same,
    "AccessionNumber": same,
    "ReferringPhysicianName": same,
    "StudyDescription": as_there,
    "PatientAge": as_there,
    "PatientWeight": as_there,
    # General and Segmentation Series
    "Modality": is_("SEG"),
    "SeriesInstanceUID": filled,
    "SeriesNumber": is_(9000),
    "SeriesDescription": filled,
    # Frame of Reference
    "FrameOfReferenceUID": same,
    "PositionReferenceIndicator": same,
    # General and Enhanced General Equipment
    "Manufacturer": is_("segnode"),
    "ManufacturerModelName": is_("test-tissue"),
    "DeviceSerialNumber": is_("node-1"),
    "SoftwareVersions": filled,
    # General Image, Image Pixel, Segmentation Image
    "InstanceNumber": is_(1),
    "ImageType": is_(["DERIVED", "PRIMARY"]),
    "ContentDate": is_("20260203"),
    "ContentTime": filled,
    "SamplesPerPixel": is_(1),
    "PhotometricInterpretation": is_("MONOCHROME2"),
    "PixelRepresentation": is_(0),
    "BitsAllocated": is_(1),
    "BitsStored": is_(1),
    "HighBit": is_(0),
    "Rows": filled,
    "Columns": filled,
    "LossyImageCompression": filled,
    "SegmentationType": is_("BINARY"),
    "ContentLabel": is_("TEST_TISSUE"),
    "ContentDescription": filled,
    "ContentCreatorName": present,
    "SegmentsOverlap": is_("NO"),
    # Multi-frame Functional Groups, Multi-frame Dimension
    "NumberOfFrames": filled,
    "SharedFunctionalGroupsSequence": filled,
    "PerFrameFunctionalGroupsSequence": filled,
    "DimensionOrganizationSequence": filled,
    "DimensionIndexSequence": filled,
    # Common Instance Reference, SOP Common
    "ReferencedSeriesSequence": filled,
    "SOPClassUID": is_(SegmentationStorage),
    "SOPInstanceUID": filled,
    "InstanceCreationDate": is_("20260203"),
    "ContentQualification": is_("RESEARCH"),
    "ContributingEquipmentSequence": filled,
}
SEGMENT = [  # PS3.3 C.8.20.4, all of them filled
    *("SegmentNumber", "SegmentLabel", "SegmentedPropertyCategoryCodeSequence"),
    *("SegmentedPropertyTypeCodeSequence", "SegmentAlgorithmType", "SegmentAlgorithmName"),
    *("SegmentationAlgorithmIdentificationSequence", "TrackingID", "TrackingUID"),
    "RecommendedDisplayCIELabValue",
]
FRAME = [
    *("PlanePositionSequence", "FrameContentSequence", "SegmentIdentificationSequence"),
    "DerivationImageSequence",
]


@pytest.fixture(scope="module", params=SERIES.values(), ids=SERIES.keys())
def pair(
    request: pytest.FixtureRequest, shared_data: Path, card: Card
) -> tuple[Dataset, Dataset, bytes]:
    """The SEG, the first of its images in the order of the stack, and the SEG's file."""
    folder, pattern = request.param
    images = images_in(shared_data / folder, pattern)
    made = made_of(images, [image.path.read_bytes() for image in images], card, 50.0)
    seg = made.objects[0]
    read = dcmread(BytesIO(bytes(seg.data)))
    first = read.SourceImageSequence[0].ReferencedSOPInstanceUID
    [image] = [dcmread(i.path) for i in images if i.SOPInstanceUID == first]
    return read, image, bytes(seg.data)


def test_every_attribute_is_as_the_standard_wants_it(
    pair: tuple[Dataset, Dataset, bytes],
) -> None:
    seg, image, _ = pair
    wrong = [keyword for keyword, rule in HEAD.items() if not rule(seg, image, keyword)]
    assert wrong == []


def test_every_segment_and_frame_is_described(pair: tuple[Dataset, Dataset, bytes]) -> None:
    seg, image, _ = pair
    for item in seg.SegmentSequence:
        assert [k for k in SEGMENT if not filled(item, image, k)] == []
    for group in seg.PerFrameFunctionalGroupsSequence:
        assert [k for k in FRAME if not filled(group, image, k)] == []
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert filled(shared, image, "PixelMeasuresSequence")
    assert filled(shared, image, "PlaneOrientationSequence")
    indices = [tuple(i.DimensionIndexPointer for i in seg.DimensionIndexSequence)]
    assert indices == [(0x0062000B, 0x00200032)]


def test_dciodvfy_finds_nothing_that_it_does_not_find_in_the_image(
    pair: tuple[Dataset, Dataset, bytes], tmp_path: Path
) -> None:
    if not DCIODVFY.exists():
        pytest.skip("dciodvfy is not installed; `make test` installs it (dicom3tools)")
    _, image, file = pair
    (tmp_path / "seg.dcm").write_bytes(file)
    assert _errors(tmp_path / "seg.dcm") <= _errors(Path(image.filename))


def _errors(path: Path) -> set[str]:
    run = subprocess.run([DCIODVFY, "-new", path], capture_output=True, text=True, check=False)
    return {line for line in (run.stdout + run.stderr).splitlines() if line.startswith("Error")}
