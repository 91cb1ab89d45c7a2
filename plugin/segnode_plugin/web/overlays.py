"""What the viewer asks, again and again while a study is open."""

from __future__ import annotations

import re
from dataclasses import asdict

from flask import Blueprint, Response, abort, jsonify, request

from segnode_contract.ledger import Ledger
from segnode_contract.ledger.overlays import study_overlays

_UID = re.compile(r"[0-9.]{1,64}")


def overlay_pages(ledger: Ledger) -> Blueprint:
    """Answer which results of a study are valid, with 304 while they are the same."""
    pages = Blueprint("overlays", __name__, url_prefix="/segnode")

    @pages.get("/api/overlays")
    def overlays() -> Response:
        uid = request.args.get("StudyInstanceUIDs", "")
        if not _UID.fullmatch(uid):
            abort(404)
        found = study_overlays(ledger, uid)
        answer = jsonify(overlays=[asdict(one) for one in found.overlays], hidden=found.hidden)
        answer.add_etag()
        answer.make_conditional(request)
        return answer

    return pages
