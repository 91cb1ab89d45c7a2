"""Pages that are asked for again every two seconds: sent only when what they show has changed."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

from flask import Response, request

_MINUTE_S = 60.0
_STARTED = secrets.token_hex(4)
"""A page of an earlier start holds a token that this one does not take."""


def tag_of(now: float, *shown: object) -> str:
    """Return the ETag of what a page shows to the user who asks; another one each minute.

    So what counts back from now, or depends on what is not in `shown`, is as old as that at most:
    on PostgreSQL a slow transaction may change a job under an older pulse.

    Parameters
    ----------
    now
        Seconds since 1970, by the ledger's clock.
    shown
        What it depends on, cheap to read; the same values have the same `repr`.
    """
    said = repr((_STARTED, request.remote_user, now // _MINUTE_S, shown))
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def answer(tag: str, render: Callable[[], str]) -> Response:
    """Answer with the page, or with 304 where the browser shows it already."""
    if request.if_none_match.contains(tag):
        response = Response(status=304)
    else:
        response = Response(render(), content_type="text/html; charset=utf-8")
    response.set_etag(tag)
    return response
