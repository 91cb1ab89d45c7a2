"""Orthanc's PythonScript in the tests: the plugin as it is, with points to strike at."""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orthanc

ENTRY = Path(os.environ["SEGNODE_ENTRY"])
sys.path.insert(0, str(ENTRY.parent))

_register = orthanc.RegisterOnChangeCallback


def _register_faulty(changed: Callable[..., None]) -> None:
    # called last of all, when everything that can be struck is imported
    from tests.faults.points import Points

    from segnode_contract.ledger import IntakeLedger, OutboxLedger

    points = Points.of_environment()
    points.around(IntakeLedger, "note", "intake.note")
    points.around(IntakeLedger, "decide", "intake.decide")
    points.around(OutboxLedger, "published", "ring.published")

    def faulty(*args: Any) -> None:
        points.pass_by("callback")
        changed(*args)

    _register(faulty)


orthanc.RegisterOnChangeCallback = _register_faulty
runpy.run_path(str(ENTRY))
