"""Real servers and a real browser; each is missing with a reason, or fails in CI."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext

from segnode_cli.node import VIEWER, Node, prepare
from segnode_cli.supervise import check_programs, running
from segnode_contract.errors import SetupError
from segnode_contract.settings import load_settings

from .browser import Viewer, logged_in, open_viewer
from .viewer_node import PLUGINS, ViewerNode, running_node


def need(present: object, what: str) -> None:
    """Go on only where a part of the road is `present`."""
    if present:
        return
    if os.environ.get("CI"):
        pytest.fail(f"{what}; `make test` installs it")
    pytest.skip(f"{what}; `make test` installs it")


@contextmanager
def whole_node(folder: Path, words: str, workers: int) -> Iterator[Node]:
    """Run a node with these words in its settings file, as `segnode up` starts it."""
    try:
        check_programs()
    except SetupError as error:
        need(False, error.sentence)
    config = folder / "segnode.toml"
    config.write_text(words)
    node = prepare(folder / "node", config, load_settings(config))
    with running(node, workers, print):
        yield node


@pytest.fixture(scope="session")
def viewer_dist() -> Path:
    """The patched build of OHIF."""
    need(VIEWER.is_dir(), f"the OHIF viewer is not in {VIEWER}")
    return VIEWER


@pytest.fixture(scope="session")
def orthanc_with_viewer(
    tmp_path_factory: pytest.TempPathFactory, viewer_dist: Path
) -> Iterator[ViewerNode]:
    """An Orthanc that serves the viewer, the searches, and the ledger's answer."""
    need(shutil.which("Orthanc") and list(PLUGINS.glob("*Python*")), "Orthanc is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running_node(tmp_path_factory.mktemp("viewer"), viewer_dist, port) as node:
        yield node


@pytest.fixture(scope="session")
def profile(chromium: Browser, orthanc_with_viewer: ViewerNode) -> Iterator[BrowserContext]:
    """A browser profile that is logged in; its cache is warm after the first test."""
    node = orthanc_with_viewer
    with logged_in(chromium, node.base_url, node.user, node.password) as context:
        yield context


@pytest.fixture
def viewer(profile: BrowserContext, orthanc_with_viewer: ViewerNode) -> Iterator[Viewer]:
    """A fresh tab."""
    with open_viewer(profile, orthanc_with_viewer.base_url) as tab:
        yield tab
