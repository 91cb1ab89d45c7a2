"""A worker child's way to the model process: volumes by shared memory, words by a Unix socket."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from segnode_contract.model_link import receive, send

_TURN_S = 3600.0
"""How long a job may wait for the jobs before it; a start of the process is in it."""
_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    card: Card
    digest: str


class ModelProcess:
    """The model process behind the socket at `address`.

    Parameters
    ----------
    address
        Path of its Unix socket.
    kill
        Ends the process of that id; called when a job runs past its time limit.
    """

    def __init__(self, address: str, kill: Callable[[int], None]) -> None:
        self._address = address
        self._kill = kill

    def models(self, within_s: float) -> list[KnownModel]:
        """Return the models that it has.

        Raises
        ------
        ModelBusy
            If it is not up within so many seconds.
        """
        with self._turn({"ask": "models"}, [], within_s) as (link, _):
            reply = _reply(link)
        return [
            KnownModel(card=parse_card(m["card"], where="the model process"), digest=m["digest"])
            for m in reply["models"]
        ]

    def segment(
        self,
        card: Card,
        digest: str,
        volume: hd.Volume,
        attributes: Mapping[str, str],
        *,
        others: Mapping[str, NDArray[np.float32]] | None = None,
        prior: NDArray[np.uint8] | None = None,
        thrifty: bool = False,
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
        thrifty
            Use the model's smaller memory profile.

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
            If there was not enough memory, and the model has a smaller profile to try, or none.
        ModelFailed, UnknownModel
            As the process says.
        """
        voxels = np.ascontiguousarray(volume.array)
        more = dict(others or {})
        given = [voxels, *more.values(), *([] if prior is None else [prior])]
        shape = (card.planes, *voxels.shape)
        with ExitStack() as kept:
            taken = kept.enter_context(_shared("labels", _size(shape)))
            fds = [taken[0]]
            for array in given:
                fd, memory = kept.enter_context(_shared("volume", array.nbytes))
                np.frombuffer(memory, array.dtype)[:] = array.reshape(-1)
                fds.append(fd)
            request = {
                "ask": "segment",
                "digest": digest,
                "shape": list(voxels.shape),
                "dtype": voxels.dtype.name,
                "others": list(more),
                "prior_planes": 0 if prior is None else len(prior),
                "spacing_mm": [float(mm) for mm in volume.spacing],
                "attributes": dict(attributes),
                "thrifty": thrifty,
            }
            reply = self._ask(request, fds, card)
            labels = np.frombuffer(taken[1], np.uint8).reshape(shape).copy()
        return labels, Findings.from_json(reply["findings"])

    def _ask(self, request: dict[str, Any], fds: list[int], card: Card) -> dict[str, Any]:
        with self._turn(request, fds) as (link, process):
            killed = kernel_kills()
            link.settimeout(card.time_limit_s)
            try:
                reply = _reply(link)
            except ModelProcessDied as error:
                if kernel_kills() > killed:
                    raise _no_memory(card, process, request) from error
                raise
            except TimeoutError as error:
                self._kill(process["pid"])
                raise ModelTimeLimit(
                    f"The model {card.name} ran longer than the {card.time_limit_s:g} s that its "
                    "card allows and was ended; see whether the series is unusually large, or "
                    "raise time_limit_s in the card."
                ) from error
        if reply.get("code") == OutOfMemory.code:
            raise _no_memory(card, process, request)
        if "code" in reply:
            raise PermanentError(reply["sentence"], code=reply["code"])
        return reply

    @contextmanager
    def _turn(
        self, request: dict[str, Any], fds: list[int], within_s: float = _TURN_S
    ) -> Iterator[tuple[socket.socket, dict[str, Any]]]:
        """Send a request, wait until its turn comes, and give what the process says of itself.

        A process that ends before was ended under another job: the next one is asked.
        """
        for tries_left in reversed(range(_TRIES)):
            with self._link(within_s) as link:
                try:
                    send(link, request, fds)
                    process = _reply(link)
                except (ModelProcessDied, ConnectionError) as error:
                    if not tries_left:
                        raise ModelBusy(
                            f"The model process ended {_TRIES} times before this job's turn came; "
                            "its log says why."
                        ) from error
                    continue
                except TimeoutError as error:
                    raise ModelBusy(
                        f"The model process did not answer within {within_s:g} s; it is busy with "
                        "other jobs, or it hangs: see its log."
                    ) from error
                yield link, process
                return

    @contextmanager
    def _link(self, within_s: float) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(within_s)
            try:
                link.connect(self._address)
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


def _no_memory(card: Card, process: dict[str, Any], request: dict[str, Any]) -> SegnodeError:
    said = f"The model {card.name} {card.version} had not enough memory for {request['shape']}"
    if process["smaller"] and not request["thrifty"]:
        return OutOfMemory(f"{said} voxels; it is tried with its smaller memory profile.")
    return MemoryExhausted(
        f"{said} voxels; a GPU or machine with more memory is needed, or fewer other programs on "
        "this one."
    )


def _reply(link: socket.socket) -> dict[str, Any]:
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
