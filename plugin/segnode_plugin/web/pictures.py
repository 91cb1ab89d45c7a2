"""Key pictures of results: a worker hands them over, and pages show them."""

from __future__ import annotations

import re
from typing import Protocol

from flask import Blueprint, Response, abort, request

from segnode_contract.ledger import PictureLedger
from segnode_contract.pictures import LARGEST, MOST, SIGNATURE
from segnode_plugin.access import UID

FIRST_ATTACHMENT = 1032
"""Orthanc leaves the numbers from 1024 up to its users."""


class Attachments(Protocol):
    """What the archive keeps beside an instance. `OrthancArchive` in service."""

    def attach(self, instance_uid: str, number: int, data: bytes) -> bool:
        """Keep `data` under `number`; return whether there is such an instance."""

    def attached(self, instance_uid: str, number: int) -> bytes | None:
        """Return what is kept under `number`, None for nothing."""


def picture_pages(results: PictureLedger, attachments: Attachments) -> Blueprint:
    """Make the address that takes pictures, and the one that shows them.

    They lie beside their segmentation in the archive, and go when it goes.
    """
    pages = Blueprint("pictures", __name__, url_prefix="/segnode")

    @pages.post("/api/pictures/<uid>/<int:number>")
    def hand_over(uid: str, number: int) -> Response:
        _check(results, uid, number)
        picture = request.get_data()
        if len(picture) > LARGEST:
            abort(413)
        if not picture.startswith(SIGNATURE):
            abort(415)
        if not attachments.attach(uid, FIRST_ATTACHMENT + number - 1, picture):
            abort(404)
        return Response(status=204)

    @pages.get("/pictures/<uid>/<int:number>.png")
    def picture(uid: str, number: int) -> Response:
        _check(results, uid, number)
        found = attachments.attached(uid, FIRST_ATTACHMENT + number - 1)
        if found is None:
            abort(404)
        # the inside of a patient must not stay on the disk of a machine that others use, nor in a
        # browser after its result was withdrawn
        return Response(found, content_type="image/png", headers={"Cache-Control": "no-store"})

    return pages


def _check(results: PictureLedger, uid: str, number: int) -> None:
    known = 1 <= number <= MOST and re.fullmatch(UID, uid) and results.is_segmentation(uid)
    if not known:
        abort(404)
