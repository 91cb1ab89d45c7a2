"""From images in an archive to a result in it: `-m tests.bench.writers_chain_once TOOL URL CASE`.

The labels are at hand, as if a model gave them at once; the chain ends when what the archive has
was compared with what was made. It runs twice, for a worker stays up: `second` is the second time.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .writers_once import memory_mb
from .writers_store_once import Login, check_stored, client_of, kept_as, login_of

if TYPE_CHECKING:
    from segnode_contract.findings import Findings

STEPS = ("fetch", "stack", "encode", "verify", "store", "confirm", "chain", "second")

Step = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a chain starts from."""

    study: str
    series: str
    instances: tuple[str, ...]
    labels: NDArray[np.uint8]
    """Shape ``(slices, rows, columns)``, from the feet up."""


class Oracle:
    """A model that knows the labels."""

    def __init__(self, labels: NDArray[np.uint8]) -> None:
        self._labels = labels

    def segment(self, *_: Any, **__: Any) -> tuple[NDArray[np.uint8], Findings]:
        from segnode_contract.findings import Findings

        return self._labels[None], Findings()


def segnode(form: str, login: Login, given: Given) -> Callable[[Step], None]:
    """Return the node's own chain."""
    import tempfile
    from datetime import datetime

    from segnode_contract.form import Form
    from segnode_contract.identity import content_digest
    from segnode_worker.archive import DicomWebArchive, confirm
    from segnode_worker.inputs import Fetched
    from segnode_worker.result import make_result
    from segnode_worker.segmentation import ResultIdentity
    from segnode_worker.spool import Spool

    from .writers_inputs import card_of

    archive = DicomWebArchive(login.dicomweb, login.user, login.password)
    card, oracle = card_of(int(given.labels.max())), Oracle(given.labels)

    def chain(step: Step) -> None:
        identity = ResultIdentity(
            job_key=os.urandom(32).hex(), model_digest="0" * 64, node_id="bench", form=Form(form)
        )
        with tempfile.TemporaryDirectory() as spool:
            with step("fetch"):
                files = archive.fetch_series(given.study, given.series)
            made = make_result(
                Fetched(files=files),
                card=card,
                models=oracle,
                identity=identity,
                made_at=datetime.now().astimezone(),
                stage=step,
                keep=Spool(Path(spool)).put,
                content=content_digest(given.instances),
            )
            for one in made.objects:
                with step("store"):
                    kept = archive.fetch_instance(given.study, one.series_uid, one.instance_uid)
                    assert kept is None
                    archive.store(given.study, one.data)
                with step("confirm"):
                    confirm(archive, given.study, one.data)

    return chain


def straightforward(form: str, login: Login, given: Given) -> Callable[[Step], None]:
    """Return the chain of dicomweb-client, pydicom and highdicom."""
    import highdicom  # noqa: F401 # what is imported is imported before the clock starts

    from .writers_once import made_by_highdicom

    client = client_of(login)

    def chain(step: Step) -> None:
        with step("fetch"):
            images = client.retrieve_series(given.study, given.series)
        with step("stack"):
            images.sort(key=lambda image: image.ImagePositionPatient[2])
            hu = np.stack([i.pixel_array * i.RescaleSlope + i.RescaleIntercept for i in images])
            assert hu.shape == given.labels.shape
        with step("encode"):
            made = made_by_highdicom(images, given.labels, form)
        with step("store"):
            check_stored(client.store_instances([made], given.study))
        with step("confirm"):
            assert kept_as(client, made), "the archive has something else"

    return chain


CHAINS: Mapping[str, Callable[[Login, Given], Callable[[Step], None]]] = {
    "segnode": partial(segnode, "BINARY"),
    "segnode LABELMAP": partial(segnode, "LABELMAP"),
    "straightforward": partial(straightforward, "BINARY"),
    "straightforward LABELMAP": partial(straightforward, "LABELMAP"),
}


def main() -> None:
    """Run, and print the seconds of each step as one line of JSON."""
    warnings.simplefilter("ignore")
    tool, url, case = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    named = json.loads((case / "uids.json").read_text())
    given = Given(
        study=named["study"],
        series=named["series"],
        instances=tuple(named["instances"]),
        labels=np.load(case / "labels.npy"),
    )
    chain = CHAINS[tool](login_of(url), given)
    first = _timed(chain)
    said = {**first, "peak_mb": memory_mb("VmHWM")}
    print(json.dumps({**said, "second": _timed(chain)["chain"]}))


def _timed(chain: Callable[[Step], None]) -> dict[str, float]:
    """Return the seconds of each step, and of all."""
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began

    with step("chain"):
        chain(step)
    return seconds


if __name__ == "__main__":
    main()
