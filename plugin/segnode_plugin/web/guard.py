"""Who may do what on the pages: the same table as for Orthanc, and a token in every form."""

from __future__ import annotations

import hmac
import secrets

from flask import Flask, abort, request

from segnode_contract.settings import Settings
from segnode_plugin.access import Access

_SAFE = ("GET", "HEAD")


def guard(app: Flask, settings: Settings) -> None:
    """Refuse what the user's role may not do, and changes that no page of ours asked for.

    Behind Orthanc this is asked a second time; `segnode dashboard` has no other. A browser sends
    the password with any request to us, also with one that another site's page makes: so a change
    must come from our own origin and carry the token that only our pages show. A worker is a
    program, which shows no pages.
    """
    access = Access(settings)
    secret = secrets.token_bytes(32)

    def token() -> str:
        return hmac.digest(secret, (request.remote_user or "").encode(), "sha256").hex()

    def may(method: str, path: str) -> bool:
        return access.permits(request.remote_user or "", method, path)

    @app.before_request
    def refuse() -> None:
        method = "GET" if request.method == "HEAD" else request.method
        headers = {name.lower(): value for name, value in request.headers.items()}
        if not access.trusts(method, headers) or not may(method, request.path):
            abort(403)
        if request.method in _SAFE or settings.role(request.remote_user or "") == "worker":
            return
        sent = request.form.get("token", "") or request.headers.get("X-Segnode-Token", "")
        if not hmac.compare_digest(sent.encode(), token().encode()):
            abort(403)

    app.context_processor(lambda: {"token": token, "may": may, "user": request.remote_user or ""})
