"""What a ring makes a worker child do."""

from __future__ import annotations

import logging
import os
import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from celery.signals import (
    setup_logging,
    worker_init,
    worker_process_init,
    worker_shutdown,
    worker_shutting_down,
)
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from segnode_contract.errors import (
    BrokerUnavailable,
    LedgerSchemaError,
    LedgerUnavailable,
    MemoryExhausted,
    PermanentError,
    SegnodeError,
    SettingsError,
)
from segnode_contract.events import EventLines, log_events
from segnode_contract.job import Claim
from segnode_contract.ledger import LeaseLedger, Ledger, WorkerLedger, WorkLedger, read_shared
from segnode_contract.ledger.work import LeaseLost
from segnode_contract.ring import TASK
from segnode_contract.settings import Connections, Models, Shared, load_connections, load_settings
from segnode_worker.app import app
from segnode_worker.archive import Archive, DicomWebArchive
from segnode_worker.heart import beating
from segnode_worker.model_client import ModelProcess
from segnode_worker.model_service import ModelService, models_folder
from segnode_worker.owner import child_name, end_with_parent, worker_name
from segnode_worker.pipeline import run_job
from segnode_worker.spool import Spool
from segnode_worker.watch import Watch, free_dead

T = TypeVar("T")

log = logging.getLogger(__name__)

_START_S = 300.0
"""A model process has this long to load its models."""
_ASK_AGAIN_S = 2.0
_RING_S = 30.0
"""A child that hears a ring waits this long for a model process that is started anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a child works with; made after fork."""

    shared: Shared
    work: WorkLedger
    archive: Archive
    models: ModelProcess
    spool: Spool


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """What Celery's parent looks after; children inherit the model service's address."""

    service: ModelService
    watch: Watch
    ledger: Ledger


_parent: Parent | None = None
_tools: Tools | None = None


def _log(**_: object) -> None:
    log_events()
    # who sets up the logging hears nothing of Celery, not even that the broker is gone
    handler = logging.StreamHandler()
    handler.setFormatter(EventLines())
    logging.getLogger("celery.worker.consumer").addHandler(handler)


def _start_parent(sender: Any, **_: object) -> None:
    """In Celery's parent, before it forks: the model process, and what models it has.

    Celery goes on after a signal's handler raised, and a worker without these would only swallow
    rings, so that the process ends then; its supervisor starts another.
    """
    global _parent  # noqa: PLW0603 # one per worker, by Celery's way of signals
    try:
        connections, models = load_connections(os.environ), _models()
        spool = Spool(connections.data / "spool")
        spool.prepare()
        _archive(connections)  # a certificate that cannot be read is told of now, not at each ring
        ledger, shared = _as_soon_as_up(lambda: _ledger(connections.ledger_url))
        name = worker_name(os.getpid())
        leases = LeaseLedger(ledger, shared.limits)
        free_dead(leases, name)
        _as_soon_as_up(_try_broker)
        service = ModelService(
            models=models_folder(connections.data),
            memory_mb=models.memory_mb,
            sandbox=models.sandbox,
        )
        service.start()
        known = ModelProcess(service).models(_START_S)
        for model in known.models:
            log.info("model found", extra={"model": model.card.name, "digest": model.digest[:12]})
        watch = Watch(
            worker=WorkerLedger(ledger, name),
            leases=leases,
            spool=spool,
            service=service,
            limits=shared.limits,
            children=lambda: _children(sender),
        )
        watch.start()
    except SegnodeError as error:
        log.error(error.sentence)
        os._exit(1)
    except Exception as error:  # as said
        log.error("worker not started", extra={"error": type(error).__name__})
        os._exit(1)
    _parent = Parent(service=service, watch=watch, ledger=ledger)


def _children(worker: Any) -> int:
    """Return how many children Celery's worker has, 0 for as long as it has not counted CPUs."""
    return worker.concurrency if isinstance(worker.concurrency, int) else 0


def _as_soon_as_up(ask: Callable[[], T]) -> T:
    """Return what `ask` gives as soon as a server answers it; say once why none does."""
    told = False
    while True:
        try:
            return ask()
        except (LedgerUnavailable, LedgerSchemaError, BrokerUnavailable) as error:
            if not told:
                log.warning(error.sentence)
            told = True
            time.sleep(_ASK_AGAIN_S)


def _ledger(url: str) -> tuple[Ledger, Shared]:
    """Open the ledger; its server may not be up, nor the plugin have prepared it."""
    ledger = Ledger.open(url, forks=True)
    try:
        return ledger, read_shared(ledger)
    except LedgerUnavailable:
        ledger.close()
        raise


