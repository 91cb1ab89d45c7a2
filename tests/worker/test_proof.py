"""The proof fails on every fault that would put a wrong voxel before a reader."""

from __future__ import annotations

import numpy as np
import pytest

from segnode_contract.errors import ProofFailed
from segnode_contract.findings import Findings, Withheld

from .tampering import changed, check


def test_a_result_that_holds_the_labels_passes(made):
    check(made)
    check(made, changed(made, lambda seg: None))


@pytest.mark.parametrize("bit", [0, 1000, 5000])
def test_one_flipped_bit_is_found(made, bit):
    def flip(seg):
        pixels = bytearray(seg.PixelData)
        pixels[bit // 8] ^= 1 << bit % 8
        seg.PixelData = bytes(pixels)

    with pytest.raises(ProofFailed, match=r"Segment \d differs .* in 1 voxels of slice"):
        check(made, changed(made, flip))


def test_one_more_labelled_voxel_is_missed_with_its_segment_and_slice(made):
    labels = made.labels.copy()
    labels[1, 8, 0, 0] = 4
    with pytest.raises(ProofFailed, match="Segment 5 lacks its voxels in slice 9"):
        check(made, labels=labels)


def swap_positions(seg):
    first, second = seg.PerFrameFunctionalGroupsSequence[:2]
    first.PlanePositionSequence, second.PlanePositionSequence = (
        second.PlanePositionSequence,
        first.PlanePositionSequence,
    )


def swap_images(seg):
    first, second = seg.PerFrameFunctionalGroupsSequence[:2]
    first.DerivationImageSequence, second.DerivationImageSequence = (
        second.DerivationImageSequence,
        first.DerivationImageSequence,
    )


def swap_slices(seg):
    swap_positions(seg)
    swap_images(seg)


def shift_a_frame(seg):
    seg.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0].ImagePositionPatient[0] += 1


def rename_a_frame(seg):
    frame = seg.PerFrameFunctionalGroupsSequence[-1]
    frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 3


def drop_a_frame(seg):
    seg.PerFrameFunctionalGroupsSequence.pop()


def drop_a_reference(seg):
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence.pop()


def swap_sides(seg):
    right, left = seg.SegmentSequence[1:3]
    right.SegmentedPropertyTypeCodeSequence, left.SegmentedPropertyTypeCodeSequence = (
        left.SegmentedPropertyTypeCodeSequence,
        right.SegmentedPropertyTypeCodeSequence,
    )


def another_patient(seg):
    seg.PatientID = "ANOTHER"


def another_frame_of_reference(seg):
    seg.FrameOfReferenceUID = "1.2.3"


def mirror(seg):
    shared = seg.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]


def wrong_spacing(seg):
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (swap_positions, "names the image"),
        (swap_images, "names the image"),
        (swap_slices, "Segment 1 differs from the labels in 14 voxels of slice 3"),
        (shift_a_frame, "where no slice lies"),
        (rename_a_frame, "Segment 3"),
        (drop_a_frame, "describes"),
        (drop_a_reference, "refers to 8 images"),
        (swap_sides, "Segment 2 says"),
        (another_patient, "PatientID"),
        (another_frame_of_reference, "FrameOfReferenceUID"),
        (mirror, "orientation"),
        (wrong_spacing, "slice spacing"),
    ],
)
def test_a_fault_of_the_writer_is_found(made, fault, words):
    with pytest.raises(ProofFailed, match=words):
        check(made, changed(made, fault))


def test_a_frame_of_a_segment_that_was_left_out_is_found(made):
    with pytest.raises(ProofFailed, match="Segment 4 has a frame"):
        check(made, findings=Findings(withheld=(Withheld(segment=4, reason="No."),)))


def test_labels_on_another_grid_are_found(made):
    with pytest.raises(ProofFailed):
        check(made, labels=np.ascontiguousarray(made.labels[:, :, :, ::-1]))
