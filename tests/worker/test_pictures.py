"""Key pictures show the labels where they are, in the card's colours, and say nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.card import Card
from segnode_contract.errors import ArchiveUnavailable
from segnode_contract.pictures import LARGEST, SIGNATURE
from segnode_worker import archive as archives
from segnode_worker.archive import DicomWebArchive
from segnode_worker.pictures import pictures
from segnode_worker.stack import Stack, stack_series

RED, BLUE = (34_891, 53_480, 50_166), (21_169, 53_252, 5_174)
"""Of sRGB, in CIELab as DICOM encodes it."""
WATER = 40
"""The middle of the soft tissue window."""


def stack_of(
    hu: NDArray[np.int16], spacing_mm: tuple[float, float, float] = (2, 1, 1), **more: str
) -> Stack:
    """Return a stack whose slices are those of `hu`, in its order."""
    series = ct_series(hu[::-1], spacing_mm=spacing_mm, seed="pictures", **more)  # type: ignore[arg-type] # texts
    stack = stack_series([as_file(image) for image in series])
    assert np.array_equal(stack.values, hu)
    return stack


def water(slices: int = 3, rows: int = 64, columns: int = 64) -> NDArray[np.int16]:
    return np.full((slices, rows, columns), WATER, np.int16)


def labels_for(hu: NDArray[np.int16]) -> NDArray[np.uint8]:
    return np.zeros((2, *hu.shape), np.uint8)


def seen(picture: bytes) -> NDArray[np.uint8]:
    """Return the pixels, shape ``(rows, columns, 3)``."""
    return np.asarray(Image.open(BytesIO(picture)).convert("RGB"))


def chunks(picture: bytes) -> list[str]:
    """Return the types of a PNG's chunks (RFC 2083, 3.2)."""
    assert picture.startswith(SIGNATURE)
    place, found = len(SIGNATURE), []
    while place < len(picture):
        length = int.from_bytes(picture[place : place + 4])
        found.append(picture[place + 4 : place + 8].decode("ascii"))
        place += length + 12
    assert place == len(picture)
    return found


@pytest.fixture
def coloured(card: Card) -> Card:
    """The card with red in its first plane, and blue as the first value of its second."""
    first, second, *others = card.segments
    return replace(
        card, segments=(replace(first, colour=RED), replace(second, colour=BLUE), *others)
    )


def test_a_labelled_block_is_coloured_where_it_is_and_nowhere_else(coloured: Card) -> None:
    hu = water()
    labels = labels_for(hu)
    labels[0, 1, 8:16, 40:56] = 1
    [picture] = pictures(stack_of(hu), labels, coloured)
    pixels = seen(picture)
    assert pixels.shape == (512, 512, 3)
    reddish = pixels[..., 0].astype(int) - pixels[..., 2] > 64
    # eight pixels for one
    assert np.argwhere(reddish).min(axis=0).tolist() == [64, 320]
    assert np.argwhere(reddish).max(axis=0).tolist() == [127, 447]
    assert 64 * 128 - np.count_nonzero(reddish) < 4 * 8  # the corners are round
    assert np.abs(pixels[96, 384] - np.array([192, 64, 64])).max() <= 1
    assert (pixels[300, 100] == 128).all()


def test_pixels_that_are_not_square_are_made_so(coloured: Card) -> None:
    hu = water(rows=32, columns=32)
    labels = labels_for(hu)
    labels[0, 1, 8:12, 20:24] = 1
    [picture] = pictures(stack_of(hu, (2, 3, 1.5)), labels, coloured)
    pixels = seen(picture)
    assert pixels.shape == (512, 256, 3)
    places = np.argwhere(pixels[..., 0].astype(int) - pixels[..., 2] > 64)
    assert places.min(axis=0).tolist() == [128, 160]
    assert places.max(axis=0).tolist() == [191, 191]


