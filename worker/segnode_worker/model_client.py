"""A worker child's way to the model process: volumes by shared memory, words by a Unix socket."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import highdicom as hd
import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card, parse_card
from segnode_contract.errors import (
    MemoryExhausted,
    ModelBusy,
    ModelProcessDied,
    ModelTimeLimit,
    OutOfMemory,
    PermanentError,
    SegnodeError,
)
from segnode_contract.findings import Findings
from segnode_contract.job import Stage, StageTimer
from segnode_contract.model_link import receive, send

_TURN_S = 3600.0
"""How long a job may wait for the jobs before it; a start of the process is in it."""
_TRIES = 5
_LOAD_S = 600.0
"""The process ends by itself soon after, should whoever asked have died."""
_TOLD_S = 0.5
_STOP_S = 1.0
"""A model that is to stop has this long to do so by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    card: Card
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that stands ready in a model process."""

    model: str
    version: str
    digest: str
    mb: int
    """What its weights were seen to take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a model process says of itself."""

    models: list[KnownModel]
    refused: dict[str, str]
    """Names of models that cannot run, and why: a sentence each."""
    device: str
    """That its models run on, in people's words."""
    budget_mb: int
    """What all models together may take of its memory."""
    loaded: list[LoadedModel]
    """The one used longest ago first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A model process that has begun with a job."""

    link: socket.socket
    start: int
    """Its number."""
    killed: int
    """How often the kernel had ended a process for want of memory until then."""


Told = Callable[[float | None], None]


def unheard(fraction: float | None) -> None:
    """Nobody asks how far it is."""


def _untimed(stage: Stage) -> AbstractContextManager[None]:
    return nullcontext()


class Service(Protocol):
    """What keeps a model process alive. `ModelService` in service."""

    address: str
    """Path of the process's Unix socket."""

    def current(self) -> int:
        """Return the number of the process that runs now."""

    def kill(self, start: int) -> None:
        """End the process of that number, if it runs still."""


