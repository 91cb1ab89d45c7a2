"""A TOML table that knows its place, so that a line that is missing or wrong can be named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from segnode_contract.errors import CardError
from segnode_contract.plain_text import beyond_ascii
from segnode_contract.spelling import hint

T = TypeVar("T", bound=str)


class TomlTable:
    """One table of a card. A line with a `usual` value may be left out."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def only(self, *known: str) -> None:
        """Refuse lines that nobody reads: a misspelt one would be as good as missing."""
        for key in self.data:
            if key not in known:
                raise CardError(f"{self.where} has an unknown line '{key}'{hint(key, known)}.")

    def text(self, key: str, usual: str | None = None) -> str:
        value = self._get(key, usual)
        if not isinstance(value, str) or not value.strip():
            raise CardError(f"{self.where}: {key} is {value!r}; a text is needed.")
        return value

    def plain_text(self, key: str) -> str:
        """Return a text that results can hold."""
        text = self.text(key)
        lost = beyond_ascii(text)
        if lost:
            raise CardError(
                f"{self.where}: {key} is {text!r}, of which {', '.join(map(repr, lost))} cannot be "
                "written: results keep the character set of their images, and all of these have "
                "ASCII alone in common. Say it in such letters; accents may stay."
            )
        return text

    def one_of(self, key: str, values: tuple[T, ...], usual: T | None = None) -> T:
        value = self._get(key, usual)
        if value not in values:
            raise CardError(
                f"{self.where}: {key} is {value!r}; it must be one of {', '.join(values)}."
            )
        return next(known for known in values if known == value)

    def texts(self, key: str) -> list[str]:
        value = self._get(key)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise CardError(f"{self.where}: {key} needs a list with at least one text.")
        return value

    def flag(self, key: str, usual: bool) -> bool:
        value = self._get(key, usual)
        if not isinstance(value, bool):
            raise CardError(f"{self.where}: {key} is {value!r}; it must be true or false.")
        return value

    def number(self, key: str, usual: float | None = None) -> float:
        return self._number(key, self._get(key, usual))

    def positive(self, key: str) -> float:
        value = self.number(key)
        if value <= 0:
            raise CardError(f"{self.where}: {key} is {value}; it must be more than 0.")
        return value

    def numbers(self, key: str, count: int) -> list[float]:
        return [float(self._number(key, item)) for item in self._several(key, count)]

    def whole(self, key: str, least: int, most: int | None = None, usual: int | None = None) -> int:
        return self._whole(key, self._get(key, usual), least, most)

    def wholes(self, key: str, count: int, least: int, most: int | None = None) -> list[int]:
        return [self._whole(key, item, least, most) for item in self._several(key, count)]

    def table(self, key: str) -> TomlTable:
        value = self._get(key)
        if not isinstance(value, dict):
            raise CardError(f"{self.where}: {key} is {value!r}; a table is needed.")
        return TomlTable(value, f"{self.where}: {key}")

    def tables(self, key: str, *, empty: bool = False) -> list[TomlTable]:
        value = self._get(key, [] if empty else None)
        tables = isinstance(value, list) and all(isinstance(item, dict) for item in value)
        if not tables or not (value or empty):
            raise CardError(f"{self.where}: {key} needs at least one table.")
        return [TomlTable(item, f"{self.where}: {key}[{i}]") for i, item in enumerate(value, 1)]

    def _get(self, key: str, usual: Any = None) -> Any:
        if key in self.data:
            return self.data[key]
        if usual is None:
            raise CardError(f"{self.where} has no line '{key}'; add it.")
        return usual

    def _several(self, key: str, count: int) -> list[Any]:
        value = self._get(key)
        if not isinstance(value, list) or len(value) != count:
            raise CardError(f"{self.where}: {key} is {value!r}; {count} numbers are needed.")
        return value

    def _whole(self, key: str, value: Any, least: int, most: int | None) -> int:
        number = self._number(key, value)
        if number % 1 or number < least or (most is not None and number > most):
            up_to = "on" if most is None else f"to {most}"
            raise CardError(
                f"{self.where}: {key} is {number}; a whole number from {least} {up_to} is needed."
            )
        return int(number)

    def _number(self, key: str, value: Any) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise CardError(f"{self.where}: {key} is {value!r}; a number is needed.")
        return value
