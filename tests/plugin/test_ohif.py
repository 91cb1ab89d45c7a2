"""The viewer's files: how set-up patches them, and how they are served."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from flask import Flask
from flask.testing import FlaskClient

from segnode_contract.errors import SetupError
from segnode_plugin.web.ohif import ohif_pages

ROOT = Path(__file__).parents[2]
BUNDLE = "app.bundle.0f6159c501addfe9.js"


def setup_script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a script of `setup`, loaded as Python itself loads one that is run."""
    monkeypatch.syspath_prepend(ROOT / "setup")
    spec = importlib.util.spec_from_file_location(f"setup_{name}", ROOT / "setup" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)  # dataclasses look there
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script `setup/ohif.py`."""
    return setup_script("ohif", monkeypatch)


def package(files: dict[str, bytes], link: str | None = None) -> bytes:
    """Return an npm package with these files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if link is not None:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    return packed.getvalue()


def test_build_is_patched_for_its_address(setup: ModuleType, tmp_path: Path) -> None:
    files = {
        "package/dist/index.html": b'<script src="/app.js"></script><script>x="/"</script>',
        "package/dist/app.js": b'__webpack_require__.p = "/";\n//# sourceMappingURL=app.js.map',
        "package/dist/panel.js": b"if (expandedContext.isActive) { own(); }",
        "package/dist/app.css": b"src: url(/font.woff2)",
        "package/dist/app.js.map": b"{}",
        "package/dist/sw.js": b"importScripts('https://elsewhere.example/workbox.js')",
        "package/README.md": b"",
    }

    setup.unpack(package(files), tmp_path)

    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {
        "index.html": '<script src="/ohif/app.js?2"></script><script>x="/ohif/"</script>',
        "app.js": '__webpack_require__.p = "/ohif/";\n',
        "panel.js": "if (expandedContext) { own(); }",
        "app.css": "src: url(/ohif/font.woff2)",
    }


def test_page_that_refers_to_another_host_is_refused(setup: ModuleType, tmp_path: Path) -> None:
    page = b'<link href="https://fonts.example/a.css" rel="stylesheet">'
    with pytest.raises(SetupError, match=r"index\.html .* another host.*fonts\.example"):
        setup.unpack(package({"package/dist/index.html": page}), tmp_path)


def test_nothing_is_written_outside_the_folder(setup: ModuleType, tmp_path: Path) -> None:
    files = {"package/dist/../escaped.js": b"", "/absolute.js": b"", "package/dist/a.js": b""}

    setup.unpack(package(files, link="package/dist/link.js"), tmp_path / "dist")

    assert [path.name for path in tmp_path.rglob("*") if not path.is_dir()] == ["a.js"]
    assert not (tmp_path / "dist" / "link.js").is_symlink()


def test_other_package_than_the_pinned_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    script = setup_script("package", monkeypatch)
    digest = hashlib.sha512(b"x").hexdigest()
    pinned = script.Package(name="@ohif/app", version="1.0.0", sha512=digest)
    script.check_digest(pinned, b"x")
    with pytest.raises(SetupError, match=r"@ohif/app 1\.0\.0 .* nothing was installed"):
        script.check_digest(pinned, b"another package")


def test_present_viewer_is_left_alone(setup: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    assert setup.main([str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    dist = tmp_path / "dist"
    (dist / "assets").mkdir(parents=True)
    (dist / "index.html").write_text("the page")
    for name in (BUNDLE, "app.bundle.css", "0ddf166f7a343eda.wasm", "assets/favicon.ico"):
        (dist / name).write_bytes(b"content")
    (tmp_path / "secret").write_text("outside")
    (tmp_path / "ohif.js").write_text("window.config = { extensions: [first] };\n")
    (tmp_path / "ohif-first.js").write_text("const first = {};\n")
    app = Flask(__name__)
    app.register_blueprint(ohif_pages(dist, tmp_path / "ohif.js"))
    return app.test_client()


@pytest.mark.parametrize("address", ["/ohif", "/ohif/", "/ohif/viewer", "/ohif/no/such/place"])
def test_every_place_in_the_viewer_is_the_one_page(client: FlaskClient, address: str) -> None:
    answer = client.get(address)
    assert (answer.status_code, answer.text) == (200, "the page")
    assert answer.content_type == "text/html; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("name", "mime", "kept"),
    [
        (BUNDLE, "text/javascript; charset=utf-8", True),
        ("0ddf166f7a343eda.wasm", "application/wasm", True),
        ("app.bundle.css", "text/css; charset=utf-8", False),
        ("assets/favicon.ico", "image/x-icon", False),
    ],
)
def test_file_has_its_type_and_is_kept_only_if_named_by_content(
    client: FlaskClient, name: str, mime: str, kept: bool
) -> None:
    answer = client.get(f"/ohif/{name}")
    assert (answer.status_code, answer.data) == (200, b"content")
    assert answer.content_type == mime
    assert ("immutable" in answer.headers["Cache-Control"]) is kept


def test_settings_are_ours_and_never_kept(client: FlaskClient) -> None:
    answer = client.get("/ohif/app-config.js")
    assert answer.content_type == "text/javascript; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    # one function, so that no name of ours meets one of the viewer's
    assert answer.text.splitlines() == [
        "(function () {",
        "'use strict';",
        "const first = {};",
        "",
        "window.config = { extensions: [first] };",
        "})();",
    ]


@pytest.mark.parametrize(
    "address", ["/ohif/missing.js", "/ohif/../secret", "/ohif/%2e%2e/secret", "/ohif//etc/passwd"]
)
def test_nothing_else_is_served(client: FlaskClient, address: str) -> None:
    answer = client.get(address, follow_redirects=True)
    assert answer.text not in ("outside", "content")
    assert "root:" not in answer.text


def test_missing_script_is_not_answered_with_the_page(client: FlaskClient) -> None:
    assert client.get("/ohif/missing.js").status_code == 404


def test_browser_is_told_to_ask_no_other_host(client: FlaskClient) -> None:
    for address in ("/ohif/", f"/ohif/{BUNDLE}", "/ohif/missing.js"):
        headers = client.get(address).headers
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "http" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
