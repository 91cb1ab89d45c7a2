"""`multipart/related` as DICOMweb uses it (PS3.18 8.6, RFC 2387)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from email.message import Message
from mmap import mmap

from segnode_contract.errors import UnsuitableSeries

_LONGEST_HEADER = 1 << 16
_LARGEST = 1 << 32
_PIECE = 1 << 20


class BrokenMultipart(ValueError):
    """The body is not multipart, or ends before its closing boundary."""


def parts(content_type: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Give the bodies of the parts as they arrive, holding one part at a time.

    Parameters
    ----------
    content_type
        The header of the whole answer, which names the boundary.
    chunks
        The body in pieces of any size.

    Raises
    ------
    BrokenMultipart
        If there is no boundary, or the closing one is missing.
    UnsuitableSeries
        With the code ``too-large``, if there are more than 4 GiB.
    """
    delimiter = b"\r\n--" + _boundary(content_type)
    # the first boundary may stand at the very start, without a line break before it
    buffer, searched, preamble = bytearray(b"\r\n"), 0, True
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > _LARGEST:
            raise UnsuitableSeries(
                f"The series has more than {_LARGEST >> 30} GiB of files; that is more than a "
                "worker holds.",
                code="too-large",
            )
        buffer += chunk
        while (end := buffer.find(delimiter, searched)) >= 0:
            if not preamble:
                yield _body(buffer, end)
            del buffer[: end + len(delimiter)]
            searched, preamble = 0, False
        searched = max(0, len(buffer) - len(delimiter))
    if preamble or not buffer.startswith(b"--"):
        raise BrokenMultipart("the body ends before its closing boundary")


def body(boundary: str, content: bytes | mmap) -> tuple[int, Iterator[bytes]]:
    """Return the length and the pieces of a body of one part, `content`, a DICOM file."""
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    def pieces() -> Iterator[bytes]:
        yield head
        for start in range(0, len(content), _PIECE):
            yield content[start : start + _PIECE]
        yield tail

    return len(head) + len(content) + len(tail), pieces()


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary()
    if message.get_content_maintype() != "multipart" or not boundary:
        raise BrokenMultipart(f"the content type is {content_type!r}")
    return boundary.encode()


def _body(buffer: bytearray, end: int) -> bytes:
    """Return what follows the header of the part that ends at `end`."""
    start = buffer.find(b"\r\n\r\n", 0, min(end, _LONGEST_HEADER))
    if start < 0:
        raise BrokenMultipart("a part has no header")
    with memoryview(buffer) as view:
        return bytes(view[start + 4 : end])
