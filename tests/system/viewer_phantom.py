"""A study whose picture is known in millimetres: two CT series, their segmentations, a localizer.

The body is an ellipse. In the first series a red marker lies left and anterior in the upper half, a
green one right and posterior in the lower half; in the second a blue one lies right and anterior,
in the red one's slices, so that an overlay on the wrong series is seen.
Everything is LPS: x grows to the patient's left, y to posterior, z to the head.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from segnode_cli.ct_series import as_file
from segnode_contract.findings import Findings
from segnode_contract.form import Form
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.stack import stack_series

from ..worker.many_segments import card_of

BODY_MM = (120.0, 80.0)
"""Half axes of the body: left to right, front to back."""
SIZE, SPACING_MM, SLICES, SLICE_MM = 128, 2.5, 20, 4.0
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 60, 255)


@dataclass(frozen=True, kw_only=True)
class Marker:
    name: str
    colour: tuple[int, int, int]
    centre_mm: tuple[float, float, float]
    radius_mm: float = 24.0


LEFT_FRONT = Marker(name="Left front, upper", colour=RED, centre_mm=(60.0, -30.0, 16.0))
RIGHT_BACK = Marker(name="Right back, lower", colour=GREEN, centre_mm=(-50.0, 25.0, -20.0))
RIGHT_FRONT = Marker(name="Right front", colour=BLUE, centre_mm=(-55.0, -25.0, 8.0))
FIRST = Marker(name="First", colour=RED, centre_mm=(60.0, -30.0, 26.0), radius_mm=11.0)
LAST = Marker(name="Last", colour=BLUE, centre_mm=(-55.0, -25.0, 2.0), radius_mm=11.0)
MIDDLE = Marker(name="Middle", colour=GREEN, centre_mm=(-50.0, 25.0, -22.0), radius_mm=11.0)


@dataclass(frozen=True, kw_only=True)
class Study:
    study_uid: str
    localizer: Dataset
    first: list[Dataset]
    second: list[Dataset]
    first_seg: Dataset
    second_seg: Dataset

    @property
    def instances(self) -> list[Dataset]:
        return [self.localizer, *self.first, *self.second, self.first_seg, self.second_seg]

    def overlays(self) -> list[dict[str, str]]:
        """Return the ledger's answer for this study."""
        return [overlay_of(self.first_seg), overlay_of(self.second_seg)]


def overlay_of(seg: Dataset, model: str = "markers", version: str = "1.0") -> dict[str, str]:
    """Return what the ledger says of a result."""
    return {
        "series_uid": str(seg.ReferencedSeriesSequence[0].SeriesInstanceUID),
        "seg_series_uid": str(seg.SeriesInstanceUID),
        "model": model,
        "version": version,
        "route": "any CT",
    }


def make_study() -> Study:
    """Make one study in one frame of reference, with UIDs of its own."""
    study_uid, frame_of_reference_uid = generate_uid(), generate_uid()
    localizer = _series(study_uid, frame_of_reference_uid, 1, "Localizer", slices=1)[0]
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    first = _series(study_uid, frame_of_reference_uid, 2, "First CT")
    second = _series(study_uid, frame_of_reference_uid, 3, "Second CT")
    return Study(
        study_uid=study_uid,
        localizer=localizer,
        first=first,
        second=second,
        first_seg=segmentation(first, [LEFT_FRONT, RIGHT_BACK], 102),
        second_seg=segmentation(second, [RIGHT_FRONT], 103),
    )


@dataclass(frozen=True, kw_only=True)
class LabelMapStudy:
    """One CT series and a label map of ours, in which all but the markers is grey."""

    images: list[Dataset]
    seg: bytes
    seg_series_uid: str
    markers: dict[int, Marker]
    """By segment number; no two lie in one slice."""
    names: list[str]
    """Of all segments, in the order of their numbers."""

    @property
    def study_uid(self) -> str:
        return str(self.images[0].StudyInstanceUID)

    def overlays(self) -> list[dict[str, str]]:
        """Return the ledger's answer for this study."""
        return [
            {
                "series_uid": str(self.images[0].SeriesInstanceUID),
                "seg_series_uid": self.seg_series_uid,
                "model": "many-parts",
                "version": "1.0",
                "route": "any CT",
            }
        ]


