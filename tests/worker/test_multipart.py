"""Parts come out whole, however the network cuts the body."""

from __future__ import annotations

import pytest

from segnode_worker.multipart import BrokenMultipart, body, parts

KIND = 'multipart/related; type="application/dicom"; boundary="a b+1"'
BODY = (
    b"preamble\r\n--a b+1\r\nContent-Type: application/dicom\r\n\r\nfirst\r\n--a b\r\n"
    b"\r\n--a b+1\r\nContent-Length: 0\r\n\r\n\r\n--a b+1\r\nX: y\r\n\r\n\r\n--third"
    b"\r\n--a b+1--\r\nepilogue"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 1000])
def test_parts_are_the_same_for_every_size_of_chunk(size):
    chunks = [BODY[i : i + size] for i in range(0, len(BODY), size)]
    assert list(parts(KIND, chunks)) == [b"first\r\n--a b\r\n", b"", b"\r\n--third"]


def test_what_is_written_is_read_back():
    content = bytes(range(256)) * 5
    kind = "multipart/related; boundary=xyz"
    length, pieces = body("xyz", content)
    written = b"".join(pieces)
    assert len(written) == length
    assert list(parts(kind, [written])) == [content]


@pytest.mark.parametrize("cut", [len(BODY) - 14, 40, 10, 0])
def test_a_body_without_its_end_is_broken(cut):
    with pytest.raises(BrokenMultipart):
        list(parts(KIND, [BODY[:cut]]))


@pytest.mark.parametrize("kind", ["", "text/plain", "application/dicom; boundary=x", "multipart/x"])
def test_what_is_not_multipart_is_broken(kind):
    with pytest.raises(BrokenMultipart):
        list(parts(kind, [BODY]))
