"""Each class of bad input ends in its code, before it costs time or memory, and tells no name."""

from __future__ import annotations

import gzip
import resource
import struct
import time
import warnings
import zlib
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.errors import SegnodeError, UnsuitableSeries
from segnode_contract.findings import Findings
from segnode_worker.folder import FolderArchive
from segnode_worker.multipart import body, parts
from segnode_worker.proof import prove
from segnode_worker.segmentation import encode
from segnode_worker.stack import Stack, stack_series

SPACING_MM = (3.0, 1.5, 1.25)
CANARY = "CANARY^NAME"
VOLUME = "a volume"


@pytest.fixture
def series(hu):
    return ct_series(hu, spacing_mm=SPACING_MM, seed="bad", patient_name=CANARY)


def outcome(files, **needs):
    """Stack, within bounds of time and memory; return the code, or that there is a volume."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        stack = stack_series(files, **needs)
    except SegnodeError as error:
        assert "CANARY" not in error.sentence
        assert len(error.sentence) < 1000
        code = error.code
    else:
        assert isinstance(stack, Stack)
        assert np.isfinite(stack.volume.affine).all()
        assert np.isfinite(stack.volume.array).all()
        code = VOLUME
    assert time.monotonic() - began < 5
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < 50 + 4 * sum(map(len, files)) / 2**20
    return code


def the_second(spoil):
    """Spoil the bytes of one file among good ones."""
    return lambda files: [files[0], spoil(files[1]), *files[2:]]


UID = b"\x08\0\x18\0UI"
FILES = {
    "empty": (the_second(lambda f: b""), "not-dicom"),
    "text": (the_second(lambda f: b"a report, not an image"), "not-dicom"),
    "zeros": (the_second(lambda f: bytes(1000)), "not-dicom"),
    "a program": (the_second(lambda f: b"\x7fELF" + bytes(1000)), "not-dicom"),
    "zipped": (the_second(gzip.compress), "not-dicom"),
    "no preamble": (the_second(lambda f: f[128:]), "not-dicom"),
    "a preamble and no more": (the_second(lambda f: f[:132]), "broken-instance"),
    "cut within the meta group": (the_second(lambda f: f[:200]), "broken-instance"),
    "cut within the header": (
        the_second(lambda f: f[: f.index(UID) + 4]),
        "broken-instance",
    ),
    "cut within the pixels": (the_second(lambda f: f[:-100]), "truncated"),
    "an odd byte too few": (the_second(lambda f: f[:-1]), "truncated"),
    "an odd byte too many": (the_second(lambda f: f + b"\0"), VOLUME),
    "wrong length of the meta group": (
        the_second(lambda f: f[:140] + struct.pack("<I", 9999) + f[144:]),
        VOLUME,
    ),
    "no length of the meta group": (the_second(lambda f: f[:132] + f[144:]), VOLUME),
    "2 GB claimed by an element": (
        the_second(lambda f: f.replace(b"(\0\x10\0US\x02\0", b"(\0\x10\0OB\0\0\0\0\0\x80")),
        "bad-attribute",
    ),
    "pixels that say another length": (
        the_second(lambda f: f.replace(pixel_header(1040), pixel_header(1039))),
        "truncated",
    ),
    "pixels without an end": (
        the_second(lambda f: f.replace(pixel_header(1040), pixel_header(0xFFFFFFFF))),
        "truncated",
    ),
    "the same image twice": (lambda files: [*files, files[3]], "duplicate-instance"),
}


def pixel_header(length):
    return struct.pack("<HH2sxxI", 0x7FE0, 0x10, b"OW", length)


@pytest.mark.parametrize(("spoil", "code"), FILES.values(), ids=FILES.keys())
def test_a_damaged_file_is_refused_by_its_code(series, spoil, code):
    assert outcome(spoil([as_file(image) for image in series])) == code


@dataclass(frozen=True)
class Raw:
    """A value as a file has it: any bytes under any VR."""

    representation: str
    value: bytes


def each(**values):
    """Set attributes in every image; None takes one away."""

    def changed(images):
        for image in images:
            change(image, values)

    return changed


def third(**values):
    return lambda images: change(images[2], values)


def change(image, values):
    for keyword, value in values.items():
        if value is None:
            del image[keyword]
        elif isinstance(value, Raw):
            tag = Tag(tag_for_keyword(keyword))
            image[tag] = RawDataElement(
                tag, value.representation, len(value.value), value.value, 0, False, True
            )
        else:
            setattr(image, keyword, value)


def unchecked(image):
    """Write an image with values that pydicom would mind."""
    image.set_original_encoding(False, True, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return as_file(image)


def two_with_one_uid(images):
    images[2].SOPInstanceUID = images[1].SOPInstanceUID


def float_pixels(images):
    for image in images:
        del image.PixelData
        image.FloatPixelData = bytes(4 * image.Rows * image.Columns)


def mixed_signs(images):
    for image in images[::2]:
        image.PixelRepresentation = 1


NO_CHARACTER_SET = b"\xff\xfe\\<script>"
LONG = b"-15.6250000000000000000\\-14.2500000000000000000\\-6 "
NO_UIDS = (
    "../../../etc/passwd",
    "..",
    "1..2",
    ".1",
    "1.2.x",
    "1." + "2" * 64,
    "",
    "1.2/3",
    "1%2e2",
)
UIDS = (
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPClassUID",
    "FrameOfReferenceUID",
)
ATTRIBUTES = {
    # values of another kind
    "position is text": (third(ImagePositionPatient=Raw("DS", b"CANARY")), "bad-attribute"),
    "position of two values": (third(ImagePositionPatient=[1, 2]), "geometry"),
    "position is one text": (third(ImagePositionPatient=Raw("LO", b"123 ")), "geometry"),
    "spacing is bytes": (each(PixelSpacing=Raw("OB", b"12")), "geometry"),
    "longer numbers than allowed": (third(ImagePositionPatient=Raw("DS", LONG)), VOLUME),
    "more frames than fit": (
        third(NumberOfFrames=Raw("IS", b"9" * 20)),
        "multi-frame",
    ),
    "frames are text": (third(NumberOfFrames=Raw("IS", b"CANARY")), "bad-attribute"),
    "rows are text": (third(Rows=Raw("LO", b"CANARY")), "bad-attribute"),
    "rows are a sequence": (third(Rows=Raw("SQ", b"")), "bad-attribute"),
    "slope is text": (third(RescaleSlope=Raw("LO", b"CANARY")), "bad-attribute"),
    "a name in the modality": (each(Modality=Raw("LO", b"CANARY^NAME ")), "modality"),
    "a name of capitals in the modality": (each(Modality=Raw("CS", b"CANARY")), "modality"),
    "a name in the image type": (each(ImageType=Raw("PN", b"CANARY^NAME ")), VOLUME),
    "a name in the rescale type": (each(RescaleType=Raw("LO", b"CANARY^NAME ")), "not-hounsfield"),
    "a name in the photometric interpretation": (
        each(PhotometricInterpretation=Raw("LO", b"CANARY^NAME ")),
        "photometric",
    ),
    # no pixels
    "no pixel data": (third(PixelData=None), "no-pixel-data"),
    "pixels of floating point": (float_pixels, "no-pixel-data"),
    # geometry
    **{
        f"spacing {value}": (each(PixelSpacing=Raw("DS", f"{value}\\1 ".encode())), "geometry")
        for value in ("nan", "inf", "1e999", "0", "-1", "1e9", "1e-9")
    },
    **{
        f"position {value}": (third(ImagePositionPatient=Raw("DS", value + b"\\1\\1 ")), "geometry")
        for value in (b"nan", b"inf", b"1e300")
    },
    "far away": (each(ImagePositionPatient=[0, 0, 1e6]), "geometry"),
    "no position": (third(ImagePositionPatient=None), "geometry"),
    "orientation zero": (each(ImageOrientationPatient=[0] * 6), "geometry"),
    "orientation not at a right angle": (
        each(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
        "geometry",
    ),
    "orientation of length two": (each(ImageOrientationPatient=[2, 0, 0, 0, 2, 0]), "geometry"),
    "orientation nan": (
        each(ImageOrientationPatient=Raw("DS", b"nan\\0\\0\\0\\1\\0 ")),
        "geometry",
    ),
    "ten thousand numbers": (
        each(ImageOrientationPatient=Raw("DS", b"\\".join([b"1"] * 10001))),
        "geometry",
    ),
    # one series of two kinds, of which one is too small
    "another frame of reference": (third(FrameOfReferenceUID="1.2.3"), "missing-slice"),
    "another size": (third(Rows=10), "missing-slice"),
    # size
    "65535 x 65535": (each(Rows=65535, Columns=65535, PixelData=bytes(10)), "too-large"),
    "8192 x 8192 in a few bytes": (each(Rows=8192, Columns=8192, PixelData=bytes(10)), "too-large"),
    "2048 x 2048 in a few bytes": (each(Rows=2048, Columns=2048), "truncated"),
    "2^31-1 frames": (each(NumberOfFrames=2**31 - 1, PixelData=bytes(10)), "multi-frame"),
    "no rows": (each(Rows=0), "geometry"),
    # identity
    "two images with one UID": (two_with_one_uid, "duplicate-instance"),
    **{
        f"{keyword} {value[:10]!r}": (third(**{keyword: Raw("UI", value.encode())}), "bad-uid")
        for keyword in UIDS
        for value in NO_UIDS
        if value or keyword != "FrameOfReferenceUID"
    },
    "no frame of reference": (third(FrameOfReferenceUID=""), "geometry"),
    "no UID": (third(SOPInstanceUID=None), "broken-instance"),
    "a leading zero": (each(StudyInstanceUID=Raw("UI", b"1.02.3")), VOLUME),
    # pixel cells
    "more bits stored than allocated": (third(BitsStored=17), "pixel-format"),
    "no bits stored": (third(BitsStored=0, HighBit=0), "pixel-format"),
    "a high bit too high": (third(HighBit=16), "pixel-format"),
    "a high bit too low": (third(BitsStored=12, HighBit=5), "pixel-format"),
    "12 bits allocated": (third(BitsAllocated=12, BitsStored=12, HighBit=11), "pixel-format"),
    "1 bit allocated": (third(BitsAllocated=1, BitsStored=1, HighBit=0), "pixel-format"),
    "64 bits allocated": (third(BitsAllocated=64), "pixel-format"),
    "no bits allocated": (third(BitsAllocated=None), "pixel-format"),
    "an unknown representation": (third(PixelRepresentation=7), "pixel-format"),
    "mixed signs": (mixed_signs, VOLUME),
    **{
        f"slope {value}": (third(RescaleSlope=Raw("DS", value.encode())), "not-hounsfield")
        for value in ("0 ", "nan ", "inf ", "1e300 ", "")
    },
    "intercept nan": (third(RescaleIntercept=Raw("DS", b"nan ")), "not-hounsfield"),
    "a window of no width": (each(WindowCenter=0, WindowWidth=0), VOLUME),
    "RGB": (each(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "photometric"),
    "a palette": (each(PhotometricInterpretation="PALETTE COLOR"), "photometric"),
    "MONOCHROME3": (each(PhotometricInterpretation="MONOCHROME3"), "photometric"),
    # character sets
    "an unknown character set": (each(SpecificCharacterSet="ISO_IR 999"), VOLUME),
    "no character set": (each(SpecificCharacterSet=Raw("CS", NO_CHARACTER_SET)), VOLUME),
}


@pytest.mark.parametrize(("spoil", "code"), ATTRIBUTES.values(), ids=ATTRIBUTES.keys())
def test_a_value_that_cannot_be_is_refused_by_its_code(series, spoil, code):
    spoil(series)
    assert outcome([unchecked(image) for image in series]) == code


OTHER_OBJECTS = {
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
    "SR": "1.2.840.10008.5.1.4.1.1.88.33",
    "PR": "1.2.840.10008.5.1.4.1.1.11.1",
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
    "DOC": "1.2.840.10008.5.1.4.1.1.104.1",
    "ES": "1.2.840.10008.5.1.4.1.1.77.1.1.1",
    "SM": "1.2.840.10008.5.1.4.1.1.77.1.6",
}


@pytest.mark.parametrize("modality", OTHER_OBJECTS)
def test_what_is_no_image_is_refused_by_modality_and_by_class(series, modality):
    each(SOPClassUID=OTHER_OBJECTS[modality])(series)
    assert outcome([unchecked(image) for image in series]) == "sop-class"
    each(Modality=modality)(series)
    assert outcome([unchecked(image) for image in series]) == "modality"


def test_a_model_for_mr_takes_mr_and_no_ct(series):
    files = [unchecked(image) for image in series]
    assert outcome(files, modality="MR") == "modality"
    each(Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")(series)
    files = [unchecked(image) for image in series]
    assert outcome(files, modality="MR") == VOLUME
    assert outcome(files) == "modality"


@pytest.mark.parametrize("slope", [b"0 ", b"nan ", b"inf ", b"1e300 "])
def test_values_of_other_modalities_are_finite_too(series, slope):
    each(Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4", RescaleSlope=Raw("DS", slope))(
        series
    )
    assert outcome([unchecked(image) for image in series], modality="MR") == "rescale"


@pytest.mark.parametrize("thickness", [b"nan ", b"1e9 ", b"1e-9"])
def test_one_slice_has_a_thickness_that_can_be(series, thickness):
    change(series[0], {"SliceThickness": Raw("DS", thickness)})
    assert outcome([unchecked(series[0])]) == "geometry"


# bombs


def deflated(image, more=b""):
    whole = as_file(image)
    (meta_length,) = struct.unpack_from("<I", whole, 140)
    content = whole[144 + meta_length :]
    at = content.index(pixel_header(len(image.PixelData)))
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    packed = packer.compress(content[:at] + more + content[at:]) + packer.flush()
    meta = whole[: 144 + meta_length].replace(
        b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0",
        b"\x02\0\x10\0UI\x16\x001.2.840.10008.1.2.1.99",
    )
    return meta[:140] + struct.pack("<I", meta_length + 2) + meta[144:] + packed


def test_deflated_images_are_a_volume(series, hu):
    files = [deflated(image) for image in series]
    assert np.array_equal(stack_series(files).volume.array, hu[::-1])
    assert outcome([*files[:3], files[3][:-40], *files[4:]]) == "truncated"


def test_a_deflated_bomb_is_refused_before_it_grows(series):
    zeros = struct.pack("<HH2sxxI", 0x7001, 0x1010, b"OB", 400 << 20) + bytes(400 << 20)
    bomb = deflated(series[0], zeros)
    del zeros
    assert len(bomb) < 1 << 20
    assert outcome([bomb]) == "too-large"


def test_a_deflated_bomb_behind_a_long_meta_group_is_refused_too(series):
    zeros = struct.pack("<HH2sxxI", 0x7001, 0x1010, b"OB", 100 << 20) + bytes(100 << 20)
    bomb = deflated(series[0], zeros)
    long = struct.pack("<HH2sxxI", 2, 0x102, b"OB", 70000) + bytes(70000)
    (meta_length,) = struct.unpack_from("<I", bomb, 140)
    end = 144 + meta_length
    bomb = (
        bomb[:140] + struct.pack("<I", meta_length + len(long)) + bomb[144:end] + long + bomb[end:]
    )
    assert outcome([bomb]) == "too-large"


def test_empty_images_that_are_compressed_well_are_no_bomb():
    series = ct_series(
        np.zeros((3, 512, 512), np.int16),
        spacing_mm=SPACING_MM,
        transfer_syntax=JPEGLSLossless,
    )
    files = [as_file(image) for image in series]
    assert stack_series(files).volume.shape == (3, 512, 512)


def test_many_small_files_that_mean_a_large_volume_are_a_bomb(hu):
    images = ct_series(
        np.zeros((130, 20, 26), np.int16), spacing_mm=SPACING_MM, transfer_syntax=JPEGLSLossless
    )
    each(Rows=1024, Columns=1024)(images)
    assert outcome([as_file(image) for image in images]) == "too-large"


JPEG_SIZE = b"\xff\xf7\x00\x0b\x10"
J2K_SIZE = b"\xff\x4f\xff\x51"


def claiming(codestream, rows, columns):
    """Write another size into the head of a codestream."""
    if (at := codestream.find(J2K_SIZE)) >= 0:
        return codestream[: at + 8] + struct.pack(">II", columns, rows) + codestream[at + 16 :]
    for marker in (b"\xff\xf7", b"\xff\xc3"):
        if (at := codestream.find(marker)) >= 0:
            return codestream[: at + 5] + struct.pack(">HH", rows, columns) + codestream[at + 9 :]
    raise AssertionError("no size")


@pytest.mark.parametrize("size", [(60000, 60000), (65535, 1), (0, 104), (81, 104)], ids=str)
@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=["JPEG-LS", "J2K"])
def test_a_codestream_of_another_size_reaches_no_decoder(hu, syntax, size):
    large = hu.repeat(4, axis=1).repeat(4, axis=2)
    [image, *_] = ct_series(large, spacing_mm=SPACING_MM, transfer_syntax=syntax)
    assert outcome([as_file(image)]) == VOLUME
    image.PixelData = encapsulate([claiming(one_fragment(image), *size)])
    assert outcome([as_file(image)]) == "pixel-size"


def one_fragment(image):
    (table,) = struct.unpack_from("<I", image.PixelData, 4)
    (length,) = struct.unpack_from("<I", image.PixelData, 12 + table)
    return image.PixelData[16 + table : 16 + table + length]


def with_pixels(image, pixels):
    whole = as_file(image)
    return whole[: whole.index(UNDEFINED) + len(UNDEFINED)] + pixels


def items(*values, end=b"\xfe\xff\xdd\xe0\0\0\0\0"):
    return b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(v)) + v for v in values) + end


UNDEFINED = struct.pack("<HH2sxxI", 0x7FE0, 0x10, b"OB", 0xFFFFFFFF)
ITEMS = {
    "an offset table that lies": (lambda frame: items(struct.pack("<I", 4711), frame), VOLUME),
    "two fragments": (lambda frame: items(b"", frame[:100], frame[100:]), VOLUME),
    "no end": (lambda frame: items(b"", frame, end=b""), "truncated"),
    "no fragment": (lambda frame: items(b""), "truncated"),
    "no item at all": (lambda frame: items(), "truncated"),
    "an empty fragment": (lambda frame: items(b"", b""), "truncated"),
    "a fragment cut short": (lambda frame: items(b"", frame, end=b"")[:-50], "truncated"),
    "half of the fragments": (lambda frame: items(b"", frame[: len(frame) // 20 * 2]), None),
    "no codestream": (lambda frame: items(b"", bytes(len(frame))), None),
    "text": (lambda frame: items(b"", b"CANARY" * 100), None),
}


@pytest.mark.parametrize(("made", "code"), ITEMS.values(), ids=ITEMS.keys())
@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=["RLE", "JPEG-LS", "J2K"]
)
def test_items_that_are_not_as_they_should_be(hu, syntax, made, code):
    large = hu.repeat(4, axis=1).repeat(4, axis=2)
    [_, _, image, *_] = ct_series(large, spacing_mm=SPACING_MM, transfer_syntax=syntax)
    found = outcome([with_pixels(image, made(one_fragment(image)))])
    if syntax == JPEG2000Lossless and found == VOLUME and code is None:
        return  # a JPEG 2000 stream may end early by design
    assert found in ({code} if code else {"undecodable", "pixel-size", "truncated"})


# complexity


def with_elements(image, elements):
    whole = as_file(image)
    at = whole.index(pixel_header(len(image.PixelData)))
    return whole[:at] + elements + whole[at:]


def nested(depth):
    opened = struct.pack("<HH2sxxI", 0x7001, 0x1010, b"SQ", 0xFFFFFFFF)
    opened += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closed = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return opened * depth + closed * depth


def nested_with_lengths(depth):
    inner = b""
    for _ in range(depth):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
        inner = struct.pack("<HH2sxxI", 0x10, 0x1002, b"SQ", len(item)) + item
    return inner


def many_elements(count):
    return b"".join(
        struct.pack("<HH2sH", 0x7001 + 2 * (n // 60000), 0x1000 + n % 60000, b"CS", 0)
        for n in range(count)
    )


def many_items(count):
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    opened = struct.pack("<HH2sxxI", 0x7001, 0x1010, b"SQ", 0xFFFFFFFF)
    return opened + item * count + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


@pytest.mark.parametrize(
    ("elements", "code"),
    [
        (nested(20), VOLUME),
        (nested(10_000), "too-complex"),
        (many_elements(3000), VOLUME),
        (many_elements(1_000_000), "too-complex"),
        (many_items(1000), VOLUME),
        (many_items(1_000_000), "too-complex"),
    ],
    ids=["20 levels", "10000 levels", "3000 tags", "10^6 tags", "1000 items", "10^6 items"],
)
def test_what_is_too_complex_is_refused_soon(series, elements, code):
    assert outcome([with_elements(series[0], elements), *map(as_file, series[1:])]) == code


def test_levels_with_lengths_are_copied_without_a_look_inside(series, labels, card, identity):
    plain = [as_file(image) for image in series]
    inner = nested_with_lengths(2000)
    at = plain[-1].index(b"\x10\0\x40\0CS")  # (0010,0040) Patient's Sex
    files = [f[:at] + inner + f[at:] for f in plain]
    stack = stack_series(files)
    on_slices = labels[:, ::-1]
    data = b"".join(encode(stack, on_slices, card, Findings(), identity, datetime(2026, 1, 1)))
    prove(data, stack, on_slices, card, Findings())
    assert inner in data


# words

NAMES = {
    "a script": ("LO", b"<script>alert(1)</script>"),
    "an image": ("LO", b'"><img src=x onerror=alert(1)>'),
    "a template": ("LO", b"{{7*7}}"),
    "a formula": ("LO", b"=cmd|' /C calc'!A0"),
    "line breaks": ("LO", b"one\r\nlevel=ERROR two\n"),
    "NUL within": ("LO", b"one\0two\0"),
    "right to left": ("LO", "\u202eabc\u202c".encode()),
    "no UTF-8": ("LO", b"\xff\xfe\xc3("),
    "Japanese": ("LO", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
    "64 KB": ("LO", b"x" * 65534),
    "another VR": ("US", b"\1\0"),
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_any_name_and_description_is_copied_as_it_is(series, labels, card, identity, name):
    representation, value = name
    value += b" " * (len(value) % 2)
    each(
        PatientName=Raw("PN" if representation == "LO" else representation, value),
        StudyDescription=Raw(representation, value),
        SpecificCharacterSet=["", "ISO 2022 IR 87"],
    )(series)
    files = [unchecked(image) for image in series]
    stack = stack_series(files)
    on_slices = labels[:, ::-1]
    data = b"".join(encode(stack, on_slices, card, Findings(), identity, datetime(2026, 1, 1)))
    prove(data, stack, on_slices, card, Findings())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made, sent = (dcmread(BytesIO(file), stop_before_pixels=True) for file in (data, files[0]))
    for keyword in ("PatientName", "StudyDescription"):
        tag = tag_for_keyword(keyword)
        assert made.get_item(tag).value == sent.get_item(tag).value


# where files come from


def test_a_series_larger_than_a_worker_holds_is_refused_as_it_arrives(monkeypatch):
    monkeypatch.setattr("segnode_worker.multipart._LARGEST", 1000)
    with pytest.raises(UnsuitableSeries) as refused:
        list(parts("multipart/related; boundary=x", body("x", bytes(2000))[1]))
    assert refused.value.code == "too-large"


@pytest.mark.parametrize("uid", NO_UIDS)
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_a_folder_with_a_uid_that_is_none_names_the_file(series, tmp_path, keyword, uid):
    change(series[0], {keyword: Raw("UI", uid.encode())})
    (tmp_path / "image").write_bytes(unchecked(series[0]))
    with pytest.raises(SegnodeError, match="image"):
        FolderArchive(tmp_path, tmp_path / "out").series()


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_every_file_of_pydicoms_tests_ends_in_a_code(shared_data, modality):
    paths = [path for path in sorted((shared_data / "pydicom").rglob("*")) if path.is_file()]
    assert len(paths) > 60
    found = {str(path): outcome([path.read_bytes()], modality=modality) for path in paths}
    volumes = {path.split("/")[-1] for path, code in found.items() if code == VOLUME}
    assert volumes >= {"CT": {"CT_small.dcm"}, "MR": {"MR_small.dcm", "MR_small_RLE.dcm"}}[modality]
    assert found.keys() - volumes
