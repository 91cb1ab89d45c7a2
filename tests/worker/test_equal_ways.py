"""What is fast gives the same as what is general: voxels, headers and refusals; and keeps less."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest
from pydicom.pixels import pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from segnode_cli.ct_series import as_file, ct_series
from segnode_worker import instance, modality_values
from segnode_worker.stack import stack_series

from .odd_series import enhanced

SHAPE = (6, 32, 40)
SPACING_MM = (3.0, 1.5, 1.25)
SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "RLE": RLELossless,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
}


def series_of(stored, *, slope=1.0, intercept=0.0, signed=False, bits=16):
    """A series, slices as a stack orders them, that holds these stored values."""
    images = ct_series(
        np.zeros(SHAPE, np.int16),
        spacing_mm=SPACING_MM,
        orientation="FPL",
        seed="equal",
        slope=slope,
        intercept=intercept,
        signed=signed,
        bits_stored=bits,
    )
    for image, values in zip(images, stored, strict=True):
        image.PixelData = (values & ((1 << bits) - 1)).astype("<u2").tobytes()
        image["PixelData"].VR = "OW"
    return images


def stored_values(signed, bits):
    """Every second slice holds both ends of what the bits can say, the others small values."""
    low = -(1 << (bits - 1)) if signed else 0
    stored = np.random.default_rng(bits).integers(max(low, -900), 900, SHAPE)
    stored[::2, 3, 4:8] = [low, low + (1 << bits) - 1, low + 1, low + (1 << bits) - 2]
    return stored


def in_syntax(images, syntax):
    for image in images:
        if syntax.is_compressed:
            image.compress(syntax, generate_instance_uid=False)
        else:
            if not syntax.is_little_endian:
                image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
            image.file_meta.TransferSyntaxUID = syntax
            image.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian)
    return [as_file(image) for image in images]


RESCALES = [(1, 0), (1, -1024), (1, 1024), (1, -32768), (1, 32767), (1, -40000), (1, 99999)]
RESCALES += [(2, -1000), (-1, 0), (3, 5)]


@pytest.mark.parametrize(("slope", "intercept"), RESCALES, ids=str)
@pytest.mark.parametrize("bits", [12, 15, 16])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_whole_values_are_those_of_wide_numbers_held_at_the_ends_of_int16(
    slope, intercept, bits, signed
):
    stored = stored_values(signed, bits)
    images = series_of(stored, slope=slope, intercept=intercept, signed=signed, bits=bits)
    stack = stack_series([as_file(image) for image in images])
    assert stack.values.dtype == np.int16
    assert np.array_equal(stack.values, (stored * slope + intercept).clip(-32768, 32767))


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES.keys())
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_each_transfer_syntax_gives_the_same_volume(syntax, bits, signed):
    images = series_of(stored_values(signed, bits), intercept=-1024, signed=signed, bits=bits)
    plain = stack_series([as_file(image) for image in images])
    other = stack_series(in_syntax(images, syntax))
    assert np.array_equal(other.values, plain.values)
    assert other.digest == plain.digest


@pytest.mark.parametrize("allocated", [8, 16, 32])
@pytest.mark.parametrize("signed", [0, 1], ids=["unsigned", "signed"])
def test_cells_of_each_size_are_read_as_pydicom_reads_them(allocated, signed):
    images = series_of(np.zeros(SHAPE, np.int64))
    random = np.random.default_rng(allocated)
    for image in images:
        image.BitsAllocated = image.BitsStored = allocated
        image.HighBit, image.PixelRepresentation = allocated - 1, signed
        image.PixelData = random.bytes(allocated // 8 * image.Rows * image.Columns)
        image["PixelData"].VR = "OB" if allocated == 8 else "OW"
    truth = np.stack([pixel_array(image, raw=True).astype(np.int64) for image in images])
    stack = stack_series([as_file(image) for image in images])
    assert np.array_equal(stack.values, truth.clip(-32768, 32767))


DECOY = struct.pack("<HH2sxxI", 0x7FE0, 0x10, b"OW", 4) + struct.pack("<HHI", 0xFFFE, 0xE000, 0)


def with_long_header(file, end=100_000):
    """Have the pixels start there, after what looks like pixels and like items."""
    at = file.index(struct.pack("<HH2s", 0x7FE0, 0x10, b"OW"))
    value = (DECOY * 10).ljust(end - at - 12, b"\0")
    element = struct.pack("<HH2sxxI", 0x7001, 0x1010, b"OB", len(value)) + value
    return file[:at] + element + file[at:]


def test_a_long_header_is_read_as_a_short_one():
    images = series_of(stored_values(True, 12), intercept=-1024, signed=True, bits=12)
    short = [as_file(image) for image in images]
    ways = [stack_series(files) for files in (short, [with_long_header(file) for file in short])]
    assert ways[0].digest == ways[1].digest
    for one, other in zip(*(way.sources for way in ways), strict=True):
        del other.header[0x7001, 0x1010]
        assert one.header == other.header
        assert one.header.file_meta == other.header.file_meta


@pytest.mark.parametrize("beyond", range(-16, 6))
def test_pixels_may_start_wherever_the_first_bytes_end(beyond):
    file = as_file(series_of(stored_values(True, 12), signed=True)[0])
    longer = with_long_header(file, instance._HEAD + beyond)
    assert stack_series([longer]).digest == stack_series([file]).digest


@pytest.mark.parametrize("lengthen", [lambda file: file, with_long_header], ids=["short", "long"])
def test_a_stack_lets_the_files_go(lengthen):
    files = [lengthen(as_file(image)) for image in series_of(stored_values(True, 12), signed=True)]
    before = [sys.getrefcount(file) for file in files]
    stack = stack_series(files)
    assert [sys.getrefcount(file) for file in files] == before
    assert len(stack.sources) == len(files)


def test_an_image_of_many_frames_is_taken_apart_once(monkeypatch):
    opened = []

    class Counted(modality_values.Pixels):
        def __init__(self, image):
            opened.append(image.uid)
            super().__init__(image)

    monkeypatch.setattr(modality_values, "Pixels", Counted)
    images = series_of(stored_values(False, 12), bits=12)
    whole = enhanced(images)
    whole.compress(RLELossless, generate_instance_uid=False)
    assert np.array_equal(stack_series([as_file(whole)]).values, stored_values(False, 12))
    assert opened == [whole.SOPInstanceUID]
