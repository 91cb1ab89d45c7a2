"""Other people's CT and MR series: a SEG that readers put on the right voxels, or a code.

The model finds what is brighter than a value of its own images, so that the truth of every slice
is known from the file of that slice alone.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut

from segnode_contract.card import Card
from segnode_contract.errors import SegnodeError
from segnode_worker.inputs import Fetched
from segnode_worker.result import Made, make_result
from segnode_worker.segmentation import ResultIdentity
from segnode_worker.spool import in_memory

from .brighter import Brighter

SEGIMAGE2ITKIMAGE = Path(sys.executable).with_name("segimage2itkimage")
SYNTAX = "CTImage.dcm_{}TransferSyntax_1.2.840.10008.1.2.{}.dcm"

SERIES = {  # folder, files
    "abdomen": ("ts-ct-built/dicom", "*.dcm"),
    "abdomen, MR": ("ts-mr-built/dicom", "*.dcm"),
    "oblique head, MR": ("datalad-mr", "*.dcm"),
    "three slices": ("dcmqi/segmentations/ct-3slice", "*.dcm"),
    "two slices": ("rt-utils/mock_data", "*"),
    "one slice": ("highdicom", "ct_image.dcm"),
    "five small slices": ("pydicom/files/98892001/CT5N", "*"),
    "overlays": ("pydicom/files", "examples_overlay.dcm"),
    "RLE": ("pydicom/files", "MR_small_RLE.dcm"),
    "big endian": ("pydicom/files", "MR_small_bigendian.dcm"),
    "padded": ("pydicom/files", "MR_small_padded.dcm"),
    "JPEG 2000": ("pydicom/files", "MR_small_jp2klossless.dcm"),
    "JPEG-LS": ("pydicom/files", "MR_small_jpeg_ls_lossless.dcm"),
    "deflated": ("cornerstone-ct-ts", SYNTAX.format("DeflatedExplicitVRLittleEndian", "1.99")),
    "JPEG lossless": ("cornerstone-ct-ts", SYNTAX.format("JPEGProcess14SV1", "4.70")),
    "JPEG baseline": ("cornerstone-ct-ts", SYNTAX.format("JPEGProcess1", "4.50")),
}
REFUSED = {
    "tilt and gaps, of no gap in the card": ("qact-ge-tilt", "*.dcm", "missing-slice"),
    "no Hounsfield units": ("rt-utils/oriented_data", "*.dcm", "not-hounsfield"),
    "nor in frames": ("dcmqi/segmentations/23x38x3/multiframe", "*.dcm", "not-hounsfield"),
    "parts of two places": ("pydicom/files/77654033/CT2", "*", "missing-slice"),
    "a localizer": ("pydicom/files/98892001/CT2N", "*", "localizer"),
    "seven directions": ("pydicom/files/98892003/MR700", "*", "several-stacks"),
    "cut short": ("pydicom/files", "MR_truncated.dcm", "truncated"),
    "progressive JPEG": (
        "cornerstone-ct-ts",
        SYNTAX.format("JPEGProcess10_12", "4.55"),
        "transfer-syntax",
    ),
}


def images_in(folder: Path, pattern: str) -> list[Dataset]:
    images = []
    for path in sorted(folder.glob(pattern)):
        try:
            image = dcmread(path)
        except (InvalidDicomError, IsADirectoryError):
            continue
        if image.get("Modality") in ("CT", "MR"):
            image.path = path
            images.append(image)
    assert images, f"no image in {folder}"
    return images


def made_of(images: Sequence[Dataset], files: Sequence[bytes], card: Card, value: float) -> Made:
    return make_result(
        Fetched(files=files),
        card=replace(card, modality=str(images[0].Modality), min_slices=1),
        models=Brighter(value),
        identity=ResultIdentity(job_key="ab" * 32, model_digest="cd" * 32, node_id="node-1"),
        made_at=datetime(2026, 2, 3),
        stage=lambda _: nullcontext(),
        keep=in_memory,
    )


def values_of(image: Dataset) -> NDArray[np.float64]:
    """Return modality values by pydicom alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of padding after the pixels
        return np.asarray(apply_modality_lut(image.pixel_array, image), np.float64)