def make_label_map_study(count: int) -> LabelMapStudy:
    """Make a study with so many segments, as our own writer writes them."""
    images = _series(generate_uid(), generate_uid(), 2, f"{count} segments")
    stack = stack_series([as_file(image) for image in images])
    markers = {1: FIRST, count: LAST} | ({count // 2: MIDDLE} if count > 2 else {})
    card = card_of(
        count,
        names={number: marker.name for number, marker in markers.items()},
        colours={number: _cielab(marker.colour) for number, marker in markers.items()},
    )
    y, x = np.meshgrid(_axis(SIZE, SPACING_MM), _axis(SIZE, SPACING_MM), indexing="ij")
    labels = np.zeros((1, *stack.values.shape), np.uint8)
    for place, source in enumerate(stack.sources):
        for segment in card.segments:
            marker = markers.get(segment.number)
            if marker is None:  # a pixel of each in every slice
                down, right = divmod(segment.number, 50)
                labels[0, place, 62 + down, 38 + right] = segment.value
                continue
            cx, cy, cz = marker.centre_mm
            square = (x - cx) ** 2 + (y - cy) ** 2 + (source.position[2] - cz) ** 2
            labels[0, place][square <= marker.radius_mm**2] = segment.value
    identity = ResultIdentity(
        job_key=generate_uid(), model_digest="0" * 64, node_id="1", form=Form.LABELMAP
    )
    parts = encode(stack, labels, card, Findings(), identity, datetime(2026, 1, 2))
    return LabelMapStudy(
        images=images,
        seg=b"".join(parts),
        seg_series_uid=identity.uid("series"),
        markers=markers,
        names=[segment.label for segment in card.segments],
    )


def _cielab(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    lightness, a, b = hd.color.CIELabColor.from_rgb(*colour).value
    return lightness, a, b


def _series(
    study_uid: str, frame_of_reference_uid: str, number: int, description: str, slices: int = SLICES
) -> list[Dataset]:
    x, y = np.meshgrid(_axis(SIZE, SPACING_MM), _axis(SIZE, SPACING_MM))
    body = (x / BODY_MM[0]) ** 2 + (y / BODY_MM[1]) ** 2 <= 1
    stored = np.where(body, 1064, 24).astype(np.uint16)  # 40 and -1000 HU
    whole = _series_attributes(number, description)
    whole.StudyInstanceUID, whole.FrameOfReferenceUID = study_uid, frame_of_reference_uid
    whole.PixelData = stored.tobytes()
    return [_slice(whole, index) for index in range(slices)]


def _axis(count: int, step_mm: float) -> NDArray[np.float64]:
    """Return positions around 0."""
    return (np.arange(count) - (count - 1) / 2) * step_mm


def _series_attributes(number: int, description: str) -> Dataset:
    whole = Dataset()
    whole.SOPClassUID, whole.SeriesInstanceUID = CTImageStorage, generate_uid()
    whole.PatientName, whole.PatientID = "PHANTOM^VIEWER", "VIEWER"
    whole.PatientBirthDate, whole.PatientSex = "", "O"
    whole.StudyDate, whole.StudyTime = "20260102", "101112"
    whole.AccessionNumber = whole.ReferringPhysicianName = ""
    whole.StudyID, whole.StudyDescription = "1", "Two series & a localizer"
    whole.PositionReferenceIndicator = whole.Manufacturer = ""
    whole.Modality, whole.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    whole.SeriesNumber, whole.SeriesDescription = number, description
    whole.AcquisitionNumber, whole.KVP = 1, None
    whole.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    whole.PixelSpacing, whole.SliceThickness = [SPACING_MM, SPACING_MM], SLICE_MM
    whole.Rows = whole.Columns = SIZE
    whole.SamplesPerPixel, whole.PhotometricInterpretation = 1, "MONOCHROME2"
    whole.BitsAllocated, whole.BitsStored, whole.HighBit = 16, 16, 15
    whole.PixelRepresentation = 0
    whole.RescaleIntercept, whole.RescaleSlope, whole.RescaleType = -1024, 1, "HU"
    whole.WindowCenter, whole.WindowWidth = 0, 400
    return whole


def _slice(whole: Dataset, index: int) -> Dataset:
    image = deepcopy(whole)
    image.SOPInstanceUID, image.InstanceNumber = generate_uid(), index + 1
    corner = float(_axis(SIZE, SPACING_MM)[0])
    image.ImagePositionPatient = [corner, corner, float(_axis(SLICES, SLICE_MM)[index])]
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    return image


def segmentation(images: list[Dataset], markers: list[Marker], number: int) -> Dataset:
    """Return the segmentation of one series with these markers."""
    x = _axis(SIZE, SPACING_MM)
    z, y, x = np.meshgrid(_axis(SLICES, SLICE_MM), x, x, indexing="ij")
    labels = np.zeros(z.shape, np.uint8)
    for value, marker in enumerate(markers, 1):
        cx, cy, cz = marker.centre_mm
        inside = (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 <= marker.radius_mm**2
        labels[inside] = value
    return hd.seg.Segmentation(
        source_images=images,
        pixel_array=labels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(n, marker) for n, marker in enumerate(markers, 1)],
        series_instance_uid=generate_uid(),
        series_number=number,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="segnode",
        manufacturer_model_name="phantom",
        software_versions="1",
        device_serial_number="1",
        series_description=f"Markers of series {images[0].SeriesNumber}",
    )


def _description(number: int, marker: Marker) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=marker.name,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Nodule,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        display_color=hd.color.CIELabColor.from_rgb(*marker.colour),
    )
