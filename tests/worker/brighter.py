"""A model that finds what is brighter than a value, in segment 1: the truth is in the images."""

from __future__ import annotations

from collections.abc import Mapping

import highdicom as hd
import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card
from segnode_contract.findings import Findings
from segnode_contract.job import StageTimer
from segnode_worker.model_client import Told


class Brighter:
    """A `Segmenter` without a process."""

    def __init__(self, value: float) -> None:
        self._value = value

    def segment(
        self,
        card: Card,
        digest: str,
        volume: hd.Volume,
        attributes: Mapping[str, str],
        *,
        others: Mapping[str, NDArray[np.float32]],
        prior: NDArray[np.uint8] | None,
        on_cpu: bool = False,
        stage: StageTimer,
        told: Told,
    ) -> tuple[NDArray[np.uint8], Findings]:
        labels = np.zeros((card.planes, *volume.spatial_shape), np.uint8)
        labels[0] = volume.array > self._value
        return labels, Findings()
