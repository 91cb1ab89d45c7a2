"""A worker child's way to the model process: volumes by shared memory, words by a Unix socket."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card, parse_card
from segnode_contract.errors import ModelProcessDied, ModelTimeLimit, PermanentError
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
        Ends the process; called when a job runs past its time limit.
    """

    def __init__(self, address: str, kill: Callable[[], None]) -> None:
        self._address = address
        self._kill = kill

    def models(self) -> list[KnownModel]:
        """Return the models that it has, waiting for it to be up."""
        with self._turn({"ask": "models"}, []) as link:
            reply = _reply(link)
        return [
            KnownModel(card=parse_card(m["card"], where="the model process"), digest=m["digest"])
            for m in reply["models"]
        ]

    def segment(
        self, card: Card, digest: str, volume: hd.Volume, attributes: Mapping[str, str]
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
        ModelFailed, UnknownModel
            As the process says.
        """
        voxels = np.ascontiguousarray(volume.array)
        shape = (card.planes, *voxels.shape)
        with _shared("volume", voxels.nbytes) as given, _shared("labels", _size(shape)) as taken:
            np.frombuffer(given[1], voxels.dtype)[:] = voxels.reshape(-1)
            request = {
                "ask": "segment",
                "digest": digest,
                "shape": list(voxels.shape),
                "dtype": voxels.dtype.name,
                "spacing_mm": [float(mm) for mm in volume.spacing],
                "attributes": dict(attributes),
            }
            reply = self._ask(request, [given[0], taken[0]], card)
            labels = np.frombuffer(taken[1], np.uint8).reshape(shape).copy()
        return labels, Findings.from_json(reply["findings"])

    def _ask(self, request: dict[str, Any], fds: list[int], card: Card) -> dict[str, Any]:
        with self._turn(request, fds) as link:
            link.settimeout(card.time_limit_s)
            try:
                reply = _reply(link)
            except TimeoutError as error:
                self._kill()
                raise ModelTimeLimit(
                    f"The model {card.name} ran longer than the {card.time_limit_s:g} s that its "
                    "card allows and was ended; see whether the series is unusually large, or "
                    "raise time_limit_s in the card."
                ) from error
        if "code" in reply:
            raise PermanentError(reply["sentence"], code=reply["code"])
        return reply

    @contextmanager
    def _turn(self, request: dict[str, Any], fds: list[int]) -> Iterator[socket.socket]:
        """Send a request and wait until its turn comes.

        A process that ends before was ended under another job: the next one is asked.
        """
        for tries_left in reversed(range(_TRIES)):
            with self._link() as link:
                try:
                    send(link, request, fds)
                    _reply(link)
                except (ModelProcessDied, ConnectionError):
                    if not tries_left:
                        raise
                    continue
                yield link
                return

    @contextmanager
    def _link(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(_TURN_S)
            try:
                link.connect(self._address)
            except OSError as error:
                raise ModelProcessDied("The model process's socket is gone.") from error
            yield link


def _reply(link: socket.socket) -> dict[str, Any]:
    try:
        message, _ = receive(link)
    except EOFError as error:
        raise ModelProcessDied(
            "The model process ended in the middle of the job; its log says why (out of memory is "
            "the common reason). It is started anew."
        ) from error
    return message


@contextmanager
def _shared(name: str, size: int) -> Iterator[tuple[int, mmap.mmap]]:
    fd = os.memfd_create(f"segnode-{name}", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        yield fd, mmap.mmap(fd, size)
    finally:
        os.close(fd)


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))
