"""The list of jobs: filtered by its address, or of the studies of a patient."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from flask import Blueprint, Response, render_template, request

from segnode_contract.errors import ArchiveUnavailable
from segnode_contract.job import JobState
from segnode_contract.ledger.listing import JobListing, Wanted
from segnode_contract.ledger.now import NowView
from segnode_plugin.web.bulk import ACTS, MOST, act, outcome
from segnode_plugin.web.filters import Asked, asked
from segnode_plugin.web.fresh import answer, tag_of
from segnode_plugin.web.site import Archive, Site, StudyWords

_PER_PAGE = 50
_LAST_PAGE = 100_000
_FOUND = 500
"""So many jobs of one search are shown."""
_STUDIES = 100
"""So many studies of one search are looked at."""
_KEYWORDS = {"patient": "PatientID", "accession": "AccessionNumber"}
_NAMES = {"patient": "patient ID", "accession": "accession number"}
_WILDCARDS = frozenset("*?\\")
_LONGEST = 64


def pages(site: Site) -> Blueprint:
    """Make the list, the search, and what is done to the jobs of both."""
    blueprint = Blueprint("jobs", __name__, url_prefix="/segnode")

    @blueprint.get("/jobs")
    def jobs() -> Response:
        return _list(site)

    @blueprint.post("/search")
    def search() -> str:
        return _search(site)

    for what in ACTS:
        do = partial(act, site, what)
        blueprint.add_url_rule(f"/jobs/{what}", endpoint=what, view_func=do, methods=["POST"])

    return blueprint


def _list(site: Site) -> Response:
    found = asked(request.args.get)
    page = min(max(request.args.get("page", 1, int), 1), _LAST_PAGE)
    tag = tag_of(site.view.now(), NowView(site.ledger).pulse())
    return answer(tag, lambda: _listed(site, found, page, tag))


def _listed(site: Site, found: Asked, page: int, tag: str) -> str:
    listing, counts = JobListing(site.ledger), site.view.counts()
    rows = listing.page(found.wanted, limit=_PER_PAGE + 1, offset=_PER_PAGE * (page - 1))
    whole = page == 1 and len(rows) <= _PER_PAGE
    return render_template(
        "jobs.html",
        tag=tag,
        asked=found,
        said=outcome(request.args.get),
        jobs=rows[:_PER_PAGE],
        more=len(rows) > _PER_PAGE,
        page=page,
        matching=len(rows) if whole else listing.count(found.wanted, MOST + 1),
        most=MOST,
        counts=[(state, counts[state]) for state in JobState if state in counts],
        choices=listing.choices(),
        words=_words(site, (job.study_uid for job in rows[:_PER_PAGE])),
        now=site.view.now(),
    )


def _search(site: Site) -> str:
    by, value = request.form.get("by", ""), request.form.get("value", "").strip()
    trouble = _trouble(site, by, value)
    studies: list[str] = []
    if site.archive and not trouble:
        try:
            studies = _studies(site.archive, by, value)
        except ArchiveUnavailable as error:
            trouble = error.sentence
        count = "1 study" if len(studies) == 1 else f"{len(studies)} studies"
        site.acts.note("search", request.remote_user or "", f"by {_NAMES[by]}: {count}")
    wanted = Wanted(studies=tuple(studies))
    jobs = JobListing(site.ledger).page(wanted, limit=_FOUND) if studies else []
    with_jobs = {job.study_uid for job in jobs}
    return render_template(
        "search.html",
        by=_NAMES.get(by, ""),
        trouble=trouble,
        studies=studies,
        most=_STUDIES,
        jobs=jobs,
        without=[uid for uid in studies if uid not in with_jobs],
        words=_words(site, studies),
        now=site.view.now(),
    )


def _studies(archive: Archive, by: str, value: str) -> list[str]:
    return list(dict.fromkeys(archive.studies_with(_KEYWORDS[by], value)))[:_STUDIES]


def _trouble(site: Site, by: str, value: str) -> str:
    """Return why nothing is searched for, with what to do; empty where it is."""
    if site.archive is None:
        return (
            "Only the archive knows patients and accession numbers, and it is not here: search in "
            "Orthanc's own dashboard once it is up, or look for the job by its day in the list."
        )
    if by not in _KEYWORDS:
        return "Say whether it is a patient ID or an accession number."
    if not value or len(value) > _LONGEST or not value.isprintable():
        return f"A {_NAMES[by]} has 1 to {_LONGEST} letters and digits; type the whole of it."
    if _WILDCARDS & set(value):
        return f"A {_NAMES[by]} is looked for letter by letter: leave out *, ? and \\."
    return ""


def _words(site: Site, studies: Iterable[str]) -> dict[str, StudyWords | None]:
    return {uid: site.words(uid) for uid in dict.fromkeys(studies)}
