"""The encoded result as other people's programs see it, and as the standard wants it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.errors import BrokenInstance, ModelFailed
from segnode_contract.findings import Findings, Withheld
from segnode_contract.identity import derived_uid
from segnode_worker.proof import prove
from segnode_worker.segmentation import encode
from segnode_worker.stack import stack_series

MADE_AT = datetime(2026, 2, 3, 4, 5, 6)
DCIODVFY = Path("/usr/bin/dciodvfy")
SEGIMAGE2ITKIMAGE = Path(sys.executable).with_name("segimage2itkimage")


def read(data):
    return dcmread(BytesIO(data))


def errors_by_dciodvfy(data, folder):
    if not DCIODVFY.exists():
        pytest.skip("dciodvfy is not installed; `make test` installs it (dicom3tools)")
    path = folder / "object.dcm"
    path.write_bytes(data)
    run = subprocess.run([DCIODVFY, "-new", path], capture_output=True, text=True, check=False)
    lines = (run.stdout + run.stderr).splitlines()
    return {line for line in lines if line.startswith("Error")}


def planes_by_dcmqi(data, folder):
    """Return the mask of each segment, shape (slices, rows, columns), and its place in LPS."""
    path = folder / "seg.dcm"
    path.write_bytes(data)
    subprocess.run(
        [SEGIMAGE2ITKIMAGE, "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd"],
        check=True,
        capture_output=True,
    )
    masks = {}
    for image_path in folder.glob("*.nrrd"):
        image = sitk.ReadImage(str(image_path))
        values = sitk.GetArrayFromImage(image)
        for number in np.unique(values[values > 0]):
            masks[int(number)] = (values == number, image)
    return masks


@pytest.mark.parametrize("orientation", ["HPL", "FPL", "PFL", "LPF"])
def test_dciodvfy_finds_no_error(hu, card, identity, orientation, tmp_path):
    images = ct_series(hu, spacing_mm=(3, 1.5, 1.25), orientation=orientation, seed="check")
    files = [as_file(image) for image in images]
    assert errors_by_dciodvfy(files[0], tmp_path) == set()
    stack = stack_series(files)
    labels = np.stack([stack.volume.array > -500, (stack.volume.array == 1000) * 3])
    data = b"".join(encode(stack, labels.astype(np.uint8), card, Findings(), identity, MADE_AT))
    assert errors_by_dciodvfy(data, tmp_path) == set()


def test_dcmqi_reads_the_same_voxels(made, tmp_path):
    masks = planes_by_dcmqi(made.data, tmp_path)
    assert set(masks) == {1, 2, 3, 4}
    for segment in made.card.segments[:4]:
        mask, image = masks[segment.number]
        truth = made.labels[segment.plane] == segment.value
        assert mask.sum() == truth.sum()
        assert centroid_by_itk(mask, image) == pytest.approx(centroid(truth, made.stack))


def centroid_by_itk(mask, image):
    slices, rows, columns = np.argwhere(mask).mean(axis=0)
    return image.TransformContinuousIndexToPhysicalPoint((columns, rows, slices))


def centroid(mask, stack):
    index = np.argwhere(mask).mean(axis=0, keepdims=True)
    return tuple(stack.volume.map_indices_to_reference(index)[0])


def test_a_real_abdomen_is_read_by_dcmqi_voxel_by_voxel(shared_data, card, identity, tmp_path):
    folder = shared_data / "ts-ct-built" / "dicom"
    files = [path.read_bytes() for path in folder.glob("*.dcm")]
    stack = stack_series(files)
    hu = stack.volume.array
    labels = np.zeros((2, *hu.shape), np.uint8)
    labels[0] = hu > -300
    labels[1][(hu > -190) & (hu < -30)] = 1
    labels[1][hu > 150] = 3
    data = b"".join(encode(stack, labels, card, Findings(), identity, MADE_AT))
    prove(data, stack, labels, card, Findings())
    assert errors_by_dciodvfy(data, tmp_path) <= errors_by_dciodvfy(files[0], tmp_path)
    masks = planes_by_dcmqi(data, tmp_path)
    for number, truth in {1: labels[0] == 1, 2: labels[1] == 1, 4: labels[1] == 3}.items():
        # ITK orders slices to the head, the stack to the feet
        assert np.array_equal(masks[number][0], truth[::-1])


def test_highdicom_reads_the_same_voxels(made):
    seg = hd.seg.Segmentation.from_dataset(read(made.data))
    uids = [source.uid for source in made.stack.sources]
    pixels = seg.get_pixels_by_source_instance(uids)
    for segment in made.card.segments:
        truth = made.labels[segment.plane] == segment.value
        assert np.array_equal(pixels[..., segment.number - 1], truth)


def test_the_same_arguments_give_the_same_bytes(made, identity):
    again = b"".join(encode(made.stack, made.labels, made.card, made.findings, identity, MADE_AT))
    assert again == made.data


def test_only_frames_with_voxels_are_written(made):
    present = sum(
        bool((values == segment.value).any())
        for segment in made.card.segments
        for values in made.labels[segment.plane]
    )
    assert read(made.data).NumberOfFrames == present


@pytest.mark.parametrize("columns", [25, 26, 27, 29])
def test_frames_need_not_fill_whole_bytes(hu, card, identity, columns):
    narrow = np.pad(hu, [(0, 0), (0, 0), (0, 4)], constant_values=-1000)[:, :19, :columns]
    stack = stack_series([as_file(i) for i in ct_series(narrow, spacing_mm=(3, 1.5, 1.25))])
    values = stack.volume.array
    labels = np.stack([values > -500, (values == 1000) * 3]).astype(np.uint8)
    data = b"".join(encode(stack, labels, card, Findings(), identity, MADE_AT))
    prove(data, stack, labels, card, Findings())
    assert read(data).pixel_array.sum() == (labels > 0).sum()


def test_it_says_what_made_it_and_that_nobody_checked_it(made, identity):
    seg = read(made.data)
    assert (seg.Manufacturer, seg.ManufacturerModelName) == ("segnode", "test-tissue")
    assert seg.DeviceSerialNumber == "node-1"
    assert list(seg.SoftwareVersions)[1:] == ["test-tissue 1.2", "cd" * 8]
    assert seg.ContentQualification == "RESEARCH"
    assert seg.ContentLabel == "TEST_TISSUE"
    assert seg.SeriesDescription == "AI test-tissue v1.2 - unverified, research"
    assert seg.SeriesNumber == 9000
    assert (seg.ContentDate, seg.SeriesTime) == ("20260203", "040506.000000")
    assert seg.SOPInstanceUID == derived_uid(identity.job_key, "seg")
    assert seg.SeriesInstanceUID == derived_uid(identity.job_key, "series")
    assert seg.SegmentsOverlap == "YES"


def test_every_segment_has_its_name_codes_colour_and_algorithm(made, identity):
    seg = read(made.data)
    right_lung = seg.SegmentSequence[1]
    kind = right_lung.SegmentedPropertyTypeCodeSequence[0]
    assert (right_lung.SegmentNumber, right_lung.SegmentLabel) == (2, "Right lung")
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("39607008", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
    assert list(right_lung.RecommendedDisplayCIELabValue) == [20000, 40000, 30000]
    assert right_lung.TrackingUID == derived_uid(identity.job_key, "tracking/2")
    algorithm = right_lung.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("test-tissue", "1.2")
    assert "cd" * 32 in algorithm.AlgorithmParameters


def test_every_image_is_referred_to_and_every_frame_names_its_own(made):
    seg = read(made.data)
    (series,) = seg.ReferencedSeriesSequence
    sources = [source.header for source in made.stack.sources]
    assert series.SeriesInstanceUID == sources[0].SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == {
        source.SOPInstanceUID for source in sources
    }
    by_uid = {source.SOPInstanceUID: source for source in sources}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        source = by_uid[image.ReferencedSOPInstanceUID]
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        assert list(position) == list(source.ImagePositionPatient)


def test_frames_are_indexed_by_segment_and_place_along_the_normal(made):
    seg = read(made.data)
    frames = seg.PerFrameFunctionalGroupsSequence
    heights = [float(f.PlanePositionSequence[0].ImagePositionPatient[2]) for f in frames]
    ranks = {height: i for i, height in enumerate(sorted(set(heights), reverse=True), 1)}
    for frame, height in zip(frames, heights, strict=True):
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        indices = list(frame.FrameContentSequence[0].DimensionIndexValues)
        assert indices == [number, ranks[height]]


def test_segments_that_do_not_overlap_say_so(made, identity):
    labels = made.labels.copy()
    labels[0] = 0
    data = b"".join(encode(made.stack, labels, made.card, made.findings, identity, MADE_AT))
    assert read(data).SegmentsOverlap == "NO"


def test_a_segment_that_was_not_found_keeps_its_number_and_says_so(made):
    air = read(made.data).SegmentSequence[4]
    assert (air.SegmentNumber, air.SegmentLabel) == (5, "Air")
    assert air.SegmentDescription == "Not found in these images."


def test_a_segment_left_out_says_so_in_its_label_and_why_in_its_description(made, identity):
    labels = made.labels.copy()
    labels[1][labels[1] == 3] = 0
    findings = Findings(withheld=(Withheld(segment=4, reason="Contrast is likely – é."),))
    data = b"".join(encode(made.stack, labels, made.card, findings, identity, MADE_AT))
    prove(data, made.stack, labels, made.card, findings)
    bone = read(data).SegmentSequence[3]
    assert bone.SegmentLabel == "Bone (left out)"
    assert bone.SegmentDescription == "Contrast is likely - e."


def test_voxels_of_a_segment_left_out_are_the_models_fault(made, identity):
    findings = Findings(withheld=(Withheld(segment=4, reason="Contrast is likely."),))
    with pytest.raises(ModelFailed, match="segment 4"):
        b"".join(encode(made.stack, made.labels, made.card, findings, identity, MADE_AT))


@pytest.mark.parametrize("left_out", [(), (1,), (1, 2, 3, 4, 5)], ids=str)
def test_an_empty_result_has_one_empty_frame(made, identity, left_out, tmp_path):
    findings = Findings(withheld=tuple(Withheld(segment=n, reason="No.") for n in left_out))
    nothing = np.zeros_like(made.labels)
    data = b"".join(encode(made.stack, nothing, made.card, findings, identity, MADE_AT))
    prove(data, made.stack, nothing, made.card, findings)
    seg = read(data)
    assert seg.NumberOfFrames == 1
    assert not seg.pixel_array.any()
    assert errors_by_dciodvfy(data, tmp_path) == set()


def test_a_card_of_one_segment_is_written_too(made, identity, tmp_path):
    card = replace(made.card, segments=made.card.segments[:1], planes=1)
    labels = made.labels[:1]
    data = b"".join(encode(made.stack, labels, card, made.findings, identity, MADE_AT))
    prove(data, made.stack, labels, card, made.findings)
    assert errors_by_dciodvfy(data, tmp_path) == set()
    assert np.array_equal(planes_by_dcmqi(data, tmp_path)[1][0].sum(), labels.sum())


def result_of(hu, card, identity, **attributes):
    """Encode the phantom with raw attributes, bytes and all."""
    images = ct_series(hu, spacing_mm=(3, 1.5, 1.25), character_set="ISO_IR 100")
    files = []
    for image in images:
        for keyword, value in attributes.items():
            setattr(image, keyword, value)
        files.append(as_file(image))
    stack = stack_series(files)
    labels = np.zeros((2, *hu.shape), np.uint8)
    labels[0] = stack.volume.array > -500
    data = b"".join(encode(stack, labels, card, Findings(), identity, MADE_AT))
    prove(data, stack, labels, card, Findings())
    return files[0], data


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Buc^Jérôme"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("ISO_IR 192", "<script>alert(1)</script>"),
    ],
    ids=["Latin", "UTF-8", "Japanese", "Cyrillic", "script"],
)
def test_the_patients_name_stays_in_its_own_character_set(hu, card, identity, character_set, name):
    source, data = result_of(
        hu, card, identity, SpecificCharacterSet=character_set, PatientName=name
    )
    assert read(data).SpecificCharacterSet == character_set
    assert str(read(data).PatientName) == name
    assert read(data).get_item("PatientName").value == read(source).get_item("PatientName").value


def test_a_name_that_its_character_set_cannot_decode_stays_what_it_was(hu, card, identity):
    image = ct_series(hu, spacing_mm=(3, 1.5, 1.25), patient_name="Mueller^Jane")[0]
    stack = stack_series([as_file(image).replace(b"Mueller^Jane", b"M\xfcller^J\xffne!")])
    labels = np.ones((2, *stack.volume.shape), np.uint8)
    data = b"".join(encode(stack, labels, card, Findings(), identity, MADE_AT))
    assert read(data).SpecificCharacterSet == "ISO_IR 192"
    assert b"M\xfcller^J\xffne!" in data


def test_a_patient_that_cannot_be_copied_is_the_images_fault(hu, card, identity):
    image = as_file(ct_series(hu, spacing_mm=(3, 1.5, 1.25))[0])
    physician = b"\x08\x00\x90\x00PN\x00\x00"
    assert physician in image
    stack = stack_series([image.replace(physician, physician.replace(b"PN", b"P9"))])
    labels = np.ones((2, *stack.volume.shape), np.uint8)
    with pytest.raises(BrokenInstance, match="cannot be copied"):
        b"".join(encode(stack, labels, card, Findings(), identity, MADE_AT))


def test_study_and_patient_are_copied_whatever_they_hold(hu, card, identity):
    source, data = result_of(
        hu,
        card,
        identity,
        AccessionNumber="A 17",
        StudyID="S 4",
        PatientID="=cmd|' /C calc'!A0",
        StudyDescription="Thorax",
        PatientAge="055Y",
    )
    for keyword in ("AccessionNumber", "StudyID", "PatientID", "StudyDescription", "PatientAge"):
        assert read(data)[keyword].value == read(source)[keyword].value
    assert read(data).FrameOfReferenceUID == read(source).FrameOfReferenceUID


def test_what_the_images_lack_is_empty_where_the_standard_wants_it(hu, card, identity, tmp_path):
    images = ct_series(hu, spacing_mm=(3, 1.5, 1.25))
    for image in images:
        del image.PatientID, image.StudyDate, image.AccessionNumber, image.StudyDescription
        del image.SpecificCharacterSet, image.SliceThickness, image.PatientSex
    stack = stack_series([as_file(image) for image in images])
    labels = np.ones((2, *hu.shape), np.uint8)
    data = b"".join(encode(stack, labels, card, Findings(), identity, MADE_AT))
    assert not read(data).PatientID
    assert "StudyDescription" not in read(data)
    assert errors_by_dciodvfy(data, tmp_path) == set()


def test_lossy_images_make_a_result_that_says_so(hu, card, identity):
    lossy = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": 7.5,
        "LossyImageCompressionMethod": "ISO_10918_1",
    }
    _, data = result_of(hu, card, identity, **lossy)
    for keyword, value in lossy.items():
        assert read(data)[keyword].value == value


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("swin-unetr-btcv-segmentation", "SWIN_UNETR_BTCV"),
        ("3d-spleen", "M_3D_SPLEEN"),
        ("123", "M_123"),
        ("liver-", "LIVER"),
        ("-", "M"),
        ("Niere (links) 2.0", "NIERE_LINKS_2_0"),
    ],
)
def test_every_models_name_gives_a_content_label(made, identity, name, label):
    card = replace(made.card, name=name)
    data = b"".join(encode(made.stack, made.labels, card, made.findings, identity, MADE_AT))
    assert read(data).ContentLabel == label


def test_long_names_are_cut_to_what_the_standard_holds(made, identity):
    card = replace(made.card, name="a-model-with-a-name-" * 4, version="2026.11.24+long" * 3)
    data = b"".join(encode(made.stack, made.labels, card, made.findings, identity, MADE_AT))
    description = read(data).SeriesDescription
    assert len(description) <= 64
    assert description.endswith(" - unverified, research")
