"""A page of the dashboard as somebody sees it, and what goes wrong in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import Browser, Page

from segnode_cli.node import PARTS, Node

from ..browser import ARTIFACTS, logged_in

AXE = PARTS.with_name("front-tests") / "axe.min.js"
ROLES = {"viewer": "viewer", "operator": "operator", "administrator": "admin"}


@dataclass(kw_only=True)
class Tab:
    """A page of somebody, and what went wrong in it."""

    page: Page
    url: str
    wrong: list[str] = field(default_factory=list)
    """Exceptions, and the console's errors."""
    dialogs: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def search(self, by: str, value: str) -> Page:
        """Search, from the list, for what no address may hold."""
        page = self.open("/segnode/jobs")
        page.get_by_label("Search by", exact=True).select_option(by)
        page.get_by_label("Whole number or ID").fill(value)
        page.get_by_role("button", name="Search").click()
        page.wait_for_url("**/segnode/search")
        return page

    def choose_all(self, query: str, act: str) -> Page:
        """Choose all that a filter finds, up to where the page asks once more."""
        page = self.open(f"/segnode/jobs?{query}")
        page.get_by_label("that match, not only those ticked").check()
        page.get_by_role("button", name=act).click()
        page.wait_for_url(f"**/segnode/jobs/{act.lower()}")
        return page

    def faults(self) -> list[tuple[str, list[str]]]:
        """Return what axe-core finds, and whether the page is wider than its 1280 px."""
        self.page.wait_for_timeout(300)
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        faults = [
            (each["id"], [str(node["target"]) for node in each["nodes"]][:3])
            for each in found["violations"]
        ]
        wide = self.page.evaluate("document.documentElement.scrollWidth")
        return [*faults, ("too wide", [f"{wide} px"])] if wide > 1280 else faults

    def look(self, name: str) -> None:
        ARTIFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTIFACTS / f"dashboard-{name}.png", full_page=True)


@contextmanager
def tab(
    chromium: Browser, node: Node, role: str, *, dark: bool = False, url: str = ""
) -> Iterator[Tab]:
    """Open a tab of the node, or of its dashboard at another `url`; no dialog may come up in it."""
    user = ROLES[role]
    with logged_in(chromium, url or node.url, user, node.passwords[user]) as context:
        page = context.new_page()
        page.set_viewport_size({"width": 1280, "height": 900})
        page.emulate_media(color_scheme="dark" if dark else "light")
        found = Tab(page=page, url=url or node.url)
        page.on("dialog", lambda dialog: (found.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: found.wrong.append(str(error)))
        page.on("request", lambda request: found.asked.append(request.url))

        def said(kind: str, text: str) -> None:
            if kind == "error" or "Content Security Policy" in text:
                found.wrong.append(text)

        page.on("console", lambda message: said(message.type, message.text))
        yield found
        assert found.dialogs == [], found.dialogs


def overlays(chromium: Browser, node: Node, study_uid: str) -> dict[str, list[dict[str, str]]]:
    """Return what the ledger tells the viewer of a study."""
    with tab(chromium, node, "viewer") as seen:
        text = seen.open(f"/segnode/api/overlays?StudyInstanceUIDs={study_uid}").inner_text("body")
    told: dict[str, list[dict[str, str]]] = json.loads(text)
    told["hidden"] = sorted(told["hidden"])  # type: ignore[type-var] # texts
    return told