@pytest.mark.parametrize(("folder", "pattern"), SERIES.values(), ids=SERIES.keys())
def test_readers_find_the_right_voxels(
    shared_data: Path, tmp_path: Path, folder: str, pattern: str, card: Card
) -> None:
    images = images_in(shared_data / folder, pattern)
    truth = {str(image.SOPInstanceUID): values_of(image) for image in images}
    value = float(np.percentile(np.stack(list(truth.values())), 70))
    made = made_of(images, [image.path.read_bytes() for image in images], card, value)
    seg = made.objects[0]
    (tmp_path / "seg.dcm").write_bytes(seg.data)
    masks = {uid: values > value for uid, values in truth.items()}
    _check_by_pydicom(tmp_path / "seg.dcm", masks, images)
    _check_by_highdicom(tmp_path / "seg.dcm", masks)
    _check_by_dcmqi(tmp_path, masks, images)


def _check_by_pydicom(
    path: Path, masks: Mapping[str, NDArray[np.bool_]], images: Sequence[Dataset]
) -> None:
    """Compare each frame with the image that lies where the frame says that it does."""
    seg = dcmread(path)
    places = {_place(image): str(image.SOPInstanceUID) for image in images}
    frames = np.atleast_3d(seg.pixel_array.T).T
    found: dict[str, NDArray[np.bool_]] = defaultdict(lambda: np.zeros(frames.shape[1:], bool))
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 1:
            uid = places[_place(group.PlanePositionSequence[0])]
            assert uid not in found
            found[uid] = frame.astype(bool)
    assert all(np.array_equal(found[uid], mask) for uid, mask in masks.items())


def _place(image: Dataset) -> tuple[float, ...]:
    return tuple(round(float(mm), 3) for mm in image.ImagePositionPatient)


def _check_by_highdicom(path: Path, masks: Mapping[str, NDArray[np.bool_]]) -> None:
    pixels = hd.seg.segread(path).get_pixels_by_source_instance(
        list(masks), segment_numbers=[1], assert_missing_frames_are_empty=True
    )
    for plane, mask in zip(pixels[..., 0], masks.values(), strict=True):
        assert np.array_equal(plane.astype(bool), mask)


def _check_by_dcmqi(
    folder: Path, masks: Mapping[str, NDArray[np.bool_]], images: Sequence[Dataset]
) -> None:
    """Look up each image's place in the volume that dcmqi makes."""
    command = [SEGIMAGE2ITKIMAGE, "--inputDICOM", folder / "seg.dcm", "-t", "nrrd"]
    subprocess.run([*command, "--outputDirectory", folder], check=True, capture_output=True)
    volume = sitk.ReadImage(str(folder / "1.nrrd"))
    array = sitk.GetArrayFromImage(volume)
    assert array.sum() == sum(mask.sum() for mask in masks.values())
    for image in images:
        mask = masks[str(image.SOPInstanceUID)]
        if mask.any():
            corner = [float(mm) for mm in image.ImagePositionPatient]
            _, _, slice_ = volume.TransformPhysicalPointToIndex(corner)
            assert np.array_equal(array[slice_] > 0, mask)


@pytest.mark.parametrize(("folder", "pattern", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_others_are_refused_by_a_code(
    shared_data: Path, folder: str, pattern: str, code: str, card: Card
) -> None:
    images = images_in(shared_data / folder, pattern)
    with pytest.raises(SegnodeError) as refused:
        made_of(images, [image.path.read_bytes() for image in images], card, 0)
    assert refused.value.code == code
    assert refused.value.sentence.endswith(".")


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        ("rt-utils/oriented_data", "*.dcm"),
        ("dcmqi/segmentations/23x38x3/image", "*.dcm"),
        ("dcmqi/segmentations/24x38x3/image", "*.dcm"),
    ],
)
def test_what_lacked_units_only_lies_right_once_it_has_them(
    shared_data: Path, tmp_path: Path, folder: str, pattern: str, card: Card
) -> None:
    images = images_in(shared_data / folder, pattern)
    for image in images:
        image.RescaleType = "HU"
        image.FrameOfReferenceUID = image.get("FrameOfReferenceUID") or "1.2.3"
        image.StudyInstanceUID = images[0].StudyInstanceUID
    truth = {str(image.SOPInstanceUID): values_of(image) for image in images}
    value = float(np.percentile(np.stack(list(truth.values())), 50))
    seg = made_of(images, [_file(image) for image in images], card, value).objects[0]
    (tmp_path / "seg.dcm").write_bytes(seg.data)
    masks = {uid: values > value for uid, values in truth.items()}
    _check_by_pydicom(tmp_path / "seg.dcm", masks, images)
    _check_by_highdicom(tmp_path / "seg.dcm", masks)
    _check_by_dcmqi(tmp_path, masks, images)


