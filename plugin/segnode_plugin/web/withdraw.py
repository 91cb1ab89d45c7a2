"""Withdrawing a result that is wrong, with a reason; the archive's object stays, or goes too."""

from __future__ import annotations

import logging

from flask import Blueprint, redirect, render_template, request
from werkzeug.wrappers import Response as Redirect

from segnode_contract.errors import ArchiveUnavailable
from segnode_contract.job import JobState
from segnode_contract.ledger.one_job import built_on
from segnode_contract.ledger.revisions import LONGEST, SHORTEST, WITHDRAWABLE, reason_of
from segnode_contract.ledger.view import Job, JobRow
from segnode_plugin.web.job import job_of
from segnode_plugin.web.site import Site

log = logging.getLogger(__name__)

_SHOWN = 8
"""Digits of a job's key that are typed before anything is deleted."""


def pages(site: Site) -> Blueprint:
    """Make the page that asks for the reason, and what it posts to."""
    blueprint = Blueprint("withdraw", __name__, url_prefix="/segnode")

    @blueprint.get("/jobs/<key>/withdraw")
    def ask(key: str) -> str:
        return _page(site, job_of(site, key))

    @blueprint.post("/jobs/<key>/withdraw")
    def withdraw(key: str) -> Redirect | str:
        return _withdraw(site, job_of(site, key))

    @blueprint.post("/jobs/<key>/withdraw-and-delete")
    def withdraw_and_delete(key: str) -> Redirect | str:
        return _withdraw_and_delete(site, job_of(site, key))

    return blueprint


def _withdraw(site: Site, found: Job) -> Redirect | str:
    reason = reason_of(request.form.get("reason", ""))
    if not reason:
        return _page(site, found, _why_no_reason())
    if not site.acts.withdraw(found.row.key, _who(), reason):
        return _page(site, found, _why_not(found.row))
    return redirect(f"/segnode/jobs/{found.row.key}")


def _withdraw_and_delete(site: Site, found: Job) -> Redirect | str:
    job, reason = found.row, reason_of(request.form.get("reason", ""))
    trouble = _why_not_delete(site, job) or ("" if reason else _why_no_reason())
    if trouble:
        return _page(site, found, trouble)
    running = {job.state, *(each.state for each in built_on(site.ledger, job.key))}
    keys = site.acts.withdraw(job.key, _who(), reason)
    if not keys and job.state != JobState.WITHDRAWN:
        return _page(site, found, _why_not(job))
    keys = keys or [job.key, *_withdrawn_with_it(site, job.key)]
    left = [key for key in keys if not _delete(site, key, reason)]
    if left:
        return _page(
            site,
            job_of(site, job.key),
            f"The result is withdrawn, but the archive did not delete all of it ({len(left)} jobs' "
            "objects may be left). See Orthanc's log, then delete them here again.",
        )
    if JobState.RUNNING in running:
        return _page(
            site,
            job_of(site, job.key),
            "It is withdrawn and deleted. A worker was at it and may have been storing just then: "
            "delete it here once more in a minute.",
        )
    return redirect(f"/segnode/jobs/{job.key}")


def _why_not_delete(site: Site, job: JobRow) -> str:
    if site.archive is None:
        return "There is no archive here: nothing was changed."
    if request.form.get("confirm", "").strip().lower() != job.key[:_SHOWN]:
        return f"Type {job.key[:_SHOWN]} to delete; nothing was changed."
    return ""


def _withdrawn_with_it(site: Site, key: str) -> list[str]:
    return [each.key for each in built_on(site.ledger, key) if each.state == JobState.WITHDRAWN]


def _delete(site: Site, key: str, reason: str) -> bool:
    """Delete a withdrawn job's objects, and note it; return whether they are gone."""
    found = site.view.job(key)
    if found is None or site.archive is None or not found.row.objects:
        return True
    uids = [each.instance_uid for each in found.row.objects]
    try:
        count = site.archive.delete_instances(uids)
    except ArchiveUnavailable as error:
        log.warning("objects not deleted", extra={"job_key": key, "code": error.code})
        site.acts.note("not deleted", _who(), error.sentence, key)
        return False
    said = f"{count} of {len(uids)} objects were in the archive and are deleted"
    site.acts.note("deleted", _who(), f"{said}: {reason}", key)
    return True


def _page(site: Site, found: Job, trouble: str = "") -> str:
    # with status 200 also where something is wrong: Orthanc 1.12 shows other pages as their source
    job = found.row
    if job.state not in (*WITHDRAWABLE, JobState.WITHDRAWN) or job.shadow or not job.objects:
        trouble = trouble or _why_not(job)
    others = built_on(site.ledger, job.key)
    return render_template(
        "withdraw.html",
        job=job,
        words=site.words(job.study_uid),
        open_to=job.state in WITHDRAWABLE and not job.shadow and bool(job.objects),
        with_it=[each for each in others if each.state != JobState.WITHDRAWN],
        withdrawn_too=[each for each in others if each.state == JobState.WITHDRAWN],
        sent_to=[each.destination for each in found.deliveries if each.objects],
        has_archive=site.archive is not None,
        shown=_SHOWN,
        shortest=SHORTEST,
        longest=LONGEST,
        reason=request.form.get("reason", ""),
        trouble=trouble,
    )


def _why_no_reason() -> str:
    return (
        f"A reason of {SHORTEST} to {LONGEST} characters is needed, so that others know what was "
        "wrong; nothing was changed."
    )


def _why_not(job: JobRow) -> str:
    if job.shadow:
        return "It was a shadow run: its result was never in the archive."
    if job.state == JobState.WITHDRAWN:
        return "This result is withdrawn already."
    return f"The job is {job.state}: only a result that was stored is withdrawn."


def _who() -> str:
    return request.remote_user or ""
