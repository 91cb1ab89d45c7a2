"""Results with a fault in them, and what proves them."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from segnode_cli.ct_series import as_file
from segnode_contract.findings import Findings
from segnode_worker.proof import prove

from .conftest import Made


def check(
    made: Made,
    data: bytes | None = None,
    labels: NDArray[np.uint8] | None = None,
    findings: Findings | None = None,
) -> None:
    """Prove a result, or what is given in place of a part of it."""
    prove(
        made.data if data is None else data,
        made.stack,
        made.labels if labels is None else labels,
        made.card,
        made.findings if findings is None else findings,
    )


def changed(made: Made, change: Callable[[Dataset], object]) -> bytes:
    """Return the file of a result after a change."""
    seg = dcmread(BytesIO(made.data))
    change(seg)
    return as_file(seg)
