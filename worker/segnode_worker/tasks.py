"""What a ring makes a worker child do."""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from celery.signals import (
    setup_logging,
    worker_init,
    worker_process_init,
    worker_shutdown,
)

from segnode_contract.errors import PermanentError, SegnodeError
from segnode_contract.events import log_events
from segnode_contract.job import Claim
from segnode_contract.ledger import Ledger, WorkLedger
from segnode_contract.ledger.work import LeaseLost
from segnode_contract.ring import TASK
from segnode_contract.settings import Settings, load_connections, load_settings
from segnode_worker.app import app
from segnode_worker.archive import Archive, DicomWebArchive
from segnode_worker.model_client import ModelProcess
from segnode_worker.model_service import ModelService
from segnode_worker.pipeline import run_job

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a child works with; made after fork."""

    settings: Settings
    work: WorkLedger
    archive: Archive
    models: ModelProcess


_service: ModelService | None = None  # the parent's; children inherit its address and channel
_tools: Tools | None = None


def _log(**_: object) -> None:
    log_events()


def _start_service(**_: object) -> None:
    """In Celery's parent, before it forks: the model process, and what models it has."""
    global _service  # noqa: PLW0603 # one per worker, by Celery's way of signals
    connections = load_connections(os.environ)
    ledger = Ledger.open(connections.ledger_url)
    _service = ModelService()
    _service.start()
    work = WorkLedger(ledger, _worker_name())
    for model in ModelProcess(_service.address, _service.kill).models():
        work.announce(model.card.name, model.card.version, model.digest, model.card.source)
        log.info("model announced", extra={"model": model.card.name, "digest": model.digest[:12]})
    ledger.close()


def _stop_service(**_: object) -> None:
    if _service is not None:
        _service.stop()


def _make_tools(**_: object) -> None:
    """In each child, after fork."""
    global _tools  # noqa: PLW0603 # one per child, by Celery's way of signals
    assert _service is not None  # noqa: S101 # worker_init came first
    connections = load_connections(os.environ)
    _tools = Tools(
        settings=load_settings(Path(os.environ["SEGNODE_CONFIG"])),
        work=WorkLedger(Ledger.open(connections.ledger_url), _worker_name()),
        archive=DicomWebArchive(
            connections.archive_url,
            connections.archive_user,
            connections.archive_password,
            certificate=os.environ.get("SEGNODE_ARCHIVE_CERTIFICATE", ""),
        ),
        models=ModelProcess(_service.address, _service.kill),
    )


@app.task(name=TASK)  # type: ignore[untyped-decorator] # Celery has no types
def ring(lane: str) -> None:
    """Take the best job of `lane`, if there is one, and run it to its end."""
    tools = _tools
    assert tools is not None  # noqa: S101 # worker_process_init came first
    digests = [model.digest for model in tools.models.models()]
    lease_s = tools.settings.limits.lease_s
    claim = tools.work.claim(lane, digests, lease_s)
    if claim is None:
        return
    with _heartbeat(tools.work, claim, lease_s):
        _run(tools, claim)


def _run(tools: Tools, claim: Claim) -> None:
    try:
        made = run_job(claim, tools.archive, tools.models, tools.work, tools.settings.node.name)
        tools.work.done(claim, made.findings, _peak_mb())
        log.info("job done", extra={"job_key": claim.key})
    except LeaseLost as error:
        log.warning(error.sentence)
    except SegnodeError as error:
        _failed(tools, claim, error)
    except Exception as error:  # a fault of ours must not leave the job running
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        # the text of the exception may quote a DICOM file, so it goes nowhere
        sentence = f"segnode itself failed: {where}. Please report this with the version."
        _failed(tools, claim, PermanentError(sentence, code="internal"))


def _failed(tools: Tools, claim: Claim, error: SegnodeError) -> None:
    log.warning("job failed", extra={"job_key": claim.key, "code": error.code})
    try:
        tools.work.failed(claim, error, _peak_mb(), tools.settings.limits.deliveries)
    except LeaseLost as lost:
        log.warning(lost.sentence)


@contextmanager
def _heartbeat(work: WorkLedger, claim: Claim, lease_s: float) -> Iterator[None]:
    over = threading.Event()

    def beat() -> None:
        while not over.wait(lease_s / 3):
            try:
                work.heartbeat(claim, lease_s)
            except LeaseLost:
                return
            except SegnodeError as error:
                log.warning(error.sentence)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _worker_name() -> str:
    return f"{socket.gethostname()}:{os.getppid()}"


setup_logging.connect(_log)
worker_init.connect(_start_service)
worker_shutdown.connect(_stop_service)
worker_process_init.connect(_make_tools)
