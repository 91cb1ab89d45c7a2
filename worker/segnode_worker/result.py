"""The result of a job: stack, infer, encode and verify."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from mmap import mmap
from typing import Protocol

import highdicom as hd
import numpy as np
from numpy.typing import NDArray

from segnode_contract.card import Card
from segnode_contract.errors import ModelFailed, SeriesChanged
from segnode_contract.findings import Findings
from segnode_contract.identity import content_digest
from segnode_contract.job import ResultObject, Stage, StageTimer
from segnode_worker.archive import result_uids
from segnode_worker.attributes import BROKEN
from segnode_worker.inputs import Fetched, Inputs, digest_of, stack_inputs
from segnode_worker.intensity import measured
from segnode_worker.model_client import Told, unheard
from segnode_worker.pictures import pictures
from segnode_worker.plausible import counts_of, judged
from segnode_worker.proof import prove
from segnode_worker.report import report
from segnode_worker.report_proof import prove_report
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.spool import Kept
from segnode_worker.stack import Stack
from segnode_worker.volume import for_model, on_source

log = logging.getLogger(__name__)

Keep = Callable[[Iterable[bytes]], Kept]
Proof = Callable[[bytes | mmap], None]


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
        on_cpu: bool = False,
        stage: StageTimer,
        told: Told,
    ) -> tuple[NDArray[np.uint8], Findings]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A result that is proved and not yet stored."""

    objects: tuple[ResultObject, ...]
    findings: Findings
    input_digest: str
    proofs: Mapping[str, Proof]
    """By SOP Instance UID: raises `ProofFailed` for an object that does not hold the same."""
    pictures: Mapping[str, tuple[bytes, ...]]
    """Of each segmentation, by its SOP Instance UID: PNG files, as of `pictures.pictures`."""


