"""Orthanc's script for the viewer's tests: its blueprints, and the ledger's answer from a file."""

import os
import site
from pathlib import Path

import orthanc

site.addsitedir(os.environ["VIEWER_SITE"])

from flask import Flask, Response

from segnode_plugin.web.adapter import Adapter
from segnode_plugin.web.ohif import ohif_pages
from segnode_plugin.web.qido import qido_shim

app = Flask(__name__)
adapter = Adapter(orthanc)
app.register_blueprint(ohif_pages(Path(os.environ["VIEWER_DIST"]), Path(os.environ["VIEWER_JS"])))
app.register_blueprint(
    qido_shim(
        orthanc.RestApiGetAfterPlugins, refusal=orthanc.OrthancException, decodes=adapter.decodes
    )
)


@app.get("/segnode/api/overlays")
def overlays() -> Response:
    answer = Path(os.environ["VIEWER_OVERLAYS"])
    if not answer.exists():
        return Response("no answer", status=503)
    return Response(answer.read_bytes(), content_type="application/json")


adapter.register(app, ("/ohif", "/qido", "/segnode"))
