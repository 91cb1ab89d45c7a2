"""What a browser gets through a real Orthanc and our adapter."""

from __future__ import annotations

import hashlib
import json

import pytest

from .conftest import PageNode


def echoed(node: PageNode, address: str) -> dict[str, object]:
    answer = node.ask(f"/echo{address}")
    assert answer.status == 200
    return dict(json.loads(answer.body))


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("x=a%2Cb", "a,b"),
        ("x=a+b", "a b"),
        ("x=a%2Bb", "a+b"),
        ("x=a%26b", "a&b"),
        ("x=50%25", "50%"),
        ("x=%252C", "%2C"),
        ("x=PHANTOM%5EONE", "PHANTOM^ONE"),
        ("x=caf%C3%A9", "caf\u00e9"),
        ("x=", ""),
    ],
)
def test_an_argument_arrives_as_it_was_meant(page_node: PageNode, query: str, value: str) -> None:
    assert echoed(page_node, f"/?{query}")["arguments"] == {"x": value}


def test_a_path_beyond_ascii_arrives(page_node: PageNode) -> None:
    assert echoed(page_node, "/caf%C3%A9")["place"] == "caf\u00e9"


def test_the_application_knows_who_asks(page_node: PageNode) -> None:
    assert echoed(page_node, "/")["user"] == "viewer"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_method_and_body_arrive(page_node: PageNode, method: str) -> None:
    body = b"" if method == "DELETE" else bytes(range(256)) * 4000
    origin = {"Origin": f"http://127.0.0.1:{page_node.port}"}
    answer = page_node.ask("/echo", user="admin", method=method, body=body, headers=origin)
    seen = json.loads(answer.body)
    assert (seen["method"], seen["body"]) == (method, hashlib.sha256(body).hexdigest())


def test_ten_megabytes_leave_whole(page_node: PageNode) -> None:
    answer = page_node.ask("/echo/big")
    assert answer.body == bytes(range(256)) * 40_000
    assert answer.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("status", "received"), [(301, 302), (302, 302), (303, 303), (307, 307), (308, 307)]
)
def test_a_redirect_stays_at_the_address_that_the_browser_knows(
    page_node: PageNode, status: int, received: int
) -> None:
    answer = page_node.ask(f"/echo/redirect/{status}")
    assert answer.status == received
    assert answer.headers["location"] == "/echo/caf%C3%A9?x=1"


def test_every_cookie_arrives(page_node: PageNode) -> None:
    answer = page_node.ask("/echo/cookies")
    assert [cookie.split(";")[0] for cookie in answer.cookies] == ["a=1", "b=2"]
    assert answer.text == "caf\u00e9"


def test_a_refusal_keeps_its_status_type_and_text(page_node: PageNode) -> None:
    answer = page_node.ask("/echo/teapot")
    assert (answer.status, answer.text) == (409, "caf\u00e9 \u2026")
    assert answer.headers["content-type"].startswith("text/plain")


def test_a_method_that_a_page_does_not_take_is_named(page_node: PageNode) -> None:
    answer = page_node.ask("/echo/cookies", user="admin", method="POST", body=b"")
    assert answer.status == 405, (answer.headers, answer.text)
    assert "GET" in answer.headers["allow"]


def test_an_address_without_a_page_gets_the_sentence_that_says_so(page_node: PageNode) -> None:
    answer = page_node.ask("/segnode/nothing")
    assert answer.status == 404
    assert answer.headers["content-type"].startswith("text/plain")
    assert "There is nothing at this address." in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


def test_an_error_tells_neither_the_browser_nor_the_log_its_text(page_node: PageNode) -> None:
    answer = page_node.ask("/echo/raise")
    assert (answer.status, answer.text.startswith("segnode failed")) == (500, True)
    log = page_node.log.read_text()
    assert "page failed error=ValueError" in log
    assert "CANARY" not in log


def test_head_gets_no_body(page_node: PageNode) -> None:
    answer = page_node.ask("/segnode/", method="HEAD")
    assert (answer.status in (200, 404), answer.body) == (True, b"")  # 1.10.1 knows no HEAD


def test_a_stylesheet_that_the_browser_has_is_not_sent_again(page_node: PageNode) -> None:
    first = page_node.ask("/segnode/static/segnode.css")
    assert first.headers["content-type"].startswith("text/css")
    again = page_node.ask(
        "/segnode/static/segnode.css", headers={"If-None-Match": first.headers["etag"]}
    )
    assert (again.status, again.body) == (304, b"")


def test_a_part_of_a_file_is_sent_whole(page_node: PageNode) -> None:
    answer = page_node.ask("/segnode/static/segnode.css", headers={"Range": "bytes=0-9"})
    assert answer.status == 200
    assert len(answer.body) > 100


def test_the_root_leads_to_the_pages(page_node: PageNode) -> None:
    answer = page_node.ask("/")
    assert answer.status in (301, 307)
    assert answer.headers["location"] in ("segnode/", "/segnode/")


@pytest.mark.parametrize("path", ["jobs", "jobs/00000001", "studies/1.2"])
def test_a_script_in_a_name_is_text(page_node: PageNode, path: str) -> None:
    page = page_node.ask(f"/segnode/{path}")
    assert page.status == 200
    assert "<script>" not in page.text
    assert "CANARY^&lt;script&gt;alert(1)" in page.text


def test_the_schema_tells_that_all_is_well(page_node: PageNode) -> None:
    health = json.loads(page_node.ask("/segnode/health").body)
    assert (health["status"], bool(health["schema"])) == ("ok", True)
