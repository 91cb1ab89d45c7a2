"""One job by the node's own stages: `python -m tests.bench.side_segnode DATA URL STUDY`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import urllib3

from segnode_contract.job import Stage
from segnode_models.registry import ListedModel, offer_of
from segnode_worker.archive import DicomWebArchive, confirm, result_uids
from segnode_worker.inputs import Fetched
from segnode_worker.model_client import ModelProcess
from segnode_worker.model_service import ModelService
from segnode_worker.result import make_result
from segnode_worker.segmentation import ResultIdentity
from segnode_worker.spool import Spool

from .bench import model_process_peak_mb, peak_mb_of


def main() -> None:
    """Run, and print the seconds of each step as one line of JSON."""
    data, url, study = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    archive = DicomWebArchive(f"{url}/dicom-web", "worker", os.environ["BENCH_PASSWORD"])
    listed = next(m for m in offer_of(data / "models").models.values() if m.card.name == "shapes")
    series = series_of(url, study)
    service = ModelService(models=data / "models")
    service.start()
    seconds: dict[str, float] = {}
    try:
        models = ModelProcess(service)
        models.models(60)
        one_job(archive, models, listed, (study, series), data / "spool", seconds)
        second: dict[str, float] = {}
        one_job(archive, models, listed, (study, series), data / "spool", second)
        peak_mb = peak_mb_of(os.getpid()) + model_process_peak_mb()
    finally:
        service.stop()
    print(json.dumps({**seconds, "second": second["chain"], "peak_mb": peak_mb}))


def one_job(
    archive: DicomWebArchive,
    models: ModelProcess,
    listed: ListedModel,
    where: tuple[str, str],
    spool: Path,
    seconds: dict[str, float],
) -> None:
    """Run a job from the archive to the archive, and note the seconds of its steps."""

    @contextmanager
    def stage(which: Stage) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[str(which)] = seconds.get(str(which), 0.0) + time.perf_counter() - began

    study, series = where
    began = time.perf_counter()
    with stage(Stage.FETCH):
        files = archive.fetch_series(study, series)
    made = make_result(
        Fetched(files=files),
        card=listed.card,
        models=models,
        identity=ResultIdentity(
            job_key=os.urandom(32).hex(), model_digest=listed.digest, node_id="bench"
        ),
        made_at=datetime.now().astimezone(),
        stage=stage,
        keep=Spool(spool).put,
    )
    seg = made.objects[0]
    with stage(Stage.STORE):
        for each in made.objects:
            archive.store(study, each.data)
            confirm(archive, study, each.data)
    seconds["chain"] = time.perf_counter() - began
    seconds["infer"] += seconds.pop("turn")
    volumes = {m.segment: m.value for m in made.findings.measurements if m.name == "Volume"}
    print(volumes, len(seg.data), result_uids(seg.data)[1], file=sys.stderr)


def series_of(url: str, study: str) -> str:
    """Return the CT series of the study (PS3.18 10.6)."""
    ask = urllib3.PoolManager(
        headers=urllib3.make_headers(basic_auth=f"worker:{os.environ['BENCH_PASSWORD']}")
        | {"Accept": "application/dicom+json"}
    )
    found = ask.request("GET", f"{url}/dicom-web/studies/{study}/series?Modality=CT").json()
    return str(found[0]["0020000E"]["Value"][0])


if __name__ == "__main__":
    main()
