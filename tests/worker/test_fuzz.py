"""Mutated images: each ends in a code or a volume, soon and in bounded memory.

A fifth on every run; ``SEGNODE_FUZZ=1`` runs 5,000 byte flips and 2,000 changes of tags, and any
other number as many others. A failure names its mutation, which makes the same files again.
"""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import time
import warnings
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.errors import PermanentError
from segnode_worker.stack import Stack, stack_series

from .odd_series import enhanced

SEED = os.environ.get("SEGNODE_FUZZ", "")
FLIPS, CHANGES = (5000, 2000) if SEED else (1000, 400)
HANG_S = 30
GROWTH_MB = 300
CANARY = "CANARY"
SPACING_MM = (3.0, 1.5, 1.25)
VALUES = (
    b"",
    b"0 ",
    b"-1",
    b"nan ",
    b"1e999 ",
    b"CANARY",
    b"1\\2\\3\\4\\5\\6\\7 ",
    b"\\" * 100,
    b"\xff" * 8,
    b"\0" * 4,
    b"2147483647",
    b"../../.. ",
    b"<script>alert(1)</script> ",
    b"x" * 40000,
    b"\xfe\xff\x00\xe0\xff\xff\xff\xff",
)
KINDS = ("CS", "DS", "IS", "UI", "LO", "PN", "US", "SS", "FD", "OB", "OW", "SQ", "UN", "AT", "XX")


@pytest.fixture(scope="module")
def seeds(request):
    """Twelve short series in as many encodings: files, modality."""
    hu = np.full((4, 40, 40), -1000, np.int16)
    hu[1:, 5:30, 8:30] = np.random.default_rng(5).integers(-50, 1000, (3, 25, 22))

    def made(**how):
        return ct_series(hu, spacing_mm=SPACING_MM, seed="fuzz", patient_name=CANARY, **how)

    in_code = [
        made(),
        made(signed=True, intercept=0, bits_stored=12),
        made(slope=0.5, intercept=-1024.5),
        *(made(transfer_syntax=syntax) for syntax in (RLELossless, JPEGLSLossless)),
        made(transfer_syntax=JPEG2000Lossless, bits_stored=12),
    ]
    files = [([as_file(image) for image in images], "CT") for images in in_code]
    native = (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    files += [([written(image, syntax) for image in made()], "CT") for syntax in native]
    mr = made()
    for image in mr:
        image.Modality, image.SOPClassUID = "MR", "1.2.840.10008.5.1.4.1.1.4"
        image.ReferencedStudySequence = [Dataset()]
    frames, packed = enhanced(made()), enhanced(made())
    packed.compress(RLELossless, generate_instance_uid=False)
    files += [([as_file(whole)], "CT") for whole in (frames, packed)]
    return [*files, ([as_file(image) for image in mr], "MR")]


@pytest.fixture(scope="module")
def real_seeds(shared_data):
    """Images of scanners, and of the JPEG processes that nothing here can write."""
    jpeg = sorted((shared_data / "cornerstone-ct-ts").glob("*JPEG*.dcm"))
    small = [shared_data / "pydicom" / "files" / name for name in ("CT_small.dcm", "MR_small.dcm")]
    assert len(jpeg) > 5
    return [
        ([path.read_bytes()], "MR" if path.name.startswith("MR") else "CT")
        for path in (*small, *jpeg)
    ]


def written(image, syntax):
    image.file_meta.TransferSyntaxUID = syntax
    stream = BytesIO()
    if syntax == ExplicitVRBigEndian:
        image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
    dcmwrite(stream, image, enforce_file_format=True)
    return stream.getvalue()


def flipped(files, dice):
    """Change up to eight bytes of one file, in its first kilobytes as often as elsewhere."""
    place = dice.randrange(len(files))
    file = bytearray(files[place])
    last = dice.choice((min(len(file), 2000), len(file)))
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(132, last)
        file[at] = dice.choice((file[at] ^ 1 << dice.randrange(8), dice.randrange(256), 0, 255))
    if dice.random() < 0.1:
        del file[dice.randrange(132, len(file)) :]
    return [*files[:place], bytes(file), *files[place + 1 :]]


def changed(files, dice):
    """Give one attribute of one file, or of all, another value, another VR, or take it away."""
    some = range(len(files)) if dice.random() < 0.5 else [dice.randrange(len(files))]
    tags = sorted(dcmread(BytesIO(files[0]), stop_before_pixels=True).keys())
    tag = dice.choice(tags)
    how, value, kind = dice.random(), dice.choice(VALUES), dice.choice(KINDS)
    result = list(files)
    for place in some:
        image = dcmread(BytesIO(files[place]))
        if tag not in image or how < 0.1:
            image.pop(tag, None)
        else:
            old = image.get_item(tag)
            vr = kind if how < 0.5 else old.VR
            new = value if how > 0.3 or not isinstance(old.value, bytes) else old.value
            image[tag] = raw(tag, vr, new, implicit=image.original_encoding[0])
        with BytesIO() as stream:
            dcmwrite(stream, image)
            result[place] = stream.getvalue()
    return result


def raw(tag, representation, value, *, implicit):
    value += b" " * (len(value) % 2)
    return RawDataElement(Tag(tag), representation, len(value), value, 0, implicit, True)


class Hang(Exception):
    """Not an error that anything here may take for a damaged file."""


def hang(*_):
    raise Hang


def ends(files, modality):
    """Return the code or the dtype that stacking ends in."""
    signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANG_S)
    try:
        stack = stack_series(files, modality=modality)
    except PermanentError as error:
        assert re.fullmatch("[a-z][a-z0-9-]+", error.code)
        assert error.code != "permanent"
        assert CANARY not in error.sentence
        assert len(error.sentence) < 1000
        return error.code
    finally:
        signal.alarm(0)
    assert isinstance(stack, Stack)
    assert np.isfinite(stack.volume.affine).all()
    assert np.isfinite(stack.volume.array).all()
    return f"a volume of {stack.volume.array.dtype}"


def run(seeds, mutate, count, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen, slowest = Counter(), 0.0
    for number in range(count):
        files, modality = seeds[number % len(seeds)]
        dice = random.Random(f"{SEED} {name} {number}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                bad = mutate(files, dice)
            except Exception:  # what pydicom cannot write, cannot be sent
                seen["not written"] += 1
                continue
        began = time.monotonic()
        try:
            seen[ends(bad, modality)] += 1
        except BaseException as error:
            error.add_note(f"mutation {name} {number}, SEGNODE_FUZZ={SEED}")
            raise
        slowest = max(slowest, time.monotonic() - began)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{name}: slowest {slowest:.2f} s, {grown_mb:.0f} MB more, {dict(seen.most_common())}")
    assert grown_mb < GROWTH_MB
    assert seen["not written"] < count / 4
    assert len(seen) > 5


def test_seeds_are_volumes(seeds):
    assert len(seeds) == 12
    for files, modality in seeds:
        assert ends(files, modality).startswith("a volume")


@pytest.mark.parametrize(
    ("mutate", "count"), [(flipped, FLIPS), (changed, CHANGES)], ids=["bytes", "tags"]
)
def test_every_mutation_ends_in_a_code_or_a_volume(seeds, mutate, count):
    run(seeds, mutate, count, mutate.__name__)


@pytest.mark.parametrize(
    ("mutate", "count"),
    [(flipped, FLIPS // 5), (changed, CHANGES // 5)],
    ids=["bytes", "tags"],
)
def test_every_mutation_of_a_real_image_does_too(real_seeds, mutate, count):
    run(real_seeds, mutate, count, f"real {mutate.__name__}")
