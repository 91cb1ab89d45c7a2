"""Orthanc's script for the viewer's tests: viewer, searches, buttons; the ledger's from a file."""

import os
import site
from pathlib import Path

import orthanc

site.addsitedir(os.environ["VIEWER_SITE"])

from flask import Flask, Response, request

from segnode_plugin.web.adapter import Adapter
from segnode_plugin.web.explorer import extend_explorer
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
    said = Path(os.environ["VIEWER_OVERLAYS"])
    if not said.exists():
        return Response("no answer", status=503)
    answer = Response(said.read_bytes(), content_type="application/json")
    answer.add_etag()
    return answer.make_conditional(request)


adapter.register(app, ("/ohif", "/qido", "/segnode"))
extend_explorer(orthanc, Path(os.environ["VIEWER_JS"]).with_name("explorer.js"))