def test_an_enhanced_image_lies_right_frame_by_frame(shared_data: Path, card: Card) -> None:
    """The same three slices as in ``23x38x3/image``, converted by others."""
    [image] = images_in(shared_data / "dcmqi/segmentations/23x38x3/multiframe", "*.dcm")
    values = image.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
    values.RescaleType = "HU"
    stored = image.pixel_array * float(values.RescaleSlope) + float(values.RescaleIntercept)
    seg = made_of([image], [_file(image)], card, float(np.percentile(stored, 50))).objects[0]
    read = hd.seg.Segmentation.from_dataset(dcmread(BytesIO(seg.data)))
    numbers = [1, 2, 3]
    pixels = read.get_pixels_by_source_frame(
        image.SOPInstanceUID,
        numbers,
        segment_numbers=[1],
        assert_missing_frames_are_empty=True,
    )
    assert np.array_equal(pixels[..., 0] > 0, stored > np.percentile(stored, 50))


def test_a_tilted_head_with_gaps_lies_on_its_slices(shared_data: Path, card: Card) -> None:
    """Bone and air are far apart, so that interpolation moves their borders little."""
    images = images_in(shared_data / "qact-ge-tilt", "*.dcm")
    takes = replace(card, largest_gap_mm=8.0)
    made = made_of(images, [image.path.read_bytes() for image in images], takes, -300)
    assert "18.5 degrees" in made.findings.limitations[0]
    assert "1.08 to 7.00 mm" in made.findings.limitations[1]
    seg = hd.seg.Segmentation.from_dataset(dcmread(BytesIO(made.objects[0].data)))
    uids = [str(image.SOPInstanceUID) for image in images]
    pixels = seg.get_pixels_by_source_instance(
        uids, segment_numbers=[1], assert_missing_frames_are_empty=True
    )
    for found, image in zip(pixels[..., 0] > 0, images, strict=True):
        truth = values_of(image) > -300
        overlap = 2 * (found & truth).sum() / (found.sum() + truth.sum())
        assert overlap > 0.97, image.ImagePositionPatient


def _file(image: Dataset) -> bytes:
    stream = BytesIO()
    image.save_as(stream)
    return stream.getvalue()


def every_series(folder: Path) -> Iterator[tuple[str, list[Dataset]]]:
    """Give the CT and MR series below a folder; each file of one that is there in many syntaxes."""
    groups: dict[tuple[str, str], list[Dataset]] = defaultdict(list)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            image = dcmread(path, stop_before_pixels=True)
        except (InvalidDicomError, OSError, ValueError, EOFError):
            continue
        if image.get("Modality") in ("CT", "MR"):
            alone = "cornerstone" in path.parts[-2] or path.parts[-2] == "files"
            place = str(path if alone else path.parent)
            image.path = path
            groups[place, str(image.get("SeriesInstanceUID"))].append(image)
    for (place, _), images in groups.items():
        yield place, images


def test_every_series_there_is_ends_in_a_proved_result_or_a_code(
    shared_data: Path, card: Card
) -> None:
    """`make_result` proves what it makes; here nothing else may be raised."""
    ended: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that are not as they should be
        for place, images in every_series(shared_data):
            try:
                made = made_of(images, [i.path.read_bytes() for i in images], card, 100.0)
            except SegnodeError as error:
                assert error.code, place
                ended[error.code] += 1
            else:
                assert {each.role.split()[0] for each in made.objects} == {"SEG", "SR"}, place
                ended["made"] += 1
    assert ended["made"] >= 35
    assert set(ended) <= {
        *("made", "missing-slice", "not-hounsfield", "localizer", "several-stacks"),
        *("truncated", "transfer-syntax", "bad-attribute", "geometry"),
    }
