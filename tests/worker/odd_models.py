"""A model process whose models misbehave on purpose: `python odd_models.py FD`."""

from __future__ import annotations

import os
import socket
import sys
import time

import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card, parse_card
from segnode_contract.findings import Findings, Withheld
from segnode_models.model import InputVolume
from segnode_models.registry import RegisteredModel
from segnode_models.server import Server

CARD = """
name = "{name}"
version = "1.0.0"
kind = "builtin"
intended_use = "Tests."
limitations = ["Not for use."]
licence = "AGPL-3.0-or-later"
memory_bytes = 1000000
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


class Odd:
    """Does what its name says."""

    def __init__(self, name: str) -> None:
        self.card: Card = parse_card(CARD.format(name=name), where=name)

    def segment(self, volume: InputVolume, labels: NDArray[np.uint8]) -> Findings:
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
            case "tells":
                secrets = sorted(name for name in os.environ if name.startswith("SEGNODE"))
                return Findings(withheld=(Withheld(segment=1, reason=" ".join(secrets)),))
        return Findings()


NAMES = (
    "bright",
    "compares",
    "builds on",
    "stranger",
    "hangs",
    "dies",
    "is greedy",
    "raises",
    "tells",
)

if __name__ == "__main__":
    models = [RegisteredModel(card=m.card, digest=m.card.name, model=m) for m in map(Odd, NAMES)]
    fat = Odd("is greedy")
    models.append(RegisteredModel(card=fat.card, digest="fat", model=fat, smaller=Odd("bright")))
    Server(models).serve(socket.socket(fileno=int(sys.argv[1])))
