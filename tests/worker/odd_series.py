"""Series of a ball in soft tissue, cut wherever a scanner may cut it, in single or many frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian

from segnode_cli.ct_series import ct_series

ROWS, COLUMNS = 48, 56
PIXEL_MM = (1.5, 1.25)  # of rows, of columns
CENTRE_MM = np.array([4.0, -3.0, 6.0])
RADIUS_MM = 16.0
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
INSIDE, OUTSIDE = 1000, 40


def corners(
    along_mm: Iterable[float],
    axes: Sequence[Sequence[float]] = AXIAL,
    tilt_degrees: float = 0.0,
) -> list[NDArray[np.float64]]:
    """Return the positions of slices at these places along their normal, towards the head.

    A tilted gantry shifts them along their columns, none at place 0.
    """
    row, column = np.array(axes)
    normal = np.cross(row, column)
    middle = row * PIXEL_MM[1] * (COLUMNS - 1) / 2 + column * PIXEL_MM[0] * (ROWS - 1) / 2
    shift = np.tan(np.radians(tilt_degrees))
    return [normal * mm + column * shift * mm - middle for mm in along_mm]


def ball_series(
    positions: Sequence[NDArray[np.float64]],
    axes: Sequence[Sequence[float]] = AXIAL,
    seed: str = "ball",
) -> list[Dataset]:
    """Return a CT image for each position; a voxel is of the ball if its centre is."""
    blank = np.full((len(positions), ROWS, COLUMNS), OUTSIDE, np.int16)
    images = ct_series(blank, spacing_mm=(4.0, *PIXEL_MM), seed=seed)
    for image, corner in zip(images, positions, strict=True):
        inside = truth(corner, axes)
        values = np.where(inside, INSIDE, OUTSIDE) + 1024
        image.PixelData = values.astype("<u2").tobytes()
        image.ImagePositionPatient = [round(float(mm), 6) for mm in corner]
        image.ImageOrientationPatient = [value for axis in axes for value in axis]
    return images


def truth(
    corner: NDArray[np.float64], axes: Sequence[Sequence[float]] = AXIAL
) -> NDArray[np.bool_]:
    """Return which pixels of a slice lie in the ball."""
    inside: NDArray[np.bool_] = np.linalg.norm(points(corner, axes) - CENTRE_MM, axis=2) < RADIUS_MM
    return inside


def points(corner: NDArray[np.float64], axes: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Return where each pixel's centre lies, shape ``(rows, columns, 3)`` (PS3.3 C.7.6.2.1.1)."""
    row, column = np.array(axes)
    down = np.arange(ROWS)[:, None, None] * PIXEL_MM[0] * column
    right = np.arange(COLUMNS)[None, :, None] * PIXEL_MM[1] * row
    found: NDArray[np.float64] = corner + down + right
    return found


def enhanced(images: Sequence[Dataset], modality: str = "CT") -> Dataset:
    """Return one multi-frame image with a frame for each image (PS3.3 A.38, A.36)."""
    first = images[0]
    whole = Dataset()
    for element in first:
        if element.keyword not in _OF_FRAMES:
            whole.add(element)
    whole.SOPClassUID = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
    whole.Modality = modality
    whole.SOPInstanceUID = f"{first.SOPInstanceUID[:50]}.1"
    whole.NumberOfFrames = len(images)
    whole.SharedFunctionalGroupsSequence = [_shared(first, modality)]
    whole.PerFrameFunctionalGroupsSequence = [_frame(image) for image in images]
    whole.PixelData = b"".join(image.PixelData for image in images)
    whole["PixelData"].VR = "OW"
    whole.file_meta = FileMetaDataset()
    whole.file_meta.MediaStorageSOPClassUID = whole.SOPClassUID
    whole.file_meta.MediaStorageSOPInstanceUID = whole.SOPInstanceUID
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return whole


_OF_FRAMES = {
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "PixelData", "SOPClassUID"),
    *("SOPInstanceUID", "InstanceNumber", "Modality"),
}


def _shared(image: Dataset, modality: str) -> Dataset:
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = image.PixelSpacing, image.SliceThickness
    plane = Dataset()
    plane.ImageOrientationPatient = image.ImageOrientationPatient
    values = Dataset()
    values.RescaleSlope, values.RescaleIntercept = image.RescaleSlope, image.RescaleIntercept
    values.RescaleType = "HU" if modality == "CT" else "US"
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [plane]
    shared.PixelValueTransformationSequence = [values]
    return shared


def _frame(image: Dataset) -> Dataset:
    position, content = Dataset(), Dataset()
    position.ImagePositionPatient = image.ImagePositionPatient
    content.StackID = "1"
    content.FrameAcquisitionNumber = 1
    frame = Dataset()
    frame.PlanePositionSequence = [position]
    frame.FrameContentSequence = [content]
    return frame