@pytest.mark.parametrize("orientation", ["HPL", "FPL", "PFL", "LPF"])
def test_a_picture_lies_as_the_image_that_it_shows(coloured: Card, orientation: str) -> None:
    """The first row and column of the file are at the top left, however the scanner cut."""
    rng = np.random.default_rng(7)
    hu = rng.integers(-150, 230, (16, 16, 16)).astype(np.int16)
    series = ct_series(hu, spacing_mm=(1, 1, 1), seed="lies", orientation=orientation)
    stack = stack_series([as_file(image) for image in series])
    labels = np.zeros((2, *stack.values.shape), np.uint8)
    labels[0, 5, 0, 0] = 1
    [picture] = pictures(stack, labels, coloured)
    [file] = [i for i in series if i.SOPInstanceUID == stack.sources[5].uid]
    expected = (file.pixel_array.astype(float) - 1024 + 160) / 400 * 255
    blocks = seen(picture).reshape(16, 32, 16, 32, 3)[:, 15:17, :, 15:17].mean(axis=(1, 3))
    apart = np.abs(blocks[:15] - expected[:15, :, np.newaxis]).max(axis=2)
    assert apart[0, 0] > 20
    apart[0, 0] = 0
    assert apart.max() < 8  # neighbours reach into the middle a little


def test_planes_that_overlap_show_through_each_other(coloured: Card) -> None:
    hu = water()
    labels = labels_for(hu)
    labels[0, 1, 8:40] = 1
    labels[1, 1, 24:56] = 1
    [picture] = pictures(stack_of(hu), labels, coloured)
    pixels = seen(picture)
    for row, expected in ((12, (192, 64, 64)), (30, (96, 32, 160)), (50, (64, 64, 192))):
        assert np.abs(pixels[row * 8, 256] - np.array(expected)).max() <= 2


def test_where_nothing_is_labelled_there_is_no_picture(coloured: Card) -> None:
    hu = water()
    assert pictures(stack_of(hu), labels_for(hu), coloured) == ()


def brightness(picture: bytes) -> int:
    return int(seen(picture)[0, 0, 0])


def test_three_slices_stand_for_the_labelled_voxels(coloured: Card) -> None:
    """At a quarter, half and three quarters of them; each slice is as bright as its number."""
    hu = water(12) + np.arange(12, dtype=np.int16)[:, None, None] * 10 - 100
    labels = labels_for(hu)
    labels[0, 2:10, 30:40, 30:40] = 1
    drawn = pictures(stack_of(hu), labels, coloured)
    expected = [round((hu[number, 0, 0] + 160) / 400 * 255) for number in (3, 5, 7)]
    assert [brightness(one) for one in drawn] == expected


def test_a_slice_comes_once(coloured: Card) -> None:
    hu = water(5)
    labels = labels_for(hu)
    labels[0, 1, 30, 30] = 1
    labels[0, 3, 20:40, 20:40] = 1
    assert len(pictures(stack_of(hu), labels, coloured)) == 1
    labels[0, 1, 20:40, 20:40] = 1
    assert len(pictures(stack_of(hu), labels, coloured)) == 2


def test_lungs_are_shown_in_their_window(coloured: Card) -> None:
    hu = water()
    hu[:, 20:40, 20:40] = -850
    labels = labels_for(hu)
    labels[0, 1, 20:40, 20:40] = 1
    [picture] = pictures(stack_of(hu), labels, coloured)
    assert brightness(picture) == round((40 + 1350) / 1500 * 255)
    labels[0, 1, 10:60, 10:60] = 1
    [picture] = pictures(stack_of(hu), labels, coloured)
    assert brightness(picture) == 128


@pytest.mark.parametrize(("photometric", "first"), [("MONOCHROME2", 0), ("MONOCHROME1", 255)])
def test_other_modalities_are_shown_from_their_darkest_to_their_brightest(
    coloured: Card, photometric: str, first: int
) -> None:
    hu = np.zeros((3, 64, 64), np.int16)
    hu[:, 32:] = 5000
    hu[1, 60, 60] = 32000  # one bright spot must not make the rest black
    stack = stack_of(hu)
    stack.sources[0].header.Modality = "MR"
    stack.sources[0].header.PhotometricInterpretation = photometric
    labels = labels_for(hu)
    labels[0, 1, 10, 10] = 1
    [picture] = pictures(stack, labels, coloured)
    assert brightness(picture) == first
    assert seen(picture)[400, 10].tolist() == [255 - first] * 3


