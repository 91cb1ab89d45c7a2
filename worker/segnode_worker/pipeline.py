"""One job from stored images to a stored segmentation."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from mmap import mmap

from segnode_contract.card import Card, parse_card
from segnode_contract.errors import (
    ImagesChanged,
    ModelFailed,
    PriorMissing,
    ProofFailed,
    SegnodeError,
    StoreRefused,
)
from segnode_contract.job import Claim, ResultObject, Stage
from segnode_contract.ledger import WorkLedger
from segnode_worker.archive import Archive, collision, confirm, same_content
from segnode_worker.attributes import BROKEN
from segnode_worker.inputs import Fetched, PriorResult, digest_of, stack_inputs
from segnode_worker.result import Made, Proof, Segmenter, check_content, make_result, series_number
from segnode_worker.segmentation import ResultIdentity
from segnode_worker.spool import Kept, Spool

log = logging.getLogger(__name__)


def run_job(  # noqa: PLR0917 # the job, and what it meets on its road
    claim: Claim, archive: Archive, models: Segmenter, work: WorkLedger, spool: Spool, node: str
) -> None:
    """Run one claimed job to its confirmed result; the ledger is told of every step."""

    def stage(which: Stage) -> AbstractContextManager[None]:
        return work.stage(claim, which)

    proofs: Mapping[str, Proof] = {}
    pictures: Mapping[str, tuple[bytes, ...]] = {}
    objects = _made_before(claim, archive, work, spool)
    if objects and not _same_images(claim, archive, work):
        _check_not_stored(claim, archive, objects)
        objects = []
    if not objects:
        made = _make(claim, archive, models, work, spool, node)
        if claim.shadow:
            work.shadowed(claim, made.objects, made.findings, made.input_digest)
            spool.drop(each.digest for each in made.objects)
            return
        work.made(claim, made.objects, made.findings, made.input_digest)
        objects, proofs, pictures = list(made.objects), made.proofs, made.pictures
    spooled = [each.digest for each in objects]
    with stage(Stage.STORE):
        objects = [_store(claim, archive, work, each, proofs) for each in objects]
    with stage(Stage.CONFIRM):
        for each in objects:
            kept = confirm(archive, claim.study_uid, each.data)
            work.confirmed(claim, each.as_kept(kept))
    spool.drop(spooled)
    _hand_over(claim, archive, pictures)


def _hand_over(claim: Claim, archive: Archive, pictures: Mapping[str, tuple[bytes, ...]]) -> None:
    """Have the archive keep the pictures, if it can now: the job is done without them, too."""
    try:
        for instance_uid, drawn in pictures.items():
            for number, picture in enumerate(drawn, 1):
                archive.keep_picture(instance_uid, number, picture)
    except SegnodeError as error:
        log.warning("pictures not kept", extra={"job_key": claim.key, "code": error.code})


def _make(  # noqa: PLR0917 # as `run_job`
    claim: Claim, archive: Archive, models: Segmenter, work: WorkLedger, spool: Spool, node: str
) -> Made:
    kept: list[str] = []

    def keep(parts: Iterable[bytes]) -> Kept:
        one = spool.put(parts)
        kept.append(one.digest)
        return one

    try:
        return make_result(
            _fetch(claim, archive, work),
            card=_card(claim, work),
            models=models,
            identity=ResultIdentity(
                job_key=claim.key,
                model_digest=claim.model_digest,
                node_id=node,
                form=claim.form,
                series_number=series_number(claim.model),
            ),
            made_at=datetime.fromtimestamp(claim.created_at).astimezone(),
            stage=lambda which: work.stage(claim, which),
            keep=keep,
            told=lambda fraction: work.progress(claim, fraction),
            content=claim.content,
            on_cpu=claim.on_cpu,
            pictured=not claim.shadow,
        )
    except BaseException:
        spool.drop(kept)  # nobody will ask for what is not proved, and a patient's name is in it
        raise


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
        check_content(fetched.every_file, claim.content)
        return digest_of(stack_inputs(fetched, card)) == claim.input_digest


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
        data: bytes | mmap | None = spool.take(known.digest)
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
                digest=known.digest,
            )
        )
    return found


def _store(
    claim: Claim,
    archive: Archive,
    work: WorkLedger,
    made: ResultObject,
    proofs: Mapping[str, Proof],
) -> ResultObject:
    """Store an object, or adopt the one that is there; nothing is ever overwritten.

    Raises
    ------
    UidCollision
        If the archive holds other content under its UID.
    """
    kept = archive.fetch_instance(claim.study_uid, made.series_uid, made.instance_uid)
    if kept is None:
        work.check(claim)  # what was withdrawn or cancelled meanwhile must not come after that
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
            proofs.get(made.instance_uid, _refuse)(kept)
        except (ProofFailed, *BROKEN) as error:
            raise collision(made.instance_uid) from error
    adopted = made.as_kept(kept)
    work.adopted(claim, adopted)
    return adopted


def _refuse(data: bytes | mmap) -> None:
    raise ProofFailed("The labels of an earlier run are not at hand.")
