"""The report as other people's programs see it, beside the segmentation that it belongs to."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from datetime import datetime
from io import BytesIO

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import MRImageStorage

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.card import Code
from segnode_contract.errors import BrokenInstance, ProofFailed
from segnode_contract.findings import Findings, Marked, Measurement, Withheld
from segnode_contract.form import Form
from segnode_worker.intensity import measured
from segnode_worker.plausible import counts_of, judged
from segnode_worker.report import report
from segnode_worker.report_proof import prove_report
from segnode_worker.segmentation import encode
from segnode_worker.stack import Stack, stack_series

MADE_AT = datetime(2026, 2, 3, 4, 5, 6)
COVERAGE = "Not measurable: The images cover 27 mm; 100 mm are needed."
CONTRAST = "Contrast is likely."
DOUBT = "Implausible: 0.5794 ml, and the model's card says that 20 to 6000 ml can be true."
MISSING = "2 slices are missing."
SAID = Findings(
    withheld=(Withheld(segment=4, reason=CONTRAST),),
    marked=(Marked(segment=3, reason=DOUBT),),
    measurements=(
        Measurement(segment=2, name="LAA-950", value=None, unit="%", reason=COVERAGE),
        Measurement(segment=3, name="LAA-950", value=12.5, unit="%"),
        Measurement(segment=4, name="Volume", value=None, unit="ml", reason=CONTRAST),
    ),
    limitations=(MISSING,),
)


@dataclass(frozen=True)
class Reported:
    """A report, its segmentation, and all that both were made from."""

    data: bytes
    seg: bytes
    stack: Stack
    labels: np.ndarray
    findings: Findings


@pytest.fixture
def reported(stack, labels, card, identity):
    return reported_of(stack, labels, card, identity)


def reported_of(stack, labels, card, identity, said=SAID):
    """Make both from the labels of the phantom, the bone of which is left out."""
    on_slices = labels[:, ::-1].copy()
    on_slices[1][on_slices[1] == 3] = 0
    counts = counts_of(on_slices)
    findings = judged(on_slices, counts, card, said, stack.slice_ml)
    findings = measured(stack, on_slices, counts, card, findings)
    seg = b"".join(encode(stack, on_slices, card, findings, identity, MADE_AT))
    data = report(stack, card, findings, identity, MADE_AT)
    return Reported(data, seg, stack, on_slices, findings)


def read(data):
    return dcmread(BytesIO(data))


def run_on(program, data, folder, *arguments):
    """Return what a program writes to its two outputs about a file."""
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed; `make test` installs it")
    path = folder / "report.dcm"
    path.write_bytes(data)
    run = subprocess.run([program, *arguments, path], capture_output=True, check=True)
    return run.stdout.decode(errors="replace"), run.stderr.decode(errors="replace")


def read_by_dsr2html(data, folder):
    """Return the text that a person reads, without its mark-up."""
    page, complaints = run_on("dsr2html", data, folder)
    # dcmtk says of every object in UTF-8 or Japanese that it does not check its texts
    assert [c for c in complaints.splitlines() if "Character" not in c] == []
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def measures_of(group):
    return [
        (m.name.meaning, m.derivation.meaning if m.derivation else "", m.value, m.unit.value)
        for m in group.get_measurements()
    ]


def groups_by_highdicom(data):
    return hd.sr.srread(BytesIO(data)).content.get_volumetric_roi_measurement_groups()


def test_a_person_reads_every_value_and_every_reason_by_dsr2html(reported, tmp_path):
    text = read_by_dsr2html(reported.data, tmp_path)
    assert "Comprehensive 3D SR Document" in text
    for said in (
        "UNVERIFIED",
        "7.734375 ml",
        "60.9454545454546 [hnsf'U]",
        "12.5 %",
        "Segment 2: Right lung",
        COVERAGE,
        f"Left out: {CONTRAST}",
        f"Shown, but in doubt: {DOUBT}",
        "Not found in these images.",
        f"Limitation of these images: {MISSING}",
        "Limitation of test-tissue: It knows a phantom only.",
        "Made by a machine, for research; verified by nobody.",
    ):
        assert said in text


def test_dciodvfy_finds_no_error(reported, tmp_path):
    _, said = run_on("dciodvfy", reported.data, tmp_path, "-new")
    assert [line for line in said.splitlines() if line.startswith("Error")] == []
    assert "PositionReferenceIndicator" not in said


def test_highdicom_reads_a_group_for_each_segment_with_its_measurements(reported):
    groups = groups_by_highdicom(reported.data)
    body, right, left, bone, air = groups
    hu = reported.stack.values[reported.labels[0] == 1]
    assert measures_of(body) == [
        ("Volume", "", pytest.approx(7.734375), "ml"),
        ("Attenuation Coefficient", "Mean", pytest.approx(hu.mean()), "[hnsf'U]"),
        ("Attenuation Coefficient", "Standard Deviation", pytest.approx(hu.std()), "[hnsf'U]"),
    ]
    assert ("Share of volume below -950 HU (LAA-950)", "", 12.5, "%") in measures_of(left)
    assert measures_of(bone) == []
    assert measures_of(air) == [("Volume", "", 0, "ml")]
    assert right.finding_type.meaning == "Lung"
    assert [s.laterality.meaning for s in right.finding_sites] == ["Right"]
    assert body.finding_sites == []


def test_what_was_not_measurable_has_a_reason_and_no_number(reported):
    right, bone = (groups_by_highdicom(reported.data)[n] for n in (1, 3))
    names = [name for name, *_ in measures_of(right)]
    assert "Share of volume below -950 HU (LAA-950)" not in names
    for group, name, reason in (
        (right, "Share of volume below -950 HU (LAA-950)", COVERAGE),
        (bone, "Volume", CONTRAST),
    ):
        (failed,) = (e for e in group.get_qualitative_evaluations() if e.name.meaning == name)
        assert (failed.value.value, failed.value.scheme_designator) == ("114006", "DCM")
        (item,) = (i for i in group[0].ContentSequence if i.name == failed.name)
        assert [why.value for why in item.ContentSequence] == [reason]


def test_groups_and_segments_have_the_same_tracking_identifiers(reported, identity):
    seg = read(reported.seg)
    groups = groups_by_highdicom(reported.data)
    assert [(g.tracking_identifier, g.tracking_uid) for g in groups] == [
        (s.TrackingID, s.TrackingUID) for s in seg.SegmentSequence
    ]
    assert len({g.tracking_uid for g in groups}) == 5
    for number, group in enumerate(groups, 1):
        reference = group.referenced_segment
        assert reference[0].referenced_sop_instance_uid == seg.SOPInstanceUID
        assert reference[0].referenced_segment_numbers == [number]
        assert reference.source_series_for_segmentation.value == (
            reported.stack.sources[0].header.SeriesInstanceUID
        )


def test_stacks_of_a_series_have_reports_of_their_own(stack, labels, card, identity):
    first, second = (
        reported_of(stack, labels, card, replace(identity, stack=n, stacks=2)) for n in (1, 2)
    )
    for number, one in enumerate((first, second), 1):
        prove_report(one.data, one.seg, stack, card, one.findings)
        assert f"(stack {number} of 2) report" in read(one.data).SeriesDescription
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        objects = (first.data, second.data, first.seg, second.seg)
        assert len({read(data)[keyword].value for data in objects}) == 4
    with pytest.raises(ProofFailed, match="refers to"):
        prove_report(first.data, second.seg, stack, card, first.findings)


def test_a_label_map_is_referred_to_as_such(stack, labels, card, identity, tmp_path):
    one_plane = replace(card, segments=card.segments[:1], planes=1)
    said = Findings(limitations=(MISSING,))
    form = replace(identity, form=Form.LABELMAP)
    counts = counts_of(labels[:1])
    findings = judged(labels[:1], counts, one_plane, said, stack.slice_ml)
    seg = b"".join(encode(stack, labels[:1], one_plane, findings, form, MADE_AT))
    data = report(stack, one_plane, findings, form, MADE_AT)
    prove_report(data, seg, stack, one_plane, findings)
    (group,) = groups_by_highdicom(data)
    assert group.referenced_segment[0].referenced_sop_class_uid == Form.LABELMAP.storage
    # dcmtk 3.6.7 knows no label maps, and reads past a reference to one if told to
    page, _ = run_on("dsr2html", data, tmp_path, "-Ei")
    assert "Segment 1: Body" in page
    with pytest.raises(ProofFailed):
        other = report(stack, one_plane, findings, identity, MADE_AT)
        prove_report(other, seg, stack, one_plane, findings)


def test_every_modifier_of_a_segment_is_said(stack, labels, card, identity):
    upper = Code(value="261183002", scheme="SCT", meaning="Upper")
    posterior = Code(value="255551008", scheme="SCT", meaning="Posterior")
    body, right, *rest = card.segments
    right = replace(right, modifiers=(*right.modifiers, upper, posterior))
    more = replace(card, segments=(body, right, *rest))
    made = reported_of(stack, labels, more, identity)
    (kind,) = read(made.seg).SegmentSequence[1].SegmentedPropertyTypeCodeSequence
    assert len(kind.SegmentedPropertyTypeModifierCodeSequence) == 3
    sites = groups_by_highdicom(made.data)[1].finding_sites
    assert [(s.laterality.meaning, s.topographical_modifier.meaning) for s in sites] == [
        ("Right", "Upper"),
        ("Right", "Posterior"),
    ]
    prove_report(made.data, made.seg, stack, more, made.findings)
    with pytest.raises(ProofFailed, match="modifies segment 2 by"):
        prove_report(made.data, made.seg, stack, card, made.findings)


def test_it_says_what_made_it_and_that_nobody_checked_it(reported, identity):
    made = read(reported.data)
    assert (made.Modality, made.SeriesNumber) == ("SR", 10000)
    assert made.SeriesDescription == "AI test-tissue v1.2 report - unverified, research"
    assert (made.CompletionFlag, made.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert made.PreliminaryFlag == "PRELIMINARY"
    assert made.ContentQualification == "RESEARCH"
    assert "VerifyingObserverSequence" not in made
    assert made.ReferencedPerformedProcedureStepSequence == []
    assert list(made.SoftwareVersions) == list(read(reported.seg).SoftwareVersions)
    assert (made.ContentDate, made.SeriesTime) == ("20260203", "040506.000000")
    content = hd.sr.srread(BytesIO(reported.data)).content
    (observer,) = content.get_observer_contexts()
    device = observer.observer_identifying_attributes
    assert (device.name, device.model_name, device.serial_number) == (
        "segnode",
        "test-tissue",
        "node-1",
    )
    assert "Person" not in str(observer.observer_type.meaning)


def test_it_names_the_segmentation_and_every_image(reported):
    (study,) = read(reported.data).CurrentRequestedProcedureEvidenceSequence
    named = {
        (series.SeriesInstanceUID, instance.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    seg, sources = read(reported.seg), reported.stack.sources
    assert named == {
        (seg.SeriesInstanceUID, seg.SOPInstanceUID),
        *((s.header.SeriesInstanceUID, s.uid) for s in sources),
    }


def test_the_same_arguments_give_the_same_bytes(reported, card, identity):
    again = report(reported.stack, card, reported.findings, identity, MADE_AT)
    assert again == reported.data


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
def test_the_patients_name_stays_in_its_own_character_set(
    hu, labels, card, identity, character_set, name, tmp_path
):
    images = ct_series(hu, spacing_mm=(3, 1.5, 1.25), seed="names")
    for image in images:
        image.SpecificCharacterSet, image.PatientName = character_set, name
    files = [as_file(image) for image in images]
    made = reported_of(stack_series(files), labels, card, identity)
    prove_report(made.data, made.seg, made.stack, card, made.findings)
    assert read(made.data).SpecificCharacterSet == character_set
    written = read(files[0]).get_item("PatientName").value
    assert read(made.data).get_item("PatientName").value == written
    assert "Right lung" in read_by_dsr2html(made.data, tmp_path)


def test_a_patient_that_cannot_be_copied_is_the_images_fault(hu, labels, card, identity):
    image = as_file(ct_series(hu, spacing_mm=(3, 1.5, 1.25))[0])
    physician = b"\x08\x00\x90\x00PN\x00\x00"
    stack = stack_series([image.replace(physician, physician.replace(b"PN", b"P9"))])
    with pytest.raises(BrokenInstance, match="cannot be copied"):
        report(stack, card, Findings(), identity, MADE_AT)


def test_texts_beyond_ascii_and_names_beyond_ours_are_written_and_proved(
    stack, labels, card, identity, tmp_path
):
    said = Findings(
        withheld=(Withheld(segment=1, reason="– é: " + "long " * 400),),
        measurements=(
            Measurement(segment=2, name="Fläche der Pleura", value=3.5, unit="cm2"),
            Measurement(segment=2, name="Ratio", value=float("nan"), unit="1"),
        ),
        limitations=("Müller’s mask – 1988, Gefäße groß, 肝臓.",),
    )
    empty = np.zeros_like(labels)
    made = reported_of(stack, empty, card, identity, said)
    prove_report(made.data, made.seg, stack, card, made.findings)
    text = read_by_dsr2html(made.data, tmp_path)
    assert "Flache der Pleura : 3.5 cm2" in text.replace(" :", ":").replace(":", " :")
    assert "Muller's mask - 1988, Gefasse gross, ??." in text.replace("&#39;", "'")


def test_mean_and_deviation_are_those_of_the_voxels(stack, labels, card):
    on_slices = np.ascontiguousarray(labels[:, ::-1])
    found = measured(stack, on_slices, counts_of(on_slices), card, Findings())
    for segment in card.segments[:4]:
        hu = stack.values[on_slices[segment.plane] == segment.value].astype(float)
        values = {m.name: m.value for m in found.measurements if m.segment == segment.number}
        assert values == {
            "Mean": pytest.approx(hu.mean(), abs=1e-9),
            "Standard deviation": pytest.approx(hu.std(), abs=1e-9),
        }
    assert not any(m.segment == 5 for m in found.measurements)


def test_a_small_deviation_of_large_values_is_not_lost(stack, card):
    values = (1e6 + np.random.default_rng(0).normal(0, 1, stack.values.shape)).astype(np.float32)
    ones = np.ones((2, *values.shape), np.uint8)
    found = measured(replace(stack, values=values), ones, counts_of(ones), card, Findings())
    deviation = next(m.value for m in found.measurements if m.name == "Standard deviation")
    assert deviation == pytest.approx(values.astype(float).std(), rel=1e-9)


def test_what_a_model_measured_or_could_not_is_not_measured_over(stack, labels, card):
    on_slices = np.ascontiguousarray(labels[:, ::-1])
    mean = Measurement(segment=2, name="Mean density", value=-800.0, unit="[hnsf'U]")
    failed = Measurement(segment=3, name="LAA-950", value=None, unit="%", reason=COVERAGE)
    said = Findings(measurements=(mean, failed), withheld=(Withheld(segment=1, reason="No."),))
    found = measured(stack, on_slices, counts_of(on_slices), card, said).measurements
    assert found[:2] == (mean, failed)
    assert [m.name for m in found if m.segment == 2] == ["Mean density", "Standard deviation"]
    assert [(m.value, m.reason) for m in found if m.segment == 3] == [(None, COVERAGE)] * 3
    assert not any(m.segment == 1 for m in found)


def test_mr_is_measured_without_a_unit_and_other_modalities_are_not(
    series, labels, card, identity, tmp_path
):
    for image in series:
        image.SOPClassUID, image.Modality = MRImageStorage, "MR"
        image.file_meta.MediaStorageSOPClassUID = MRImageStorage
    stack = stack_series([as_file(image) for image in series], modality="MR")
    made = reported_of(stack, labels, card, identity)
    prove_report(made.data, made.seg, stack, card, made.findings)
    body = groups_by_highdicom(made.data)[0]
    assert [m[:2] + m[3:] for m in measures_of(body)[1:]] == [
        ("MR signal intensity", "Mean", "1"),
        ("MR signal intensity", "Standard Deviation", "1"),
    ]
    assert "MRI unspecified body region" in read_by_dsr2html(made.data, tmp_path)
    stack.sources[0].header.Modality = "PT"
    assert measured(stack, made.labels, counts_of(made.labels), card, SAID) == SAID


def group_of(made, number):
    measurements = next(
        item
        for item in made.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "126010"
    )
    return measurements.ContentSequence[number - 1].ContentSequence


def item_of(made, number, code):
    return next(
        item for item in group_of(made, number) if item.ConceptNameCodeSequence[0].CodeValue == code
    )


def change_a_value(made):
    value = item_of(made, 1, "118565006").MeasuredValueSequence[0]
    value.NumericValue, value.FloatingPointValue = "7.7", 7.7


def change_one_form_of_a_value(made):
    item_of(made, 1, "118565006").MeasuredValueSequence[0].NumericValue = "7.7"


def change_a_unit(made):
    units = item_of(made, 1, "118565006").MeasuredValueSequence[0].MeasurementUnitsCodeSequence
    units[0].CodeValue = "l"


def change_a_name(made):
    item_of(made, 1, "118565006").ConceptNameCodeSequence[0].CodeValue = "42798000"


def change_a_derivation(made):
    derivation = item_of(made, 1, "112031").ContentSequence[0]
    derivation.ConceptCodeSequence[0].CodeValue = "373099004"


def swap_groups(made):
    measurements = next(
        item
        for item in made.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "126010"
    )
    groups = measurements.ContentSequence
    groups[1], groups[2] = groups[2], groups[1]


def name_another_segment(made):
    item_of(made, 2, "121191").ReferencedSOPSequence[0].ReferencedSegmentNumber = 3


def name_another_segmentation(made):
    item_of(made, 2, "121191").ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def name_another_series(made):
    item_of(made, 2, "121232").UID = "1.2.3"


def change_a_tracking_uid(made):
    item_of(made, 2, "112040").UID = "1.2.3"


def change_a_finding(made):
    item_of(made, 1, "121071").ConceptCodeSequence[0].CodeValue = "39607008"


def drop_a_group(made):
    made.ContentSequence[-2].ContentSequence.pop()


def drop_a_reason(made):
    del item_of(made, 2, "LAA950PCT").ContentSequence[0]


def measure_the_unmeasurable(made):
    group_of(made, 2).append(item_of(made, 3, "LAA950PCT"))


def drop_what_was_not_measurable(made):
    group_of(made, 2).remove(item_of(made, 2, "LAA950PCT"))


def drop_a_doubt(made):
    group_of(made, 3).remove(group_of(made, 3)[-2])


def drop_a_limitation(made):
    del made.ContentSequence[-1].ContentSequence[1]


def drop_the_warning(made):
    del made.ContentSequence[-1].ContentSequence[0]


def verify(made):
    made.VerificationFlag = "VERIFIED"


def rename_the_patient(made):
    made.PatientName = "Somebody^Else"


def drop_an_image(made):
    series = made.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[1]
    series.ReferencedSOPSequence.pop()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (change_a_value, "says of segment 1"),
        (change_one_form_of_a_value, "in one place"),
        (change_a_unit, "says of segment 1"),
        (change_a_name, "says of segment 1"),
        (change_a_derivation, "says of segment 1"),
        (swap_groups, "Group 2 of the report is of"),
        (name_another_segment, "Group 2 of the report is of"),
        (name_another_segmentation, "Group 2 of the report is of"),
        (name_another_series, "Group 2 of the report is of"),
        (change_a_tracking_uid, "Group 2 of the report is of"),
        (change_a_finding, "Group 1 of the report is of"),
        (drop_a_group, "has 4 groups"),
        (drop_a_reason, "why LAA-950 was not measurable"),
        (measure_the_unmeasurable, "says of segment 2"),
        (drop_what_was_not_measurable, "0 things were not measurable"),
        (drop_a_doubt, "does not say of segment 3: Implausible"),
        (drop_a_limitation, "lacks the limitation '2 slices are missing.'"),
        (drop_the_warning, "nobody verified it"),
        (verify, "VerificationFlag is VERIFIED"),
        (rename_the_patient, "Patient or study"),
        (drop_an_image, "refers to 9 objects, of which 9 are among the 10"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_report_that_says_something_else_is_found_out(reported, card, change, complaint):
    prove_report(reported.data, reported.seg, reported.stack, card, reported.findings)
    made = read(reported.data)
    change(made)
    with pytest.raises(ProofFailed, match=complaint):
        prove_report(as_file(made), reported.seg, reported.stack, card, reported.findings)
