"""The WSGI application: pages, viewer and searches, for whoever is logged in."""

from __future__ import annotations

from collections.abc import Iterable

from flask import Blueprint, Flask, Response
from werkzeug.exceptions import HTTPException

from segnode_contract.errors import LedgerUnavailable
from segnode_plugin.web import (
    history,
    job,
    jobs,
    metrics,
    models,
    now,
    parts,
    study,
    withdraw,
)
from segnode_plugin.web.guard import guard
from segnode_plugin.web.overlays import overlay_pages
from segnode_plugin.web.site import Site
from segnode_plugin.web.timing import bars, duration, iso, stage_name, took_s

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # without any, a form of ours has the Origin "null"
    "X-Content-Type-Options": "nosniff",
}
"""For every answer that does not say otherwise, as the viewer's do."""

_SENTENCES = {
    403: "Your role may not do this, or the page that asked for it is too old: open it again.",
    404: "There is nothing at this address.",
    503: "The archive could not be read just now; see Orthanc's log, and open this again.",
    405: "This address does not take that; nothing was changed.",
}


def create_app(site: Site, blueprints: Iterable[Blueprint] = ()) -> Flask:
    """Make the WSGI application.

    Parameters
    ----------
    site
        What all pages are made from.
    blueprints
        What there is with an archive only: the viewer, the searches, routes.
    """
    app = Flask(__name__, static_url_path="/segnode/static")
    # whoever serves us writes one line; Flask's own would hold the error's text, a name maybe
    app.config["PROPAGATE_EXCEPTIONS"] = True
    app.context_processor(lambda: {"node": site.settings.node.name, "blueprints": app.blueprints})
    for each in (iso, duration, took_s, stage_name):
        app.add_template_filter(each)
    app.add_template_global(bars)
    app.jinja_env.globals["archived"] = site.archive is not None
    guard(app, site.settings)
    for pages in (
        *(now.pages, jobs.pages, job.pages, withdraw.pages, study.pages, parts.pages),
        *(models.pages, history.pages, metrics.pages),
    ):
        app.register_blueprint(pages(site))
    app.register_blueprint(overlay_pages(site.ledger))
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