def test_an_image_of_one_value_can_be_drawn(coloured: Card) -> None:
    hu = water()
    stack = stack_of(hu)
    stack.sources[0].header.Modality = "MR"
    labels = labels_for(hu)
    labels[0, 1, 10, 10] = 1
    assert len(pictures(stack, labels, coloured)) == 1


@pytest.mark.parametrize("columns", [64, 12])
def test_what_made_it_and_what_it_is_not_are_burnt_in_along_the_lower_edge(
    coloured: Card, columns: int
) -> None:
    hu = water(columns=columns)
    labels = labels_for(hu)
    labels[0, 1, 10, 1] = 1
    one, other = (
        seen(pictures(stack_of(hu), labels, card)[0])
        for card in (coloured, replace(coloured, version="1.3"))
    )
    changed = np.argwhere((one != other).any(axis=2))
    assert len(changed)
    assert changed[:, 0].min() > 350
    strip = one[-16:]
    assert ((strip == 0).all(axis=2) | (strip > 0).any(axis=2)).all()
    assert (strip == 0).all(axis=2).mean() > 0.5
    assert (strip == 255).all(axis=2).any()


def test_a_picture_holds_its_pixels_and_nothing_else(coloured: Card) -> None:
    hu = water()
    labels = labels_for(hu)
    labels[0, 1] = 1
    stack = stack_of(hu, patient_name="CANARY^NAME", patient_id="CANARY")
    [picture] = pictures(stack, labels, coloured)
    assert set(chunks(picture)) == {"IHDR", "IDAT", "IEND"}
    same = pictures(stack_of(hu, patient_name="Other", patient_id="O"), labels, coloured)
    assert same == (picture,)


def test_a_picture_of_noise_is_small_enough_too(coloured: Card) -> None:
    rng = np.random.default_rng(3)
    hu = rng.integers(-160, 240, (3, 512, 512)).astype(np.int16)
    labels = labels_for(hu)
    labels[0, 1] = rng.integers(0, 2, (512, 512))
    [picture] = pictures(stack_of(hu), labels, coloured)
    assert len(picture) <= LARGEST
    assert set(chunks(picture)) == {"IHDR", "PLTE", "IDAT", "IEND"}


@pytest.fixture
def node(free_port: Callable[[], int]) -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A node that takes the picture 1, has no place for 2, and is asleep at 3."""
    taken: list[tuple[str, str, bytes]] = []
    over = threading.Event()

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append((self.path, self.headers["Content-Type"], body))
            if self.path.endswith("3"):
                over.wait(30)
            self.send_response(404 if self.path.endswith("2") else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", free_port()), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", taken
    over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_picture_is_sent_to_the_plugin_beside_the_dicomweb_root(
    node: tuple[str, list[tuple[str, str, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, taken = node
    monkeypatch.setattr(archives, "_PICTURE_S", 0.3)
    archive = DicomWebArchive(f"{url}/dicom-web/", "worker", "secret")
    archive.keep_picture("1.2.3", 1, b"a picture")
    assert taken == [("/segnode/api/pictures/1.2.3/1", "image/png", b"a picture")]
    with pytest.raises(ArchiveUnavailable, match="answers 404 to a picture") as raised:
        archive.keep_picture("1.2.3", 2, b"a picture")
    assert raised.value.code == "picture-refused"
    began = time.monotonic()
    with pytest.raises(ArchiveUnavailable, match="does not answer"):
        archive.keep_picture("1.2.3", 3, b"a picture")
    assert time.monotonic() - began < 2
    assert len(taken) == 3  # each was asked once
