"""The page of one study: for each series what ran, what did not, and why."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from flask import Blueprint, abort, render_template

from segnode_contract.job import OPEN_STATES, JobState
from segnode_contract.ledger import IntakeLedger
from segnode_contract.ledger.intake import SeriesOfStudy
from segnode_contract.ledger.overlays import StudyOverlays, study_overlays
from segnode_contract.ledger.view import JobRow, SeriesRow
from segnode_plugin.access import UID
from segnode_plugin.web.archived import ArchivedSeries, series_of_study
from segnode_plugin.web.site import Site

_JOBS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSeries:
    """A series as the ledger and the archive know it, either or both."""

    series_uid: str
    decided: SeriesRow | None
    archived: ArchivedSeries | None
    noted: SeriesOfStudy | None
    """Where it was seen and not decided yet."""
    jobs: tuple[JobRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What ledger and archive hold of a study."""

    decided: Sequence[SeriesRow]
    archived: Sequence[ArchivedSeries]
    noted: Sequence[SeriesOfStudy]
    jobs: Sequence[JobRow]


def pages(site: Site) -> Blueprint:
    """Make the page."""
    blueprint = Blueprint("study", __name__, url_prefix="/segnode")

    @blueprint.get("/studies/<uid>")
    def study(uid: str) -> str:
        return _study(site, uid)

    return blueprint


def _study(site: Site, uid: str) -> str:
    if not re.fullmatch(UID, uid):
        abort(404)
    known = _known(site, uid)
    words = site.words(uid)
    if not (known.decided or known.archived or known.jobs or words):
        abort(404)
    results = {o.series_uid: job for job in known.jobs for o in job.objects}
    overlays = study_overlays(site.ledger, uid)
    return render_template(
        "study.html",
        uid=uid,
        series=series_shown(known, results),
        results=[
            (each, results[each.series_uid])
            for each in known.archived
            if each.series_uid in results
        ],
        jobs=known.jobs,
        more=len(known.jobs) == _JOBS,
        why={job.key: why_shown(job, overlays) for job in known.jobs},
        words=words,
        has_archive=site.archive is not None,
        quiet_s=site.settings.intake.quiet_s,
        now=site.view.now(),
    )


def series_shown(known: Known, ours: Collection[str]) -> list[ShownSeries]:
    """Return every series of a study, also those of which nothing was decided, by number.

    Parameters
    ----------
    ours
        Series Instance UIDs of results, which are no input.
    """
    decided = {row.orthanc_id: row for row in known.decided}  # of several archives the last
    archived = {each.orthanc_id: each for each in known.archived}
    noted = {each.orthanc_id: each for each in known.noted}
    found = []
    for orthanc_id in dict.fromkeys((*archived, *decided)):
        there, row = archived.get(orthanc_id), decided.get(orthanc_id)
        uid = (row.series_uid if row else None) or (there.series_uid if there else "")
        if uid in ours or (orthanc_id in noted and noted[orthanc_id].ours):
            continue
        found.append(
            ShownSeries(
                series_uid=uid,
                decided=row,
                archived=there,
                noted=noted.get(orthanc_id),
                jobs=tuple(job for job in known.jobs if uid in job.series_uids),
            )
        )
    return found


def why_shown(job: JobRow, overlays: StudyOverlays) -> str:
    """Return whether the viewer shows a job's result now, and why or why not."""
    if job.shadow:
        return "no: a shadow run, kept out of the archive"
    if job.state in (JobState.SUPERSEDED, JobState.WITHDRAWN):
        return f"no: it is {job.state}"
    if job.state != JobState.DONE:
        return "not yet" if job.state in OPEN_STATES else f"no: it is {job.state}"
    own = {each.series_uid for each in job.objects}
    shown = [each for each in overlays.overlays if each.seg_series_uid in own]
    if not shown:
        return "no: a newer job of this model has its place, or it has no segmentation"
    source = shown[0].series_uid
    of_source = [each.model for each in overlays.overlays if each.series_uid == source]
    if of_source and of_source[0] == job.model:
        return "yes, first: its route is the first of those with a result here"
    return "yes, behind that of an earlier route"


def _known(site: Site, uid: str) -> Known:
    view, archive = site.view, site.archive
    archived = series_of_study(archive, uid)
    noted: list[SeriesOfStudy] = []
    if archive is not None and archived:
        ids = [each.orthanc_id for each in archived]
        noted = IntakeLedger(site.ledger).series_of_study(archive.archive_id(), ids)
    return Known(
        decided=view.series(uid),
        archived=archived,
        noted=noted,
        jobs=view.jobs(study_uid=uid, limit=_JOBS),
    )
