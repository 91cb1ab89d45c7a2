"""A CT series made in code: for the demo, and for tests that know the answer in millimetres."""

from __future__ import annotations

import uuid
from copy import deepcopy
from datetime import datetime
from io import BytesIO

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from segnode_contract.identity import derived_uid


def ct_volume(
    hu: NDArray[np.int16],
    *,
    spacing_mm: tuple[float, float, float],
    rotation: NDArray[np.float64] | None = None,
) -> hd.Volume:
    """Place Hounsfield units in the patient, with the middle of the volume at the origin.

    Parameters
    ----------
    hu
        Shape ``(slices, rows, columns)``: towards head, posterior and left.
    spacing_mm
        Distance of neighbours along slices, rows and columns.
    rotation
        Turns the volume about the origin, shape ``(3, 3)``, LPS; none where absent.
    """
    axes = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]) * spacing_mm
    turned = axes if rotation is None else rotation @ axes
    affine = np.eye(4)
    affine[:3, :3] = turned
    affine[:3, 3] = -turned @ ((np.array(hu.shape) - 1) / 2)
    return hd.Volume(hu, affine, coordinate_system="PATIENT")


def ct_series(
    hu: NDArray[np.int16],
    *,
    spacing_mm: tuple[float, float, float],
    rotation: NDArray[np.float64] | None = None,
    orientation: str = "HPL",
    seed: str | None = None,
    taken_at: datetime = datetime(2026, 1, 1, 12),
    patient_name: str = "Phantom^Chest",
    patient_id: str = "PHANTOM",
    character_set: str = "ISO_IR 192",
    study_description: str = "Phantom",
    series_description: str = "Phantom made in code",
    series_number: int = 1,
    body_part: str = "CHEST",
    contrast_agent: str | None = None,
    slope: float = 1,
    intercept: float = -1024,
    signed: bool = False,
    bits_stored: int = 16,
    transfer_syntax: str = ExplicitVRLittleEndian,
) -> list[Dataset]:
    """Return CT Image Storage instances (PS3.3 A.3) of a volume.

    Parameters
    ----------
    hu, spacing_mm, rotation
        As for `ct_volume`.
    orientation
        How the scanner cuts it: towards what slices, rows and columns grow. ``HPL`` is axial from
        the feet up, ``FPL`` from the head down, ``PFL`` coronal, ``LPF`` sagittal.
    seed
        The same one gives the same UIDs for study, series and instances; fresh ones where absent.
    slope, intercept, signed, bits_stored
        How the values are stored: those that do not fit are cut off.
    transfer_syntax
        A native one, or one that an installed plugin of pydicom can encode.
    """
    key = seed or str(uuid.uuid4())
    volume = ct_volume(hu, spacing_mm=spacing_mm, rotation=rotation)
    volume = volume.to_patient_orientation(orientation)
    series = _series(volume, key, taken_at)
    series.SpecificCharacterSet = character_set
    series.PatientName = patient_name
    series.PatientID = patient_id
    series.StudyDescription = study_description
    series.SeriesDescription = series_description
    series.SeriesNumber = series_number
    series.BodyPartExamined = body_part
    if contrast_agent is not None:
        series.ContrastBolusAgent = contrast_agent
    series.RescaleSlope, series.RescaleIntercept = slope, intercept
    series.PixelRepresentation = int(signed)
    series.BitsStored, series.HighBit = bits_stored, bits_stored - 1
    return [
        _instance(
            series,
            voxels,
            number=number,
            position=plane[0].ImagePositionPatient,
            key=key,
            transfer_syntax=transfer_syntax,
        )
        for number, (voxels, plane) in enumerate(
            zip(volume.array, volume.get_plane_positions(), strict=True), 1
        )
    ]


def as_file(instance: Dataset) -> bytes:
    """Return an instance as a Part 10 file."""
    stream = BytesIO()
    dcmwrite(stream, instance, enforce_file_format=True)
    return stream.getvalue()


def _series(volume: hd.Volume, key: str, taken_at: datetime) -> Dataset:
    """Return what all instances have in common."""
    series = Dataset()
    series.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    series.SOPClassUID = CTImageStorage
    for what in ("Study", "Series", "Acquisition", "Content"):
        setattr(series, f"{what}Date", taken_at.strftime("%Y%m%d"))
        setattr(series, f"{what}Time", taken_at.strftime("%H%M%S"))
    series.AccessionNumber = "1"
    series.Modality = "CT"
    series.Manufacturer = "segnode"
    series.ManufacturerModelName = "phantom"
    series.ReferringPhysicianName = ""
    series.PatientBirthDate = "19700101"
    series.PatientSex = "O"
    series.KVP = 120
    series.ConvolutionKernel = "STANDARD"
    series.PatientPosition = "HFS"
    series.StudyInstanceUID = derived_uid(key, "study")
    series.SeriesInstanceUID = derived_uid(key, "series")
    series.StudyID = "1"
    series.AcquisitionNumber = 1
    series.FrameOfReferenceUID = derived_uid(key, "frame of reference")
    series.PositionReferenceIndicator = ""
    plane = volume.get_plane_orientation()[0]
    series.ImageOrientationPatient = plane.ImageOrientationPatient
    series.PixelSpacing = [DSfloat(mm, auto_format=True) for mm in volume.pixel_spacing]
    series.SliceThickness = DSfloat(volume.spacing_between_slices, auto_format=True)
    series.SamplesPerPixel = 1
    series.PhotometricInterpretation = "MONOCHROME2"
    series.Rows, series.Columns = volume.spatial_shape[1:]
    series.BitsAllocated = 16
    series.RescaleType = "HU"
    return series


def _instance(
    series: Dataset,
    hu: NDArray[np.int16],
    *,
    number: int,
    position: list[float],
    key: str,
    transfer_syntax: str,
) -> Dataset:
    instance = deepcopy(series)
    instance.SOPInstanceUID = derived_uid(key, f"instance/{number}")
    instance.InstanceNumber = number
    instance.ImagePositionPatient = position
    instance.PixelData = _stored(hu, series)
    instance["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance.file_meta = meta
    if transfer_syntax != ExplicitVRLittleEndian:
        instance.compress(transfer_syntax, generate_instance_uid=False)
    return instance


def _stored(hu: NDArray[np.int16], series: Dataset) -> bytes:
    """Return the stored values (PS3.3 C.11.1.1.2), 16 bits each, without a sign in spare bits."""
    values = np.rint((hu - float(series.RescaleIntercept)) / float(series.RescaleSlope))
    signed, bits = series.PixelRepresentation == 1, series.BitsStored
    lowest = -(1 << (bits - 1)) if signed else 0
    highest = lowest + (1 << bits) - 1
    whole = values.clip(lowest, highest).astype(np.int64) & ((1 << bits) - 1)
    stored: bytes = whole.astype("<u2").tobytes()
    return stored
