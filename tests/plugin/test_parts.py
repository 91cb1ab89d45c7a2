"""The scripts of others: how set-up takes them from npm, how they are served and what they do."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
from flask import Blueprint, Response, render_template_string
from flask.testing import FlaskClient
from playwright.sync_api import Browser
from werkzeug.serving import make_server

from segnode_contract.errors import SetupError
from segnode_contract.ledger import Ledger
from segnode_contract.settings import load_settings
from segnode_plugin.web.app import create_app
from segnode_plugin.web.site import Site

from .pages import CONFIG
from .test_ohif import package, setup_script

FRONT = Path(__file__).parents[2] / ".cache" / "front"


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script `setup/front.py`."""
    return setup_script("front", monkeypatch)


def test_only_the_files_wanted_are_taken(front: ModuleType, tmp_path: Path) -> None:
    content = package(
        {
            "package/dist/htmx.min.js": b"htmx",
            "package/LICENSE": b"free",
            "package/dist/ext/other.js": b"",
            "package/../../htmx.min.js": b"outside",
        },
        link="package/dist/link.js",
    )
    front.take(front.HTMX, content, front.PAGES[front.HTMX], tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {"htmx.min.js": b"htmx", "htmx.LICENSE": b"free"}


def test_package_that_lacks_a_file_is_refused(front: ModuleType, tmp_path: Path) -> None:
    content = package({"package/dist/htmx.min.js": b"htmx"})
    with pytest.raises(SetupError, match=r"htmx\.org .* has no htmx\.LICENSE\."):
        front.take(front.HTMX, content, front.PAGES[front.HTMX], tmp_path)


def test_nothing_is_left_of_a_set_up_that_failed(
    front: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "fetch", lambda wanted: package({"package/LICENSE": b"x"}))
    target = tmp_path / "front"
    assert front.main(["pages", str(target)]) == 1
    assert list(tmp_path.iterdir()) == []


def test_present_parts_are_left_alone(front: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    assert front.main(["pages", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_bad_usage_is_told(front: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["other"]) == 2
    assert "setup/front.py pages" in capsys.readouterr().err


def pages_with(parts: Path | None, *blueprints: Blueprint) -> FlaskClient:
    """Return a viewer's browser; no page of it asks the ledger."""
    site = Site(ledger=Ledger("sqlite://"), settings=load_settings(CONFIG), parts=parts)
    client = create_app(site, blueprints).test_client()
    client.environ_base["REMOTE_USER"] = "viewer"
    return client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "htmx.min.js").write_bytes(b"one")
    (parts / "uPlot.min.css").write_bytes(b"two")
    (parts / "htmx.LICENSE").write_bytes(b"free")
    (tmp_path / "secret").write_bytes(b"outside")
    return parts


def test_part_is_kept_by_browsers_under_its_own_version_only(folder: Path) -> None:
    version = hashlib.sha256(b"one").hexdigest()[:16]
    client = pages_with(folder)
    named = client.get(f"/segnode/static/parts/htmx.min.js?v={version}")
    assert (named.status_code, named.data) == (200, b"one")
    assert named.content_type == "text/javascript; charset=utf-8"
    assert named.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert "default-src 'none'" in named.headers["Content-Security-Policy"]
    for address in ("htmx.min.js", "htmx.min.js?v=older", "uPlot.min.css"):
        answer = client.get(f"/segnode/static/parts/{address}")
        assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-cache")


@pytest.mark.parametrize(
    "name", ["htmx.LICENSE", "uPlot.iife.min.js", "../secret", "%2e%2e/secret"]
)
def test_nothing_else_of_the_folder_is_served(folder: Path, name: str) -> None:
    answer = pages_with(folder).get(f"/segnode/static/parts/{name}")
    assert answer.status_code in (403, 404)


def test_template_learns_where_a_part_is_and_whether(folder: Path) -> None:
    page = Blueprint("page", __name__)
    template = "{% if part('htmx.min.js') %}{{ part('htmx.min.js') }}{% else %}without{% endif %}"
    page.get("/segnode/page")(lambda: render_template_string(template))
    version = hashlib.sha256(b"one").hexdigest()[:16]
    there = pages_with(folder, page).get("/segnode/page").text
    assert there == f"/segnode/static/parts/htmx.min.js?v={version}"
    for without in (None, folder / "missing"):
        assert pages_with(without, page).get("/segnode/page").text == "without"


def test_page_without_parts_says_that_there_is_none() -> None:
    assert pages_with(None).get("/segnode/static/parts/htmx.min.js").status_code == 404


PAGE = """<!doctype html><html lang="en"><head><title>try</title>
<meta name="htmx-config" content='{"includeIndicatorStyles":false,"allowEval":false}'>
<link rel="icon" href="/segnode/static/icon.svg">
<link rel="stylesheet" href="{{ part('uPlot.min.css') }}">
<script src="{{ part('htmx.min.js') }}" defer></script>
<script src="{{ part('uPlot.iife.min.js') }}" defer></script>
<script src="/segnode/try.js" defer></script></head><body>
<p id="live" hx-get="/segnode/fragment" hx-trigger="every 100ms">first</p><div id="plot"></div>
</body></html>"""
SCRIPT = """new uPlot(
    {width: 600, height: 300, title: "plot", series: [{}, {label: "a", stroke: "red"}]},
    [[1.7e9, 1.7e9 + 3600, 1.7e9 + 7200], [1, 3, 2]], document.getElementById("plot"),
)"""


@pytest.fixture
def address() -> Iterator[str]:
    """The address of a page that uses both libraries under our Content-Security-Policy."""
    if not FRONT.is_dir():
        pytest.skip("htmx and uPlot are not here; `make setup` fetches them")
    pages = Blueprint("try", __name__, url_prefix="/segnode")
    pages.get("/try", endpoint="page")(lambda: render_template_string(PAGE))
    pages.get("/fragment", endpoint="fragment")(lambda: "<b>later</b>")
    script = Response(SCRIPT, content_type="text/javascript")
    pages.get("/try.js", endpoint="script")(lambda: script)
    client = pages_with(FRONT, pages)
    server = make_server(
        "127.0.0.1",
        0,
        lambda environ, start: client.application(environ | {"REMOTE_USER": "viewer"}, start),
        threaded=True,
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.port}/segnode/try"
    server.shutdown()
    thread.join()
    server.server_close()


def test_libraries_work_under_our_policy_without_a_violation(
    address: str, chromium: Browser
) -> None:
    said: list[str] = []
    with closing(chromium.new_page()) as page:
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        page.get_by_text("later").wait_for(timeout=10_000)
        page.locator("#plot .u-over").hover()  # the cursor moves by styles
        assert (page.locator("#plot canvas").bounding_box() or {}).get("width") == 600
        assert page.locator("#plot .u-title").inner_text() == "plot"
    assert said == []
