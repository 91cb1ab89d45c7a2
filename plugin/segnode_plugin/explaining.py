"""What the routes say of studies as they lie in the archive now; nothing is started by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from segnode_contract.job import JobState, NewJob
from segnode_contract.ledger import LedgerView
from segnode_contract.ledger.intake import Verdict
from segnode_plugin.deciding import Arrived, Known, decide
from segnode_plugin.facts import Index, SeriesFacts, series_facts

MISSING = "missing"
"""How a job stands that was never made."""
STARTED_ANEW = (MISSING, str(JobState.SUPERSEDED))
"""Jobs that intake makes, or brings back, when their series are decided again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What one route says of one series."""

    facts: SeriesFacts
    route: str
    taken: bool
    reason: str
    job: NewJob | None
    """What it would be, None where the route makes none or its model is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A word as people read it."""

    study_uid: str
    series_uid: str
    series: str
    """Number, modality and description."""
    images: int
    route: str
    taken: bool
    reason: str
    model: str
    priority: str
    shadow: bool
    job: str
    """Key of the job, empty for none."""
    state: str
    """Of that job, or `MISSING`; empty where there is none to be."""


def words_on(
    index: Index,
    study: str,
    known: Known,
    idle_s: Callable[[Collection[str]], float],
    *,
    backlog: bool = False,
) -> list[Word]:
    """Return every route's word on every series of a study (Orthanc id).

    Parameters
    ----------
    idle_s
        As `IntakeLedger.idle_s`.
    backlog
        Say which jobs a replay makes: background work.
    """
    listed = index.get(f"/studies/{study}") or {}
    found = (series_facts(index, each) for each in listed.get("Series", ()))
    series = tuple(sorted((facts for facts in found if facts is not None), key=_by_number))
    verdicts: dict[tuple[str, str], Verdict] = {}
    jobs: dict[tuple[str, str], NewJob] = {}
    images = tuple(facts for facts in series if not known.ours(facts.series_uid))
    idle = idle_s(listed.get("Series", ()))
    for group, trigger in (*(((one,), "series") for one in series), (images, "study")):
        outcome = decide(
            Arrived(
                series=group,
                trigger=trigger,
                came_at=(0.0,) * len(group),
                idle_s=idle,
                backlog=backlog,
            ),
            known,
        )
        for facts, said in zip(group, outcome.verdicts, strict=True):
            verdicts |= {(facts.orthanc_id, one.route): one for one in said}
        jobs |= {(job.route, uid): job for job in outcome.jobs for uid in job.series_uids}
    return [
        Word(
            facts=facts,
            route=route.name,
            taken=verdicts[facts.orthanc_id, route.name].taken,
            reason=verdicts[facts.orthanc_id, route.name].reason,
            job=jobs.get((route.name, facts.series_uid)),
        )
        for facts in series
        for route in known.routes
    ]


def explained(words: Sequence[Word], view: LedgerView) -> list[Explained]:
    """Return words with the state of each job."""
    states = view.states({word.job.key for word in words if word.job})
    return [
        Explained(
            study_uid=word.facts.study_uid,
            series_uid=word.facts.series_uid,
            series=_title(word.facts),
            images=len(word.facts.instance_uids),
            route=word.route,
            taken=word.taken,
            reason=word.reason,
            model=word.job.model if word.job else "",
            priority=word.job.priority.name.lower() if word.job else "",
            shadow=bool(word.job and word.job.shadow),
            job=states.get(word.job.key, (word.job.key, ""))[0] if word.job else "",
            state=states.get(word.job.key, ("", MISSING))[1] if word.job else "",
        )
        for word in words
    ]


def counts(rows: Sequence[Explained]) -> list[tuple[str, int]]:
    """Return how many jobs stand how; what waits for a model, or a series, is no job yet."""
    states = {row.job: row.state for row in rows if row.job}
    found = Counter(states.values())
    found["waiting for a model or a series"] = sum(row.taken and not row.job for row in rows)
    return [(state, count) for state, count in found.most_common() if count]


def to_reopen(words: Sequence[Word], rows: Sequence[Explained], known: Known) -> list[str]:
    """Return the series (Orthanc ids) of a study that intake must decide on again.

    All of its images, since a route may want the whole study; none where no job is missing.
    """
    if not any(row.taken and row.state in STARTED_ANEW for row in rows):
        return []
    series = {word.facts.orthanc_id: word.facts.series_uid for word in words}
    return [orthanc_id for orthanc_id, uid in series.items() if not known.ours(uid)]


def studies_since(studies: Iterable[dict[str, object]], since: datetime) -> Iterator[str]:
    """Give the Orthanc ids of those studies that changed at or after a moment.

    Parameters
    ----------
    studies
        As Orthanc lists them with ``expand``; `LastUpdate` is UTC.
    since
        With its time zone.
    """
    for study in studies:
        try:
            came = datetime.strptime(str(study.get("LastUpdate")), "%Y%m%dT%H%M%S")
        except ValueError:
            continue  # Orthanc knows it of every study
        if came.replace(tzinfo=UTC) >= since:
            yield str(study["ID"])


def _by_number(facts: SeriesFacts) -> tuple[int, str]:
    number = facts.attributes.get("SeriesNumber")
    plain = number.strip() if isinstance(number, str) else ""
    return int(plain) if plain.isascii() and plain.isdigit() else 1 << 31, facts.series_uid


def _title(facts: SeriesFacts) -> str:
    number, words = (facts.attributes.get(key) for key in ("SeriesNumber", "SeriesDescription"))
    parts = (number, facts.modality, words)
    return " ".join(part for part in parts if isinstance(part, str) and part)
