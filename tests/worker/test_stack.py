"""Which series become a volume of Hounsfield units, and which are refused, with what words."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.errors import BrokenInstance, UnsuitableSeries
from segnode_worker.stack import stack_series

SPACING_MM = (3.0, 1.5, 1.25)


def stacked(images, **needs):
    return stack_series([as_file(image) for image in images], **needs)


def head_first(hu):
    """Slices as a stack orders them: along the normal, which for axial images is to the feet."""
    return hu[::-1]


@pytest.mark.parametrize(
    "stored",
    [
        {"signed": False, "intercept": -1024},
        {"signed": True, "intercept": 0},
        {"signed": True, "intercept": -1024},
        {"signed": True, "intercept": 0, "bits_stored": 12},
        {"signed": False, "intercept": -1024, "bits_stored": 12},
        {"slope": 2, "intercept": -1000},
    ],
    ids=str,
)
def test_hounsfield_units_come_out_as_they_went_in(hu, stored):
    volume = stacked(ct_series(hu, spacing_mm=SPACING_MM, **stored)).volume
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, head_first(hu))


@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=["RLE", "JPEG-LS", "JPEG 2000"]
)
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_compressed_images_decode_to_the_same_values(hu, syntax, bits, signed):
    large = hu.repeat(4, axis=1).repeat(4, axis=2)  # the JPEG 2000 encoder takes no small images
    images = ct_series(
        large,
        spacing_mm=SPACING_MM,
        transfer_syntax=syntax,
        signed=signed,
        intercept=0 if signed else -1024,
        bits_stored=bits,
    )
    assert np.array_equal(stacked(images).volume.array, head_first(large))


def test_a_rescale_that_is_not_whole_gives_floating_point(hu):
    volume = stacked(ct_series(hu, spacing_mm=SPACING_MM, slope=0.5, intercept=-1024.5)).volume
    assert volume.array.dtype == np.float32
    assert np.abs(volume.array - head_first(hu)).max() <= 0.5


def test_each_slice_has_its_own_rescale(hu, series):
    other = ct_series(hu, spacing_mm=SPACING_MM, seed="phantom", slope=2, intercept=-1000)
    assert np.array_equal(stacked(series[:4] + other[4:]).volume.array, head_first(hu))


def test_a_padding_value_stays_far_below_air_and_does_not_wrap(hu):
    padded = hu.copy()
    padded[:, 0, :] = -32768
    images = ct_series(padded, spacing_mm=SPACING_MM, signed=True, intercept=0)
    for image in images:
        image.RescaleIntercept = -1024
        image.add_new("PixelPaddingValue", "SS", -32768)
    volume = stacked(images).volume
    assert (volume.array[:, 0, :] == -32768).all()
    assert volume.array[0, 1, 0] == -2024


def test_old_overlays_in_spare_bits_are_not_taken_for_values(hu, series):
    for image in series:
        image.BitsStored, image.HighBit = 12, 11
        words = np.frombuffer(image.PixelData, "<u2") | 0x8000
        image.PixelData = words.tobytes()
    assert np.array_equal(stacked(series).volume.array, head_first(hu))


def test_sources_are_in_slice_order_and_without_pixels(series, stack):
    heights = [source.position[2] for source in stack.sources]
    assert heights == sorted(heights, reverse=True)
    assert {s.uid for s in stack.sources} == {i.SOPInstanceUID for i in series}
    assert not any("PixelData" in source.header for source in stack.sources)


@pytest.mark.parametrize(
    ("agent", "said"),
    [(None, "no"), ("", "no"), ("NONE", "no"), ("Iohexol 300", "yes")],
)
def test_contrast_medium_is_told_from_the_tags(hu, agent, said):
    images = ct_series(hu, spacing_mm=SPACING_MM, contrast_agent=agent)
    assert stacked(images).attributes["ContrastBolus"] == said


def test_contrast_medium_is_told_from_one_slice_and_another_tag(series):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "7140000", "SCT", "Agent"
    series[3].ContrastBolusAgentSequence = [item]
    assert stacked(series).attributes["ContrastBolus"] == "yes"


def test_the_model_gets_a_few_technical_attributes_and_no_more(stack):
    assert stack.attributes == {
        "BodyPartExamined": "CHEST",
        "ConvolutionKernel": "STANDARD",
        "SliceThickness": "3.0",
        "KVP": "120.0",
        "ContrastBolus": "no",
    }


def steep(images):
    for n, image in enumerate(images):
        image.ImagePositionPatient[1] += 6.0 * n


def scattered(images):
    """Turn each pair of slices by another angle."""
    for n, image in enumerate(images):
        angle = np.radians(n // 2)
        image.ImageOrientationPatient = [1, 0, 0, 0, np.cos(angle).round(9), np.sin(angle).round(9)]


def several_frames(images):
    images[1].NumberOfFrames = 2


def move(n, mm):
    def moved(images):
        images[n].ImagePositionPatient[2] += mm

    return moved


def each(**values):
    """Set attributes in every image; None takes one away."""

    def changed(images):
        for image in images:
            one(image, values)

    return changed


def the_third(**values):
    return lambda images: one(images[2], values)


def one(image, values):
    for keyword, value in values.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)


def smaller(images):
    images[2].Rows = 10
    images[2].PixelData = images[2].PixelData[: len(images[2].PixelData) // 2]


REFUSED = [
    (lambda images: images.clear(), "no-images", "no images"),
    (each(Modality="MR"), "modality", "MR, not CT"),
    (each(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer", "localizer"),
    (several_frames, "multi-frame", "2 frames"),
    (the_third(PixelData=None), "no-pixel-data", "without pixels"),
    (each(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "photometric", "3 samples"),
    (each(PhotometricInterpretation="PALETTE COLOR"), "photometric", "grey"),
    (the_third(RescaleSlope=None), "not-hounsfield", "(None, -1024.0)"),
    (the_third(RescaleSlope=0), "not-hounsfield", "(0.0, -1024.0)"),
    (each(RescaleType="US"), "not-hounsfield", "Type of the image"),
    (lambda images: images.__delitem__(slice(2, None)), "too-few-slices", "2 slices"),
    (the_third(ImagePositionPatient=None), "geometry", "Position (Patient)"),
    (the_third(ImageOrientationPatient=None), "geometry", "Orientation (Patient)"),
    (each(ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0]), "geometry", "right angle"),
    (each(ImageOrientationPatient=[0, 0, 0, 0, 0, 0]), "geometry", "right angle"),
    (each(PixelSpacing=[0, 1]), "geometry", "Spacing"),
    (each(PixelSpacing=[-1, 1]), "geometry", "Spacing"),
    (each(PixelSpacing=None), "geometry", "Spacing of the image"),
    (each(FrameOfReferenceUID=None), "geometry", "Frame of Reference"),
    (each(SOPClassUID=SecondaryCaptureImageStorage), "sop-class", SecondaryCaptureImageStorage),
    (the_third(SeriesInstanceUID="1.2.3"), "mixed-series", "1.2.3"),
    (the_third(StudyInstanceUID="1.2.3"), "mixed-series", "of the study"),
    (smaller, "missing-slice", "1 images of the series were not segmented: they differ in size"),
    (move(2, 3), "duplicate-position", "(-15.625, -14.25, -3)"),
    (lambda images: images.__delitem__(4), "missing-slice", "6.00 mm, where 3.00 mm"),
    (steep, "gantry-tilt", "63.4 degrees"),
    (scattered, "too-few-slices", "2 slices that form a stack, and the model needs 3"),
    (each(Rows=65535, Columns=65535), "too-large", "4294836225"),
]


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    REFUSED,
    ids=[f"{code}-{n}" for n, (_, code, _) in enumerate(REFUSED)],
)
def test_a_series_that_is_no_volume_is_refused_with_the_value_at_fault(series, spoil, code, words):
    spoil(series)
    with pytest.raises(UnsuitableSeries) as refused:
        stacked(series, min_slices=3)
    assert refused.value.code == code
    assert words in refused.value.sentence
    assert "Phantom" not in refused.value.sentence


def test_a_transfer_syntax_that_nothing_decodes_is_named(series):
    files = [
        as_file(image).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.6\0")
        for image in series
    ]
    with pytest.raises(UnsuitableSeries, match=r"1\.2\.840\.10008\.1\.2\.6,") as refused:
        stack_series(files)
    assert refused.value.code == "transfer-syntax"


def test_positions_written_with_one_digit_are_even_enough(hu):
    images = ct_series(hu, spacing_mm=(1.25, 1.5, 1.25))
    for image in images:
        image.ImagePositionPatient[2] = round(float(image.ImagePositionPatient[2]), 1)
    assert stacked(images).volume.spacing_between_slices == pytest.approx(1.25, abs=0.02)


def test_a_file_cut_short_names_its_image(series):
    files = [as_file(image) for image in series]
    files[3] = files[3][:-100]
    with pytest.raises(BrokenInstance, match=series[3].SOPInstanceUID):
        stack_series(files)


def test_a_compressed_image_cut_short_names_its_image(hu):
    images = ct_series(hu, spacing_mm=SPACING_MM, transfer_syntax=JPEGLSLossless)
    files = [as_file(image) for image in images]
    files[3] = files[3][:-60]
    with pytest.raises(BrokenInstance, match=images[3].SOPInstanceUID):
        stack_series(files)


@pytest.mark.parametrize("file", [b"", b"not DICOM", bytes(200), b"\x7fELF" + bytes(300)])
def test_what_is_not_dicom_names_its_place(series, file):
    with pytest.raises(BrokenInstance, match="Image 2 of the series"):
        stack_series([as_file(series[0]), file, as_file(series[1])])


@pytest.mark.parametrize(
    "keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"]
)
def test_what_is_no_uid_is_a_broken_image(series, keyword):
    uid = series[1][keyword].value
    files = [as_file(series[1]).replace(uid.encode(), b"../" + uid[3:].encode())]
    with pytest.raises(BrokenInstance):
        stack_series(files)


def test_bits_that_contradict_each_other_are_a_broken_image(series):
    series[1].BitsStored = 17
    with pytest.raises(BrokenInstance, match=series[1].SOPInstanceUID):
        stacked(series)
