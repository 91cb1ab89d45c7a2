"""What a model says beside its labels: segments it left out, and what it measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """A segment that the model left out on purpose, and why."""

    segment: int
    reason: str
    stack: int = 1
    """Which stack of the series it is said of: a series may hold several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A segment that is shown although it is in doubt, and why it is."""

    segment: int
    reason: str
    stack: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A number about a segment; `value` is None where it is not measurable, with the `reason`."""

    segment: int
    name: str
    value: float | None
    unit: str
    """UCUM: ``ml``, ``%``, ``[hnsf'U]``."""
    reason: str = ""
    stack: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is to be known beside the labels."""

    withheld: tuple[Withheld, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    marked: tuple[Marked, ...] = ()
    limitations: tuple[str, ...] = ()
    """Sentences on what of the images was not as it should be, and what was not segmented."""

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dictionaries."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Findings:
        """Return the findings that `to_json` gave."""
        return cls(
            withheld=tuple(Withheld(**item) for item in data["withheld"]),
            measurements=tuple(Measurement(**item) for item in data["measurements"]),
            marked=tuple(Marked(**item) for item in data.get("marked", ())),
            limitations=tuple(data.get("limitations", ())),
        )
