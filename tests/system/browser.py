"""Look at the viewer as a user does: headless Chromium, and what its canvases show."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Locator,
    Page,
    Request,
    Response,
    sync_playwright,
)

ARTIFACTS = Path(__file__).parents[2] / "artifacts"

CHROMIUM = os.environ.get("SEGNODE_CHROMIUM", "/usr/bin/chromium")
_ARGUMENTS = [
    "--no-sandbox",  # Chromium refuses its sandbox to root
    # WebGL in software
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    # the browser's own calls home, so that what is left is the page's
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-domain-reliability",
    "--no-first-run",
    "--no-pings",
    "--disable-features=Translate,OptimizationHints,MediaRouter,AutofillServerCommunication",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]

Picture = NDArray[np.uint8]
"""RGB, shape ``(rows, columns, 3)``."""


@dataclass(kw_only=True)
class Viewer:
    """One tab with the viewer, and what went wrong in it."""

    page: Page
    base_url: str
    external: list[str] = field(default_factory=list)
    """Requests to anything but `base_url`."""
    failed: list[str] = field(default_factory=list)
    """Requests without an answer, or with a status of 400 and up."""
    errors: list[str] = field(default_factory=list)
    """Exceptions that no script caught, and what the Content-Security-Policy stopped."""
    warnings: list[str] = field(default_factory=list)
    """The console's warnings."""

    def open_study(self, study_uid: str, more: str = "") -> None:
        """Go to the address of a study; nothing is clicked."""
        self.page.goto(
            f"{self.base_url}/ohif/viewer?StudyInstanceUIDs={study_uid}{more}", wait_until="commit"
        )

    def wait_for_image(self, timeout_s: float = 40) -> Picture:
        """Return the first viewport once it shows an image."""
        return self.wait_for(lambda picture: bool((picture.max(2) > 20).mean() > 0.02), timeout_s)

    def wait_for_overlay(self, timeout_s: float = 40) -> Picture:
        """Return the first viewport once it shows colours."""
        return self.wait_for(lambda picture: bool(coloured(picture).sum() > 100), timeout_s)

    def wait_for(
        self, shows: Callable[[Picture], bool], timeout_s: float = 40, viewport: int = 0
    ) -> Picture:
        """Return a viewport's picture once it `shows` what is awaited and has come to rest."""
        end = time.monotonic() + timeout_s
        before = None
        while time.monotonic() < end:
            picture = self.pixels(viewport)
            if picture is not None and shows(picture):
                if before is not None and np.array_equal(before, picture):
                    return picture
                before = picture
            self.page.wait_for_timeout(200)
        self.screenshot("timeout")
        raise AssertionError(f"not seen within {timeout_s} s; see {ARTIFACTS / 'timeout.png'}")

    def pixels(self, viewport: int = 0) -> Picture | None:
        """Return what a viewport's canvas shows, None while there is none; no text lies in it."""
        data: str | None = self.page.evaluate(
            "i => document.querySelectorAll('canvas.cornerstone-canvas')[i]?.toDataURL() ?? null",
            viewport,
        )
        if data is None or "," not in data:
            return None
        png = base64.b64decode(data.split(",", 1)[1])
        return np.asarray(Image.open(BytesIO(png)).convert("RGB")) if png else None

    def viewports(self) -> list[str]:
        """Return the Series Instance UID of each viewport's images, from left to right."""
        uids: list[str] = self.page.evaluate(
            """() => {
                const { viewportGridService: grid, displaySetService: sets } = window.services;
                return [...grid.getState().viewports.values()].map(
                    ({ displaySetInstanceUIDs: [uid] }) =>
                        sets.getDisplaySetByUID(uid)?.SeriesInstanceUID
                );
            }"""
        )
        return uids

    def scroll_to(self, z_mm: float) -> None:
        """Show the axial slice of the active viewport that lies next to `z_mm`."""
        self.page.evaluate(
            """z => {
                const { viewportGridService: grid, cornerstoneViewportService } = window.services;
                const viewport = cornerstoneViewportService.getCornerstoneViewport(
                    grid.getActiveViewportId()
                );
                const distances = viewport.getImageIds().map(id => Math.abs(
                    window.cornerstone.metaData.get('imagePlaneModule', id).imagePositionPatient[2]
                    - z
                ));
                return viewport.setImageIdIndex(distances.indexOf(Math.min(...distances)));
            }""",
            z_mm,
        )

    def jump_to(self, point_mm: tuple[float, float, float], viewport: int) -> None:
        """Show the plane of a reformatted view that goes through a point."""
        self.page.evaluate(
            """([point, index]) => {
                const { viewportGridService: grid, cornerstoneViewportService } = window.services;
                const viewport = cornerstoneViewportService.getCornerstoneViewport(
                    [...grid.getState().viewports.keys()][index]
                );
                viewport.jumpToWorld(point);
                viewport.render();
            }""",
            [list(point_mm), viewport],
        )

    def open_series(self, description: str) -> None:
        """Show another series, as a user does: a double click on its thumbnail."""
        thumbnails = self.page.locator('[data-cy^="study-browser-thumbnail"]')
        thumbnails.filter(has_text=description).first.dblclick()

    def show_axial(self, series_uid: str, viewport: int) -> None:
        """Reformat a series into one viewport of a multiplanar layout."""
        self.page.evaluate(
            """([uid, index]) => {
                const { displaySetService: sets, viewportGridService: grid } = window.services;
                const viewportId = [...grid.getState().viewports.keys()][index];
                window.commandsManager.runCommand('setDisplaySetsForViewports', {
                    viewportsToUpdate: [{
                        viewportId,
                        displaySetInstanceUIDs: [
                            sets.getDisplaySetsForSeries(uid)[0].displaySetInstanceUID,
                        ],
                        viewportOptions: {
                            viewportId,
                            viewportType: 'volume',
                            orientation: 'axial',
                            toolGroupId: 'mpr',
                        },
                    }],
                });
            }""",
            [series_uid, viewport],
        )

    def segment_names(self) -> list[str]:
        """Return the rows of the segmentation panel, top down."""
        rows = self.page.locator('[data-cy="data-row"]')
        rows.first.wait_for(timeout=10_000)
        return [" ".join(text.split()) for text in rows.all_inner_texts()]

    def marks(self) -> list[str]:
        """Return what is written over the viewports' images, one text for each that has any."""
        return self.page.locator('[data-cy="segnode-mark"]').all_inner_texts()

    def eye(self, result: int) -> Locator:
        """Return the switch of a segmentation in the panel, counted from the top."""
        return self.page.locator('[data-cy^="all-segments-visibility-toggle"]').nth(result)

    def notice(self, text: str) -> Locator:
        """Return the notice with this text."""
        return self.page.locator("[data-sonner-toast]").filter(has_text=text)

    def listed(self) -> set[str]:
        """Return the Series Instance UIDs in the list of the study."""
        uids: list[str] = self.page.evaluate(
            """() => window.services.displaySetService.getActiveDisplaySets()
                .map(set => set.SeriesInstanceUID)"""
        )
        return set(uids)

    def screenshot(self, name: str) -> Path:
        """Save the whole page, for people, into `artifacts/`."""
        ARTIFACTS.mkdir(exist_ok=True)
        path = ARTIFACTS / f"{name}.png"
        self.page.screenshot(path=path)
        return path


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """Run one browser until the block ends."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def logged_in(
    browser: Browser, base_url: str, user: str, password: str
) -> Iterator[BrowserContext]:
    """Make a profile that has logged in, by the browser's own dialogue.

    Playwright's `http_credentials` would turn the browser's cache off.
    """
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    try:
        page = context.new_page()
        scheme, host = base_url.split("://")
        page.goto(f"{scheme}://{user}:{password}@{host}/ohif/manifest.json")
        page.close()
        yield context
    finally:
        context.close()


@contextmanager
def open_viewer(context: BrowserContext, base_url: str) -> Iterator[Viewer]:
    """Open a tab."""
    viewer = Viewer(page=context.new_page(), base_url=base_url)
    _watch(viewer)
    try:
        yield viewer
    finally:
        viewer.page.close()


def _watch(viewer: Viewer) -> None:
    def requested(request: Request) -> None:
        if not request.url.startswith((viewer.base_url, "blob:", "data:")):
            viewer.external.append(request.url)

    unchanged: set[Request] = set()

    def answered(response: Response) -> None:
        if response.status >= 400:
            viewer.failed.append(f"{response.status} {response.url}")
        if response.status == 304:
            unchanged.add(response.request)

    def lost(request: Request) -> None:
        # Chromium calls a 304 aborted where a script itself sent If-None-Match, which it may
        if request not in unchanged:
            viewer.failed.append(f"{request.failure} {request.url}")

    def said(kind: str, text: str) -> None:
        if kind == "warning":
            viewer.warnings.append(text)
        if "Content Security Policy" in text:
            viewer.errors.append(text)

    viewer.page.on("request", requested)
    viewer.page.on("response", answered)
    viewer.page.on("requestfailed", lost)
    viewer.page.on("pageerror", lambda error: viewer.errors.append(str(error)))
    viewer.page.on("console", lambda message: said(message.type, message.text))


def coloured(picture: Picture) -> NDArray[np.bool_]:
    """Return where a picture is not grey: where an overlay lies."""
    wide = picture.astype(np.int16)
    found: NDArray[np.bool_] = wide.max(2) - wide.min(2) > 40
    return found
