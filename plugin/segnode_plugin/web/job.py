"""The page of one job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Response, abort, render_template, request

from segnode_contract.card import Card
from segnode_contract.destination import DeliveryState
from segnode_contract.findings import Findings
from segnode_contract.job import OPEN_STATES, RETRIED, JobState
from segnode_contract.ledger.one_job import built_on, changed, withdrawn_before
from segnode_contract.ledger.revisions import WITHDRAWABLE, can_run_anew
from segnode_contract.ledger.view import EventRow, Job
from segnode_plugin.web.archived import pictures_of, series_named
from segnode_plugin.web.bulk import outcome
from segnode_plugin.web.colour import colours_of
from segnode_plugin.web.cures import cure_of
from segnode_plugin.web.fresh import answer, tag_of
from segnode_plugin.web.inputs import inputs_of
from segnode_plugin.web.measured import table_of
from segnode_plugin.web.site import Site
from segnode_plugin.web.staircase import staircase_of
from segnode_plugin.web.timeline import steps_of
from segnode_plugin.web.timing import confirmed_words

_KEY = re.compile(r"[0-9a-f]{8,64}")
_WHOLE_KEY = re.compile(r"\b([0-9a-f]{64})\b")
_STEPS = 300
"""So many at most stand in the table below the timeline, the newest ones."""
_ON_ITS_WAY = ("waiting", "sending")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One event of the history."""

    at: float
    kind: str
    actor: str
    parts: tuple[str, ...]
    """What is told: text, and between two texts the key of another job."""


def pages(site: Site) -> Blueprint:
    """Make the page, and the part of it that is asked for again while the job goes on."""
    blueprint = Blueprint("job", __name__, url_prefix="/segnode")

    @blueprint.get("/jobs/<key>")
    def job(key: str) -> str:
        found = job_of(site, key)
        said = outcome(request.args.get)
        return render_template("job.html", said=said, **_moving(site, found), **_fixed(site, found))

    @blueprint.get("/jobs/<key>/live")
    def live(key: str) -> Response:
        if not _WHOLE_KEY.fullmatch(key):
            abort(404)
        tag = tag_of(site.view.now(), changed(site.ledger, key))
        return answer(
            tag, lambda: render_template("job_live.html", **_moving(site, job_of(site, key)))
        )

    return blueprint


def job_of(site: Site, key: str) -> Job:
    """Return the job whose key begins so; answers 404 where there is no single one."""
    found = site.view.job(key) if _KEY.fullmatch(key) else None
    if found is None:
        abort(404)
    return found


def lines_of(events: Sequence[EventRow]) -> list[Line]:
    """Return a history whose lines name other jobs so that they can be followed."""
    return [
        Line(at=e.at, kind=e.kind, actor=e.actor, parts=tuple(_WHOLE_KEY.split(e.detail)))
        for e in events
    ]


def _moving(site: Site, found: Job) -> dict[str, Any]:
    """Return what may change while somebody looks at the page."""
    job, view = found.row, site.view
    now = view.now()
    first = view.job(job.builds_on) if job.builds_on else None
    findings = Findings.from_json(job.findings) if job.findings else Findings()
    card = _card(site, found)
    names = {segment.number: segment.label for segment in card.segments} if card else {}
    sending = any(d.state in _ON_ITS_WAY for d in found.deliveries)
    return {
        "job": job,
        "first": first.row if first else None,
        "runs": found.runs,
        "events": lines_of(found.events),
        "deliveries": found.deliveries,
        "send_cures": {
            d.destination: cure_of(d.error_code)
            for d in found.deliveries
            if d.state == DeliveryState.FAILED and d.error_code
        },
        "words": site.words(job.study_uid),
        "found": table_of(findings, names),
        "limitations": findings.limitations,
        "pictures": pictures_of(site.archive, job.objects),
        "confirmed": confirmed_words(job),
        "timeline": staircase_of(steps_of(found, now)),
        "steps": steps_of(found, now, whole=True)[-_STEPS:],
        "cure": _cure(found),
        "ends": [e for e in found.events if e.kind == job.state][-1:],
        "deleted": [e for e in found.events if e.kind == "deleted"],
        "with_it": built_on(site.ledger, job.key) if job.state == JobState.WITHDRAWN else [],
        "withdrawn_before": withdrawn_before(site.ledger, job.key),
        "revisions": view.revisions(job.base_key),
        "goes_on": job.state in OPEN_STATES or (job.state == JobState.DONE and sending),
        "can": _can(site, found),
        "links": {o.series_uid: series_named(site.archive, o.series_uid) for o in job.objects},
        "has_archive": site.archive is not None,
        "now": now,
    }


def _cure(found: Job) -> str:
    """Return what to do about the error of a job that counts, empty where there is none."""
    job = found.row
    if not job.error_code or job.state not in (*OPEN_STATES, JobState.FAILED, JobState.DEAD):
        return ""
    return cure_of(job.error_code, again=job.state in OPEN_STATES)


def _can(site: Site, found: Job) -> dict[str, bool]:
    """Return what the job's state lets people do, whatever their roles."""
    job = found.row
    return {
        "retry": job.state in RETRIED,
        "cancel": job.state in OPEN_STATES,
        "withdraw": job.state in WITHDRAWABLE and bool(job.objects) and not job.shadow,
        "anew": job.state == JobState.WITHDRAWN and can_run_anew(site.ledger, job.key),
        "send": any(d.state == DeliveryState.FAILED for d in found.deliveries),
        "replay": job.state not in OPEN_STATES,
    }


def _fixed(site: Site, found: Job) -> dict[str, Any]:
    """Return what stays as it is: what came in, and the model."""
    card = _card(site, found)
    return {
        "inputs": inputs_of(site.archive, found.row.series_uids),
        "card": card,
        "colours": colours_of(card) if card else {},
    }


def _card(site: Site, found: Job) -> Card | None:
    return site.view.card(found.row.model, found.row.model_digest)
