"""The login of pages that no Orthanc stands before."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from werkzeug.datastructures import Authorization
from werkzeug.test import Client, TestResponse
from werkzeug.wrappers import Request, Response

from segnode_plugin.web.login import Login


@Request.application
def seen(request: Request) -> Response:
    return Response(f"{request.remote_user} {request.headers.get('Authorization')}")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def ask(client: Client, user: str, password: str, **more: Any) -> TestResponse:
    word = Authorization("basic", {"username": user, "password": password})
    return client.get("/", base_url="http://localhost:8000", auth=word, **more)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(clock: Clock) -> Client:
    return Client(Login(seen, {"admin": "right", "viewer": "als\u00f6 right"}, clock))


def test_pages_get_the_name_and_never_the_password(client: Client) -> None:
    assert ask(client, "admin", "right").text == "admin None"
    assert ask(client, "viewer", "als\u00f6 right").text == "viewer None"


@pytest.mark.parametrize(
    ("user", "password"),
    [("admin", "wrong"), ("admin", ""), ("nobody", "right"), ("", ""), ("Admin", "right")],
)
def test_nobody_else_gets_in(client: Client, user: str, password: str) -> None:
    assert ask(client, user, password).status_code == 401


def test_other_kinds_of_authorization_are_refused(client: Client) -> None:
    for header in (
        "Bearer abc",
        "Basic",
        "Basic YWRtaW4=",
        "Basic \u00ff",
        "Digest username=admin, password=right",
    ):
        answer = client.get(
            "/", base_url="http://localhost:8000", headers={"Authorization": header}
        )
        assert answer.status_code == 401


def wrong(client: Client, user: str, times: int) -> list[int]:
    return [ask(client, user, "wrong").status_code for _ in range(times)]


def test_lock_ends_after_five_minutes(
    client: Client, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert wrong(client, "admin", 12) == [401] * 10 + [429] * 2
    assert [(r.getMessage(), vars(r)["user"]) for r in caplog.records] == [
        ("login locked", "admin")
    ]
    clock.now += 299
    assert ask(client, "admin", "right").status_code == 429
    clock.now += 2
    assert ask(client, "admin", "right").status_code == 200
    assert wrong(client, "admin", 11) == [401] * 10 + [429]


def test_open_page_does_not_help_who_guesses(client: Client) -> None:
    assert wrong(client, "admin", 9) == [401] * 9
    assert ask(client, "admin", "right").status_code == 200
    assert wrong(client, "admin", 2) == [401, 429]


def test_wrong_passwords_of_long_ago_do_not_count(client: Client, clock: Clock) -> None:
    for _ in range(20):
        assert wrong(client, "admin", 1) == [401]
        clock.now += 60
    assert ask(client, "admin", "right").status_code == 200


def test_names_that_nobody_has_are_counted_as_one(client: Client) -> None:
    answers = [ask(client, f"nobody{number}", "x").status_code for number in range(12)]
    assert answers == [401] * 10 + [429] * 2
    assert ask(client, "admin", "right").status_code == 200


@pytest.mark.parametrize(
    ("base", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("http://LOCALHOST:8000", 200),
        ("http://[::1]:8000", 200),
        ("http://localhost:80", 200),
        ("http://localhost:8000.evil.example", 403),
        ("http://evil.example:8000", 403),
        ("http://127.0.0.2:8000", 403),
    ],
)
def test_machine_answers_to_its_own_names_only(client: Client, base: str, status: int) -> None:
    word = Authorization("basic", {"username": "admin", "password": "right"})
    host = base.removeprefix("http://").removesuffix(":80")
    port = "80" if base.endswith(":80") else "8000"
    overrides = {"SERVER_PORT": port, "HTTP_HOST": host}
    assert client.get("/", auth=word, environ_overrides=overrides).status_code == status
