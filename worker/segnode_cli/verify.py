"""`segnode verify`: what the ledger says is stored, against what the archive holds.

The ledger's tables are read as they stand; of the archive its index and, by WADO-RS, each result.
So a fault in what the node tells of itself is not repeated here.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from sqlalchemy import Row, select

from segnode_cli.listing import ListedSeries, Listing, administrator
from segnode_cli.node import node_variables
from segnode_cli.show import say
from segnode_contract.identity import derived_uid
from segnode_contract.job import OPEN_STATES, RETRIED, JobState
from segnode_contract.ledger import Ledger, schema
from segnode_contract.ledger.clock import now_s
from segnode_contract.settings import load_settings
from segnode_worker.archive import DicomWebArchive

_DERIVED = ("SEG", "SR")
_OURS = "segnode"  # Manufacturer of every result
_SEE = "see whether the plugin runs, and Orthanc's log for this series."
_INTAKE_S = 10.0
"""What intake may take beyond the quiet period, before a series counts as overlooked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One difference."""

    code: str
    what: str
    """The UID or job key that differs."""
    sentence: str


@dataclass(slots=True, kw_only=True)
class Comparison:
    """What was compared, and where ledger and archive differ."""

    findings: list[Finding] = field(default_factory=list)
    jobs: int = 0
    results: int = 0
    """Objects whose bytes were compared."""
    megabytes: float = 0.0
    series: int = 0
    gone: int = 0
    """Results whose whole study was deleted from the archive: no difference."""
    foreign: int = 0
    """Results of other nodes in this archive."""

    def found(self, code: str, what: str, sentence: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(code=code, what=what, sentence=sentence))

    def summary(self) -> str:
        """Return one line that says how much was compared."""
        said = [
            f"{self.results} results ({self.megabytes:.0f} MB) of {self.jobs} jobs and "
            f"{self.series} series compared"
        ]
        if self.gone:
            said.append(f"{self.gone} results went with their deleted studies")
        if self.foreign:
            said.append(f"{self.foreign} results of other nodes left alone")
        count = len(self.findings)
        said.append("ledger and archive agree" if not count else f"{count} differences")
        return "; ".join(said) + "."


def agree(data: Path, as_json: bool) -> bool:
    """Print where ledger and archive of the node in `data` differ; return whether they agree."""
    compared = compare(data)
    if as_json:
        print(json.dumps([asdict(finding) for finding in compared.findings]))
        say(compared.summary())
    elif compared.findings:
        for finding in compared.findings:
            print(finding.code, finding.what, finding.sentence)
        say(compared.summary())
    else:
        print(compared.summary())
    return not compared.findings


def compare(data: Path) -> Comparison:
    """Compare ledger and archive; the node may go on working meanwhile.

    Raises
    ------
    SetupError
        If there is no node, or its archive refuses the administrator.
    ArchiveUnavailable, LedgerUnavailable
        If one of both does not answer.
    """
    known = node_variables(data)
    settings = load_settings(Path(known["SEGNODE_CONFIG"]))
    login = administrator(settings, known)
    listing = Listing(login)
    archive = DicomWebArchive(login.url, login.user, login.password, certificate=login.certificate)
    ledger = Ledger.open(known["SEGNODE_LEDGER_URL"])
    compared = Comparison()
    try:
        # the archive first: what it holds of ours was in the ledger before
        series = list(listing.series())
        held = _held(series, listing)
        state = _read(ledger)
        _compare_jobs(state, settings.limits.lease_s, compared)
        _compare_results(state, archive, listing, compared)
        _compare_held(state, held, _Origin(archive, listing, settings.node.name), compared)
        _compare_series(series, settings.intake.quiet_s, lambda: _read(ledger), listing, compared)
    finally:
        ledger.close()
    return compared


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """The ledger's tables at one moment."""

    now: float
    jobs: Mapping[str, Any]
    results: Sequence[Row[Any]]
    series: Mapping[str, Row[Any]]
    """By Orthanc id; of several archives' rows the one that changed last."""


