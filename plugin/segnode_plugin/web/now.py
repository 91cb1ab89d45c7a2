"""What goes on now: the first page, and what of it is asked for again every two seconds."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, render_template

from segnode_contract.destination import failed_hint
from segnode_contract.ledger import LedgerView
from segnode_contract.ledger.alerts import AlertLedger
from segnode_contract.ledger.now import NowView
from segnode_contract.ledger.view import WorkerRow
from segnode_plugin.web import holders
from segnode_plugin.web.fresh import answer, tag_of
from segnode_plugin.web.health import Reading
from segnode_plugin.web.site import Site

_LACKS = {"ready": "does not offer every model"}
_HOUR_S = 3600.0
_DAY_S = 86400.0
_MINUTE_S = 60.0
"""What counts back from now is as old as this at most."""


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


def age(seconds: float) -> str:
    """Return ``12 s``, ``2 min 05 s``, ``3 h 20 min`` or ``4 d 3 h``, as `segnode.js` does."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < _DAY_S:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _answer(site: Site, template: str) -> Response:
    ledger, view = NowView(site.ledger), site.view
    now, workers, trouble = view.now(), view.workers(), site.trouble()
    readings = site.health.readings if site.health else ()
    alive = {worker.name for worker in holders.alive(workers, now)}
    alerts = _alerts(site)
    tag = tag_of(
        ledger.pulse(), now // _MINUTE_S, workers, sorted(alive), trouble, readings, alerts
    )

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
            yesterday=now - _DAY_S,
            workers=workers,
            alive=alive,
            readings=readings,
            notices=[
                *filter(None, [trouble]),
                *alerts,
                *_notices(view, workers, alive, readings),
            ],
        )

    return answer(tag, render)


def _alerts(site: Site) -> list[str]:
    """Return the alerts that hold, and of each by what it could not be told."""
    held = AlertLedger(site.ledger).alerts(site.settings.alerts.quiet_s)
    untold = " It could not be told by {}: Orthanc's log says why, and it is tried again."
    return [
        each.sentence + (untold.format(" and ".join(each.untold)) if each.untold else "")
        for each in held
    ]


def _notices(
    view: LedgerView, workers: list[WorkerRow], alive: set[str], readings: tuple[Reading, ...]
) -> list[str]:
    said = [f"{reading.name}: {reading.words}" for reading in readings if not reading.good]
    said += _of_workers([worker for worker in workers if worker.name in alive])
    hint = failed_hint(view.failed_deliveries())
    return [*said, hint] if hint else said


def _of_workers(alive: list[WorkerRow]) -> list[str]:
    """Return what keeps workers from taking jobs, a sentence each."""
    if not alive:
        return [
            "No worker says that it lives; jobs wait until one does. `segnode up` starts workers."
        ]
    return [
        f"Worker {worker.name} {_LACKS.get(worker.state, 'takes no jobs')}: {worker.detail}"
        for worker in alive
        if worker.detail
    ]
