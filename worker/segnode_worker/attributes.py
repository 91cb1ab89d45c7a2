"""Values of a header, read as the kind that they must be."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydicom import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from segnode_contract.errors import BrokenInstance

BROKEN = (
    BytesLengthException,
    InvalidDicomError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom and the decoders raise on files that are not as they should be; they share no base
class, and each of these was met on damaged files."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads values of a header by the kind that they must have, and names what is of another."""

    header: Dataset
    name: str

    def uid(self, keyword: str) -> str:
        return self._as(valid_uid, keyword, "bad-uid")

    def text(self, keyword: str) -> str:
        return self._as(lambda value: str(value or ""), keyword)

    def texts(self, keyword: str) -> tuple[str, ...]:
        return self._as(_texts, keyword)

    def whole(self, keyword: str, absent: int) -> int:
        return self._as(lambda value: absent if _is_empty(value) else int(value), keyword)

    def number(self, keyword: str) -> float | None:
        values = self.numbers(keyword)
        return values[0] if values else None

    def numbers(self, keyword: str) -> tuple[float, ...] | None:
        return self._as(_numbers, keyword)

    def _as(self, kind: Callable[[Any], T], keyword: str, code: str = "bad-attribute") -> T:
        try:
            return kind(self.header.get(keyword))
        except BROKEN as error:
            raise BrokenInstance(
                f"{self.name} has a {keyword} that cannot be read; mend it where it came from.",
                code=code,
            ) from error


def _is_empty(value: object) -> bool:
    return value is None or value == ""


def _texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(str(part) for part in value or ())


def _numbers(value: Any) -> tuple[float, ...] | None:
    if _is_empty(value):
        return None
    # a text or bytes, where an attribute has a wrong VR, would fall apart into characters
    one = isinstance(value, int | float | str | bytes)
    return (float(value),) if one else tuple(float(part) for part in value)


def valid_uid(value: object) -> str:
    """Return a UID as text, which may become part of a path.

    Raises
    ------
    ValueError
        If it is none.
    """
    text = str(value)
    # leading zeros, which PS3.5 9.1 forbids, are met in practice
    if len(text) > 64 or not re.fullmatch(r"[0-9]+(\.[0-9]+)*", text):
        raise ValueError("it is not a UID")
    return text
