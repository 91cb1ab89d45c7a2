"""The proof of a label map fails on every fault that would put a wrong voxel before a reader."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.errors import ProofFailed
from segnode_contract.findings import Findings, Withheld
from segnode_contract.form import Form
from segnode_worker.segmentation import encode
from segnode_worker.stack import stack_series

from .conftest import Made
from .many_segments import boxes, card_of
from .tampering import changed, check

SHAPE = (12, 33, 27)


@pytest.fixture
def made(identity):
    blank = np.full(SHAPE, 40, np.int16)
    stack = stack_series([as_file(i) for i in ct_series(blank, spacing_mm=(3, 1.5, 1.25))])
    card = card_of(30)
    labels, findings = boxes(card, SHAPE), Findings()
    own = replace(identity, form=Form.LABELMAP)
    data = b"".join(encode(stack, labels, card, findings, own, datetime(2026, 2, 3)))
    return Made(data, stack, labels, card, findings)


def test_a_label_map_that_holds_the_labels_passes(made):
    check(made)
    check(made, changed(made, lambda seg: None))


def frames_of(seg):
    return [bytearray(f) for f in generate_frames(seg.PixelData, number_of_frames=9)]


def put(seg, frames):
    seg.PixelData = encapsulate([bytes(frame) for frame in frames])
    seg["PixelData"].is_undefined_length = True


def test_any_changed_value_of_a_run_is_found(made):
    chance = random.Random(1)
    for _ in range(20):

        def change(seg):
            frames = frames_of(seg)
            frame = chance.choice(frames)
            place = chance.randrange(65, len(frame), 2)  # the value of some run
            frame[place] ^= 1 << chance.randrange(8)
            put(seg, frames)

        with pytest.raises(ProofFailed, match=r"Segment \d+ differs from the labels in slice"):
            check(made, changed(made, change))


def shorten_a_run(seg):
    frames = frames_of(seg)
    frames[2][64] += 1
    put(seg, frames)


def cut_a_frame(seg):
    frames = frames_of(seg)
    del frames[2][-2:]
    put(seg, frames)


def drop_pixels(seg):
    put(seg, frames_of(seg)[:-1])


def add_pixels(seg):
    frames = frames_of(seg)
    put(seg, [*frames, frames[-1]])


def swap_pixels(seg):
    first, second, *rest = frames_of(seg)
    put(seg, [second, first, *rest])


def drop_a_frame(seg):
    seg.PerFrameFunctionalGroupsSequence.pop()


def drop_a_whole_frame(seg):
    put(seg, frames_of(seg)[:-1])
    seg.PerFrameFunctionalGroupsSequence.pop()
    seg.NumberOfFrames -= 1


def double_a_frame(seg):
    frames = frames_of(seg)
    put(seg, [*frames, frames[-1]])
    seg.PerFrameFunctionalGroupsSequence.append(seg.PerFrameFunctionalGroupsSequence[-1])
    seg.NumberOfFrames += 1


def swap_positions(seg):
    first, second = seg.PerFrameFunctionalGroupsSequence[:2]
    first.PlanePositionSequence, second.PlanePositionSequence = (
        second.PlanePositionSequence,
        first.PlanePositionSequence,
    )


def swap_slices(seg):
    swap_positions(seg)
    first, second = seg.PerFrameFunctionalGroupsSequence[:2]
    first.DerivationImageSequence, second.DerivationImageSequence = (
        second.DerivationImageSequence,
        first.DerivationImageSequence,
    )


def shift_a_frame(seg):
    seg.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0].ImagePositionPatient[0] += 1


def background_first(seg):
    seg.SegmentSequence = [seg.SegmentSequence[-1], *seg.SegmentSequence[:-1]]


def no_background(seg):
    seg.SegmentSequence.pop()


def swap_codes(seg):
    first, second = seg.SegmentSequence[:2]
    first.SegmentedPropertyTypeCodeSequence, second.SegmentedPropertyTypeCodeSequence = (
        second.SegmentedPropertyTypeCodeSequence,
        first.SegmentedPropertyTypeCodeSequence,
    )


def renumber(seg):
    first, second = seg.SegmentSequence[:2]
    first.SegmentNumber, second.SegmentNumber = 2, 1


def swap_colours(seg):
    seg.SegmentSequence[0].RecommendedDisplayCIELabValue = [1, 2, 3]


def another_class(seg):
    seg.SOPClassUID = seg.file_meta.MediaStorageSOPClassUID = SegmentationStorage


def other_padding(seg):
    seg.PixelPaddingValue = 1


def signed(seg):
    seg.PixelRepresentation = 1


def sixteen_bits(seg):
    seg.BitsAllocated = seg.BitsStored = 16


def another_patient(seg):
    seg.PatientID = "ANOTHER"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (shorten_a_run, "differs from the labels in slice|cannot be decoded"),
        (cut_a_frame, "cannot be decoded"),
        (drop_pixels, "describes 9 frames and has pixels of 8"),
        (add_pixels, "describes 9 frames and has pixels of more"),
        (swap_pixels, r"Segment \d+ differs from the labels in slice 2"),
        (drop_a_frame, "has 9 frames, and describes 8"),
        (drop_a_whole_frame, r"Segment \d+ differs from the labels in slice 11"),
        (double_a_frame, "two frames in slice 11"),
        (swap_positions, "names the images"),
        (swap_slices, r"Segment \d+ differs from the labels in slice 3"),
        (shift_a_frame, "where no slice lies"),
        (background_first, "The last segment of the label map is 30"),
        (no_background, "The last segment of the label map is 30"),
        (swap_codes, "Segment 1 says"),
        (renumber, "lists the segments"),
        (swap_colours, "Segment 1 says"),
        (another_class, "SOP class"),
        (other_padding, "pixel padding value"),
        (signed, "sign of pixels"),
        (sixteen_bits, "bit depth"),
        (another_patient, "PatientID"),
    ],
)
def test_a_fault_of_the_writer_is_found(made, fault, words):
    with pytest.raises(ProofFailed, match=words):
        check(made, changed(made, fault))


def decompressed(seg):
    seg.decompress()
    assert seg.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_pixels_that_an_archive_decompressed_pass(made):
    check(made, changed(made, decompressed))


def spoil_a_pixel(seg):
    decompressed(seg)
    pixels = bytearray(seg.PixelData)
    pixels[5000] ^= 1
    seg.PixelData = bytes(pixels)


def cut_pixels(seg):
    decompressed(seg)
    seg.PixelData = seg.PixelData[: -SHAPE[1] * SHAPE[2] + 1]


def pad_pixels(seg):
    decompressed(seg)
    seg.PixelData += bytes(SHAPE[1] * SHAPE[2] + 1)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (spoil_a_pixel, r"Segment \d+ differs from the labels in slice 8"),
        (cut_pixels, "describes 9 frames, 8019 bytes of pixels, and has 7130"),
        (pad_pixels, "describes 9 frames, 8019 bytes of pixels, and has 8912"),
    ],
)
def test_a_fault_in_pixels_that_an_archive_decompressed_is_found(made, fault, words):
    with pytest.raises(ProofFailed, match=words):
        check(made, changed(made, fault))


def test_one_more_labelled_voxel_is_missed_with_its_segment_and_slice(made):
    labels = made.labels.copy()
    labels[0, 0, 0, 0] = 4  # of segment 27
    with pytest.raises(ProofFailed, match="Segment 27 differs from the labels in slice 1, where 1"):
        check(made, labels=labels)


def test_voxels_of_a_segment_that_was_left_out_are_found(made):
    present = int(31 - np.unique(made.labels)[1])
    with pytest.raises(ProofFailed, match=f"Segment {present} differs"):
        check(made, findings=Findings(withheld=(Withheld(segment=present, reason="No."),)))


def test_labels_on_another_grid_are_found(made):
    with pytest.raises(ProofFailed):
        check(made, labels=np.ascontiguousarray(made.labels[:, :, :, ::-1]))
