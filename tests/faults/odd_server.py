"""The model process of the tests: the built-in models, which also do as a voxel says.

``python odd_server.py FOLDER FD``, FOLDER being that of `points`.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.phantom import HANG, MEMORY, POISON
from tests.faults.points import Points

from segnode_contract.card import parse_card
from segnode_contract.findings import Findings
from segnode_models.model import InputVolume, Model, Told
from segnode_models.registry import ListedModel, Offer, builtin_models
from segnode_models.server import Server
from segnode_models.shelf import HOST, Shelf

TIME_LIMIT_S = 20


class Odd:
    """A model that can be struck, and that some images take down."""

    def __init__(self, real: Model, points: Points) -> None:
        self.card = real.card
        self._real = real
        self._points = points

    def segment(self, volume: InputVolume, labels: NDArray[np.uint8], told: Told) -> Findings:
        self._points.pass_by("model")
        match int(volume.hu.max()):
            case n if n == POISON:
                os._exit(3)
            case n if n == MEMORY:
                raise MemoryError
            case n if n == HANG:
                time.sleep(600)
        return self._real.segment(volume, labels, told)


def _odd(known: ListedModel, points: Points) -> ListedModel:
    source = known.card.source
    lines = [line for line in source.splitlines() if not line.startswith("time_limit_s")]
    lines.insert(0, f"time_limit_s = {TIME_LIMIT_S}")
    card = parse_card("\n".join(lines), where=known.card.name)
    return replace(known, card=card, load=lambda device: Odd(known.load(device), points))


if __name__ == "__main__":
    points = Points(Path(sys.argv[1]))
    models = {known.digest: _odd(known, points) for known in builtin_models()}
    offer = Offer(models=models, refused={})
    Server(lambda: offer, Shelf(HOST), None).serve(socket.socket(fileno=int(sys.argv[2])))
