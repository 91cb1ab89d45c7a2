"""What all share who speak to other servers: no detours, and a plain reason when one is away."""

from __future__ import annotations

import urllib.request
from typing import Any


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Where a redirect leads is not what the administrator configured."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def reason_of(error: BaseException) -> str:
    """Return what the system said; never an address, which may hold a password."""
    cause: BaseException | None = error
    while cause is not None:
        reason = getattr(cause, "reason", None)  # urllib's errors wrap others
        error = reason if isinstance(reason, BaseException) else cause
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        cause = error.__cause__ or error.__context__
    return type(error).__name__
