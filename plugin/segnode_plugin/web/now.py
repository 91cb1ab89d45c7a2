"""What goes on now: the first page, and what of it is asked for again every two seconds."""

from __future__ import annotations

from dataclasses import replace

from flask import Blueprint, Response, jsonify, render_template

from segnode_contract.ledger.alerts import AlertLedger
from segnode_contract.ledger.now import MOST_RUNNING, NowView
from segnode_contract.ledger.view import WorkerRow
from segnode_contract.troubles import LOST, Trouble
from segnode_plugin.web import holders
from segnode_plugin.web.fresh import answer, tag_of
from segnode_plugin.web.servers import Reading
from segnode_plugin.web.site import Site
from segnode_plugin.web.timing import age

_LACKS = {"ready": "does not offer every model"}
_NOBODY = "No worker says that it lives; jobs wait until one does. `segnode up` starts workers."
_BEAT_S = 10.0
_ROOM_MB = 100
"""About what the page shows: tenths of a GB."""
_HOUR_S = 3600.0
_DAY_S = 86400.0


def pages(site: Site) -> Blueprint:
    """Make the first page, and what asks whether we are up."""
    blueprint = Blueprint("now", __name__, url_prefix="/segnode")
    blueprint.add_app_template_filter(age)

    @blueprint.get("/", strict_slashes=False)
    def now() -> Response:
        return _answer(site, "now.html")

    @blueprint.get("/now/live")
    def live() -> Response:
        return _answer(site, "now_live.html")

    @blueprint.get("/health")
    def health() -> Response:
        return jsonify(status="ok", schema=site.view.schema_version())

    return blueprint


def _answer(site: Site, template: str) -> Response:
    ledger, view = NowView(site.ledger), site.view
    now, workers, trouble = view.now(), view.workers(), site.trouble()
    readings = site.servers.readings if site.servers else ()
    alive = {worker.name for worker in holders.alive(workers, now)}
    notices = [
        *filter(None, [trouble]),
        *_notices(site, readings, [worker for worker in workers if worker.name in alive]),
    ]
    heard = [_heard(worker) for worker in workers]
    tag = tag_of(now, ledger.pulse(), heard, sorted(alive), readings, notices)

    def render() -> str:
        return render_template(
            template,
            tag=tag,
            now=now,
            queue=ledger.queue(),
            counts=view.counts(),
            running=ledger.running(),
            hour=ledger.ended(now - _HOUR_S),
            day=ledger.ended(now - _DAY_S),
            most_running=MOST_RUNNING,
            workers=workers,
            alive=alive,
            readings=readings,
            notices=notices,
        )

    return answer(tag, render)


def _heard(worker: WorkerRow) -> WorkerRow:
    """Return what of a worker is news: a heartbeat alone, or a few megabytes, are none."""
    report = worker.report or {}
    room = {"free_mb": report["free_mb"] // _ROOM_MB} if report.get("free_mb") else {}
    return replace(worker, seen_at=worker.seen_at // _BEAT_S, report={**report, **room})


def _notices(site: Site, readings: tuple[Reading, ...], alive: list[WorkerRow]) -> list[str]:
    """Return what is wrong, a sentence each, and nothing twice."""
    troubles = site.servers.troubles if site.servers else ()
    named = {trouble.name for trouble in troubles}
    return [
        *_told(site, troubles),
        *(f"{r.name}: {r.words}" for r in readings if not r.good and r.trouble not in named),
        *([] if alive or LOST in named else [_NOBODY]),
        *(
            f"Worker {worker.name} {_LACKS.get(worker.state, 'takes no jobs')}: {worker.detail}"
            for worker in alive
            if worker.detail
        ),
    ]


def _told(site: Site, troubles: tuple[Trouble, ...]) -> list[str]:
    """Return the troubles, and of each by what it could not be told."""
    untold = AlertLedger(site.ledger).held(site.settings.alerts.quiet_s)
    said = " It could not be told by {}: Orthanc's log says why, and it is tried again."
    return [
        each.sentence + (said.format(" and ".join(by)) if (by := untold.get(each.name)) else "")
        for each in troubles
    ]
