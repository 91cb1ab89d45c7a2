"""What the viewer asks, again and again while a study is open."""

from __future__ import annotations

import re
from dataclasses import asdict

from flask import Blueprint, Response, abort, jsonify, request

from segnode_contract.ledger import Ledger
from segnode_contract.ledger.overlays import study_overlays
from segnode_plugin.access import UID


def overlay_pages(ledger: Ledger) -> Blueprint:
    """Answer which results of a study are valid, with 304 while they are the same."""
    pages = Blueprint("overlays", __name__, url_prefix="/segnode")

    @pages.get("/api/overlays")
    def overlays() -> Response:
        uid = request.args.get("StudyInstanceUIDs", "")
        if not re.fullmatch(UID, uid):
            abort(404)
        found = study_overlays(ledger, uid)
        answer = jsonify(overlays=[asdict(one) for one in found.overlays], hidden=found.hidden)
        answer.add_etag()
        answer.make_conditional(request)
        return answer

    return pages
