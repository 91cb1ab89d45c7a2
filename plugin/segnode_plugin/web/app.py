"""The pages at /segnode/, for whoever is logged in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from flask import Blueprint, Flask, Response, abort, jsonify, render_template, request

from segnode_contract.errors import LedgerUnavailable
from segnode_contract.job import JobState
from segnode_contract.ledger import LedgerView
from segnode_contract.settings import Settings

_UID = re.compile(r"[0-9.]{1,64}")
_KEY = re.compile(r"[0-9a-f]{8,64}")
_PAGE = 50

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyWords:
    """What people call a study; asked of the archive for each page, never kept."""

    patient_name: str
    description: str
    accession: str


Describe = Callable[[str], StudyWords | None]


def create_app(
    view: LedgerView,
    *,
    settings: Settings,
    blueprints: Iterable[Blueprint] = (),
    describe: Describe = lambda study_uid: None,
) -> Flask:
    """Make the WSGI application.

    Parameters
    ----------
    view
        The ledger, reading.
    settings
        `segnode.toml`.
    blueprints
        The viewer and the searches, where there is an archive.
    describe
        Gives a study's words from the archive.
    """
    app = Flask(__name__, static_url_path="/segnode/static")
    app.add_template_filter(_when, "when")
    app.add_template_filter(_seconds, "seconds")
    app.register_blueprint(_pages(view, settings, describe))
    for blueprint in blueprints:
        app.register_blueprint(blueprint)

    @app.errorhandler(LedgerUnavailable)
    def ledger_unavailable(error: LedgerUnavailable) -> tuple[str, int]:
        return render_template("message.html", title="No ledger", text=error.sentence), 503

    @app.errorhandler(404)
    def not_found(error: Exception) -> tuple[str, int]:
        text = "There is nothing at this address."
        return render_template("message.html", title="Not found", text=text), 404

    return app


def _pages(view: LedgerView, settings: Settings, describe: Describe) -> Blueprint:
    pages = Blueprint("segnode", __name__, url_prefix="/segnode")

    @pages.after_request
    def harden(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    @pages.get("/", strict_slashes=False)
    def jobs() -> str:
        state = request.args.get("state")
        if state is not None and state not in set(JobState):
            abort(404)
        page = request.args.get("page", 1, int)
        found = view.jobs(state=state, limit=_PAGE + 1, offset=_PAGE * (max(page, 1) - 1))
        studies = {job.study_uid for job in found}
        return render_template(
            "jobs.html",
            node=settings.node.name,
            jobs=found[:_PAGE],
            more=len(found) > _PAGE,
            page=page,
            state=state,
            counts=view.counts(),
            words={uid: describe(uid) for uid in studies},
        )

    @pages.get("/jobs/<key>")
    def job(key: str) -> str:
        found = view.job(key) if _KEY.fullmatch(key) else None
        if found is None:
            abort(404)
        words = describe(found.row.study_uid)
        card = view.card(found.row.model, found.row.model_digest)
        names = {segment.number: segment.label for segment in card.segments} if card else {}
        return render_template("job.html", job=found.row, whole=found, words=words, names=names)

    @pages.get("/studies/<uid>")
    def study(uid: str) -> str:
        series = view.series(uid) if _UID.fullmatch(uid) else []
        if not series:
            abort(404)
        return render_template(
            "study.html",
            uid=uid,
            series=series,
            jobs=view.jobs(study_uid=uid),
            words=describe(uid),
        )

    @pages.get("/api/overlays")
    def overlays() -> Response:
        uid = request.args.get("StudyInstanceUIDs", "")
        if not _UID.fullmatch(uid):
            abort(404)
        return jsonify(overlays=[asdict(overlay) for overlay in view.overlays(uid)])

    @pages.get("/health")
    def health() -> Response:
        return jsonify(status="ok", at=view.now())

    return pages


def _when(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _seconds(value: float | None) -> str:
    return "…" if value is None else f"{value:.2f} s"
