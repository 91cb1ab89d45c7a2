"""What all sides know of workers: when one counts as silent, and what its name says."""

from __future__ import annotations

SILENT_S = 60.0
"""A worker speaks each 2 s, each 20 s while its model process is silent; a busy one may be late."""


def machine_of(worker: str) -> str:
    """Return the machine in a worker's name: without boot, namespace and process."""
    return worker.partition("/")[0].rsplit("-", 2)[0]
