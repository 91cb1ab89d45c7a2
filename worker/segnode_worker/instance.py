"""One image: what its header says of all of its frames."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

from pydicom import Dataset
from pydicom.dataset import FileDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from segnode_contract.errors import BrokenInstance
from segnode_worker.attributes import BROKEN, Reader

_PREFIX = slice(128, 132)  # PS3.10 7.1
_PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # (7FE0,0010), both byte orders
_ANY_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}  # of floating point too
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # (FFFE,E000), both byte orders
_MOST_ELEMENTS = 50_000
_MOST_ITEMS = 50_000
"""pydicom takes 10 to 30 µs for each, and 1 kB; images of scanners have a few hundred."""
_HEAD = 1 << 16
"""Most headers end within so many bytes, which hold no more elements and items than may be."""
_INFLATED_FREELY = 1 << 24
_INFLATED_AT_MOST = 1 << 28
_INFLATION = 200
_DEFLATED = b"\x02\x00\x10\x00UI\x16\x00" + DeflatedExplicitVRLittleEndian.encode()
_NOT_DEFLATED = _DEFLATED[:8] + b"1.2.840.10008.1.2.1\0\0\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What stacking needs of one image; `header` holds the whole dataset without its pixels."""

    uid: str
    study_uid: str
    series_uid: str
    class_uid: str
    transfer_syntax: UID
    modality: str
    image_type: tuple[str, ...]
    frames: int
    has_pixels: bool
    photometric: str
    samples: int
    rows: int
    columns: int
    bits: tuple[int, int, int]
    """Bits Allocated, Bits Stored, High Bit (PS3.5 8.1.1)."""
    representation: int
    """Pixel Representation: 1 where the stored values have a sign."""
    frame_of_reference_uid: str
    header: Dataset
    file: bytes
    """The Part 10 file, inflated where it came deflated."""
    pixel_offset: int
    """Where the Pixel Data element starts in `file`."""

    @property
    def enhanced(self) -> bool:
        """Whether its frames are described by functional groups (PS3.3 C.7.6.16)."""
        return "SharedFunctionalGroupsSequence" in self.header


def parse_instance(file: bytes, place: int) -> Instance:
    """Read the header of a Part 10 file; `place` names it where it has no UID that can be read.

    Raises
    ------
    BrokenInstance
        With the code ``not-dicom``, ``too-large``, ``too-complex``, ``bad-uid`` or
        ``bad-attribute``, and ``broken-instance`` where it does not parse.
    """
    name = f"Image {place} of the series"
    if file[_PREFIX] != b"DICM":
        raise _broken("not-dicom", f"{name} is not a DICOM file; take it away where it came from.")
    try:
        with warnings.catch_warnings():
            # pydicom's warnings quote values, which may be a patient's
            warnings.simplefilter("ignore")
            found = _short_header(file, name)
            if found is None:
                file = inflated(file)
                if max(map(file.count, _ITEMS)) > _MOST_ITEMS:
                    raise _too_complex(name)
                found = _header(file, name)
            return _instance(*found, file, name)
    except RecursionError as error:
        raise _too_complex(name) from error
    except BROKEN as error:
        raise _broken(
            "broken-instance",
            f"{name} cannot be read ({type(error).__name__}); send it again from where it came.",
        ) from error


def _short_header(file: bytes, name: str) -> tuple[FileDataset, int] | None:
    """Read a header from the first bytes of a file, none where pixels do not follow it there.

    To search all pixels for items, and for what says that they are deflated, takes as long as to
    read the header.
    """
    head = file[:_HEAD]
    if DeflatedExplicitVRLittleEndian.encode() in head:
        return None
    try:
        header, end = _header(head, name)
    except BROKEN:
        return None
    return (header, end) if head[end : end + 4] in _PIXEL_DATA else None


def _header(file: bytes, name: str) -> tuple[FileDataset, int]:
    """Return what stands before the pixels, and where they start."""
    stream = BytesIO(file)
    header = read_partial(stream, _until_pixels(name))
    header.buffer = None  # it would keep the file as long as the header
    return header, stream.tell()


def inflated(file: bytes) -> bytes:
    """Return a deflated file (PS3.5 A.5) in Explicit VR Little Endian, any other as it is.

    Raises
    ------
    BrokenInstance
        With the code ``too-large`` before it grows beyond all reason, or ``truncated``.
    zlib.error, or another of `BROKEN`
        If it is damaged.
    """
    if DeflatedExplicitVRLittleEndian.encode() not in file:
        return file
    stream = BytesIO(file)
    stream.seek(_PREFIX.stop)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return file
    start = stream.tell()
    limit = min(_INFLATED_AT_MOST, max(_INFLATED_FREELY, _INFLATION * len(file)))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(file[start:], limit)
    if inflater.unconsumed_tail:
        raise _broken("too-large", f"An image of the series inflates to more than {limit} bytes.")
    if not inflater.eof:
        raise _broken("truncated", "A deflated image of the series is cut short; send it again.")
    return file[:start].replace(_DEFLATED, _NOT_DEFLATED, 1) + content


def _until_pixels(name: str) -> Callable[[BaseTag, str | None, int], bool]:
    seen = 0

    def stop(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        nonlocal seen
        seen += 1
        if seen > _MOST_ELEMENTS:
            raise _too_complex(name)
        return tag in _ANY_PIXELS

    return stop


def _instance(header: FileDataset, pixel_offset: int, file: bytes, name: str) -> Instance:
    if "SOPInstanceUID" not in header:  # pydicom ends a header that is cut short without a word
        raise _broken(
            "broken-instance",
            f"{name} is cut short, or has no SOP Instance UID; send it again from where it came.",
        )
    uid = Reader(header, name).uid("SOPInstanceUID")
    read = Reader(header, f"The image {uid}")
    allocated = read.whole("BitsAllocated", 0)
    stored = read.whole("BitsStored", allocated)
    return Instance(
        uid=uid,
        study_uid=read.uid("StudyInstanceUID"),
        series_uid=read.uid("SeriesInstanceUID"),
        class_uid=read.uid("SOPClassUID"),
        transfer_syntax=UID(Reader(header.file_meta, read.name).uid("TransferSyntaxUID")),
        modality=read.text("Modality"),
        image_type=read.texts("ImageType"),
        frames=read.whole("NumberOfFrames", 1),
        has_pixels=file[pixel_offset : pixel_offset + 4] in _PIXEL_DATA,
        photometric=read.text("PhotometricInterpretation"),
        samples=read.whole("SamplesPerPixel", 1),
        rows=read.whole("Rows", 0),
        columns=read.whole("Columns", 0),
        bits=(allocated, stored, read.whole("HighBit", stored - 1)),
        representation=read.whole("PixelRepresentation", 0),
        frame_of_reference_uid=(
            read.uid("FrameOfReferenceUID") if header.get("FrameOfReferenceUID") else ""
        ),
        header=header,
        file=file,
        pixel_offset=pixel_offset,
    )


def _too_complex(name: str) -> BrokenInstance:
    return _broken(
        "too-complex",
        f"{name} has more than {_MOST_ELEMENTS} elements or items, or nests them too deeply; "
        "take it away where it came from.",
    )


def _broken(code: str, sentence: str) -> BrokenInstance:
    return BrokenInstance(sentence, code=code)
