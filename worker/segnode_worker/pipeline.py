"""One job from stored images to a stored segmentation."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Protocol

import highdicom as hd
import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card, parse_card
from segnode_contract.errors import ModelFailed, ProofFailed, SeriesChanged, StoreRefused
from segnode_contract.findings import Findings
from segnode_contract.identity import content_digest, derived_uid
from segnode_contract.job import Claim, ResultObject, Stage
from segnode_contract.ledger import WorkLedger
from segnode_worker.archive import Archive, collision, confirm, result_uids, same_content
from segnode_worker.instance import BROKEN
from segnode_worker.proof import prove
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.spool import Spool
from segnode_worker.stack import stack_series
from segnode_worker.volume import for_model, on_source


class Segmenter(Protocol):
    """What runs models. `ModelProcess` in service."""

    def segment(
        self,
        card: Card,
        digest: str,
        volume: hd.Volume,
        attributes: Mapping[str, str],
        *,
        thrifty: bool = False,
    ) -> tuple[NDArray[np.uint8], Findings]: ...


StageTimer = Callable[[Stage], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A result that is proved and not yet stored."""

    objects: tuple[ResultObject, ...]
    findings: Findings
    input_digest: str
    prove: Callable[[bytes], None]
    """Raises `ProofFailed` for a SEG that does not hold the same."""


def run_job(  # noqa: PLR0917 # the job, and what it meets on its road
    claim: Claim, archive: Archive, models: Segmenter, work: WorkLedger, spool: Spool, node: str
) -> None:
    """Run one claimed job to its confirmed result; the ledger is told of every step."""

    def stage(which: Stage) -> AbstractContextManager[None]:
        return work.stage(claim, which)

    prove_other: Callable[[bytes], None] = _refuse
    objects = _made_before(claim, archive, work, spool)
    if not objects:
        made = _make(claim, archive, models, work, node)
        for each in made.objects:
            spool.put(each.data)
        work.made(claim, made.objects, made.findings, made.input_digest)
        objects, prove_other = list(made.objects), made.prove
    spooled = [each.digest for each in objects]
    with stage(Stage.STORE):
        objects = [_store(claim, archive, work, each, prove_other) for each in objects]
    with stage(Stage.CONFIRM):
        for each in objects:
            kept = confirm(archive, claim.study_uid, each.data)
            work.confirmed(claim, replace(each, data=kept))
    spool.drop(spooled)


def _make(claim: Claim, archive: Archive, models: Segmenter, work: WorkLedger, node: str) -> Made:
    card = parse_card(work.card(claim), where=f"the card of {claim.model} in the ledger")
    with work.stage(claim, Stage.FETCH):
        files = archive.fetch_series(claim.study_uid, claim.series_uids[0])
    return make_result(
        files,
        card=card,
        models=models,
        identity=ResultIdentity(
            job_key=claim.key,
            model_digest=claim.model_digest,
            node_id=node,
            series_number=series_number(claim.model),
        ),
        made_at=datetime.fromtimestamp(claim.created_at).astimezone(),
        stage=lambda which: work.stage(claim, which),
        content=claim.content,
        thrifty=claim.thrifty,
    )


def _made_before(
    claim: Claim, archive: Archive, work: WorkLedger, spool: Spool
) -> list[ResultObject]:
    """Return the whole result of an earlier run: from the spool, or as the archive has it."""
    found = []
    for known in work.known(claim):
        data = spool.take(known.digest)
        if data is None:
            data = archive.fetch_instance(claim.study_uid, known.series_uid, known.instance_uid)
        if data is None or hashlib.sha256(data).hexdigest() != known.digest:
            return []
        found.append(
            ResultObject(
                role=known.role,
                instance_uid=known.instance_uid,
                series_uid=known.series_uid,
                data=data,
            )
        )
    return found


