"""The pages without an Orthanc, for one user."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flask import Blueprint
from flask.testing import FlaskClient

from segnode_cli.routes import Keywords
from segnode_contract.ledger import Ledger
from segnode_contract.settings import Settings, load_settings
from segnode_plugin import entry
from segnode_plugin.route_file import RouteFile
from segnode_plugin.web.adapter import Adapter
from segnode_plugin.web.app import create_app
from segnode_plugin.web.site import Archive, Site

CONFIG = Path(__file__).parents[2] / "orthanc-config" / "segnode.toml"
SCRIPT = "<script>alert(1)</script>"


class Named:
    """An archive of studies with hostile names: every UID is there."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    def get(self, uri: str) -> Any:
        return None

    def archive_id(self) -> str:
        return "a"

    def study(self, study_uid: str) -> dict[str, Any] | None:
        return {
            "MainDicomTags": {"StudyDescription": "d", "AccessionNumber": "a"},
            "PatientMainDicomTags": {"PatientName": SCRIPT},
        }

    def studies_named(self, study_uid: str) -> list[str]:
        return ["study"]

    def series_named(self, series_uid: str) -> list[str]:
        return []

    def studies_with(self, keyword: str, value: str) -> list[str]:
        return []

    def vr(self, keyword: str) -> str | None:
        return Keywords().vr(keyword)

    def delete_instances(self, instance_uids: Iterable[str]) -> int:
        self.deleted += instance_uids
        return len(self.deleted)


def archive_pages(site: Site, archive: Any) -> list[Blueprint]:
    """Return what the plugin adds to the pages because there is an archive, but for the viewer."""
    orthanc = SimpleNamespace(RestApiGetAfterPlugins=lambda uri: b"[]", OrthancException=OSError)
    return entry._pages(orthanc, Adapter(orthanc), archive, RouteFile(CONFIG, archive), site)


def client(
    ledger: Ledger,
    archive: Archive | None = None,
    *,
    user: str = "viewer",
    settings: Settings | None = None,
    blueprints: Sequence[Blueprint] = (),
) -> FlaskClient:
    """Return a browser of `user`; without an archive as `segnode dashboard` has none."""
    site = Site(ledger=ledger, settings=settings or load_settings(CONFIG), archive=archive)
    app = create_app(site, blueprints)
    app.testing = True
    found = app.test_client()
    found.environ_base["REMOTE_USER"] = user
    return found


def token(text: str) -> str:
    """Return the token in a page's first form."""
    found = re.search(r'name="token" value="([0-9a-f]+)"', text)
    assert found, "the page has no form"
    return found[1]