def make_result(
    fetched: Fetched,
    *,
    card: Card,
    models: Segmenter,
    identity: ResultIdentity,
    made_at: datetime,
    stage: StageTimer,
    keep: Keep,
    told: Told = unheard,
    content: str | None = None,
    on_cpu: bool = False,
    pictured: bool = False,
) -> Made:
    """Stack, infer, encode and verify, one stack of the series after the other.

    Parameters
    ----------
    fetched
        The images, and what else the model takes.
    stage
        Times each step.
    keep
        Takes the pieces of each object.
    told
        Hears how far the model is; what it raises stops the job.
    content
        `identity.content_digest` of the instances that the job was made for, where there is a job.
    on_cpu
        Use the CPU instead of the GPU, where the model's card allows it.
    pictured
        Draw key pictures of each segmentation.

    Raises
    ------
    SeriesChanged
        If the files are not those instances.
    MemoryExhausted
        If the images do not fit into memory.
    UnsuitableSeries, BrokenInstance, ModelFailed, ModelTimeLimit, ProofFailed, SpoolFull
        From the steps.
    """
    maker = _Maker(
        card=card,
        models=models,
        made_at=made_at,
        stage=stage,
        keep=keep,
        told=told,
        on_cpu=on_cpu,
        pictured=pictured,
    )
    with stage(Stage.STACK):
        if content is not None:
            check_content(fetched.every_file, content)
        every = stack_inputs(fetched, card)
    del fetched  # as large as the volume, and needed no more
    digest = digest_of(every)
    parts: list[Made] = []
    while every:  # each is let go when it is done
        inputs, number = every.pop(0), len(parts) + 1
        own = replace(identity, stack=number, stacks=number + len(every))
        parts.append(maker.made_of(inputs, own))
    return Made(
        objects=tuple(each for part in parts for each in part.objects),
        findings=_merged([part.findings for part in parts]),
        input_digest=digest,
        proofs={uid: proof for part in parts for uid, proof in part.proofs.items()},
        pictures={uid: drawn for part in parts for uid, drawn in part.pictures.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    """What is the same for every stack of a job; as of `make_result`."""

    card: Card
    models: Segmenter
    made_at: datetime
    stage: StageTimer
    keep: Keep
    told: Told
    on_cpu: bool
    pictured: bool

    def made_of(self, inputs: Inputs, identity: ResultIdentity) -> Made:
        """Segment one stack, and write and prove its objects."""
        stack, card = inputs.stack, self.card
        volume = for_model(stack.volume, card.orientation)
        found, findings = self._asked(inputs, volume, identity)
        with self.stage(Stage.ENCODE):
            labels = stack.on_slices(on_source(found, volume, stack.volume))
            findings = self._known(inputs, labels, findings)
            objects = self._written(stack, labels, findings, identity)
        proofs: dict[str, Proof] = {}
        bare = stack.without_voxels()  # a proof may be asked for until the job ends
        for each in objects:
            proofs[each.instance_uid] = (
                partial(prove, stack=bare, labels=labels, card=card, findings=findings)
                if each is objects[0]
                else partial(
                    prove_report, seg=objects[0].data, stack=bare, card=card, findings=findings
                )
            )
        with self.stage(Stage.VERIFY):
            for each in objects:
                proofs[each.instance_uid](each.data)
        return Made(
            objects=objects,
            findings=findings,
            input_digest=inputs.digest,
            proofs=proofs,
            pictures={objects[0].instance_uid: self._drawn(stack, labels, identity)},
        )

    def _drawn(
        self, stack: Stack, labels: NDArray[np.uint8], identity: ResultIdentity
    ) -> tuple[bytes, ...]:
        if not self.pictured:
            return ()
        try:
            return pictures(stack, labels, self.card)
        except Exception as error:  # a proved result must not be lost for a picture of it
            log.warning(
                "pictures not drawn",
                extra={"job_key": identity.job_key, "error": type(error).__name__},
            )
            return ()

    def _asked(
        self, inputs: Inputs, volume: hd.Volume, identity: ResultIdentity
    ) -> tuple[NDArray[np.uint8], Findings]:
        """Return what the model says of one stack, on the grid that it was given."""
        stack, card = inputs.stack, self.card
        others = {
            role: for_model(stack.volume.with_array(values), card.orientation).array
            for role, values in inputs.others.items()
        }
        return self.models.segment(
            card,
            identity.model_digest,
            volume,
            stack.attributes,
            others=others,
            prior=_turned(inputs, card),
            on_cpu=self.on_cpu,
            stage=self.stage,
            told=self.told,
        )

    def _known(self, inputs: Inputs, labels: NDArray[np.uint8], findings: Findings) -> Findings:
        """Return all that is to be said of the labels; implausible ones are erased."""
        stack = inputs.stack
        counts = counts_of(labels)
        _check_values(counts, self.card)
        findings = judged(labels, counts, self.card, findings, stack.slice_ml)
        findings = measured(stack, labels, counts, self.card, findings)
        return replace(findings, limitations=(*findings.limitations, *inputs.limitations))

    def _written(
        self,
        stack: Stack,
        labels: NDArray[np.uint8],
        findings: Findings,
        identity: ResultIdentity,
    ) -> tuple[ResultObject, ...]:
        seg = _object(
            identity.role("SEG"),
            identity.uid("seg"),
            identity.uid("series"),
            self.keep(encode(stack, labels, self.card, findings, identity, self.made_at)),
        )
        if not findings.measurements:
            return (seg,)
        data = report(stack, self.card, findings, identity, self.made_at)
        kept = self.keep([data])
        sr = _object(identity.role("SR"), identity.uid("sr"), identity.uid("sr-series"), kept)
        return seg, sr


def _object(role: str, instance_uid: str, series_uid: str, kept: Kept) -> ResultObject:
    return ResultObject(
        role=role,
        instance_uid=instance_uid,
        series_uid=series_uid,
        data=kept.data,
        digest=kept.digest,
    )


def _merged(findings: Sequence[Findings]) -> Findings:
    """Return the findings of all stacks, each under its number."""
    numbered = list(enumerate(findings, 1))
    limitations = dict.fromkeys(said for one in findings for said in one.limitations)
    return Findings(
        withheld=tuple(replace(w, stack=n) for n, one in numbered for w in one.withheld),
        measurements=tuple(replace(m, stack=n) for n, one in numbered for m in one.measurements),
        marked=tuple(replace(m, stack=n) for n, one in numbered for m in one.marked),
        limitations=tuple(limitations),
    )


def _turned(inputs: Inputs, card: Card) -> NDArray[np.uint8] | None:
    if inputs.prior is None:
        return None
    planes = [inputs.stack.volume.with_array(plane) for plane in inputs.prior]
    return np.stack([for_model(plane, card.orientation).array for plane in planes])


def series_number(model: str) -> int:
    """Return the Series Number of a model's results, 9000 to 9999, the same on every node."""
    return 9000 + zlib.crc32(model.encode()) % 1000


def check_content(files: Sequence[bytes], content: str) -> None:
    """Refuse files that are not those that a job was made for.

    Raises
    ------
    SeriesChanged
        If they are others, or none.
    """
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