class ModelProcess:
    """The model process of a service.

    Parameters
    ----------
    service
        Who keeps the process.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def models(self, within_s: float) -> Known:
        """Return the models that it has, and those that it refuses.

        Raises
        ------
        ModelBusy
            If it is not up within so many seconds.
        """
        with self._turn({"ask": "models"}, [], within_s) as (_, reply):
            pass  # one that ends before it answers is asked again, anew
        return Known(
            models=[
                KnownModel(card=parse_card(m["card"], where="a model's card"), digest=m["digest"])
                for m in reply["models"]
            ],
            refused=reply["refused"],
            device=reply["device"],
            budget_mb=reply["budget_mb"],
            loaded=[LoadedModel(**one) for one in reply["loaded"]],
        )

    def segment(
        self,
        card: Card,
        digest: str,
        volume: hd.Volume,
        attributes: Mapping[str, str],
        *,
        others: Mapping[str, NDArray[np.float32]] | None = None,
        prior: NDArray[np.uint8] | None = None,
        on_cpu: bool = False,
        stage: StageTimer = _untimed,
        told: Told = unheard,
    ) -> tuple[NDArray[np.uint8], Findings]:
        """Run one model.

        Parameters
        ----------
        card, digest
            The model.
        volume
            The images in the card's orientation.
        attributes
            As `Stack.attributes`.
        others, prior
            As of `Inputs`, on the grid of `volume`.
        on_cpu
            Use the CPU instead of the GPU, where the card allows it.
        stage
            Times the wait for the model's turn, and the model.
        told
            Called twice a second at least, with how much is done (None for no news); what it
            raises stops the model.

        Returns
        -------
        labels
            Shape ``(planes, slices, rows, columns)`` on the grid of `volume`.
        findings
            What the model says beside them.

        Raises
        ------
        ModelTimeLimit
            If it runs past the card's limit; the process is killed and started anew.
        ModelProcessDied
            If it ends in the middle.
        ModelBusy
            If its turn does not come within an hour.
        OutOfMemory, MemoryExhausted
            If there was not enough memory, and the CPU is to be tried yet, or not.
        ModelFailed, UnknownModel
            As the process says.
        """
        voxels = np.ascontiguousarray(volume.array)
        more = dict(others or {})
        given = [voxels, *more.values(), *([] if prior is None else [prior])]
        shape = (card.planes, *voxels.shape)
        request = {
            "ask": "segment",
            "model": card.name,
            "digest": digest,
            "shape": list(voxels.shape),
            "dtype": voxels.dtype.name,
            "others": list(more),
            "prior_planes": 0 if prior is None else len(prior),
            "spacing_mm": [float(mm) for mm in volume.spacing],
            "attributes": dict(attributes),
            "on_cpu": on_cpu,
        }
        with ExitStack() as kept:
            with stage(Stage.TURN):
                taken = kept.enter_context(_shared("labels", _size(shape)))
                fds = [taken[0]]
                for array in given:
                    fd, memory = kept.enter_context(_shared("volume", array.nbytes))
                    np.frombuffer(memory, array.dtype)[:] = array.reshape(-1)
                    fds.append(fd)
                link, first = kept.enter_context(self._turn(request, fds, told=told))
                _raise_failure(first, card, request)
                asked = _Asked(link=link, start=self._service.current(), killed=kernel_kills())
                with self._in_hands(asked, card, request, first, loading=True):
                    ready = _reply(link, _LOAD_S, told)
                _raise_failure(ready, card, request)
            with stage(Stage.INFER), self._in_hands(asked, card, request, first):
                said = _last_word(link, card.time_limit_s, told)
            _raise_failure(said, card, request)
            labels = np.frombuffer(taken[1], np.uint8).reshape(shape).copy()
        return labels, Findings.from_json(said["findings"])

    @contextmanager
    def _in_hands(
        self,
        asked: _Asked,
        card: Card,
        request: dict[str, Any],
        first: dict[str, Any],
        *,
        loading: bool = False,
    ) -> Iterator[None]:
        """Name what becomes of the process inside the ``with``; end it where it must not go on."""
        try:
            yield
        except TimeoutError as error:
            self._service.kill(asked.start)
            raise _too_long(card, loading=loading) from error
        except ModelProcessDied as error:
            if kernel_kills() > asked.killed:
                raise _no_memory(card, first, request) from error
            raise
        except BaseException:
            self._stop(asked.link, asked.start)
            raise

    def _stop(self, link: socket.socket, start: int) -> None:
        """Have the model stop, or end its process; the other models there stay warm if it obeys."""
        try:
            send(link, {"ask": "stop"})
            _last_word(link, _STOP_S, unheard)
        except (ModelProcessDied, ConnectionError):
            return
        except TimeoutError:
            self._service.kill(start)

    @contextmanager
    def _turn(
        self,
        request: dict[str, Any],
        fds: list[int],
        within_s: float = _TURN_S,
        told: Told = unheard,
    ) -> Iterator[tuple[socket.socket, dict[str, Any]]]:
        """Send a request, wait until its turn comes, and give what the process says then.

        A process that ends before was ended under another job: the next one is asked.
        """
        began = self._service.current()
        for tries_left in reversed(range(_TRIES)):
            with self._link(within_s) as link:
                try:
                    send(link, request, fds)
                    first = _reply(link, within_s, told)
                except (ModelProcessDied, ConnectionError) as error:
                    if not tries_left:
                        raise ModelBusy(
                            f"The model process ended {_TRIES} times before this job's turn came; "
                            "its log says why."
                        ) from error
                    continue
                except TimeoutError as error:
                    ended = self._service.current() - began
                    raise ModelBusy(
                        f"The model process did not answer within {within_s:g} s; "
                        + (
                            f"it was started anew {ended} times meanwhile: the worker's log says "
                            "why it ends."
                            if ended > 1
                            else "it is busy with other jobs, or it hangs: see its log."
                        )
                    ) from error
                yield link, first
                return

    @contextmanager
    def _link(self, within_s: float) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(within_s)
            try:
                link.connect(self._service.address)
            except OSError as error:
                raise ModelBusy(
                    "The model process takes no calls; its worker is ending."
                ) from error
            yield link


def kernel_kills() -> int:
    """Return how often the kernel has ended a process for want of memory (Linux 4.13)."""
    for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def _raise_failure(said: dict[str, Any], card: Card, request: dict[str, Any]) -> None:
    if said.get("code") == OutOfMemory.code:
        raise _no_memory(card, said, request)
    if "code" in said:
        raise PermanentError(said["sentence"], code=said["code"])


def _too_long(card: Card, *, loading: bool) -> ModelTimeLimit:
    if loading:
        return ModelTimeLimit(
            f"The model {card.name} was not loaded within {_LOAD_S:g} s, and its process was "
            "ended; see whether its weights lie on a slow disk, or its code waits for something.",
            code="model-load-time",
        )
    return ModelTimeLimit(
        f"The model {card.name} ran longer than the {card.time_limit_s:g} s that its card allows, "
        "and was ended; see whether the series is unusually large, or raise time_limit_s in the "
        "card."
    )


def _no_memory(card: Card, said: dict[str, Any], request: dict[str, Any]) -> SegnodeError:
    what = f"The model {card.name} {card.version} had not enough memory for {request['shape']}"
    if said.get("cpu") and not request["on_cpu"]:
        return OutOfMemory(f"{what} voxels; it is tried on the CPU, which its card allows.")
    return MemoryExhausted(
        f"{what} voxels; a GPU or machine with more memory is needed, or fewer other programs on "
        "this one."
    )


def _last_word(link: socket.socket, within_s: float, told: Told) -> dict[str, Any]:
    """Pass the model's progress on until it says how it ended."""
    deadline = time.monotonic() + within_s
    while True:
        message = _reply(link, deadline - time.monotonic(), told)
        if "progress" not in message:
            return message
        told(message["progress"])
        if time.monotonic() > deadline:
            raise TimeoutError


def _reply(link: socket.socket, within_s: float, told: Told) -> dict[str, Any]:
    """Return the next message; raises TimeoutError if none comes in time."""
    deadline = time.monotonic() + within_s
    while not select.select([link], [], [], min(_TOLD_S, max(0.0, deadline - time.monotonic())))[0]:
        if time.monotonic() > deadline:
            raise TimeoutError
        told(None)
    try:
        message, _ = receive(link)
    except EOFError as error:
        raise ModelProcessDied(
            "The model process ended in the middle of the job; see its log. It is started anew."
        ) from error
    return message


@contextmanager
def _shared(name: str, size: int) -> Iterator[tuple[int, mmap.mmap]]:
    fd = os.memfd_create(f"segnode-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        # whoever else has it must not take its pages from under us
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        yield fd, mmap.mmap(fd, size)
    finally:
        os.close(fd)


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))
