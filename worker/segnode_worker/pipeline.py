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
from segnode_contract.errors import (
    ImagesChanged,
    ModelFailed,
    PriorMissing,
    ProofFailed,
    SeriesChanged,
    StoreRefused,
)
from segnode_contract.findings import Findings
from segnode_contract.identity import content_digest, derived_uid
from segnode_contract.job import Claim, ResultObject, Stage, StageTimer
from segnode_contract.ledger import WorkLedger
from segnode_worker.archive import Archive, collision, confirm, result_uids, same_content
from segnode_worker.attributes import BROKEN
from segnode_worker.inputs import Fetched, Inputs, PriorResult, stack_inputs
from segnode_worker.model_client import Told, unheard
from segnode_worker.plausible import counts_of, judged
from segnode_worker.proof import prove
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.spool import Spool
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
        others: Mapping[str, NDArray[np.float32]],
        prior: NDArray[np.uint8] | None,
        thrifty: bool = False,
        stage: StageTimer,
        told: Told,
    ) -> tuple[NDArray[np.uint8], Findings]: ...


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
    if objects and not _same_images(claim, archive, work):
        _check_not_stored(claim, archive, objects)
        objects = []
    if not objects:
        made = _make(claim, archive, models, work, node)
        if claim.shadow:
            work.shadowed(claim, made.objects, made.findings, made.input_digest)
            return
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
    return make_result(
        _fetch(claim, archive, work),
        card=_card(claim, work),
        models=models,
        identity=ResultIdentity(
            job_key=claim.key,
            model_digest=claim.model_digest,
            node_id=node,
            series_number=series_number(claim.model),
        ),
        made_at=datetime.fromtimestamp(claim.created_at).astimezone(),
        stage=lambda which: work.stage(claim, which),
        told=lambda fraction: work.progress(claim, fraction),
        content=claim.content,
        thrifty=claim.thrifty,
    )


def _card(claim: Claim, work: WorkLedger) -> Card:
    return parse_card(work.card(claim), where=f"the card of {claim.model} in the ledger")


def _fetch(claim: Claim, archive: Archive, work: WorkLedger) -> Fetched:
    with work.stage(claim, Stage.FETCH):
        first, *others = [archive.fetch_series(claim.study_uid, uid) for uid in claim.series_uids]
        return Fetched(
            files=first,
            others=dict(zip(claim.roles[1:], others, strict=True)),
            role=claim.roles[0] if claim.roles else "",
            prior=_fetch_prior(claim, archive, work) if claim.builds_on else None,
        )


def _fetch_prior(claim: Claim, archive: Archive, work: WorkLedger) -> PriorResult:
    known = work.prior(claim)
    if known.withheld:
        raise ModelFailed(
            f"The result of {known.model} that this model builds on lacks a segment, which would "
            f"be read as nothing there: {known.withheld}",
            code="prior-withheld",
        )
    data = archive.fetch_instance(claim.study_uid, known.series_uid, known.instance_uid)
    if data is None or hashlib.sha256(data).hexdigest() != known.digest:
        raise PriorMissing(
            f"The archive does not have the result of {known.model} that this job builds on, as "
            f"job {claim.builds_on[:12]} stored it; `segnode verify` says more."
        )
    card = parse_card(known.card, where=f"the card of {known.model} in the ledger")
    return PriorResult(card=card, data=data)


def _same_images(claim: Claim, archive: Archive, work: WorkLedger) -> bool:
    """Return whether the images are still those that an earlier run saw."""
    card, fetched = _card(claim, work), _fetch(claim, archive, work)
    with work.stage(claim, Stage.STACK):
        _check_content(fetched.every_file, claim.content)
        return stack_inputs(fetched, card).digest == claim.input_digest


def _check_not_stored(claim: Claim, archive: Archive, objects: Sequence[ResultObject]) -> None:
    for each in objects:
        if archive.fetch_instance(claim.study_uid, each.series_uid, each.instance_uid) is not None:
            raise ImagesChanged(
                "The archive holds other pixels or positions now, under the same UIDs, than those "
                f"that the {each.role} in series {each.series_uid} was made from (or another "
                "result on which it builds): one of both is wrong. Delete that series in the "
                "archive, then `segnode retry` makes it from the images as they are."
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
    fetched: Fetched,
    *,
    card: Card,
    models: Segmenter,
    identity: ResultIdentity,
    made_at: datetime,
    stage: StageTimer,
    told: Told = unheard,
    content: str | None = None,
    thrifty: bool = False,
) -> Made:
    """Stack, infer, encode and verify.

    Parameters
    ----------
    fetched
        The images, and what else the model takes.
    stage
        Times each step.
    told
        Hears how far the model is; what it raises stops the job.
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
            _check_content(fetched.every_file, content)
        inputs = stack_inputs(fetched, card)
        stack = inputs.stack
        volume = for_model(stack.volume, card.orientation)
        others = {
            role: for_model(stack.volume.with_array(values), card.orientation).array
            for role, values in inputs.others.items()
        }
        prior = _turned(inputs, card)
    found, findings = models.segment(
        card,
        identity.model_digest,
        volume,
        stack.attributes,
        others=others,
        prior=prior,
        thrifty=thrifty,
        stage=stage,
        told=told,
    )
    with stage(Stage.ENCODE):
        labels = stack.on_slices(on_source(found, volume, stack.volume))
        counts = counts_of(labels)
        _check_values(counts, card)
        findings = judged(labels, counts, card, findings, stack.slice_ml)
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
    return Made(objects=(seg,), findings=findings, input_digest=inputs.digest, prove=proved)


def _turned(inputs: Inputs, card: Card) -> NDArray[np.uint8] | None:
    if inputs.prior is None:
        return None
    planes = [inputs.stack.volume.with_array(plane) for plane in inputs.prior]
    return np.stack([for_model(plane, card.orientation).array for plane in planes])


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


def _check_values(counts: NDArray[np.int64], card: Card) -> None:
    for plane in range(card.planes):
        known = {0} | {s.value for s in card.segments if s.plane == plane}
        strange = set(np.flatnonzero(counts[plane].any(axis=0)).tolist()) - known
        if strange:
            raise ModelFailed(
                f"The model {card.name} gave the label {min(strange)} in plane {plane}, which its "
                "card does not name; the card and the model do not belong together.",
                code="model-strange-label",
            )
