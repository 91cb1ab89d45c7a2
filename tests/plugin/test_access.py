"""Who may do what: what no row of the table allows is refused."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from segnode_contract.settings import load_settings
from segnode_plugin.access import Access, register_access, user_of

CONFIG = Path(__file__).parents[2] / "orthanc-config" / "segnode.toml"
ID = "-".join(["01234abc"] * 5)


def login(user: str) -> dict[str, str]:
    word = base64.b64encode(f"{user}:secret:with:colons".encode()).decode()
    return {"authorization": f"Basic {word}", "host": "node:8042"}


@pytest.fixture
def access() -> Access:
    return Access(load_settings(CONFIG))


@pytest.mark.parametrize(
    ("user", "method", "path", "allowed"),
    [
        ("worker", "GET", "/dicom-web/studies/1.2/series/1.3", True),
        ("worker", "POST", "/dicom-web/studies/1.2", True),
        ("worker", "POST", "/dicom-web/servers/x/stow", False),
        ("worker", "GET", "/segnode/", False),
        ("worker", "GET", "/patients", False),
        ("worker", "DELETE", f"/studies/{ID}", False),
        ("viewer", "GET", "/ohif/viewer", True),
        ("viewer", "GET", "/dicom-web/studies/1.2/metadata", True),
        ("viewer", "POST", "/dicom-web/studies", False),
        ("viewer", "GET", "/studies", False),
        ("viewer", "GET", "/app/explorer.html", False),
        ("admin", "GET", f"/instances/{ID}/file", True),
        ("admin", "DELETE", f"/series/{ID}", True),
        ("admin", "DELETE", "/changes", False),
        ("admin", "DELETE", "/exports", False),
        ("admin", "POST", "/tools/find", True),
        ("admin", "POST", "/tools/reset", False),
        ("admin", "POST", "/tools/shutdown", False),
        ("admin", "POST", "/tools/execute-script", False),
        ("admin", "PUT", "/modalities/x", False),
        ("admin", "POST", f"/instances/{ID}/export", False),
        ("stranger", "GET", "/", False),
    ],
)
def test_the_table_decides(
    access: Access, user: str, method: str, path: str, allowed: bool
) -> None:
    assert access.allows(method, path, login(user)) is allowed


@pytest.mark.parametrize(
    "path",
    [
        "/segnode/../tools/reset",
        "/segnode/%2e%2e/tools",
        "/segnode/%252e%252e/tools",
        "//system",
        "/segnode;/x",
        "/segnode\\..\\x",
        "/SEGNODE/",
        "/segnode/\x00",
    ],
)
def test_tricks_with_the_path_are_refused(access: Access, path: str) -> None:
    assert access.allows("GET", path, login("viewer")) is False


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://node:9999"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_origin_cannot_change_anything(access: Access, headers: dict[str, str]) -> None:
    assert access.allows("POST", "/tools/find", login("admin") | headers) is False
    assert access.allows("GET", "/system", login("admin") | headers) is True


def test_our_own_pages_and_programs_can(access: Access) -> None:
    assert access.allows("POST", "/tools/find", login("admin"))
    assert access.allows("POST", "/tools/find", login("admin") | {"origin": "http://node:8042"})


@pytest.mark.parametrize(
    "word", ["", "Bearer abc", "Basic !!!", "Basic " + base64.b64encode(b"nocolon").decode()]
)
def test_no_user_is_nobody(word: str) -> None:
    assert user_of({"authorization": word}) is None


def test_a_filter_that_fails_refuses() -> None:
    class Orthanc:
        def RegisterIncomingHttpRequestFilter(self, allow):  # type: ignore[no-untyped-def]
            self.allow = allow

    orthanc = Orthanc()
    register_access(orthanc, load_settings(CONFIG))
    assert orthanc.allow("/segnode/", method=1, headers=login("viewer")) is True
    assert orthanc.allow("/segnode/", method=99, headers=login("viewer")) is False
    assert orthanc.allow("/segnode/", method=1) is False
