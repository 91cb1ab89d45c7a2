"""The model process: `python -m segnode_models.server FD`, `FD` being a listening Unix socket.

The worker service made the socket and passes it on, so that callers just wait while this process
is started anew. It holds no address and no password.
"""

from __future__ import annotations

import logging
import mmap
import os
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from segnode_contract.errors import ModelFailed, SegnodeError, UnknownModel
from segnode_contract.events import log_events
from segnode_contract.model_link import receive, send
from segnode_models.model import InputVolume
from segnode_models.registry import RegisteredModel, load_builtin

log = logging.getLogger(__name__)


class Server:
    """Answers worker children: which models there are, and segment this."""

    def __init__(self, models: list[RegisteredModel]) -> None:
        self._models = {model.digest: model for model in models}
        self._device = threading.Lock()

    def serve(self, listener: socket.socket) -> None:
        """Answer for ever, one thread per caller, one inference at a time."""
        while True:
            link, _ = listener.accept()
            threading.Thread(target=self._converse, args=(link,), daemon=True).start()

    def _converse(self, link: socket.socket) -> None:
        with link:
            try:
                while True:
                    request, descriptors = receive(link, descriptors=2)
                    self._answer(link, request, descriptors)
            except (EOFError, ConnectionError):
                return

    def _answer(self, link: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
        if request["ask"] == "models":
            send(link, {"started": True})
            cards = [{"digest": d, "card": m.card.source} for d, m in self._models.items()]
            send(link, {"models": cards})
            return
        try:
            with self._device:
                send(link, {"started": True})
                reply = self._segment(request, fds)
        except SegnodeError as error:
            reply = {"code": error.code, "sentence": error.sentence}
        finally:
            for fd in fds:
                os.close(fd)
        send(link, reply)

    def _segment(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        model = self._models.get(request["digest"])
        if model is None:
            raise UnknownModel(
                f"The model process has no model with digest {request['digest'][:12]}."
            )
        shape = tuple(request["shape"])
        dtype = np.dtype(request["dtype"])
        hu: np.ndarray[Any, Any] = np.frombuffer(
            mmap.mmap(fds[0], int(np.prod(shape)) * dtype.itemsize, prot=mmap.PROT_READ), dtype
        ).reshape(shape)
        planes = (model.card.planes, *shape)
        labels = np.frombuffer(mmap.mmap(fds[1], int(np.prod(planes))), np.uint8).reshape(planes)
        volume = InputVolume(
            hu=hu, spacing_mm=tuple(request["spacing_mm"]), attributes=request["attributes"]
        )
        try:
            findings = model.model.segment(volume, labels)
        except Exception as error:  # whatever a model raises is the model's failure
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            # the text of the exception goes nowhere: it may hold what an image says
            log.error(  # as said
                "model failed",
                extra={"model": model.card.name, "error": type(error).__name__, "at": where},
            )
            raise ModelFailed(
                f"The model {model.card.name} {model.card.version} stopped with "
                f"{type(error).__name__}; the model process's log has the place."
            ) from error
        return {"findings": findings.to_json()}


def main() -> None:
    """Load the models and serve."""
    log_events()
    listener = socket.socket(fileno=int(sys.argv[1]))
    models = load_builtin(os.environ.get("SEGNODE_DEVICE", "auto"))
    log.info("models loaded", extra={"models": ",".join(m.card.name for m in models)})
    Server(models).serve(listener)


if __name__ == "__main__":
    main()