def _store(
    claim: Claim,
    archive: Archive,
    work: WorkLedger,
    made: ResultObject,
    prove: Callable[[bytes], None],
) -> ResultObject:
    """Store an object, or adopt the one that is there; nothing is ever overwritten.

    Raises
    ------
    UidCollision
        If the archive holds other content under its UID.
    """
    kept = archive.fetch_instance(claim.study_uid, made.series_uid, made.instance_uid)
    if kept is None:
        try:
            archive.store(claim.study_uid, made.data)
        except StoreRefused:
            # an earlier store that seemed to fail may have come through meanwhile
            kept = archive.fetch_instance(claim.study_uid, made.series_uid, made.instance_uid)
            if kept is None:
                raise
        else:
            work.stored(claim, made.instance_uid)
            return made
    if not same_content(kept, made.data):
        try:
            prove(kept)
        except (ProofFailed, *BROKEN) as error:
            raise collision(made.instance_uid) from error
    adopted = replace(made, data=kept)
    work.adopted(claim, adopted)
    return adopted


def _refuse(data: bytes) -> None:
    raise ProofFailed("The labels of an earlier run are not at hand.")


def make_result(
    files: Sequence[bytes],
    *,
    card: Card,
    models: Segmenter,
    identity: ResultIdentity,
    made_at: datetime,
    stage: StageTimer,
    content: str | None = None,
    thrifty: bool = False,
) -> Made:
    """Stack, infer, encode and verify.

    Parameters
    ----------
    files
        The series' instances, Part 10 files in any order.
    content
        `identity.content_digest` of the instances that the job was made for, where there is a job.
    thrifty
        Use the model's smaller memory profile.

    Raises
    ------
    SeriesChanged
        If the files are not those instances.
    MemoryExhausted
        If the images do not fit into memory.
    UnsuitableSeries, BrokenInstance, ModelFailed, ModelTimeLimit, ProofFailed
        From the steps.
    """
    with stage(Stage.STACK):
        if content is not None:
            _check_content(files, content)
        stack = stack_series(files, min_slices=card.min_slices, modality=card.modality)
    with stage(Stage.INFER):
        volume = for_model(stack.volume, card.orientation)
        found, findings = models.segment(
            card, identity.model_digest, volume, stack.attributes, thrifty=thrifty
        )
        _check_values(found, card)
        labels = on_source(found, volume, stack.volume)
    with stage(Stage.ENCODE):
        data = encode(stack, labels, card, findings, identity, made_at)
    proved = partial(prove, stack=stack, labels=labels, card=card, findings=findings)
    with stage(Stage.VERIFY):
        proved(data)
    seg = ResultObject(
        role="SEG",
        instance_uid=derived_uid(identity.job_key, "seg"),
        series_uid=derived_uid(identity.job_key, "series"),
        data=data,
    )
    return Made(objects=(seg,), findings=findings, input_digest=stack.digest, prove=proved)


def series_number(model: str) -> int:
    """Return the Series Number of a model's results, 9000 to 9999, the same on every node."""
    return 9000 + zlib.crc32(model.encode()) % 1000


def _check_content(files: Sequence[bytes], content: str) -> None:
    try:
        found = content_digest(result_uids(data)[1] for data in files)
    except BROKEN:
        return  # the stack names what is broken
    if found != content:
        raise SeriesChanged(
            f"The archive gave {len(files)} images, which are not those that the job was made for. "
            "If the series changed, its new content gets a job of its own, which supersedes this "
            "one."
            if files
            else "The archive gave no image of the series: it was deleted there, or its UID is "
            "there twice, for two patients or in two studies."
        )


def _check_values(labels: NDArray[np.uint8], card: Card) -> None:
    for plane in range(card.planes):
        known = {0} | {s.value for s in card.segments if s.plane == plane}
        counts = np.bincount(labels[plane].reshape(-1), minlength=256)
        strange = set(np.flatnonzero(counts).tolist()) - known
        if strange:
            raise ModelFailed(
                f"The model {card.name} gave the label {min(strange)} in plane {plane}, which its "
                "card does not name; the card and the model do not belong together."
            )
