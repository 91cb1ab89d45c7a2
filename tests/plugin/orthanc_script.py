"""Orthanc's script for the tests of pages and access: the real ones, and an echo."""

import hashlib
import os
import site
from pathlib import Path

import orthanc

site.addsitedir(os.environ["TEST_SITE"])

from flask import Blueprint, Flask, Response, jsonify, redirect, request

from segnode_contract.events import log_events
from segnode_contract.ledger import Ledger, PictureLedger
from segnode_contract.settings import load_settings
from segnode_plugin import access
from segnode_plugin.archive import OrthancArchive
from segnode_plugin.web import by_hand
from segnode_plugin.web.adapter import Adapter
from segnode_plugin.web.app import create_app
from segnode_plugin.web.pictures import picture_pages
from segnode_plugin.web.reading import ReadingArchive
from segnode_plugin.web.site import Site

echo = Blueprint("echo", __name__, url_prefix="/echo")


@echo.route("/", methods=["GET", "POST", "PUT", "DELETE"], strict_slashes=False)
@echo.get("/<path:place>")
def seen(place: str = "") -> Response:
    return jsonify(
        arguments=request.args.to_dict(),
        body=hashlib.sha256(request.get_data()).hexdigest(),
        method=request.method,
        place=place,
        user=request.remote_user,
    )


@echo.get("/big")
def big() -> Response:
    return Response(bytes(range(256)) * 40_000, content_type="application/octet-stream")


@echo.get("/redirect/<int:status>")
def elsewhere(status: int) -> Response:
    return redirect(request.host_url + "echo/caf\u00e9?x=1", status)


@echo.get("/cookies")
def cookies() -> Response:
    answer = Response("caf\u00e9")
    answer.set_cookie("a", "1")
    answer.set_cookie("b", "2")
    return answer


@echo.get("/teapot")
def refused() -> Response:
    return Response("caf\u00e9 \u2026", 409, content_type="text/plain; charset=utf-8")


@echo.get("/raise")
def broken() -> str:
    raise ValueError("CANARY^NAME")


def changed(kind: int, level: int, resource: str) -> None:
    if kind == orthanc.ChangeType.ORTHANC_STARTED:
        for file in sorted(Path(os.environ["TEST_IMAGES"]).iterdir()):
            orthanc.RestApiPost("/instances", file.read_bytes())


access.RULES += tuple(
    access.Rule(roles=("viewer", "administrator"), method=method, path="/echo(/.*)?", reason="test")
    for method in ("GET", "POST", "PUT", "DELETE")
)
log_events()
settings = load_settings(Path(os.environ["SEGNODE_CONFIG"]))
site = Site(
    ledger=Ledger.open(os.environ["SEGNODE_LEDGER_URL"]),
    settings=settings,
    archive=ReadingArchive(OrthancArchive(orthanc), orthanc.OrthancException),
)
echoing = Flask("echo")  # without the guard, which wants a token
echoing.register_blueprint(echo)
echoing.config["PROPAGATE_EXCEPTIONS"] = True
adapter = Adapter(orthanc)
adapter.register(echoing, ("/echo",))
pictures = picture_pages(PictureLedger(site.ledger), OrthancArchive(orthanc))
adapter.register(create_app(site, [pictures, by_hand.pages(site)]), ("/segnode", "/metrics"))
access.register_access(orthanc, settings)
orthanc.RegisterOnChangeCallback(changed)