def _read(ledger: Ledger) -> _State:
    job, series = schema.job, schema.series
    wanted = (
        job.c.key,
        job.c.state,
        job.c.archive_id,
        job.c.study_uid,
        job.c.series_uids,
        job.c.model,
        job.c.shadow,
        job.c.lease_owner,
        job.c.lease_until,
    )
    with ledger.read() as connection:
        return _State(
            now=connection.execute(select(now_s())).scalar_one(),
            jobs={row.key: row for row in connection.execute(select(*wanted)).all()},
            results=connection.execute(select(schema.result)).all(),
            series={
                row.orthanc_id: row
                for row in connection.execute(select(series).order_by(series.c.last_instance_at))
            },
        )


def _compare_jobs(state: _State, lease_s: float, compared: Comparison) -> None:
    compared.jobs = len(state.jobs)
    objects = defaultdict(list)
    for result in state.results:
        objects[result.job_key].append(result)
    done = defaultdict(list)
    for key, job in state.jobs.items():
        if job.state == JobState.DONE and not job.shadow:
            done[job.archive_id, job.series_uids, job.model].append(key)
            unproved = sum(result.confirmed_at is None for result in objects[key])
            if unproved or not objects[key]:
                compared.found(
                    "job-unconfirmed",
                    key,
                    f"The job is done, but {unproved or 'none'} of its {len(objects[key])} objects "
                    f"{'lack' if unproved else 'has'} a confirmation; restore the ledger's rows "
                    "from a backup.",
                )
        elif job.state == JobState.RUNNING and (job.lease_until or 0) < state.now - lease_s:
            compared.found(
                "lease-expired",
                key,
                f"The job is running, but the lease of {job.lease_owner} ended long ago and nobody "
                "took it back; see whether Orthanc's plugin runs.",
            )
        roles = Counter(result.role for result in objects[key])
        for role in (role for role, count in roles.items() if count > 1):
            compared.found(
                "result-twice",
                key,
                f"The ledger knows several objects of role {role} for one job; see which one the "
                "archive should keep, and delete the other.",
            )
    for (_, series_uids, model), keys in done.items():
        for key in keys[1:]:
            compared.found(
                "job-twice",
                key,
                f"This job and {keys[0][:12]} are both done with {model} on the series "
                f"{series_uids}, and neither is superseded; only one can hold.",
            )


def _compare_results(
    state: _State, archive: DicomWebArchive, listing: Listing, compared: Comparison
) -> None:
    """Read each stored object back, one at a time."""
    unproved = defaultdict(list)
    for result in state.results:
        job = state.jobs[result.job_key]
        if job.state in OPEN_STATES or job.state == JobState.WITHDRAWN:
            continue
        kept = archive.fetch_instance(job.study_uid, result.series_uid, result.instance_uid)
        if kept is None and not listing.has_study(job.study_uid):
            # images and results went together: retention, or another archive in this one's place
            compared.gone += 1
            continue
        if kept is not None:
            compared.results += 1
            compared.megabytes += len(kept) / 1e6
            if hashlib.sha256(kept).hexdigest() != result.digest:
                compared.found(
                    "result-differs",
                    result.instance_uid,
                    f"The archive holds other bytes than job {result.job_key[:12]} made (SHA-256 "
                    f"{result.digest[:12]}); see what stored them, and restore the {result.role} "
                    "from a backup.",
                )
        if result.confirmed_at is None:
            unproved[result.job_key].append(kept is not None)
        elif kept is None:
            compared.found(
                "result-missing",
                result.instance_uid,
                f"The archive lacks the {result.role} of job {result.job_key[:12]}; restore it "
                "from a backup, unless it was deleted on purpose.",
            )
    for key, present in unproved.items():
        if any(present) and (state.jobs[key].state in RETRIED or not all(present)):
            compared.found(
                "result-unconfirmed" if all(present) else "half-stored",
                key,
                f"The job is {state.jobs[key].state}, and {sum(present)} of its {len(present)} "
                "unconfirmed objects lie in the archive; retry the job, or delete them there.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A SEG or SR of ours in the archive."""

    uid: str
    series: ListedSeries


def _held(series: Sequence[ListedSeries], listing: Listing) -> list[_Held]:
    return [
        _Held(uid=uid, series=each)
        for each in series
        if each.modality in _DERIVED and each.manufacturer == _OURS
        for uid in listing.instances(each.orthanc_id)
    ]


class _Origin:
    """Tells this node's objects from those of other nodes."""

    def __init__(self, archive: DicomWebArchive, listing: Listing, name: str) -> None:
        self._archive = archive
        self._listing = listing
        self._name = name

    def elsewhere(self, held: _Held) -> bool:
        """Return whether an object says that another node made it."""
        study_uid = self._listing.study_uid(held.series.orthanc_id)
        data = self._archive.fetch_instance(study_uid, held.series.series_uid, held.uid)
        if data is None:
            return False
        tags = ["DeviceSerialNumber"]
        head = dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=tags)
        # a name beyond ASCII is written as near as ASCII comes
        return self._name.isascii() and head.get("DeviceSerialNumber") != self._name[:64].strip()


