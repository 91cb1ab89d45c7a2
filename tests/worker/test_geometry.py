"""The same voxels of the same patient, however the scanner cut and sent them."""

from __future__ import annotations

import random
from datetime import datetime
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread

from segnode_cli.ct_series import as_file, ct_series, ct_volume
from segnode_contract.findings import Findings
from segnode_worker.proof import prove
from segnode_worker.segmentation import encode
from segnode_worker.stack import stack_series
from segnode_worker.volume import for_model, on_source

SPACING_MM = (3.0, 1.5, 1.25)


def turned(degrees):
    """A rotation about the patient's axes, left, posterior and head in turn."""
    a, b, c = np.radians(degrees)
    about_left = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    about_posterior = [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
    about_head = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    return np.array(about_left) @ np.array(about_posterior) @ np.array(about_head)


CUTS = {
    "axial from the feet up": ("HPL", None),
    "axial from the head down": ("FPL", None),
    "axial, patient prone": ("HAR", None),
    "coronal": ("PFL", None),
    "coronal from behind": ("AFR", None),
    "sagittal": ("LPF", None),
    "sagittal from the right": ("RPF", None),
    "oblique": ("HPL", turned((11, -7, 20))),
    "oblique coronal": ("PFL", turned((20, 8, -13))),
    "oblique sagittal, head down": ("RFP", turned((-9, 17, 5))),
    "almost at 45 degrees": ("HPL", turned((44, 0, 0))),
}


@pytest.fixture(params=CUTS.values(), ids=CUTS.keys())
def cut(request):
    return request.param


@pytest.fixture
def shuffled(hu, cut):
    orientation, rotation = cut
    images = ct_series(
        hu, spacing_mm=SPACING_MM, rotation=rotation, orientation=orientation, seed="cut"
    )
    random.Random(5).shuffle(images)
    return [as_file(image) for image in images]


def true_centroid(mask, rotation):
    """In LPS millimetres, from the phantom alone: its middle lies at the origin."""
    index = np.argwhere(mask).mean(axis=0) - (np.array(mask.shape) - 1) / 2
    head, posterior, left = index * SPACING_MM
    centroid = np.array([left, posterior, head])
    return centroid if rotation is None else rotation @ centroid


def test_the_model_sees_the_phantom_in_its_own_orientation(hu, cut, shuffled):
    volume = for_model(stack_series(shuffled).volume, "HPL")
    assert np.array_equal(volume.array, hu)
    assert volume.spacing == pytest.approx(SPACING_MM)
    truth = ct_volume(hu, spacing_mm=SPACING_MM, rotation=cut[1])
    assert np.allclose(volume.affine, truth.affine, atol=1e-4)


def test_a_segment_lies_in_the_patient_where_its_voxels_are(labels, cut, shuffled, card, identity):
    stack = stack_series(shuffled)
    volume = for_model(stack.volume, card.orientation)
    on_images = on_source(labels, volume, stack.volume)
    assert np.array_equal(on_images[0] > 0, stack.volume.array > -500)
    data = b"".join(encode(stack, on_images, card, Findings(), identity, datetime(2026, 1, 1)))
    prove(data, stack, on_images, card, Findings())
    for segment in card.segments[:4]:
        truth = true_centroid(labels[segment.plane] == segment.value, cut[1])
        found = centroid_of(dcmread(BytesIO(data)), segment.number)
        assert np.abs(found - truth).max() < 1e-3


def centroid_of(seg, number):
    """In LPS millimetres, from the attributes of the SEG alone (PS3.3 C.7.6.2.1.1)."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    points = []
    for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
            for row, column in np.argwhere(frame):
                points.append(corner + axes[:3] * column * spacing[1] + axes[3:] * row * spacing[0])
    return np.mean(points, axis=0)


def test_the_digest_is_that_of_the_images_and_not_of_their_files(series):
    files = [as_file(image) for image in series]
    digest = stack_series(files).digest
    for image in series:
        image.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    assert stack_series([as_file(image) for image in reversed(series)]).digest == digest
    series[0].ImagePositionPatient[0] += 0.125
    assert stack_series([as_file(image) for image in series]).digest != digest
