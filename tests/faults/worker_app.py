"""The worker of the tests: `segnode_worker.app` as it is, with points to strike at.

``celery -A tests.faults.worker_app worker``. Nothing of this is in the product.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from segnode_contract.ledger import WorkLedger
from segnode_worker import pipeline, result, tasks
from segnode_worker.app import app
from segnode_worker.archive import DicomWebArchive
from segnode_worker.model_client import ModelProcess
from segnode_worker.model_service import ModelService
from segnode_worker.spool import Spool

from .points import FOLDER, Points

__all__ = ["app"]

VISIBILITY = "visibility"
"""A file in the folder of points: seconds after which Redis gives a ring to another worker."""

ARCHIVE_TIMEOUT_S = 4.0
MODEL_SERVER = Path(__file__).with_name("odd_server.py")

_folder = Path(os.environ[FOLDER])
_points = Points(_folder)

_points.around(WorkLedger, "claim", "claim")
_points.around(DicomWebArchive, "fetch_series", "fetch")
_points.around(result, "stack_inputs", "stack")
_points.around(ModelProcess, "segment", "infer")
_points.around(result, "encode", "encode")
_points.around(result, "prove", "verify")
_points.around(Spool, "put", "spool")
_points.around(Path, "replace", "rename")  # nobody but the spool renames by this
_points.around(WorkLedger, "made", "made")
_points.around(DicomWebArchive, "store", "store")
_points.around(pipeline, "confirm", "confirm")
_points.around(WorkLedger, "done", "done")


class _OddService(ModelService):
    """Outside of a sandbox, since the model process strikes by files of the tests."""

    def __init__(self, *, models: Path | None, memory_mb: int, sandbox: bool) -> None:
        super().__init__([str(MODEL_SERVER), str(_folder)], sandbox=False)


vars(tasks).update(
    ModelService=_OddService,
    DicomWebArchive=partial(DicomWebArchive, timeout_s=ARCHIVE_TIMEOUT_S),
)

if (_folder / VISIBILITY).exists():
    _seconds = float((_folder / VISIBILITY).read_text())
    app.conf.broker_transport_options |= {
        "visibility_timeout": _seconds,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
