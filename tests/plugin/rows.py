"""Ledger rows as intake and a worker leave them."""

from __future__ import annotations

from segnode_contract.errors import SegnodeError, UnsuitableSeries
from segnode_contract.findings import Findings, Measurement, Withheld
from segnode_contract.identity import content_digest
from segnode_contract.job import Claim, NewJob, ResultObject, Stage
from segnode_contract.ledger import IntakeLedger, Ledger, WorkerLedger, WorkLedger
from segnode_contract.ledger.intake import Decision, Verdict
from segnode_contract.settings import Limits
from segnode_models.registry import builtin_models

TILTED = UnsuitableSeries(
    "The gantry is tilted by 18.5 degrees; <b>this</b> is refused.", code="gantry-tilt"
)
_CONTRAST = "Contrast medium is likely."
FINDINGS = Findings(
    measurements=(
        Measurement(segment=3, name="Volume", value=1234.5, unit="ml"),
        Measurement(segment=5, name="Volume", value=None, unit="ml", reason=_CONTRAST),
        Measurement(segment=3, name="Mean", value=-102.25, unit="[hnsf'U]"),
        Measurement(segment=4, name="Mean", value=None, unit="[hnsf'U]", reason="It is cut."),
    ),
    withheld=(Withheld(segment=5, reason=_CONTRAST),),
    limitations=("2 slices are <b>missing</b>.",),
)


def queue_job(ledger: Ledger, *, number: int = 1, study_uid: str = "1.2") -> str:
    """Have a series arrive that one of two routes takes, and return the key of its job."""
    listed = next(each for each in builtin_models() if each.card.name == "ct-tissue")
    card, digest = listed.card, listed.digest
    WorkerLedger(ledger, "w1").announce(card.name, card.version, digest, card.source)
    intake = IntakeLedger(ledger)
    intake.note("a", number, [f"o{number}"])
    quiet = next(s for s in intake.quiet("a", 0) if s.orthanc_id == f"o{number}")
    series_uid = f"{study_uid}.{number + 2}"
    job = NewJob(
        key=f"{number:08x}" + "e" * 56,
        study_uid=study_uid,
        series_uids=(series_uid,),
        content=content_digest([str(number)]),
        instance_count=112,
        route="tissue",
        route_rank=0,
        model=card.name,
        model_version=card.version,
        model_digest=digest,
        lane="default",
        last_instance_at=quiet.last_instance_at,
    )
    why_not = "Body Part Examined is HEAD, CHEST is wanted"
    decision = Decision(
        orthanc_id=quiet.orthanc_id,
        last_instance_at=quiet.last_instance_at,
        study_uid=study_uid,
        series_uid=series_uid,
        instance_count=112,
        verdicts=(
            Verdict(route="tissue", taken=True, reason="every condition holds"),
            Verdict(route="chest", taken=False, reason=why_not),
        ),
        jobs=(job,),
    )
    intake.decide("a", decision)
    return job.key


def claim_job(ledger: Ledger) -> tuple[WorkLedger, Claim]:
    """Have a worker take the oldest job."""
    work = WorkLedger(ledger, "w1", Limits())
    claim = work.claim("default", [each.digest for each in builtin_models()])
    assert claim is not None
    return work, claim


def finish_job(ledger: Ledger, role: str = "SEG") -> None:
    """Have a worker do the oldest job, with one object as its result."""
    work, claim = claim_job(ledger)
    with work.stage(claim, Stage.STORE):
        uid = f"2.{claim.key[:8].lstrip('0')}"
        seg = ResultObject(role=role, instance_uid=f"{uid}.1", series_uid=uid, data=b"x")
        work.made(claim, [seg], FINDINGS, "i" * 64)
    with work.stage(claim, Stage.CONFIRM):
        work.confirmed(claim, seg)
    work.done(claim, 100)


def fail_job(ledger: Ledger, error: SegnodeError = TILTED) -> None:
    """Have a worker fail at the oldest job, in stage stack."""
    work, claim = claim_job(ledger)
    try:
        with work.stage(claim, Stage.STACK):
            raise error
    except SegnodeError:
        work.failed(claim, error, 100)
