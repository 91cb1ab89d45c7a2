"""What happens when Orthanc loads the plugin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flask import Blueprint

from segnode_contract.events import log_events
from segnode_contract.ledger import (
    IntakeLedger,
    LeaseLedger,
    Ledger,
    OutboxLedger,
    PictureLedger,
    write_shared,
)
from segnode_contract.settings import load_connections
from segnode_plugin.access import register_access
from segnode_plugin.alerting import Alerting, free_mb_of
from segnode_plugin.archive import OrthancArchive
from segnode_plugin.dispatch import CeleryBell, Dispatch
from segnode_plugin.intake import Intake
from segnode_plugin.route_file import RouteFile
from segnode_plugin.service import Service
from segnode_plugin.telling import channels
from segnode_plugin.web import by_hand
from segnode_plugin.web.adapter import Adapter
from segnode_plugin.web.app import create_app
from segnode_plugin.web.explorer import extend_explorer
from segnode_plugin.web.ohif import ohif_pages
from segnode_plugin.web.pictures import picture_pages
from segnode_plugin.web.qido import qido_shim
from segnode_plugin.web.reading import ReadingArchive
from segnode_plugin.web.routes import RoutePages
from segnode_plugin.web.servers import servers_of
from segnode_plugin.web.site import Site

CONFIG = Path(__file__).parents[2] / "orthanc-config"


def start(orthanc: Any) -> None:
    """Bring the ledger up to date, open the pages and the filter, and start intake.

    Raises
    ------
    SegnodeError
        Which stops Orthanc: a node with a wrong setting must not take studies in silently.
    """
    log_events()
    archive = OrthancArchive(orthanc)
    config = Path(os.environ.get("SEGNODE_CONFIG", CONFIG / "segnode.toml"))
    routes = RouteFile(config, archive)
    settings = routes.settings
    connections = load_connections(os.environ)
    ledger = Ledger(connections.ledger_url)
    ledger.migrate()
    write_shared(ledger, settings.shared)

    intake_ledger = IntakeLedger(ledger)
    intake = Intake(archive, intake_ledger, settings, routes)
    dispatch = Dispatch(
        OutboxLedger(ledger, settings.limits, settings.background),
        LeaseLedger(ledger, settings.limits),
        CeleryBell(connections.broker_url),
        settings.limits.lease_s,
    )
    alerting = Alerting(
        ledger,
        settings,
        channels(settings.alerts, os.environ),
        free_mb_of(connections.data),
    )
    servers = servers_of(ledger, settings, connections, archive)
    service = Service([intake.tick, dispatch.tick, alerting.tick, servers.tick])
    site = Site(
        ledger=ledger,
        settings=settings,
        archive=ReadingArchive(archive, orthanc.OrthancException),
        trouble=lambda: routes.trouble,
        parts=_folder("SEGNODE_PARTS"),
        servers=servers,
    )
    adapter = Adapter(orthanc)
    app = create_app(site, _pages(orthanc, adapter, archive, routes, site))
    adapter.register(app, ("/segnode", "/ohif", "/qido", "/metrics"))
    register_access(orthanc, settings)
    extend_explorer(orthanc, CONFIG / "explorer.js")
    _on_change(orthanc, service)


def _pages(
    orthanc: Any, adapter: Adapter, archive: OrthancArchive, routes: RouteFile, site: Site
) -> list[Blueprint]:
    """Return the pages that need the archive."""
    shim = qido_shim(
        orthanc.RestApiGetAfterPlugins,
        refusal=orthanc.OrthancException,
        decodes=adapter.decodes,
    )
    about_routes = RoutePages(
        archive=archive,
        file=routes,
        intake=IntakeLedger(site.ledger),
        view=site.view,
        settings=site.settings,
    )
    pages = [
        shim,
        about_routes.blueprint(),
        picture_pages(PictureLedger(site.ledger), archive),
        by_hand.pages(site, routes),
    ]
    viewer = _folder("SEGNODE_OHIF")
    return [*pages, ohif_pages(viewer, CONFIG / "ohif.js")] if viewer else pages


def _folder(variable: str) -> Path | None:
    named = os.environ.get(variable)
    return Path(named) if named else None


def _on_change(orthanc: Any, service: Service) -> None:
    kinds = orthanc.ChangeType

    def changed(kind: int, level: int, resource: str) -> None:
        # intake reads the changes themselves from Orthanc's log: this thread must never wait
        if kind == kinds.ORTHANC_STARTED:
            service.start()
        elif kind == kinds.ORTHANC_STOPPED:
            service.stop()

    orthanc.RegisterOnChangeCallback(changed)
