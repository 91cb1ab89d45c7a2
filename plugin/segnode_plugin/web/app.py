"""The WSGI application: pages, viewer and searches, for whoever is logged in."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flask import Blueprint, Flask, Response
from werkzeug.exceptions import HTTPException

from segnode_contract.errors import LedgerUnavailable
from segnode_contract.ledger import LedgerView
from segnode_contract.settings import Settings
from segnode_plugin.web.jobs import Describe, StudyWords, job_pages

__all__ = ["Describe", "StudyWords", "create_app"]

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # without any, a form of ours has the Origin "null"
    "X-Content-Type-Options": "nosniff",
}
"""For every answer that does not say otherwise, as the viewer's do."""

_SENTENCES = {
    403: "This needs an administrator, and a form of ours: open the page again.",
    404: "There is nothing at this address.",
    405: "Pages are for reading; nothing can be changed here.",
}


def create_app(
    view: LedgerView,
    *,
    settings: Settings,
    blueprints: Iterable[Blueprint] = (),
    describe: Describe = lambda study_uid: None,
    trouble: Callable[[], str] = str,
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
    trouble
        Gives what the first page warns of, beside workers; empty for nothing.
    """
    app = Flask(__name__, static_url_path="/segnode/static")
    # whoever serves us writes one line; Flask's own would hold the error's text, a name maybe
    app.config["PROPAGATE_EXCEPTIONS"] = True
    app.context_processor(lambda: {"node": settings.node.name, "blueprints": app.blueprints})
    app.register_blueprint(job_pages(view, describe, trouble))
    for blueprint in blueprints:
        app.register_blueprint(blueprint)
    app.register_error_handler(LedgerUnavailable, _ledger_unavailable)
    app.register_error_handler(HTTPException, _refused)
    app.after_request(_harden)
    return app


def _harden(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _ledger_unavailable(error: LedgerUnavailable) -> Response:
    return _sentence(error.sentence, 503)


def _refused(error: HTTPException) -> Response | HTTPException:
    if error.code is None or error.code < 400:
        return error  # a redirect
    answer = _sentence(_SENTENCES.get(error.code, "The request was not understood."), error.code)
    answer.headers.extend((k, v) for k, v in error.get_headers() if k != "Content-Type")
    return answer


def _sentence(text: str, status: int) -> Response:
    # Orthanc 1.12 adds a Content-Type of its own to every refusal with a body, text/plain, and the
    # browser takes the last one: HTML would show as its source
    return Response(f"{text}\n", status=status, content_type="text/plain; charset=utf-8")