def _compare_held(
    state: _State, held: Sequence[_Held], origin: _Origin, compared: Comparison
) -> None:
    """Look for objects of ours that the ledger does not know, or that the archive has twice."""
    known = {result.instance_uid for result in state.results}
    makers = {derived_uid(key, "series"): key for key in state.jobs}
    for uid, count in Counter(each.uid for each in held).items():
        if count > 1:
            compared.found(
                "result-twice",
                uid,
                f"The archive holds this object in {count} series or studies; see which one the "
                "job was made for, and delete the others.",
            )
    for each in held:
        if each.uid in known:
            continue
        maker = makers.get(each.series.series_uid)
        if maker is None and origin.elsewhere(each):
            compared.foreign += 1
            continue
        made = (
            f"The series is that of job {maker[:12]}, which did not record it"
            if maker
            else "No job of this ledger made it"
        )
        compared.found(
            "result-unknown",
            each.uid,
            f"The archive holds this {each.series.modality} of ours in series "
            f"{each.series.series_uid}. {made}; see where it came from, and delete it there if it "
            "is wrong.",
        )


def _compare_series(
    series: Sequence[ListedSeries],
    quiet_s: float,
    read: Callable[[], _State],
    listing: Listing,
    compared: Comparison,
) -> None:
    """Look for series without a decision; intake gets some seconds for those that just came."""
    compared.series = len(series)
    deadline = time.monotonic() + _INTAKE_S
    while True:
        found = _overlooked(series, quiet_s, read())
        if not found or time.monotonic() > deadline:
            break
        series = [each for each in series if each.orthanc_id in found]
        time.sleep(1)
    for orthanc_id, finding in found.items():
        # it may have been deleted since
        if listing.has_series(orthanc_id):
            compared.findings.append(finding)


def _overlooked(
    series: Sequence[ListedSeries], quiet_s: float, state: _State
) -> dict[str, Finding]:
    with_job = {
        (job.study_uid, uid)
        for job in state.jobs.values()
        if job.state != JobState.SUPERSEDED
        for uid in job.series_uids.split("\\")
    }
    found = {}
    for each in series:
        row = state.series.get(each.orthanc_id)
        fault: tuple[str, str] | None
        if row is None:
            fault = (
                "series-unseen",
                f"The archive has the series, the ledger never saw it; {_SEE}",
            )
        elif row.decided_at is None:
            fault = _undecided(row, state.now - quiet_s - _INTAKE_S)
        else:
            fault = _outdated(
                row, each.instance_count, (row.study_uid, each.series_uid) in with_job
            )
        if fault:
            found[each.orthanc_id] = Finding(code=fault[0], what=each.series_uid, sentence=fault[1])
    return found


def _undecided(row: Row[Any], quiet_since: float) -> tuple[str, str] | None:
    if row.last_instance_at > quiet_since:
        return None
    waits = sorted(v["route"] for v in row.decision or () if v["reason"].startswith("waits"))
    if waits:
        return "series-undecided", (
            f"The series waits for the model of route {', '.join(waits)}; start a worker with it."
        )
    return "series-undecided", f"No image came for long, and nothing was decided; {_SEE}"


def _outdated(row: Row[Any], count: int, has_job: bool) -> tuple[str, str] | None:
    # fewer images are an administrator's act; the decision holds for what was there
    if count > row.instance_count:
        return "series-grew", (
            f"The archive has {count} instances, the decision was made for {row.instance_count}; "
            f"{_SEE}"
        )
    taken = [v["route"] for v in row.decision or () if v["taken"]]
    if taken and not has_job:
        return "job-missing", (
            f"Route {taken[0]} took the series, but the ledger has no job for it; restore the "
            "ledger from a backup."
        )
    return None
