"""What happens when Orthanc loads the plugin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from segnode_contract.events import log_events
from segnode_contract.ledger import (
    IntakeLedger,
    LeaseLedger,
    Ledger,
    LedgerView,
    OutboxLedger,
    write_shared,
)
from segnode_contract.settings import load_connections
from segnode_plugin.access import register_access
from segnode_plugin.archive import OrthancArchive
from segnode_plugin.dispatch import CeleryBell, Dispatch
from segnode_plugin.intake import Intake
from segnode_plugin.route_file import RouteFile
from segnode_plugin.service import Service
from segnode_plugin.web.adapter import Adapter
from segnode_plugin.web.app import StudyWords, create_app
from segnode_plugin.web.ohif import ohif_pages
from segnode_plugin.web.qido import qido_shim
from segnode_plugin.web.routes import RoutePages

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
    service = Service([intake.tick, dispatch.tick])

    adapter = Adapter(orthanc)
    pages = [
        qido_shim(
            orthanc.RestApiGetAfterPlugins,
            refusal=orthanc.OrthancException,
            decodes=adapter.decodes,
        )
    ]
    pages.append(
        RoutePages(
            archive=archive,
            file=routes,
            intake=intake_ledger,
            view=LedgerView(ledger),
            settings=settings,
        ).blueprint()
    )
    viewer = os.environ.get("SEGNODE_OHIF")
    if viewer:
        pages.append(ohif_pages(Path(viewer), CONFIG / "ohif.js"))
    app = create_app(
        LedgerView(ledger),
        settings=settings,
        blueprints=pages,
        describe=lambda study_uid: _describe(archive, study_uid),
        trouble=lambda: routes.trouble,
    )
    adapter.register(app, ("/segnode", "/ohif", "/qido"))
    register_access(orthanc, settings)
    _on_change(orthanc, service)


def _describe(archive: OrthancArchive, study_uid: str) -> StudyWords | None:
    study = archive.study(study_uid)
    if study is None:
        return None
    tags = study["MainDicomTags"]
    return StudyWords(
        patient_name=study["PatientMainDicomTags"].get("PatientName", ""),
        description=tags.get("StudyDescription", ""),
        accession=tags.get("AccessionNumber", ""),
    )


def _on_change(orthanc: Any, service: Service) -> None:
    kinds = orthanc.ChangeType

    def changed(kind: int, level: int, resource: str) -> None:
        # intake reads the changes themselves from Orthanc's log: this thread must never wait
        if kind == kinds.ORTHANC_STARTED:
            service.start()
        elif kind == kinds.ORTHANC_STOPPED:
            service.stop()

    orthanc.RegisterOnChangeCallback(changed)
