"""`segnode segment`: the worker's own pipeline on files, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from segnode_cli.node import read_environment
from segnode_cli.show import say
from segnode_contract.card import Card
from segnode_contract.errors import SetupError
from segnode_contract.form import form_of
from segnode_contract.identity import job_key
from segnode_contract.job import JobState, Stage
from segnode_contract.ledger import Ledger, LedgerView
from segnode_contract.settings import Settings
from segnode_models.registry import offer_of
from segnode_worker.archive import result_uids
from segnode_worker.folder import FolderArchive
from segnode_worker.inputs import Fetched
from segnode_worker.model_client import ModelProcess
from segnode_worker.model_service import ModelService, models_folder
from segnode_worker.result import make_result, series_number
from segnode_worker.segmentation import ResultIdentity
from segnode_worker.spool import in_memory

NODE = "segnode-files"


def segment_folder(path: Path, model: str, out: Path, settings: Settings, data: Path) -> str:
    """Segment the one series of images in `path` and return the path of the SEG.

    The models are those of the node whose data are in `data`, and the built-in ones.

    The identities are those that a node gives, so that the same images give the same UIDs.

    Raises
    ------
    SetupError
        If there is no series, or more than one, or its result was withdrawn at that node, or the
        model needs more than one series.
    UnknownModel
        If there is no such model.
    """
    folder = models_folder(data) if data.exists() else None
    listed = offer_of(folder).named(model)
    card, digest = listed.card, listed.digest
    _check_takes_one_series(card)
    archive = FolderArchive(path, out)
    study_uid, series_uid = _the_series(archive, card, path)
    files = archive.fetch_series(study_uid, series_uid)
    form = form_of(card, settings.results.form)
    key = job_key(
        series_uids=[series_uid],
        instance_uids=[result_uids(data)[1] for data in files],
        model=card.name,
        model_digest=digest,
        parameters={},
        form=form,
    )
    _check_not_withdrawn(data, key)
    models = settings.models
    service = ModelService(models=folder, memory_mb=models.memory_mb, sandbox=models.sandbox)
    service.start()
    try:
        made = make_result(
            Fetched(files=files),
            card=card,
            models=ModelProcess(service),
            identity=ResultIdentity(
                job_key=key,
                model_digest=digest,
                node_id=NODE,
                form=form,
                series_number=series_number(card.name),
            ),
            made_at=datetime.now().astimezone(),
            stage=_told,
            keep=in_memory,
        )
    finally:
        service.stop()
    for each in made.objects:
        archive.store(study_uid, each.data)
    for said in made.findings.limitations:
        say(said)
    for withheld in made.findings.withheld:
        say(f"segment {withheld.segment} is left out: {withheld.reason}")
    return str(out)


def _check_takes_one_series(card: Card) -> None:
    roles = ", ".join(one.role for one in card.inputs)
    if not (roles or card.builds_on):
        return
    needs = f"takes {roles}" if roles else f"builds on the result of {card.builds_on}"
    names = "names these series" if roles else f"comes after that of {card.builds_on}"
    raise SetupError(
        f"The model {card.name} {needs}, and `segnode segment` gives it one series and nothing "
        f"else; send the study to a node whose route {names} (with shadow = true the result is "
        "kept out of the archive).",
        code="wrong-roles" if roles else "wrong-prior",
    )


def _check_not_withdrawn(data: Path, key: str) -> None:
    """Refuse to give a result again the UIDs of one that was withdrawn at the node in `data`."""
    url = read_environment(data).get("SEGNODE_LEDGER_URL")
    if url is None:
        return
    ledger = Ledger.open(url)
    try:
        newest, state = LedgerView(ledger).states({key}).get(key, (key, ""))
    finally:
        ledger.close()
    if state == JobState.WITHDRAWN or newest != key:
        raise SetupError(
            f"The result of this model on these images was withdrawn at the node in {data} (job "
            f"{key[:12]}), and its UIDs are not used again. `segnode retry {newest[:12]}` makes it "
            "anew there."
        )


def _the_series(archive: FolderArchive, card: Card, path: Path) -> tuple[str, str]:
    found = [
        (study, series)
        for (study, series, modality), count in archive.series().items()
        if modality == card.modality and count
    ]
    if len(found) != 1:
        raise SetupError(
            f"{path} holds {len(found)} {card.modality} series; exactly one is needed: "
            "name the folder of one."
        )
    return found[0]


@contextmanager
def _told(stage: Stage) -> Iterator[None]:
    say(f"{stage} …")
    yield
