"""Warm models: loaded once, kept while the device's memory budget allows."""

from __future__ import annotations

import gc
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from segnode_models.memory import Meter, Need, lacks_memory, meter_of
from segnode_models.model import Model
from segnode_models.registry import ListedModel

log = logging.getLogger(__name__)

HOST = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    name: str
    version: str
    model: Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model that stands loaded."""

    name: str
    version: str
    digest: str
    weights: int
    """Bytes that it was seen to take."""


class Shelf:
    """The models that stand loaded on one device, the one used longest ago first.

    Not safe for threads: whoever uses it holds the device's turn.

    Parameters
    ----------
    device
        A torch device, ``cpu`` or ``cuda:0``.
    budget
        Bytes that all models together may take; 0 for what the meter says while none is loaded.
    meter
        For tests.
    """

    def __init__(self, device: str, budget: int = 0, meter: Meter | None = None) -> None:
        self.device = device
        self._meter = meter or meter_of(device)
        self._given = budget
        self._measure_budget()
        self._standing: OrderedDict[str, _Standing] = OrderedDict()
        self._needs: dict[str, Need] = {}

    @property
    def loaded(self) -> dict[str, Need]:
        """What stands loaded, by digest, and what it was seen to take."""
        # a copy first: another thread may be loading
        return {digest: self._needs[digest] for digest in list(self._standing)}

    def standing(self) -> list[Loaded]:
        """Return what stands loaded, the one used longest ago first; any thread may ask."""
        loaded = []
        for digest in list(self._standing):  # another thread may load or drop one meanwhile
            one = self._standing.get(digest)
            if one is not None:
                weights = self._needs[digest].weights
                loaded.append(
                    Loaded(name=one.name, version=one.version, digest=digest, weights=weights)
                )
        return loaded

    def take(self, listed: ListedModel) -> Model:
        """Return a model, loaded now or before; others make room where they must.

        Raises
        ------
        ModelFailed, CardError
            If it cannot be loaded.
        """
        digest = listed.digest
        if digest in self._standing:
            self._standing.move_to_end(digest)
        if not self._standing:
            self._measure_budget()
        self._make_room(listed)
        if digest not in self._standing:
            try:
                self._load(listed)
            except Exception as error:
                if not (lacks_memory(error) and self.keep_only(listed)):
                    raise
        if digest not in self._standing:  # what the error held of it is free only now
            self._load(listed)
        return self._standing[digest].model

    @contextmanager
    def measuring(self, listed: ListedModel) -> Iterator[None]:
        """Measure what the model takes inside the ``with``."""
        before = self._meter.used()
        self._meter.start()
        try:
            yield
        finally:
            need = self._needs[listed.digest]
            work = max(0, self._meter.peak() - before, need.work)
            self._needs[listed.digest] = Need(weights=need.weights, work=work)

    def keep_only(self, listed: ListedModel) -> bool:
        """Take every other model off the shelf; return whether there was one."""
        others = [digest for digest in self._standing if digest != listed.digest]
        for digest in others:
            self._drop(digest)
        return bool(others)

    def _measure_budget(self) -> None:
        """Ask how much is free: at the start a process that ended may not have given back all."""
        self.budget = self._given or self._meter.budget()
        self._meter.limit(self.budget)

    def _make_room(self, listed: ListedModel) -> None:
        """Take models off until this one has what it was seen to need, or what its card says.

        One that would not fit alone is tried all the same: what a card says is a guess, and what
        was seen may have been an unusually large study. The device itself says no.
        """
        need = self._needs.get(listed.digest)
        wanted = need.weights + need.work if need else listed.card.memory_bytes
        others = [digest for digest in self._standing if digest != listed.digest]
        taken = sum(self._needs[digest].weights for digest in others)
        for digest in others:  # the one used longest ago first
            if taken + wanted <= self.budget:
                return
            taken -= self._needs[digest].weights
            self._drop(digest)

    def _load(self, listed: ListedModel) -> None:
        started = time.monotonic()
        self._meter.release()  # weights that took what was kept would seem to need nothing
        before = self._meter.used()
        model = listed.load(self.device)
        weights = max(0, self._meter.used() - before)
        known = self._needs.get(listed.digest)
        self._needs[listed.digest] = Need(weights=weights, work=known.work if known else 0)
        self._standing[listed.digest] = _Standing(
            name=listed.card.name, version=listed.card.version, model=model
        )
        log.info(
            "model loaded",
            extra={
                "model": listed.card.name,
                "device": self.device,
                "mb": weights >> 20,
                "seconds": round(time.monotonic() - started, 2),
            },
        )

    def _drop(self, digest: str) -> None:
        gone = self._standing.pop(digest)
        log.info("model unloaded", extra={"model": gone.name, "device": self.device})
        del gone
        gc.collect()
        self._meter.release()
