"""Every page and every act, by every role, and from every wrong place."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from segnode_contract.ledger import Ledger
from segnode_contract.settings import User, load_settings
from segnode_plugin.web.app import create_app
from segnode_plugin.web.site import Site

from .pages import CONFIG, Named, archive_pages
from .rows import fail_job, queue_job

ROLES = ("viewer", "operator", "administrator", "monitor", "worker")
VALUES = {"key": "00000001" + "e" * 56, "uid": "1.2", "number": "1", "resource": "studies"}
MAY_POST = {
    "/segnode/search": {"viewer", "operator", "administrator"},
    "/segnode/jobs/retry": {"operator", "administrator"},
    "/segnode/jobs/cancel": {"operator", "administrator"},
    "/segnode/jobs/replay": {"operator", "administrator"},
    f"/segnode/jobs/{VALUES['key']}/withdraw": {"operator", "administrator"},
    f"/segnode/jobs/{VALUES['key']}/withdraw-and-delete": {"administrator"},
    f"/segnode/series/{VALUES['uid']}/run": {"operator", "administrator"},
    "/segnode/replay": {"operator", "administrator"},
}
"""What changes something, and who may do it: nobody else, and nothing besides."""
ASK = {f"/segnode/jobs/{VALUES['key']}/withdraw", f"/segnode/series/{VALUES['uid']}/run"}
"""Pages that only ask for what to do: shown to who may do it."""


@pytest.fixture
def app(ledger: Ledger) -> Flask:
    settings = load_settings(CONFIG)
    users = tuple(User(name=role, role=role) for role in ROLES)
    object.__setattr__(settings, "users", users)
    archive = Named()
    site = Site(ledger=ledger, settings=settings, archive=archive)
    app = create_app(site, archive_pages(site, archive))
    app.testing = True
    return app


def browser(app: Flask, role: str) -> FlaskClient:
    found = app.test_client()
    found.environ_base["REMOTE_USER"] = role
    return found


def addresses(app: Flask, method: str) -> list[str]:
    """Return an address of every route of the application that takes `method`."""
    place = app.url_map.bind("node")
    return [
        place.build(rule.endpoint, {name: VALUES.get(name, "x") for name in rule.arguments})
        for rule in app.url_map.iter_rules()
        if method in (rule.methods or ())
    ]


def pages_of(app: Flask) -> list[str]:
    return [one for one in addresses(app, "GET") if not one.startswith("/segnode/static/")]


def test_no_page_is_shown_to_a_stranger(app: Flask) -> None:
    for address in addresses(app, "GET"):
        for user in ("", "stranger"):
            assert browser(app, user).get(address).status_code == 403, address


def test_a_worker_and_a_monitor_see_no_page(app: Flask) -> None:
    for address in pages_of(app):
        assert browser(app, "worker").get(address).status_code == 403, address
        if address != "/metrics":
            assert browser(app, "monitor").get(address).status_code == 403, address


def test_every_page_is_shown_to_people_who_may_use_it(app: Flask, ledger: Ledger) -> None:
    queue_job(ledger)
    for address in pages_of(app):
        for role in ("viewer", "operator", "administrator"):
            shown = role in MAY_POST[address] if address in ASK else True
            status = browser(app, role).get(address).status_code
            assert status in ((200, 302, 404) if shown else (403,)), (address, role)


def test_everything_that_changes_something_is_listed_here_with_its_roles(app: Flask) -> None:
    people = {one for one in addresses(app, "POST") if not one.startswith("/segnode/api/")}
    assert people == set(MAY_POST)


def test_each_act_is_open_to_its_roles_and_to_no_other(app: Flask) -> None:
    for address, roles in MAY_POST.items():
        for role in (*ROLES, "stranger", ""):
            with app.test_request_context("/", environ_overrides={"REMOTE_USER": role}):
                allowed = _globals_of(app)["may"]("POST", address)
            assert allowed is (role in roles), (address, role)
            if role not in roles:
                form = {"token": token_of(app, role)}
                assert browser(app, role).post(address, data=form).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:9"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_origin_changes_nothing(
    app: Flask, ledger: Ledger, headers: dict[str, str]
) -> None:
    queue_job(ledger)
    fail_job(ledger)
    before = rows_of(ledger)
    for address in MAY_POST:
        form = {"token": token_of(app, "administrator"), "keys": VALUES["key"], "reason": "wrong"}
        answer = browser(app, "administrator").post(address, data=form, headers=headers)
        assert answer.status_code == 403, address
    assert rows_of(ledger) == before


@pytest.mark.parametrize("sent", ["", "0" * 64, "\u00e9", "of another user"])
def test_nothing_changes_without_the_token_of_the_user(
    app: Flask, ledger: Ledger, sent: str
) -> None:
    queue_job(ledger)
    fail_job(ledger)
    before = rows_of(ledger)
    word = token_of(app, "operator") if sent == "of another user" else sent
    for address in MAY_POST:
        form = {"token": word, "keys": VALUES["key"], "reason": "wrong result"}
        client = browser(app, "administrator")
        assert client.post(address, data=form).status_code == 403, address
        plain = f"token={token_of(app, 'administrator')}&keys={VALUES['key']}"
        answer = client.post(address, data=plain, content_type="text/plain")
        assert answer.status_code == 403, address
    assert rows_of(ledger) == before


def test_no_other_method_changes_anything(app: Flask, ledger: Ledger) -> None:
    queue_job(ledger)
    before = rows_of(ledger)
    for address in {*pages_of(app), *MAY_POST}:
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            answer = browser(app, "administrator").open(address, method=method)
            assert answer.status_code == 403, (method, address)
    assert rows_of(ledger) == before


def test_every_answer_is_hardened(app: Flask) -> None:
    for address in (*pages_of(app), "/segnode/none", "/segnode/jobs/<script>"):
        headers = browser(app, "viewer").get(address).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'"), address
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"].startswith(("no-store", "private", "no-cache"))
        assert headers["Referrer-Policy"] == "same-origin"


def _globals_of(app: Flask) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for each in app.template_context_processors[None]:
        values |= each()
    return values


def token_of(app: Flask, role: str) -> str:
    """Return the token that this user's pages carry."""
    with app.test_request_context("/segnode/jobs", environ_overrides={"REMOTE_USER": role}):
        found: str = _globals_of(app)["token"]()
    return found


def rows_of(ledger: Ledger) -> list[tuple[Any, ...]]:
    """Return what acts could have changed."""
    with ledger.read() as connection:
        jobs = connection.execute(text("select key, state, attempts, updated_at from job"))
        events = connection.execute(text("select seq, kind from event"))
        return [*map(tuple, jobs), *map(tuple, events)]