def _try_broker() -> None:
    """Connect once: a worker that can hear no ring must not say that it is ready."""
    try:
        with app.connection_for_read() as connection:
            connection.connect()
    except (OperationalError, RedisError, OSError) as error:
        raise BrokerUnavailable(
            f"Redis does not take this worker: {str(error).rstrip('.')}. Check that it runs, and "
            "that SEGNODE_BROKER_URL has its address and password and, for rediss://, the "
            "authority of its certificate (ssl_ca_certs)."
        ) from error


def _archive(connections: Connections) -> DicomWebArchive:
    return DicomWebArchive(
        connections.archive_url,
        connections.archive_user,
        connections.archive_password,
        certificate=connections.archive_certificate,
    )


def _stop_in_time(**_: object) -> None:
    """In the parent, at SIGTERM: Celery itself waits for jobs at hand as long as they take."""
    if _parent is not None:
        _parent.watch.give_up_later()


def _stop_parent(**_: object) -> None:
    if _parent is not None:
        _parent.watch.stop()
        _parent.service.stop()
        _parent.ledger.close()


def _begin_child(**_: object) -> None:
    """In each child, after fork."""
    end_with_parent()


def _the_tools() -> Tools:
    """Return this child's tools, made when it first needs them."""
    global _tools  # noqa: PLW0603 # one per child
    if _tools is None:
        assert _parent is not None  # noqa: S101 # worker_init came first
        connections = load_connections(os.environ)
        service = _parent.service
        ledger = Ledger.open(connections.ledger_url)
        shared = read_shared(ledger)
        _tools = Tools(
            shared=shared,
            work=WorkLedger(ledger, child_name(), shared.limits, shared.background),
            archive=_archive(connections),
            models=ModelProcess(service),
            spool=Spool(connections.data / "spool"),
        )
    return _tools


def _models() -> Models:
    """Return how models run on this machine: from its settings file, or by two variables."""
    given = os.environ.get("SEGNODE_CONFIG")
    if given:
        return load_settings(Path(given)).models
    memory_mb = os.environ.get("SEGNODE_MEMORY_MB") or "0"
    if not memory_mb.isdecimal():
        raise SettingsError(f"SEGNODE_MEMORY_MB is {memory_mb!r}; a number of megabytes is needed.")
    sandbox = os.environ.get("SEGNODE_SANDBOX") != "false"
    return Models(sandbox=sandbox, memory_mb=int(memory_mb))


@app.task(name=TASK)  # type: ignore[untyped-decorator] # Celery has no types
def ring(lane: str) -> None:
    """Take the best job of `lane`, if there is one, and run it to its end."""
    try:
        tools = _the_tools()
        if tools.spool.free_mb() < tools.shared.limits.free_mb:
            return  # the parent says so in the ledger, and the ring comes again
        digests = [model.digest for model in tools.models.models(_RING_S).models]
        claim = tools.work.claim(lane, digests)
    except (SegnodeError, OSError) as error:
        log.warning(getattr(error, "sentence", type(error).__name__))
        return  # the ring comes again
    if claim is None:
        return
    limits = tools.shared.limits
    with beating(tools.work, claim, limits, lambda error: _failed(tools, claim, error)):
        _run(tools, claim)


def _run(tools: Tools, claim: Claim) -> None:
    try:
        run_job(
            claim,
            tools.archive,
            tools.models,
            tools.work,
            tools.spool,
            tools.shared.node.name,
        )
        _tell(lambda: tools.work.done(claim, _peak_mb()))
        log.info("job done", extra={"job_key": claim.key})
    except LeaseLost as error:
        _left(tools, claim, error)
    except SegnodeError as error:
        _failed(tools, claim, error)
    except MemoryError:
        sentence = (
            f"There was not enough memory for {claim.instance_count} images; give the worker more, "
            "or fewer children."
        )
        _failed(tools, claim, MemoryExhausted(sentence))
    except Exception as error:  # a fault of ours must not leave the job running
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        # the text of the exception may quote a DICOM file, so it goes nowhere
        sentence = f"segnode itself failed: {where}. Please report this with the version."
        _failed(tools, claim, PermanentError(sentence, code="internal"))


def _failed(tools: Tools, claim: Claim, error: SegnodeError) -> None:
    log.warning("job failed", extra={"job_key": claim.key, "code": error.code})
    try:
        _tell(lambda: tools.work.failed(claim, error, _peak_mb()))
    except LeaseLost as lost:
        _left(tools, claim, lost)


def _left(tools: Tools, claim: Claim, error: LeaseLost) -> None:
    log.warning(error.sentence)
    _tell(lambda: tools.work.left(claim, _peak_mb()))


def _tell(what: Callable[[], None]) -> None:
    """Tell the ledger how a job ended, as soon as it listens: unsaid, it would count as a death."""
    _as_soon_as_up(what)


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


setup_logging.connect(_log)
worker_init.connect(_start_parent)
worker_shutting_down.connect(_stop_in_time)
worker_shutdown.connect(_stop_parent)
worker_process_init.connect(_begin_child)
