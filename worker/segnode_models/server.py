"""The model process: `python -m segnode_models.server FD`, `FD` being a listening Unix socket.

The worker service made the socket and passes it on, so that callers just wait while this process
is started anew. It holds no address and no password.
"""

from __future__ import annotations

import logging
import mmap
import os
import select
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card
from segnode_contract.errors import (
    ModelFailed,
    ModelUntrusted,
    OutOfMemory,
    SegnodeError,
    UnknownModel,
)
from segnode_contract.events import log_events
from segnode_contract.findings import Findings
from segnode_contract.model_link import receive, send
from segnode_models.device import answers, chosen_device
from segnode_models.memory import lacks_memory, name_of
from segnode_models.model import InputVolume, Model, Prepares, Stopped, Told
from segnode_models.registry import Catalogue, ListedModel, Offer
from segnode_models.shelf import HOST, Shelf

log = logging.getLogger("segnode_models.server")  # the module runs as __main__

_DESCRIPTORS = 32
"""Arrays of one request at most."""
_GRACE_S = 5.0
"""Who asked has this long to end us first, and then knows why."""
_LOAD_S = 600.0


class Server:
    """Answers worker children: which models there are, and segment this.

    Parameters
    ----------
    offer
        Gives the models that can run now.
    shelf
        Of the device that models run on.
    host
        Of the CPU, for models that need too much memory there and may run here.
    no_gpu
        Why the GPU that is there is not the device; empty where it is, or none is there.
    """

    def __init__(
        self, offer: Callable[[], Offer], shelf: Shelf, host: Shelf | None, no_gpu: str = ""
    ) -> None:
        self._offer = offer
        self._shelf = shelf
        self._no_gpu = no_gpu
        self._name = name_of(shelf.device)
        self._host = host
        self._device = threading.Lock()
        self._preparing = threading.Lock()
        self._preparations: dict[str, Callable[[InputVolume], object]] = {}
        """Of models that were loaded once, by digest."""
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
                    if request["ask"] != "stop":  # which came too late
                        self._answer(link, request, descriptors)
            except (EOFError, ConnectionError):
                return

    def _answer(self, link: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
        if request["ask"] == "models":
            self._list(link)
            return
        ahead = ExitStack()
        try:
            prepared = self._prepared(link, request, fds, ahead)
            with self._device:
                ahead.close()
                if _unwanted(link):
                    return
                self._end_if_stained()
                try:
                    self._run(link, request, fds, prepared)
                finally:
                    if self._broken:  # nobody else may come to a context that is lost for good
                        os._exit(1)
        finally:
            ahead.close()
            for fd in fds:
                os.close(fd)

    def _prepared(
        self, link: socket.socket, request: dict[str, Any], fds: list[int], ahead: ExitStack
    ) -> object:
        """Return what a model makes of the images while another job is on the GPU.

        One job at a time is ahead, until `ahead` is closed: its volume takes memory that nobody
        counts. None where nothing is made: then all is done in the job's turn, within its limit of
        time, and a failure is named there.
        """
        prepare = self._preparations.get(request["digest"])
        listed = self._usable().models.get(request["digest"])
        if self._shelf.device == HOST or prepare is None or listed is None:
            return None
        if not self._preparing.acquire(timeout=listed.card.time_limit_s):
            return None
        ahead.callback(self._preparing.release)
        if _unwanted(link):
            return None
        try:
            volume, _ = _shared(listed.card, request, fds)
            return prepare(volume)
        except Exception:  # whatever it is, it comes again in the job's turn
            return None

    def _end_if_stained(self) -> None:
        """End the process if it holds a model that is not offered any more, changed or removed.

        A model is a program, and what it did to this process goes with the process alone. Who asks
        now asks the next one.
        """
        offered = self._offer().models
        held = {*self._shelf.loaded, *(self._host.loaded if self._host else ())}
        if held - offered.keys():
            log.warning("a model that was loaded is not offered any more; starting anew")
            os._exit(0)

    def _list(self, link: socket.socket) -> None:
        offer = self._usable()
        models = [{"digest": d, "card": m.card.source} for d, m in offer.models.items()]
        refused = {name: error.sentence for name, error in offer.refused.items()}
        if self._no_gpu:
            refused["(GPU)"] = self._no_gpu
        standing = self._shelf.standing()
        loaded = [
            {"model": s.name, "version": s.version, "digest": s.digest, "mb": s.weights >> 20}
            for s in standing
        ]
        own = {"device": self._name, "budget_mb": self._shelf.budget >> 20, "loaded": loaded}
        send(link, {"models": models, "refused": refused} | own)

    def _usable(self) -> Offer:
        offer = self._offer()
        if self._shelf.device != HOST:
            return offer
        usable = {digest: m for digest, m in offer.models.items() if m.card.cpu}
        lacking = [m.card.name for m in offer.models.values() if not m.card.cpu]
        refused: dict[str, SegnodeError] = {name: _needs_gpu(name) for name in lacking}
        return Offer(models=usable, refused={**offer.refused, **refused})

    def _run(
        self, link: socket.socket, request: dict[str, Any], fds: list[int], prepared: object
    ) -> None:
        """Load, say that the turn has come, segment, answer; one thread at a time."""
        offer = self._usable()
        listed = offer.models.get(request["digest"])
        if listed is None:
            error = _not_there(offer, request["model"], request["digest"])
            send(link, {"code": error.code, "sentence": error.sentence})
            return
        on_cpu = request["on_cpu"] and listed.card.cpu
        shelf = self._host if self._host and on_cpu else self._shelf
        # who ends now ends in this job's hands
        send(link, {"loading": True} | self._profile(listed.card))
        try:
            with _no_longer_than(_LOAD_S + _GRACE_S):
                model = self._loaded(listed, shelf)
        except Exception as error:  # whatever a model raises is the model's failure
            send(link, self._failure(listed.card, error))
            return
        send(link, {"turn": True})
        try:
            volume, labels = _shared(listed.card, request, fds)
            volume = replace(volume, prepared=prepared)
            with _no_longer_than(listed.card.time_limit_s + _GRACE_S), shelf.measuring(listed):
                findings = _segment(model, volume, labels, link, lambda: shelf.keep_only(listed))
        except Exception as error:  # as above
            reply = self._failure(listed.card, error)
        else:
            reply = {"findings": findings.to_json()}
        send(link, reply)

    def _loaded(self, listed: ListedModel, shelf: Shelf) -> Model:
        model = shelf.take(listed)
        if listed.digest not in self._offer().models:
            raise ModelUntrusted(
                f"The files of {listed.card.name} were replaced while they were read; new studies "
                "get the model that is there now."
            )
        if isinstance(model, Prepares):
            self._preparations[listed.digest] = model.preparation
        return model

    def _failure(self, card: Card, error: Exception) -> dict[str, Any]:
        """Return what is said of a model's failure."""
        if isinstance(error, Stopped):
            return {"code": "stopped", "sentence": "Nobody waits for the result any more."}
        self._broken = not answers(self._shelf.device)
        known = error if isinstance(error, SegnodeError) else _as_ours(card, error)
        return {"code": known.code, "sentence": known.sentence} | self._profile(card)

    def _profile(self, card: Card) -> dict[str, bool]:
        return {"cpu": self._host is not None and card.cpu}


def _segment(
    model: Model,
    volume: InputVolume,
    labels: NDArray[np.uint8],
    link: socket.socket,
    make_room: Callable[[], bool],
) -> Findings:
    """Run a model; where memory lacks and others hold some of it, once more with all of it."""
    try:
        return model.segment(volume, labels, _told(link))
    except Exception as error:
        if not (lacks_memory(error) and make_room()):
            raise
    labels[:] = 0
    return model.segment(volume, labels, _told(link))


def _told(link: socket.socket) -> Told:
    """Return what passes progress on, and stops the model when its caller says so or is gone."""

    def told(fraction: float) -> None:
        if _unwanted(link):
            raise Stopped
        try:
            send(link, {"progress": min(1.0, max(0.0, fraction))})
        except ConnectionError as error:
            raise Stopped from error

    return told


def _unwanted(link: socket.socket) -> bool:
    """Return whether the caller says stop, or is gone: nothing else comes before its answer."""
    return bool(select.select([link], [], [], 0)[0])


def _not_there(offer: Offer, name: str, digest: str) -> SegnodeError:
    """Return why a model cannot run, by its name, or that another one has its name."""
    if name in offer.refused:
        return offer.refused[name]
    there = next((d[:12] for d, m in offer.models.items() if m.card.name == name), None)
    return UnknownModel(
        f"The model process has no model {name} with digest {digest[:12]}"
        + (f"; its {name} has {there}, which new studies get." if there else ".")
    )


def _needs_gpu(name: str) -> ModelFailed:
    return ModelFailed(
        f"The model {name} needs a GPU: its card says cpu = false, and there is none here.",
        code="model-needs-gpu",
    )


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


def _as_ours(card: Card, error: Exception) -> SegnodeError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    kind = type(error).__name__
    where = f"{Path(place.filename).name}:{place.lineno}"
    # the text of the exception goes nowhere: it may hold what an image says
    log.error("model failed", extra={"model": card.name, "error": kind, "at": where})
    if lacks_memory(error):
        return OutOfMemory("The model had not enough memory.")
    return ModelFailed(
        f"The model {card.name} {card.version} stopped with {kind}; the model process's log has "
        "the place."
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
    """Serve the models that are built in, and those in the folder `SEGNODE_MODELS`."""
    log_events()
    if lifeline := os.environ.get("SEGNODE_MODEL_LIFELINE"):
        threading.Thread(target=_end_with, args=(int(lifeline),), daemon=True).start()
    listener = socket.socket(fileno=int(sys.argv[1]))
    device, no_gpu = chosen_device(os.environ.get("SEGNODE_DEVICE", "auto"))
    log.info("model process started", extra={"device": name_of(device)})
    if no_gpu:
        log.warning(no_gpu)
    folder = os.environ.get("SEGNODE_MODELS")
    trusted = os.environ.get("SEGNODE_MODEL_TRUST") == "1"
    catalogue = Catalogue(Path(folder) if folder else None, trusted=trusted)
    for name, error in catalogue.offer().refused.items():
        log.warning("model refused", extra={"model": name, "code": error.code})
    shelf = Shelf(device, int(os.environ.get("SEGNODE_MODEL_MEMORY_MB", "0")) << 20)
    host = None if device == HOST else Shelf(HOST)
    Server(catalogue.offer, shelf, host, no_gpu).serve(listener)


def _end_with(lifeline: int) -> None:
    """End this process with the worker service: when killed early, bwrap leaves it behind."""
    os.read(lifeline, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
