"""Other people's images: accepted, or refused for the reason that they were chosen for."""

from __future__ import annotations

import numpy as np
import pytest

from segnode_contract.errors import BrokenInstance, UnsuitableSeries
from segnode_worker.stack import stack_series


def files_of(folder, pattern="*.dcm"):
    return [path.read_bytes() for path in sorted(folder.glob(pattern))]


def test_an_abdomen_of_112_slices_is_one_volume(shared_data):
    stack = stack_series(files_of(shared_data / "ts-ct-built" / "dicom"), min_slices=10)
    assert stack.volume.shape == (112, 101, 122)
    assert stack.volume.spacing == pytest.approx((3, 3, 3))
    assert (stack.volume.array.min(), stack.volume.array.max()) == (-1207, 3382)


@pytest.mark.parametrize(
    ("folder", "pattern", "code", "words"),
    [
        ("qact-ge-tilt", "*.dcm", "missing-slice", "7.00 mm, where 4.00 mm is usual"),
        ("rt-utils/oriented_data", "*.dcm", "not-hounsfield", "is US"),
        ("dcmqi/segmentations/23x38x3/multiframe", "*.dcm", "not-hounsfield", "is US"),
        ("pydicom/files/98892001/CT2N", "*", "localizer", "localizer"),
        ("pydicom/files/77654033/CT2", "*", "missing-slice", "202.50 mm"),
        ("ts-mr-built/dicom", "*.dcm", "modality", "MR, not CT"),
    ],
)
def test_a_series_is_refused_for_what_is_wrong_with_it(shared_data, folder, pattern, code, words):
    with pytest.raises(UnsuitableSeries, match=words) as refused:
        stack_series(files_of(shared_data / folder, pattern))
    assert refused.value.code == code


def transfer_syntaxes(shared_data):
    return sorted((shared_data / "cornerstone-ct-ts").glob("*.dcm"))


def test_one_slice_decodes_alike_in_every_lossless_transfer_syntax(shared_data):
    truth = stack_series([(shared_data / "cornerstone-ct-ts" / "CTImage.dcm").read_bytes()])
    lossy = ("JPEGProcess1T", "JPEGProcess2_4", "JPEGLSLossyT", "JPEG2000T")
    undecodable = ("JPEGProcess6_8", "JPEGProcess10_12")
    seen = 0
    for path in transfer_syntaxes(shared_data):
        if any(name in path.name for name in undecodable):
            with pytest.raises(UnsuitableSeries, match="transfer syntax") as refused:
                stack_series([path.read_bytes()])
            assert refused.value.code == "transfer-syntax"
            continue
        found = stack_series([path.read_bytes()]).volume.array
        body = truth.volume.array > -1000
        # the 8-bit ones were scaled before they were compressed
        limit = 70 if any(name in path.name for name in lossy) else 0
        assert np.abs(found - truth.volume.array.astype(float))[body].max() <= limit, path.name
        seen += 1
    assert seen == 14


def test_a_single_slice_is_too_few(shared_data):
    for path in transfer_syntaxes(shared_data)[:3]:
        with pytest.raises(
            UnsuitableSeries, match="has 1 slices that form a stack, and the model needs 10"
        ):
            stack_series([path.read_bytes()], min_slices=10)


@pytest.mark.parametrize(
    "name",
    ["MR_truncated", "badVR", "no_meta", "rtstruct", "meta_missing_tsyntax", "empty_charset_LEI"],
)
def test_a_broken_file_is_said_to_be_broken(shared_data, name):
    file = (shared_data / "pydicom" / "files" / f"{name}.dcm").read_bytes()
    with pytest.raises(BrokenInstance):
        stack_series([file], modality="MR")
