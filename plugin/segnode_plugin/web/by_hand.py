"""The page on which somebody runs a model on one series."""

from __future__ import annotations

import re
from collections.abc import Callable

from flask import Blueprint, abort, g, redirect, render_template, request
from werkzeug.wrappers import Response as Redirect

from segnode_contract.job import Priority
from segnode_contract.ledger import IntakeLedger
from segnode_contract.ledger.view import JobRow
from segnode_plugin.access import UID
from segnode_plugin.by_hand import Offer, job_by_hand, offers
from segnode_plugin.facts import SeriesFacts, series_facts
from segnode_plugin.route_file import Rules, rules_of
from segnode_plugin.web.site import Archive, Site

_PRIORITIES = ("routine", "stat")
_JOBS = 200


def pages(site: Site, rules: Callable[[], Rules] | None = None) -> Blueprint:
    """Make the page, and what it posts to.

    Parameters
    ----------
    rules
        Gives the routes as they are followed now, behind which the job comes; by default those of
        the settings.
    """
    blueprint = Blueprint("by_hand", __name__, url_prefix="/segnode")
    following = rules or (lambda: rules_of(site.settings))

    @blueprint.get("/series/<uid>/run")
    def ask(uid: str) -> str:
        return _page(site, uid)

    @blueprint.post("/series/<uid>/run")
    def run(uid: str) -> Redirect | str:
        return _run(site, uid, following())

    return blueprint


def _run(site: Site, uid: str, rules: Rules) -> Redirect | str:
    archive, facts = _asked(site, uid)
    if archive is None or facts is None:
        return _page(site, uid)
    intake, priority = IntakeLedger(site.ledger), request.form.get("priority", "routine")
    offer = next((o for o in _offers(site, facts) if o.model.name == _chosen()), None)
    why_not = _unfit(site, facts) or (offer.why_not if offer else "no worker has announced it")
    if offer is None or why_not or priority not in _PRIORITIES:
        return _page(site, uid, f"{_chosen() or 'No model'} was not run: {why_not or 'priority'}.")
    job = job_by_hand(
        facts,
        offer,
        rules,
        priority=Priority[priority.upper()],
        came_at=_came_at(site, facts),
    )
    key = intake.queue_by_hand(archive.archive_id(), job, request.remote_user or "")
    return redirect(f"/segnode/jobs/{key}")


def _page(site: Site, uid: str, trouble: str = "") -> str:
    archive, facts = _asked(site, uid)
    if archive is not None and facts is None:
        abort(503 if g.get("unread") else 404)
    jobs = _jobs(site, facts) if facts else []
    return render_template(
        "by_hand.html",
        uid=uid,
        has_archive=archive is not None,
        facts=facts,
        title=_title(facts) if facts else "",
        words=site.words(facts.study_uid) if facts else None,
        unfit=_unfit(site, facts) if facts else "",
        offers=_offers(site, facts) if facts else [],
        jobs={name: [job for job in jobs if job.model == name] for name in {j.model for j in jobs}},
        priorities=_PRIORITIES,
        trouble=trouble,
    )


def _asked(site: Site, uid: str) -> tuple[Archive | None, SeriesFacts | None]:
    """Return the archive where there is one, and the series where the archive has it."""
    if site.archive is None or not re.fullmatch(UID, uid):
        return site.archive, None
    ids = site.archive.series_named(uid)
    return site.archive, series_facts(site.archive, ids[0]) if ids else None


def _unfit(site: Site, facts: SeriesFacts) -> str:
    """Return why no model at all can be run on a series, empty where one may."""
    intake = IntakeLedger(site.ledger)
    if site.archive is None or intake.cursor(site.archive.archive_id()) is None:
        return "intake has not met this archive yet; open this page again in a moment"
    if intake.own_series(facts.series_uid):
        return "this series is a result of ours, and no input"
    if facts.namesakes:
        return (
            f"{facts.namesakes + 1} series in the archive have this Series Instance UID, of other "
            "studies or patients; delete the wrong ones there first"
        )
    idle_s, quiet_s = intake.idle_s([facts.orthanc_id]), site.settings.intake.quiet_s
    if idle_s < quiet_s:
        return (
            f"an image of it came {idle_s:.0f} s ago, and more may follow; open this page again "
            f"once {quiet_s:g} s are over"
        )
    return ""


def _offers(site: Site, facts: SeriesFacts) -> list[Offer]:
    return offers(facts, IntakeLedger(site.ledger).models(site.settings.limits.lease_s))


def _came_at(site: Site, facts: SeriesFacts) -> tuple[float | None, float]:
    """Return when the first and the last image came, as it was noted, or as the archive says."""
    archive = site.archive
    intake = IntakeLedger(site.ledger)
    noted = intake.series_of_study(archive.archive_id(), [facts.orthanc_id]) if archive else []
    if noted:
        return noted[0].first_instance_at, noted[0].last_instance_at
    return None, facts.received_s or site.view.now()


def _jobs(site: Site, facts: SeriesFacts) -> list[JobRow]:
    found = site.view.jobs(study_uid=facts.study_uid, limit=_JOBS)
    return [job for job in found if facts.series_uid in job.series_uids]


def _title(facts: SeriesFacts) -> str:
    number, words = (facts.attributes.get(key) for key in ("SeriesNumber", "SeriesDescription"))
    parts = (number, facts.modality, words)
    return " ".join(part for part in parts if isinstance(part, str) and part)


def _chosen() -> str:
    return request.form.get("model", "")
