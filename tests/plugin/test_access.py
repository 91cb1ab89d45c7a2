"""Who may do what: what no row of the table allows is refused."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from segnode_contract.settings import load_settings
from segnode_plugin.access import RULES, Access, register_access, user_of

from .conftest import PASSWORD, PageNode

CONFIG = Path(__file__).parents[2] / "orthanc-config" / "segnode.toml"
KEY = "ab" * 32
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
        ("worker", "POST", "/segnode/api/pictures/1.2/3", True),
        ("worker", "POST", "/segnode/api/pictures/1.2/4", False),
        ("worker", "GET", "/segnode/pictures/1.2/1.png", False),
        ("viewer", "GET", "/segnode/pictures/1.2/1.png", True),
        ("admin", "POST", "/segnode/api/pictures/1.2/1", False),
        ("admin", "POST", "/segnode/replay", True),
        ("operator", "POST", "/segnode/replay", True),
        ("operator", "POST", f"/segnode/jobs/{KEY}/withdraw", True),
        ("operator", "GET", f"/segnode/jobs/{KEY}/withdraw", True),
        ("operator", "GET", "/segnode/series/1.2.3/run", True),
        ("viewer", "GET", f"/segnode/jobs/{KEY}/withdraw", False),
        ("viewer", "GET", "/segnode/series/1.2.3/run", False),
        ("viewer", "GET", f"/segnode/jobs/{KEY}", True),
        ("operator", "POST", f"/segnode/jobs/{KEY}/withdraw-and-delete", False),
        ("admin", "POST", f"/segnode/jobs/{KEY}/withdraw-and-delete", True),
        ("operator", "DELETE", f"/series/{ID}", False),
        ("operator", "GET", "/qido/studies", True),
        ("worker", "GET", "/qido/studies", False),
        ("viewer", "POST", "/segnode/replay", False),
        ("admin", "POST", "/segnode/", False),
        ("worker", "GET", "/patients", False),
        ("worker", "DELETE", f"/studies/{ID}", False),
        ("viewer", "GET", "/ohif/viewer", True),
        ("viewer", "GET", "/dicom-web/studies/1.2/metadata", True),
        ("viewer", "POST", "/dicom-web/studies", False),
        ("viewer", "GET", "/studies", False),
        ("viewer", "GET", "/app/explorer.html", False),
        ("viewer", "GET", "/dicom-web/servers", False),
        ("admin", "GET", f"/instances/{ID}/file", True),
        ("admin", "DELETE", "/changes", False),
        ("admin", "DELETE", "/exports", False),
        ("admin", "POST", "/tools/find", True),
        ("admin", "POST", "/tools/reset", False),
        ("admin", "POST", "/tools/shutdown", False),
        ("admin", "POST", "/tools/execute-script", False),
        ("admin", "PUT", f"/studies/{ID}", False),
        ("admin", "PUT", "/modalities/x", False),
        ("admin", "PUT", "/tools/log-level", False),
        ("admin", "POST", "/modalities/x/store", False),
        ("admin", "POST", "/instances", False),
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
    assert access.allows("DELETE", f"/series/{ID}", login("admin") | headers) is False
    assert access.allows("GET", "/system", login("admin") | headers) is True


def test_our_own_pages_can(access: Access) -> None:
    ours = login("admin") | {"origin": "http://Node:8042", "sec-fetch-site": "same-origin"}
    assert access.allows("POST", "/tools/find", ours)
    assert access.allows("DELETE", f"/series/{ID}", ours)


def test_a_program_without_an_origin_may_store_and_find_but_not_delete(access: Access) -> None:
    assert access.allows("POST", "/dicom-web/studies", login("worker"))
    assert access.allows("POST", "/tools/find", login("admin"))
    assert access.allows("DELETE", f"/series/{ID}", login("admin")) is False


def test_every_row_gives_its_reason() -> None:
    assert all(rule.reason.endswith(".") for rule in RULES)


@pytest.mark.parametrize(
    "word", ["", "Bearer abc", "Basic !!!", "Basic " + base64.b64encode(b"nocolon").decode()]
)
def test_no_user_is_nobody(word: str) -> None:
    assert user_of({"authorization": word}) is None


def test_a_filter_that_fails_refuses() -> None:
    class Orthanc:
        class HttpMethod:
            GET, POST, PUT, DELETE = 1, 2, 3, 4

        def RegisterIncomingHttpRequestFilter(self, allow):  # type: ignore[no-untyped-def]
            self.allow = allow

    orthanc = Orthanc()
    register_access(orthanc, load_settings(CONFIG))
    assert orthanc.allow("/segnode/", method=1, headers=login("viewer")) is True
    assert orthanc.allow("/segnode/", method=99, headers=login("viewer")) is False
    assert orthanc.allow("/segnode/", method=1) is False


EVERYWHERE = [
    "/",
    "/segnode",
    "/segnode/",
    "/segnode/jobs?state=done",
    "/segnode/jobs/retry",
    "/segnode/search",
    "/segnode/models",
    "/segnode/history/jobs.csv",
    "/segnode/series/1.2.3/run",
    "/segnode/pictures/2.1.1/1.png",
    "/segnode/api/pictures/2.1.1/1",
    "/metrics",
    "/segnode/jobs/00000001",
    "/segnode/studies/1.2",
    "/segnode/api/overlays?StudyInstanceUIDs=1.2",
    "/segnode/health",
    "/segnode/static/segnode.css",
    "/segnode/static/icon.svg",
    "/segnode-probe?x=1",
    "/ohif/",
    "/qido/studies",
    "/dicom-web/studies",
    "/dicom-web/servers",
    "/app/explorer.html",
    "/plugins/explorer.js",
    "/system",
    "/patients",
    "/studies",
    "/instances",
    "/changes",
    "/tools/now",
    "/no-such-place",
]


@pytest.mark.parametrize("path", EVERYWHERE)
def test_nothing_answers_without_the_right_password(page_node: PageNode, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
        assert page_node.ask(path, user=None, method=method).status == 401
        assert page_node.ask(path, user="admin", password="wrong", method=method).status == 401
        assert page_node.ask(path, user="stranger", method=method).status == 401


@pytest.mark.parametrize(
    ("user", "method", "path", "status"),
    [
        ("viewer", "GET", "/", 301),
        ("viewer", "GET", "/segnode/", 200),
        ("viewer", "GET", "/dicom-web/studies", 200),
        ("viewer", "GET", "/dicom-web/servers", 403),
        ("viewer", "GET", "/app/explorer.html", 403),
        ("viewer", "GET", "/system", 403),
        ("viewer", "GET", "/segnode-probe?x=1", 403),
        ("viewer", "POST", "/tools/find", 403),
        ("viewer", "POST", "/dicom-web/studies", 403),
        ("viewer", "DELETE", "/changes", 403),
        ("operator", "GET", "/segnode/", 200),
        ("operator", "GET", "/metrics", 200),
        ("operator", "GET", "/dicom-web/studies", 200),
        ("operator", "GET", "/dicom-web/servers", 403),
        ("operator", "GET", "/app/explorer.html", 403),
        ("operator", "GET", "/studies", 403),
        ("operator", "POST", "/tools/find", 403),
        ("operator", "POST", "/instances", 403),
        ("operator", "PUT", "/modalities/x", 403),
        ("viewer", "POST", "/segnode/jobs/retry", 403),
        ("worker", "GET", "/metrics", 403),
        ("worker", "POST", "/segnode/jobs/retry", 403),
        ("worker", "GET", "/dicom-web/studies/1.2/series/1.2.3", 200),
        ("worker", "GET", "/dicom-web/studies", 403),
        ("worker", "GET", "/segnode/", 403),
        ("worker", "GET", "/", 403),
        ("worker", "GET", "/system", 403),
        ("worker", "POST", "/instances", 403),
        ("admin", "GET", "/segnode/", 200),
        ("admin", "GET", "/app/explorer.html", 200),
        ("admin", "GET", "/plugins/explorer.js", 200),
        ("admin", "GET", "/system", 200),
        ("admin", "GET", "/studies", 200),
        ("admin", "PUT", "/tools/log-level", 403),
        ("admin", "PUT", "/modalities/x", 403),
        ("admin", "POST", "/tools/reset", 403),
        ("admin", "POST", "/tools/shutdown", 403),
        ("admin", "POST", "/tools/execute-script", 403),
        ("admin", "DELETE", "/changes", 403),
        ("admin", "DELETE", "/exports", 403),
    ],
)
def test_a_real_orthanc_asks_the_table(
    page_node: PageNode, user: str, method: str, path: str, status: int
) -> None:
    body = b"{}" if method in ("POST", "PUT") else None
    ours = {"Origin": f"http://127.0.0.1:{page_node.port}"}
    answer = page_node.ask(path, user=user, method=method, body=body, headers=ours)
    # Orthanc 1.12 redirects by 307
    assert answer.status in ((301, 307) if status == 301 else (status,))


@pytest.mark.parametrize(
    "path",
    [
        "//system",
        "/segnode/../system",
        "/segnode/%2e%2e/system",
        "/segnode/%252e%252e/system",
        "/segnode/..%2fsystem",
        "/segnode;/../system",
        "/SYSTEM",
        "/system/",
        "/system?x=/segnode/",
        "/%73ystem",
    ],
)
def test_no_spelling_of_a_path_gets_a_viewer_past_the_table(page_node: PageNode, path: str) -> None:
    answer = page_node.ask(path)
    assert answer.status in (400, 403, 404)
    assert b"DicomAet" not in answer.body


def test_an_administrator_deletes_on_our_page_and_nowhere_else(page_node: PageNode) -> None:
    study = study_path(page_node, "1.9")
    theirs = {"Origin": "http://evil.example"}
    same_site = {"Sec-Fetch-Site": "same-site"}
    ours = {"Origin": f"http://127.0.0.1:{page_node.port}"}
    refused = [
        page_node.ask(study, user="admin", method="DELETE", headers=theirs),
        page_node.ask(study, user="admin", method="DELETE", headers=same_site | ours),
        page_node.ask(study, user="admin", method="DELETE"),
        page_node.ask(study, user="viewer", method="DELETE", headers=ours),
        page_node.ask(study, user="admin", method="PUT", body=b"", headers=ours),
        # as an <img> of a foreign page asks, whose GET Orthanc takes for a DELETE
        page_node.ask(f"{study}?_method=DELETE", user="admin"),
        page_node.ask(study, user="admin", headers={"X-HTTP-Method-Override": "DELETE"}),
    ]
    assert [answer.status for answer in refused] == [403] * len(refused)
    assert study_path(page_node, "1.9") == study
    assert page_node.ask(study, user="admin", method="DELETE", headers=ours).status == 200
    assert study_path(page_node, "1.9") is None


def test_no_password_stands_in_the_log(page_node: PageNode) -> None:
    assert page_node.ask("/segnode/").status == 200
    log = page_node.log.read_text()
    assert not re.search(rf"{PASSWORD}|Basic [A-Za-z0-9]", log)


def study_path(node: PageNode, study_uid: str) -> str | None:
    query = json.dumps({"Level": "Study", "Query": {"StudyInstanceUID": study_uid}}).encode()
    found = json.loads(node.ask("/tools/find", user="admin", method="POST", body=query).body)
    return f"/studies/{found[0]}" if found else None
