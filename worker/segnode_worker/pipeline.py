"""One job from stored images to a stored segmentation."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import highdicom as hd
import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card, parse_card
from segnode_contract.errors import ModelFailed, SeriesChanged
from segnode_contract.findings import Findings
from segnode_contract.identity import content_digest, derived_uid
from segnode_contract.job import Claim, Stage
from segnode_contract.ledger import WorkLedger
from segnode_worker.archive import Archive, confirm
from segnode_worker.proof import prove
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.stack import Stack, stack_series
from segnode_worker.volume import for_model, on_source


class Segmenter(Protocol):
    """What runs models. `ModelProcess` in service."""

    def segment(
        self, card: Card, digest: str, volume: hd.Volume, attributes: Mapping[str, str]
    ) -> tuple[NDArray[np.uint8], Findings]: ...


StageTimer = Callable[[Stage], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A result that is proved and not yet stored."""

    data: bytes
    findings: Findings
    input_digest: str


def run_job(claim: Claim, archive: Archive, models: Segmenter, work: WorkLedger, node: str) -> Made:
    """Run one claimed job to its confirmed result; the ledger is told of every step."""

    def stage(which: Stage) -> AbstractContextManager[None]:
        return work.stage(claim, which)

    card = parse_card(work.card(claim), where=f"the card of {claim.model} in the ledger")
    with stage(Stage.FETCH):
        files = archive.fetch_series(claim.study_uid, claim.series_uids[0])
    identity = ResultIdentity(
        job_key=claim.key,
        model_digest=claim.model_digest,
        node_id=node,
        series_number=series_number(claim.model),
    )
    made_at = datetime.fromtimestamp(claim.created_at, UTC)
    made = make_result(
        files,
        card=card,
        models=models,
        identity=identity,
        made_at=made_at,
        stage=stage,
        content=claim.content,
    )
    work.input_digest(claim, made.input_digest)
    instance_uid = derived_uid(claim.key, "seg")
    with stage(Stage.STORE):
        work.will_store(
            claim,
            role="SEG",
            instance_uid=instance_uid,
            series_uid=derived_uid(claim.key, "series"),
            data=made.data,
        )
        archive.store(claim.study_uid, made.data)
        work.stored(claim, instance_uid)
    with stage(Stage.CONFIRM):
        confirm(archive, claim.study_uid, made.data)
        work.confirmed(claim, instance_uid)
    return made


def make_result(
    files: Sequence[bytes],
    *,
    card: Card,
    models: Segmenter,
    identity: ResultIdentity,
    made_at: datetime,
    stage: StageTimer,
    content: str | None = None,
) -> Made:
    """Stack, infer, encode and verify.

    Parameters
    ----------
    files
        The series' instances, Part 10 files in any order.
    content
        `identity.content_digest` of the instances that the job was made for, where there is a job.

    Raises
    ------
    SeriesChanged
        If the files are not those instances.
    UnsuitableSeries, BrokenInstance, ModelFailed, ModelTimeLimit, ProofFailed
        From the steps.
    """
    with stage(Stage.STACK):
        stack = stack_series(files, min_slices=card.min_slices)
        _check_content(stack, content)
    with stage(Stage.INFER):
        volume = for_model(stack.volume, card.orientation)
        found, findings = models.segment(card, identity.model_digest, volume, stack.attributes)
        _check_values(found, card)
        labels = on_source(found, volume, stack.volume)
    with stage(Stage.ENCODE):
        data = encode(stack, labels, card, findings, identity, made_at)
    with stage(Stage.VERIFY):
        prove(data, stack, labels, card, findings)
    return Made(data=data, findings=findings, input_digest=stack.digest)


def series_number(model: str) -> int:
    """Return the Series Number of a model's results, 9000 to 9999, the same on every node."""
    return 9000 + zlib.crc32(model.encode()) % 1000


def _check_content(stack: Stack, content: str | None) -> None:
    found = content_digest(source.SOPInstanceUID for source in stack.sources)
    if content is not None and found != content:
        raise SeriesChanged(
            f"The archive gave {len(stack.sources)} instances that are not those the job was made "
            "for; the series changed since, and its new content has a job of its own."
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
