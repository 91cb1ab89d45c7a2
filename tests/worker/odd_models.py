"""A model process whose models misbehave on purpose: `python odd_models.py [cpu|lost] FD`."""

from __future__ import annotations

import os
import socket
import sys
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card, parse_card
from segnode_contract.errors import ModelFailed, ModelUntrusted
from segnode_contract.findings import Findings, Withheld
from segnode_models import server
from segnode_models.memory import meter_of
from segnode_models.model import InputVolume, Told
from segnode_models.registry import ListedModel, Offer
from segnode_models.server import Server
from segnode_models.shelf import HOST, Shelf

CARD = """
name = "{name}"
version = "1.0.0"
kind = "builtin"
intended_use = "Tests."
limitations = ["Not for use."]
licence = "AGPL-3.0-or-later"
memory_bytes = 1000000
cpu = {cpu}
time_limit_s = 1.0

[input]
modality = "CT"
orientation = "HPL"
min_slices = 2

[[segments]]
number = 1
label = "Bright"
plane = 0
value = 7
category = {{ value = "85756007", scheme = "SCT", meaning = "Tissue" }}
type = {{ value = "87784001", scheme = "SCT", meaning = "Soft tissue" }}
colour = [30000, 30000, 30000]
"""


CPU = ("bright",)
"""Which may run on the CPU too."""


class Odd:
    """Does what its name says."""

    def __init__(self, name: str) -> None:
        cpu = str(name in CPU).lower()
        self.card: Card = parse_card(CARD.format(name=name, cpu=cpu), where=name)

    def segment(self, volume: InputVolume, labels: NDArray[np.uint8], told: Told) -> Findings:
        match self.card.name:
            case "bright":
                labels[0][volume.hu > 0] = 7
            case "compares":
                labels[0][volume.others["late"] - volume.hu > 50] = 7
            case "builds on":
                assert volume.prior is not None
                labels[0][volume.prior[1] == 3] = 7
            case "stranger":
                labels[0][volume.hu > 0] = 9
            case "hangs":
                time.sleep(600)
            case "dies":
                os._exit(3)
            case "is greedy":
                raise MemoryError("DOE^JANE")
            case "raises":
                raise RuntimeError("DOE^JANE")
            case "counts":
                for step in range(600):
                    time.sleep(0.05)
                    told(step / 600)
            case "prepares":
                early = 0.0 if volume.prepared is None else volume.prepared
                return Findings(withheld=(Withheld(segment=1, reason=str(early)),))
            case "tells":
                ours = {name for name in os.environ if name.startswith("SEGNODE")}
                secrets = sorted(ours - {n for n in ours if n.startswith("SEGNODE_MODEL")})
                return Findings(withheld=(Withheld(segment=1, reason=" ".join(secrets)),))
        return Findings()


NAMES = (
    "bright",
    "compares",
    "builds on",
    "stranger",
    "hangs",
    "counts",
    "dies",
    "is greedy",
    "raises",
    "tells",
    "prepares",
)


class Prepares(Odd):
    """Says when it prepared the volume: seconds of the machine's monotonic clock."""

    def preparation(self, volume: InputVolume) -> float:
        assert volume.hu.max() == 40
        return time.monotonic()


def _listed(name: str) -> ListedModel:
    odd = Prepares(name) if name == "prepares" else Odd(name)
    return ListedModel(card=odd.card, digest=name, load=lambda device: odd)


def _truncated(device: str) -> Odd:
    raise ModelFailed("The weights are truncated.", code="model-weights")


def _explodes(device: str) -> Odd:
    raise RuntimeError("DOE^JANE")


def _dies(device: str) -> Odd:
    os._exit(3)


def _fat(device: str) -> Odd:
    return Odd("bright" if device == HOST else "is greedy")


if __name__ == "__main__":
    models = {name: _listed(name) for name in NAMES}
    fat = replace(Odd("is greedy").card, cpu=True)
    models["fat"] = ListedModel(card=fat, digest="fat", load=_fat)
    for name, load in (("truncated", _truncated), ("explodes", _explodes), ("expires", _dies)):
        models[name] = ListedModel(card=Odd(name).card, digest=name, load=load)
    offer = Offer(models=models, refused={"foreign": ModelUntrusted("It is not trusted.")})
    listener = socket.socket(fileno=int(sys.argv[-1]))
    if sys.argv[1] == "lost":
        server.answers = lambda device: False
    if sys.argv[1] == HOST:
        Server(lambda: offer, Shelf(HOST), None, "The driver is too old.").serve(listener)
    Server(lambda: offer, Shelf("meta", meter=meter_of(HOST)), Shelf(HOST)).serve(listener)
