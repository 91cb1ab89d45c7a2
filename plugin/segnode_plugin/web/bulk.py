"""What people do to jobs: to those that they chose, or to all that a filter finds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from urllib.parse import urlencode

from flask import Response, abort, redirect, render_template, request
from werkzeug.wrappers import Response as Redirect

from segnode_contract.ledger import ActLedger
from segnode_contract.ledger.listing import JobListing
from segnode_plugin.web.filters import Asked, asked
from segnode_plugin.web.site import Site

MOST = 1000
"""Jobs of one act."""
_KEY = re.compile(r"[0-9a-f]{64}")
_DONE = {
    "retry": "{jobs} tried again",
    "cancel": "{jobs} cancelled",
    "replay": "The series of {jobs} decided again",
}
_NOT = {
    "retry": (
        "with {others} there was nothing to try again, or a newer job has its place, or what it "
        "builds on is withdrawn"
    ),
    "cancel": "{others} had ended, or had begun to store a result",
    "replay": "of {others} intake knows no series",
}


def act(site: Site, what: str) -> Redirect | Response | str:
    """Do what a form asks for, or ask once more before it is done to all that were found.

    Parameters
    ----------
    what
        One of `ACTS`.
    """
    found = asked(request.form.get)
    if request.form.get("which") == "all":
        if found.left_out:
            abort(400)  # a filter that was not understood finds more than was meant
        keys = JobListing(site.ledger).keys(found.wanted, MOST)
        if not request.form.get("sure"):
            return render_template("sure.html", what=what, asked=found, count=len(keys), most=MOST)
    else:
        keys = list(dict.fromkeys(request.form.getlist("keys")))
        if len(keys) > MOST or not all(map(_KEY.fullmatch, keys)):
            abort(400)
    changed = ACTS[what](site.acts, keys, request.remote_user or "")
    return redirect(_back(found, what, keys, changed))


def outcome(get: Callable[[str], str | None]) -> str:
    """Return what an act did, from the numbers in the address that it led to; empty for no act."""
    what, changed, others = get("did") or "", _number(get("changed")), _number(get("others"))
    if what not in _DONE:
        return ""
    if not changed and not others:
        return "Nothing was done: no job was chosen. Tick some, then press a button."
    said = []
    if changed:
        said.append(_DONE[what].format(jobs="1 job is" if changed == 1 else f"{changed} jobs are"))
    if others:
        said.append(_NOT[what].format(others="1 job" if others == 1 else f"{others} jobs"))
    sentence = "; ".join(said)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _retry(acts: ActLedger, keys: Sequence[str], actor: str) -> list[str]:
    return [new for key in keys if (new := acts.again(key, actor))]


def _cancel(acts: ActLedger, keys: Sequence[str], actor: str) -> list[str]:
    return [key for key in keys if acts.cancel(key, actor)]


def _replay(acts: ActLedger, keys: Sequence[str], actor: str) -> list[str]:
    return acts.replay(keys, actor)


ACTS = {"retry": _retry, "cancel": _cancel, "replay": _replay}


def _back(found: Asked, what: str, keys: Sequence[str], changed: Sequence[str]) -> str:
    others = len(keys) - len(changed)
    if request.form.get("back") == "job" and len(keys) == 1:
        query = urlencode({"did": what, "changed": len(changed), "others": others})
        return f"/segnode/jobs/{(*changed, *keys)[0]}?{query}"
    return found.address(did=what, changed=len(changed), others=others)


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 7 else 0
