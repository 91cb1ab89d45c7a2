"""An archive that keeps results in another transfer syntax, against a real Orthanc that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from io import BytesIO

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.errors import UidCollision
from segnode_contract.findings import Findings
from segnode_contract.form import Form
from segnode_worker.archive import DicomWebArchive, confirm, same_content
from segnode_worker.inputs import PriorResult, labels_of
from segnode_worker.plausible import counts_of, judged
from segnode_worker.proof import prove
from segnode_worker.report import report
from segnode_worker.report_proof import prove_report
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.stack import stack_series

from .conftest import Made, RunningOrthanc, running_orthanc
from .many_segments import boxes, card_of

MADE_AT = datetime(2026, 2, 3)
SHAPE = (12, 33, 27)
SYNTAXES = (
    *(ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless),
    *(JPEGLosslessSV1, JPEGLSLossless),
)


@dataclass(frozen=True)
class Transcoding:
    """An Orthanc that keeps what it can in one transfer syntax."""

    orthanc: RunningOrthanc
    syntax: str

    @property
    def archive(self) -> DicomWebArchive:
        return DicomWebArchive(self.orthanc.dicomweb, self.orthanc.user, self.orthanc.password)


@pytest.fixture(scope="module", params=SYNTAXES, ids=lambda syntax: syntax.keyword)
def transcoding(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
) -> Iterator[Transcoding]:
    folder = tmp_path_factory.mktemp("transcoding")
    with running_orthanc(folder, free_port(), IngestTranscoding=request.param) as orthanc:
        yield Transcoding(orthanc, request.param)


def result(form: Form, identity: ResultIdentity, job_key: str = "") -> Made:
    images = ct_series(np.full(SHAPE, 40, np.int16), spacing_mm=(3, 1.5, 1.25), seed=form)
    for image in images:
        image.SpecificCharacterSet, image.PatientName = "ISO_IR 100", "Doe^Jöhn"
    stack = stack_series([as_file(image) for image in images])
    card = card_of(30)
    labels = boxes(card, SHAPE)
    findings = judged(labels, counts_of(labels), card, Findings(), stack.slice_ml)
    own = replace(identity, form=form, job_key=job_key or form)
    data = b"".join(encode(stack, labels, card, findings, own, MADE_AT))
    return Made(data, stack, labels, card, findings)


def header(data: bytes) -> Dataset:
    return dcmread(BytesIO(data), stop_before_pixels=True)


@pytest.mark.parametrize("form", Form)
def test_a_result_is_confirmed_in_whatever_transfer_syntax_it_is_kept(
    transcoding: Transcoding, identity: ResultIdentity, form: Form
) -> None:
    made = result(form, identity)
    study_uid = str(header(made.data).StudyInstanceUID)
    transcoding.archive.store(study_uid, made.data)
    kept = confirm(transcoding.archive, study_uid, made.data)
    # single bits can only be written as they are (PS3.5 8.2)
    can = form is Form.LABELMAP or transcoding.syntax == ImplicitVRLittleEndian
    syntax = transcoding.syntax if can else ExplicitVRLittleEndian
    assert header(kept).file_meta.TransferSyntaxUID == syntax
    prove(kept, made.stack, made.labels, made.card, made.findings)
    prior = labels_of(PriorResult(card=made.card, data=kept), made.stack)
    assert np.array_equal(made.stack.on_slices(prior), made.labels)


def test_a_report_is_confirmed_in_whatever_transfer_syntax_it_is_kept(
    transcoding: Transcoding, identity: ResultIdentity
) -> None:
    made = result(Form.BINARY, identity)
    identity = replace(identity, job_key=Form.BINARY)
    data = report(made.stack, made.card, made.findings, identity, MADE_AT)
    study_uid = str(header(data).StudyInstanceUID)
    transcoding.archive.store(study_uid, data)
    kept = confirm(transcoding.archive, study_uid, data)
    prove_report(kept, made.data, made.stack, made.card, made.findings)


def test_another_object_under_our_uid_is_a_collision_in_any_transfer_syntax(
    transcoding: Transcoding, identity: ResultIdentity
) -> None:
    made = result(Form.LABELMAP, replace(identity, node_id="another"), job_key="collision")
    study_uid = str(header(made.data).StudyInstanceUID)
    transcoding.archive.store(study_uid, made.data)
    confirm(transcoding.archive, study_uid, made.data)
    ours = result(Form.LABELMAP, identity, job_key="collision")
    with pytest.raises(UidCollision):
        confirm(transcoding.archive, study_uid, ours.data)


def one_voxel_off(seg: Dataset) -> None:
    pixels = seg.pixel_array.copy()
    pixels[4, 8, 8] ^= 1
    seg.set_pixel_data(pixels, "MONOCHROME2", 8, generate_instance_uid=False)


def one_frame_short(seg: Dataset) -> None:
    seg.decompress(generate_instance_uid=False)
    seg.PixelData = seg.PixelData[: -SHAPE[1] * SHAPE[2]]


def no_pixels(seg: Dataset) -> None:
    del seg.PixelData


def another_label(seg: Dataset) -> None:
    seg.decompress(generate_instance_uid=False)
    seg.SegmentSequence[3].SegmentLabel = "Another"


@pytest.mark.parametrize("change", [one_voxel_off, one_frame_short, no_pixels, another_label])
def test_what_differs_is_other_content_in_another_transfer_syntax_too(
    identity: ResultIdentity, change: Callable[[Dataset], None]
) -> None:
    sent = result(Form.LABELMAP, identity).data
    seg = dcmread(BytesIO(sent))
    seg.decompress(generate_instance_uid=False)
    assert same_content(as_file(seg), sent)
    seg = dcmread(BytesIO(sent))
    change(seg)
    assert not same_content(as_file(seg), sent)
    assert not same_content(sent, as_file(seg))
