"""What a job was made from, as the archive tells it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from segnode_plugin.facts import SeriesFacts, series_facts
from segnode_plugin.web.archived import ArchivedSeries, series_named
from segnode_plugin.web.site import Archive


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A series of a job, and each that the archive has under its UID."""

    series_uid: str
    found: tuple[tuple[ArchivedSeries, str], ...]
    """With what is known of it, in words."""


def inputs_of(archive: Archive | None, series_uids: tuple[str, ...]) -> list[Input]:
    """Return what came in, in the job's order."""
    return [
        Input(
            series_uid=uid,
            found=tuple((each, _words(archive, each)) for each in series_named(archive, uid)),
        )
        for uid in series_uids
    ]


def _words(archive: Archive | None, series: ArchivedSeries) -> str:
    facts = series_facts(archive, series.orthanc_id) if archive else None
    return ", ".join(_told(facts)) if facts else ""


def _told(facts: SeriesFacts) -> Iterator[str]:
    """Give what decides most often; a scanner need not have written all of it."""
    spacing, tags = facts.numbers.get("slice_spacing_mm"), facts.attributes
    if spacing is not None:
        yield f"slices {spacing:.3g} mm apart"
    if tags.get("Rows") and tags.get("Columns"):
        yield f"{tags['Columns']} × {tags['Rows']} pixels"
    if facts.body_part:
        yield f"body part {facts.body_part}"
    contrast = facts.texts.get("contrast")
    if contrast in ("YES", "NO"):
        yield "contrast medium" if contrast == "YES" else "no contrast medium"
    if tags.get("ConvolutionKernel"):
        yield f"kernel {tags['ConvolutionKernel']}"
