"""The pages at /segnode/: jobs, one job, one study; and what the viewer asks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass

from flask import Blueprint, Response, abort, jsonify, render_template, request

from segnode_contract.destination import failed_hint
from segnode_contract.findings import Findings
from segnode_contract.job import OPEN_STATES, JobState
from segnode_contract.ledger import LedgerView
from segnode_plugin.web.measured import table_of
from segnode_plugin.web.timing import bars, duration, iso, total_s

_UID = re.compile(r"[0-9.]{1,64}")
_KEY = re.compile(r"[0-9a-f]{8,64}")
_PER_PAGE = 50
_LAST_PAGE = 100_000
_SILENT_S = 90.0
"""A worker speaks more often than this."""
_LACKS = {"ready": "does not offer every model"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyWords:
    """What people call a study; asked of the archive for each page, never kept."""

    patient_name: str
    description: str
    accession: str


Describe = Callable[[str], StudyWords | None]
"""Gives the words of a Study Instance UID, None where the archive has no such study."""


def job_pages(view: LedgerView, describe: Describe, trouble: Callable[[], str]) -> Blueprint:
    """Make the pages."""
    pages = Blueprint("segnode", __name__, url_prefix="/segnode")
    pages.add_app_template_filter(iso)
    pages.add_app_template_filter(duration)
    pages.add_app_template_filter(total_s)
    pages.add_app_template_global(bars)

    @pages.get("/", strict_slashes=False)
    def jobs() -> str:
        return _list(view, describe, trouble())

    @pages.get("/jobs/<key>")
    def job(key: str) -> str:
        return _job(view, describe, key)

    @pages.get("/studies/<uid>")
    def study(uid: str) -> str:
        return _study(view, describe, uid)

    @pages.get("/api/overlays")
    def overlays() -> Response:
        uid = request.args.get("StudyInstanceUIDs", "")
        if not _UID.fullmatch(uid):
            abort(404)
        return jsonify(overlays=[asdict(overlay) for overlay in view.overlays(uid)])

    @pages.get("/health")
    def health() -> Response:
        return jsonify(status="ok", schema=view.schema_version())

    return pages


def _list(view: LedgerView, describe: Describe, trouble: str) -> str:
    state = request.args.get("state")
    if state is not None and state not in set(JobState):
        abort(404)
    page = min(max(request.args.get("page", 1, int), 1), _LAST_PAGE)
    found = view.jobs(state=state, limit=_PER_PAGE + 1, offset=_PER_PAGE * (page - 1))
    shown, counts = found[:_PER_PAGE], view.counts()
    return render_template(
        "jobs.html",
        jobs=shown,
        more=len(found) > _PER_PAGE,
        page=page,
        state=state,
        counts=[(state, counts[state]) for state in JobState if state in counts],
        going_on=any(state in counts for state in OPEN_STATES),
        words={uid: describe(uid) for uid in {job.study_uid for job in shown}},
        notices=[trouble, *_notices(view)] if trouble else _notices(view),
        now=view.now(),
    )


def _notices(view: LedgerView) -> list[str]:
    """Return what keeps workers from taking jobs, a sentence each."""
    now = view.now()
    alive = [worker for worker in view.workers() if now - worker.seen_at < _SILENT_S]
    if not alive:
        return ["No worker says that it lives; jobs wait until one does.", *_unsent(view)]
    said = [
        f"Worker {worker.name} {_LACKS.get(worker.state, 'takes no jobs')}: {worker.detail}"
        for worker in alive
        if worker.detail
    ]
    return said + _unsent(view)


def _unsent(view: LedgerView) -> list[str]:
    hint = failed_hint(view.failed_deliveries())
    return [hint] if hint else []


def _job(view: LedgerView, describe: Describe, key: str) -> str:
    found = view.job(key) if _KEY.fullmatch(key) else None
    if found is None:
        abort(404)
    job = found.row
    card = view.card(job.model, job.model_digest)
    first = view.job(job.builds_on) if job.builds_on else None
    findings = Findings.from_json(job.findings) if job.findings else Findings()
    names = {segment.number: segment.label for segment in card.segments} if card else {}
    return render_template(
        "job.html",
        job=job,
        first=first.row if first else None,
        runs=found.runs,
        events=found.events,
        deliveries=found.deliveries,
        words=describe(job.study_uid),
        found=table_of(findings, names),
        limitations=findings.limitations,
        now=view.now(),
    )


def _study(view: LedgerView, describe: Describe, uid: str) -> str:
    series = view.series(uid) if _UID.fullmatch(uid) else []
    if not series:
        abort(404)
    return render_template(
        "study.html",
        uid=uid,
        series=series,
        jobs=view.jobs(study_uid=uid),
        words=describe(uid),
        now=view.now(),
    )
