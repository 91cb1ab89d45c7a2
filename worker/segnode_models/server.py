"""The model process: `python -m segnode_models.server FD`, `FD` being a listening Unix socket.

The worker service made the socket and passes it on, so that callers just wait while this process
is started anew. It holds no address and no password.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card
from segnode_contract.errors import ModelFailed, OutOfMemory, SegnodeError, UnknownModel
from segnode_contract.events import log_events
from segnode_contract.model_link import receive, send
from segnode_models.model import InputVolume
from segnode_models.registry import RegisteredModel, load_builtin

log = logging.getLogger(__name__)

_DESCRIPTORS = 32
"""Arrays of one request at most."""
_GRACE_S = 5.0
"""Who asked has this long to end us first, and then knows why."""
_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""How torch says that there is not enough memory, beside its own OutOfMemoryError."""


class Server:
    """Answers worker children: which models there are, and segment this."""

    def __init__(self, models: list[RegisteredModel]) -> None:
        self._models = {model.digest: model for model in models}
        self._device = threading.Lock()
        self._broken = False

    def serve(self, listener: socket.socket) -> None:
        """Answer for ever, one thread per caller, one inference at a time."""
        while True:
            link, _ = listener.accept()
            threading.Thread(target=self._converse, args=(link,), daemon=True).start()

    def _converse(self, link: socket.socket) -> None:
        with link:
            try:
                while True:
                    request, descriptors = receive(link, descriptors=_DESCRIPTORS)
                    self._answer(link, request, descriptors)
            except (EOFError, ConnectionError):
                return

    def _answer(self, link: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
        if request["ask"] == "models":
            send(link, {"started": True})
            cards = [{"digest": d, "card": m.card.source} for d, m in self._models.items()]
            send(link, {"models": cards})
            return
        model = self._models.get(request["digest"])
        smaller = model is not None and model.smaller is not None
        try:
            with self._device:
                send(link, {"pid": os.getpid(), "smaller": smaller})
                try:
                    send(link, self._reply(model, request, fds))
                finally:
                    if self._broken:  # nobody else may come to a context that is lost for good
                        os._exit(1)
        finally:
            for fd in fds:
                os.close(fd)

    def _reply(
        self, model: RegisteredModel | None, request: dict[str, Any], fds: list[int]
    ) -> dict[str, Any]:
        try:
            return self._segment(model, request, fds)
        except SegnodeError as error:
            return {"code": error.code, "sentence": error.sentence}

    def _segment(
        self, model: RegisteredModel | None, request: dict[str, Any], fds: list[int]
    ) -> dict[str, Any]:
        if model is None:
            raise UnknownModel(
                f"The model process has no model with digest {request['digest'][:12]}."
            )
        chosen = model.smaller if request["thrifty"] and model.smaller else model.model
        try:
            volume, labels = _shared(model.card, request, fds)
            with _no_longer_than(model.card.time_limit_s + _GRACE_S):
                return {"findings": chosen.segment(volume, labels).to_json()}
        except Exception as error:  # whatever a model raises is the model's failure
            self._broken = "CUDA error" in str(error) and not _lacks_memory(error)
            raise _failure(model.card, error) from error


def _shared(
    card: Card, request: dict[str, Any], fds: list[int]
) -> tuple[InputVolume, NDArray[np.uint8]]:
    """Return the volume and the empty label planes, all in the caller's memory."""
    shape = tuple(request["shape"])
    planes = (card.planes, *shape)
    labels = np.frombuffer(mmap.mmap(fds[0], int(np.prod(planes))), np.uint8).reshape(planes)
    roles, prior_planes = request["others"], request["prior_planes"]
    of_roles = zip(roles, fds[2 : 2 + len(roles)], strict=True)
    volume = InputVolume(
        hu=_given(fds[1], request["dtype"], shape),
        spacing_mm=tuple(request["spacing_mm"]),
        attributes=request["attributes"],
        others={role: _given(fd, "float32", shape) for role, fd in of_roles},
        prior=_given(fds[-1], "uint8", (prior_planes, *shape)) if prior_planes else None,
    )
    return volume, labels


def _given(fd: int, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an array that can only be read."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer(mmap.mmap(fd, size, prot=mmap.PROT_READ), kind).reshape(shape)


def _failure(card: Card, error: Exception) -> SegnodeError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    kind = type(error).__name__
    where = f"{Path(place.filename).name}:{place.lineno}"
    # the text of the exception goes nowhere: it may hold what an image says
    log.error("model failed", extra={"model": card.name, "error": kind, "at": where})
    if _lacks_memory(error):
        return OutOfMemory("The model had not enough memory.")
    return ModelFailed(
        f"The model {card.name} {card.version} stopped with {kind}; the model process's log has "
        "the place."
    )


def _lacks_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(words in str(error) for words in _MEMORY)
    )


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """End this process when the block takes longer: whoever asked may have died meanwhile."""
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def main() -> None:
    """Load the models and serve."""
    log_events()
    listener = socket.socket(fileno=int(sys.argv[1]))
    models = load_builtin(os.environ.get("SEGNODE_DEVICE", "auto"))
    log.info("models loaded", extra={"models": ",".join(m.card.name for m in models)})
    Server(models).serve(listener)


if __name__ == "__main__":
    main()
