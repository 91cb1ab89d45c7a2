"""Our buttons in Orthanc Explorer, the pages that Orthanc itself has at /app/explorer.html."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class ExplorerModule(Protocol):
    """The part of the `orthanc` module that adds to those pages."""

    def ExtendOrthancExplorer(self, javascript: str) -> None: ...


def extend_explorer(orthanc: ExplorerModule, script: Path) -> None:
    """Add the buttons of `orthanc-config/explorer.js`."""
    orthanc.ExtendOrthancExplorer(script.read_text())
