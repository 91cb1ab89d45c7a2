"""A label map as other people's programs see it, and as the standard wants it (PS3.3 C.8.20.2)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from io import BytesIO

import highdicom as hd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import RLELossless

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.errors import ModelFailed
from segnode_contract.findings import Findings, Withheld
from segnode_contract.form import Form
from segnode_worker.archive import DicomWebArchive, confirm
from segnode_worker.inputs import PriorResult, labels_of
from segnode_worker.labelmap import run_lengths
from segnode_worker.proof import prove
from segnode_worker.report import report
from segnode_worker.segmentation import encode
from segnode_worker.stack import stack_series

from .conftest import Made
from .many_segments import boxes, card_of
from .odd_series import ball_series, corners, enhanced
from .test_segmentation import planes_by_dcmqi

MADE_AT = datetime(2026, 2, 3, 4, 5, 6)


def read(data):
    return dcmread(BytesIO(data))


def written(stack, labels, card, identity, findings=None, form=Form.LABELMAP):
    findings = findings or Findings()
    own = replace(identity, form=form)
    data = b"".join(encode(stack, labels, card, findings, own, MADE_AT))
    prove(data, stack, labels, card, findings)
    return Made(data, stack, labels, card, findings)


@pytest.fixture
def label_map(identity):
    """Return a function that makes one of so many segments, of such a shape."""

    def make(count, shape=(12, 33, 27), labels=None, findings=None, form=Form.LABELMAP):
        blank = np.full(shape, 40, np.int16)
        stack = stack_series([as_file(i) for i in ct_series(blank, spacing_mm=(3, 1.5, 1.25))])
        card = card_of(count)
        labels = boxes(card, shape) if labels is None else labels
        return written(stack, labels, card, identity, findings, form)

    return make


def numbers_of(made):
    """Return the labels as Segment Numbers."""
    numbers = np.zeros(256, np.uint8)
    for segment in made.card.segments:
        numbers[segment.value] = segment.number
    return numbers[made.labels[0]]


@pytest.mark.parametrize("count", [1, 2, 30, 104, 255])
def test_highdicom_reads_the_same_voxels(label_map, count):
    made = label_map(count)
    seg = hd.seg.Segmentation.from_dataset(read(made.data))
    assert list(seg.segment_numbers) == list(range(1, count + 1))
    pixels = seg.get_pixels_by_source_instance(
        [source.uid for source in made.stack.sources],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    assert pixels.any()
    assert np.array_equal(pixels, numbers_of(made))


@pytest.mark.parametrize("count", [2, 30, 104])
def test_dcmqi_reads_the_same_voxels(label_map, count, tmp_path):
    made = label_map(count)
    masks = planes_by_dcmqi(made.data, tmp_path)
    numbers = numbers_of(made)
    assert set(masks) == set(np.unique(numbers)) - {0}
    for number, (mask, image) in masks.items():
        voxels = np.argwhere(mask)[:, ::-1].astype(float)
        found = {image.TransformContinuousIndexToPhysicalPoint(v) for v in voxels.tolist()}
        meant = made.stack.volume.map_indices_to_reference(np.argwhere(numbers == number))
        assert len(found) == len(meant)
        assert np.allclose(sorted(found), sorted(map(tuple, meant)), atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(12, 33, 27), (12, 1, 1), (12, 1, 257), (12, 300, 129), (1, 33, 27)], ids=str
)
def test_any_shape_holds_its_voxels(label_map, shape):
    labels = np.random.default_rng(5).integers(1, 31, shape, np.uint8)[None]
    made = label_map(30, shape, labels)
    assert np.array_equal(read(made.data).pixel_array.reshape(shape), numbers_of(made))


@settings(deadline=None)
@given(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 5), st.integers(1, 300)),
        elements=st.sampled_from([0, 0, 0, 1, 127, 128, 255]),
    )
)
def test_run_lengths_are_what_pydicom_decodes(frame):
    rows, columns = frame.shape
    encoded = run_lengths(frame)
    assert len(encoded) % 2 == 0
    header = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56)
    decoded, _ = get_decoder(RLELossless).as_array(
        encapsulate([header + encoded]),
        rows=rows,
        columns=columns,
        samples_per_pixel=1,
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
        pixel_keyword="PixelData",
        decoding_plugin="pydicom",
        validate=False,  # which warns of a frame that is by chance as long as it was before
    )
    assert np.array_equal(decoded, frame)


def test_no_run_goes_on_into_the_next_row():
    encoded = run_lengths(np.zeros((3, 200), np.uint8))
    assert encoded == bytes([257 - 128, 0, 257 - 72, 0]) * 3


def test_the_head_says_that_it_is_a_label_map(label_map):
    seg = read(label_map(30).data)
    assert seg.SOPClassUID == seg.file_meta.MediaStorageSOPClassUID
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert seg.file_meta.TransferSyntaxUID == RLELossless
    assert (seg.SegmentationType, seg.SegmentsOverlap) == ("LABELMAP", "NO")
    assert (seg.BitsAllocated, seg.BitsStored, seg.HighBit) == (8, 8, 7)
    assert (seg.PixelPaddingValue, seg.PixelRepresentation) == (0, 0)
    assert seg.PhotometricInterpretation == "MONOCHROME2"
    assert seg.ContentQualification == "RESEARCH"
    assert "MaximumFractionalValue" not in seg


def test_the_background_is_the_last_of_the_segments(label_map):
    items = read(label_map(30).data).SegmentSequence
    assert [item.SegmentNumber for item in items] == [*range(1, 31), 0]
    kind = items[-1].SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("125040", "DCM")
    assert items[-1].SegmentLabel == "Background"


def test_each_slice_with_voxels_has_one_frame_and_names_its_image(label_map):
    made = label_map(30)
    seg = read(made.data)
    held = [n for n, values in enumerate(made.labels[0]) if values.any()]
    assert len(held) == 9
    assert seg.NumberOfFrames == len(held)
    assert [index.DimensionIndexPointer for index in seg.DimensionIndexSequence] == [0x00200032]
    for rank, (place, frame) in enumerate(
        zip(held, seg.PerFrameFunctionalGroupsSequence, strict=True), 1
    ):
        source = made.stack.sources[place]
        [image] = frame.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPInstanceUID == source.uid
        assert list(frame.PlanePositionSequence[0].ImagePositionPatient) == list(source.position)
        assert frame.FrameContentSequence[0].DimensionIndexValues == rank
        assert "SegmentIdentificationSequence" not in frame
    assert len(list(generate_fragments(seg.PixelData))) == 1 + len(held)  # and the empty table


def test_the_same_arguments_give_the_same_bytes(label_map, identity):
    first = label_map(30)
    assert written(first.stack, first.labels, first.card, identity).data == first.data


def test_segments_that_were_not_found_keep_their_numbers_and_say_so(label_map):
    shape = (6, 8, 8)
    labels = np.zeros((1, *shape), np.uint8)
    labels[0, 2, 3:5, 3:5] = 1  # the value of segment 30
    seg = read(label_map(30, shape, labels).data)
    said = [item.get("SegmentDescription") for item in seg.SegmentSequence]
    assert said == ["Not found in these images."] * 29 + [None, None]
    assert seg.NumberOfFrames == 1
    assert set(np.unique(seg.pixel_array)) == {0, 30}


@pytest.mark.parametrize("left_out", [(), (1,), tuple(range(1, 31))], ids=len)
def test_an_empty_result_has_one_empty_frame(label_map, left_out, tmp_path):
    findings = Findings(withheld=tuple(Withheld(segment=n, reason="No.") for n in left_out))
    nothing = np.zeros((1, 6, 8, 8), np.uint8)
    seg = read(label_map(30, (6, 8, 8), nothing, findings).data)
    assert seg.NumberOfFrames == 1
    assert not seg.pixel_array.any()


def test_a_segment_left_out_says_so_in_its_label(label_map):
    labels = np.full((1, 6, 8, 8), 1, np.uint8)
    findings = Findings(withheld=(Withheld(segment=4, reason="Contrast is likely."),))
    left_out = read(label_map(30, (6, 8, 8), labels, findings).data).SegmentSequence[3]
    assert left_out.SegmentLabel == "Part 4 (left out)"
    assert left_out.SegmentDescription == "Contrast is likely."


def test_voxels_of_a_segment_left_out_are_the_models_fault(label_map):
    labels = np.zeros((1, 6, 8, 8), np.uint8)
    labels[0, 4] = 27  # the value of segment 4
    findings = Findings(withheld=(Withheld(segment=4, reason="Contrast is likely."),))
    with pytest.raises(ModelFailed, match=r"segment 4, and yet gave voxels of it in slice 5"):
        label_map(30, (6, 8, 8), labels, findings)


def test_planes_that_may_overlap_cannot_be_written(made, identity):
    own = replace(identity, form=Form.LABELMAP)
    with pytest.raises(ValueError, match="too many values"):
        b"".join(encode(made.stack, made.labels, made.card, made.findings, own, MADE_AT))


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("count", [2, 104])
def test_a_result_is_read_back_as_the_labels_that_it_was_made_from(label_map, form, count):
    made = label_map(count, form=form)
    found = labels_of(PriorResult(card=made.card, data=made.data), made.stack)
    assert found.any()
    assert np.array_equal(found, made.labels)


@pytest.mark.parametrize("form", Form)
def test_a_result_on_frames_of_one_image_is_read_back(identity, form):
    images = ball_series(corners(range(-12, 13, 4)))
    stack = stack_series([as_file(enhanced(images))])
    card = card_of(30)
    labels = boxes(card, stack.values.shape)
    made = written(stack, labels, card, identity, form=form)
    assert np.array_equal(labels_of(PriorResult(card=card, data=made.data), stack), labels)


@pytest.mark.parametrize("form", Form)
def test_a_result_of_other_images_is_not_read(label_map, form):
    made, other = label_map(30, form=form), label_map(30, form=form)
    with pytest.raises(ModelFailed, match="not one of these images"):
        labels_of(PriorResult(card=made.card, data=made.data), other.stack)


@pytest.mark.parametrize("form", Form)
def test_a_result_of_some_of_the_images_is_not_read(identity, form):
    images = ball_series(corners(range(-12, 13, 4)))
    some, stack = (stack_series([as_file(i) for i in part]) for part in (images[1:], images))
    card = card_of(2)
    made = written(some, boxes(card, some.values.shape), card, identity, form=form)
    with pytest.raises(ModelFailed, match="not one of these images"):
        labels_of(PriorResult(card=card, data=made.data), stack)


def test_the_report_on_a_label_map_refers_to_an_object_of_its_class(label_map, identity):
    made = label_map(30)
    own = replace(identity, form=Form.LABELMAP)
    data = report(made.stack, made.card, made.findings, own, MADE_AT)
    classes = set()

    def note(dataset, element):
        if dataset.get("ReferencedSOPInstanceUID") == own.uid("seg"):
            classes.add(dataset.ReferencedSOPClassUID)

    read(data).walk(note)
    assert classes == {read(made.data).SOPClassUID}


def test_orthanc_takes_it_by_stow_and_gives_back_what_it_got(label_map, orthanc):
    made = label_map(104)
    archive = DicomWebArchive(orthanc.dicomweb, orthanc.user, orthanc.password)
    study_uid = str(read(made.data).StudyInstanceUID)
    archive.store(study_uid, made.data)
    kept = confirm(archive, study_uid, made.data)
    assert kept == made.data
