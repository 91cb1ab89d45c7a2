"""From changes in the archive to jobs in the ledger."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from segnode_contract.errors import SegnodeError
from segnode_contract.ledger import IntakeLedger
from segnode_contract.ledger.intake import (
    Decision,
    OpenStudy,
    QuietSeries,
    SeriesOfStudy,
    StudyDecision,
)
from segnode_contract.settings import Settings
from segnode_plugin.deciding import Arrived, Known, decide
from segnode_plugin.facts import Index, SeriesFacts, series_facts
from segnode_plugin.route_file import Rules, rules_of

log = logging.getLogger(__name__)

_BATCH = 1000
_NEVER = float("-inf")
_TICK_S = 2.0
"""Deciding on a long row of series is broken off after this long, for changes that came since."""
_ASK_AGAIN_S = 5.0
"""How often a series that waits for a model, or cannot be read, is looked at; a study too."""
_STUDY_AGAIN_S = 0.5
"""How soon a study is looked at again of which an image may just have come."""
_KEPT = ("SOPInstanceUID", "ImagePositionPatient", "ImageOrientationPatient")
"""What is kept of each instance until its series is decided."""
_ARRIVED_KEPT = 5000
"""Of so many series; a series that is not kept is read once more."""
_FACTS_KEPT = 1000
"""Facts of so many series are kept for when they, or their study, are decided on again."""


class Archive(Index, Protocol):
    """The archive whose changes are read. `OrthancArchive` in service."""

    def archive_id(self) -> str: ...


class Intake:
    """Reads changes from the stored cursor, and decides on series that are quiet.

    Orthanc's own stable events are not used: they are lost when it stops early, in every version
    from 1.10.1 to 1.13.0. Its changes can be deleted, so that its list of series is compared with
    the ledger's at the start and now and then.
    """

    def __init__(
        self,
        archive: Archive,
        ledger: IntakeLedger,
        settings: Settings,
        rules: Callable[[], Rules] | None = None,
    ) -> None:
        self._archive = archive
        self._ledger = ledger
        self._settings = settings
        self._rules = rules or (lambda: rules_of(settings))
        self._asked: dict[QuietSeries, float] = {}
        """Series that stay undecided, and when they were looked at."""
        self._unread: set[str] = set()
        """Instances that the archive could not read when they came."""
        self._arrived: dict[str, dict[str, dict[str, Any]]] = {}
        """What was read of instances as they came, by Orthanc ids of series and instance."""
        self._facts: dict[str, tuple[float, SeriesFacts]] = {}
        """By Orthanc id, with the time of the last instance."""
        self._waiting: set[QuietSeries] = set()
        """Series that were decided and will be again: their model is not there yet."""
        self._look_at: dict[OpenStudy, float] = {}
        """When undecided studies are looked at next."""
        self._rescan_at = _NEVER

    def tick(self) -> None:
        """Note what changed, then decide what is due."""
        self._rules()  # a broken file is told of at once
        archive_id = self._archive.archive_id()
        self._note_changes(archive_id)
        if self._unread:
            self._read_again(archive_id)
        self._rescan(archive_id)
        for key in self._ledger.replace_stranded(self._settings.limits.lease_s):
            log.info("job to be made for another model version", extra={"job_key": key})
        self._decide_series(archive_id)
        self._decide_studies(archive_id)

    def _decide_series(self, archive_id: str) -> None:
        quiet = self._ledger.quiet(archive_id, self._settings.intake.quiet_s)
        self._asked = {one: self._asked.get(one, _NEVER) for one in quiet}
        self._waiting &= self._asked.keys()
        enough = time.monotonic() + _TICK_S
        # those that were never looked at first: the others wait for a model, say
        for one in sorted(quiet, key=self._asked.__getitem__):
            if time.monotonic() > enough:
                return  # new changes first
            if time.monotonic() - self._asked[one] >= _ASK_AGAIN_S:
                first = self._asked[one] == _NEVER
                self._asked[one] = time.monotonic()
                with _apart("series not decided", one.orthanc_id, told=not first):
                    self._decide(archive_id, one)

    def _decide_studies(self, archive_id: str) -> None:
        studies = self._ledger.open_studies(archive_id)
        self._look_at = {one: self._look_at.get(one, _NEVER) for one in studies}
        enough = time.monotonic() + _TICK_S
        for one in sorted(studies, key=self._look_at.__getitem__):
            if time.monotonic() > enough:
                return
            if time.monotonic() >= self._look_at[one]:
                first = self._look_at[one] == _NEVER
                self._look_at[one] = time.monotonic() + _ASK_AGAIN_S
                with _apart("study not decided", one.orthanc_id, told=not first):
                    again_s = self._decide_study(archive_id, one)
                    self._look_at[one] = time.monotonic() + again_s

    def _rescan(self, archive_id: str) -> None:
        """Find series and instances whose changes were never read."""
        if time.monotonic() < self._rescan_at:
            return
        self._rescan_at = time.monotonic() + _ASK_AGAIN_S  # should this one fail
        listed = self._archive.get("/series")
        recent = self._ledger.recent(archive_id, self._settings.intake.rescan_days * 86400)
        missed = [
            *self._ledger.unlisted(archive_id, listed),
            *self._with_other_count(recent.items()),
        ]
        if missed:
            self._ledger.touch(archive_id, missed)
            log.warning("changes were missed", extra={"series": len(missed)})
        self._rescan_at = time.monotonic() + self._settings.intake.rescan_s

    def _with_other_count(self, recent: Iterable[tuple[str, int]]) -> list[str]:
        found = [(one, count, self._read(f"/series/{one}")) for one, count in recent]
        return [one for one, count, series in found if series and len(series["Instances"]) != count]

    def _note_changes(self, archive_id: str) -> None:
        cursor = self._ledger.cursor(archive_id)
        last = self._archive.get("/changes?last")["Last"]
        if cursor is None:
            every = self._archive.get("/series")
            log.info("archive read from the start", extra={"series": len(every)})
            self._ledger.note(archive_id, last, every, backlog=True)
            return
        if cursor > last:  # changes, or the newest resources, were deleted
            self._ledger.note(archive_id, last, [])
            self._rescan_at = _NEVER
            return
        while cursor < last:
            page = self._archive.get(f"/changes?since={cursor}&limit={_BATCH}")
            cursor = page["Last"]
            self._ledger.note(archive_id, cursor, self._touched(page["Changes"]))
            if page["Done"]:
                return

    def _touched(self, changes: list[dict[str, Any]]) -> list[str]:
        new = {change["ID"] for change in changes if change["ChangeType"] == "NewInstance"}
        if len(self._arrived) > _ARRIVED_KEPT:
            self._arrived.clear()
        found, unread = self._series_of(new)
        self._unread |= unread
        return found

    def _read_again(self, archive_id: str) -> None:
        """Ask again for instances that could not be read: the cursor has passed them."""
        found, unread = self._series_of(self._unread)
        if found:
            self._ledger.touch(archive_id, found)
        self._unread = unread

    def _series_of(self, instances: Iterable[str]) -> tuple[list[str], set[str]]:
        """Return the series of instances that are there, and those that could not be read."""
        found, unread = set(), set()
        for orthanc_id in instances:
            try:
                instance = self._archive.get(f"/instances/{orthanc_id}")
            except Exception as error:  # Orthanc's own, which is not known here
                if orthanc_id not in self._unread:
                    about = {"orthanc_id": orthanc_id, "error": type(error).__name__}
                    log.warning("instance not read", extra=about)
                unread.add(orthanc_id)
                continue
            if instance:  # not deleted meanwhile
                found.add(instance["ParentSeries"])
                tags = instance["MainDicomTags"]
                kept = {keyword: tags[keyword] for keyword in _KEPT if keyword in tags}
                self._arrived.setdefault(instance["ParentSeries"], {})[orthanc_id] = kept
        return sorted(found), unread

    def _read(self, uri: str) -> Any:
        """Return what the archive says, None where it fails at this one: the others go on."""
        try:
            return self._archive.get(uri)
        except Exception as error:  # Orthanc's own, which is not known here
            log.warning("not read", extra={"uri": uri, "error": type(error).__name__})
            return None

    def _decide(self, archive_id: str, quiet: QuietSeries) -> None:
        began = time.monotonic()
        facts = self._facts_of(quiet)
        if facts is None:
            self._ledger.forget(archive_id, quiet.orthanc_id)
            return
        arrived = Arrived(
            series=(facts,),
            trigger="series",
            began_at=(quiet.first_instance_at,),
            came_at=(quiet.last_instance_at,),
            backlog=quiet.backlog,
        )
        known = self._known()
        outcome = decide(arrived, known)
        whole = any(route.trigger == "study" for route in known.routes)
        # a series that waits for its model does not open its study again and again
        again = quiet in self._waiting
        whole = whole and not again and not known.ours(facts.series_uid)
        decision = Decision(
            orthanc_id=quiet.orthanc_id,
            last_instance_at=quiet.last_instance_at,
            study_uid=facts.study_uid,
            series_uid=facts.series_uid,
            instance_count=len(facts.instance_uids),
            verdicts=tuple(outcome.verdicts[0]),
            jobs=tuple(outcome.jobs),
            final=not outcome.waits,
            study=facts.study_orthanc_id if whole else "",
        )
        made = self._ledger.decide(archive_id, decision)
        if outcome.waits:
            self._waiting.add(quiet)
        else:
            self._waiting.discard(quiet)
            if not decision.study:
                self._facts.pop(quiet.orthanc_id, None)
        _log("series decided", quiet.orthanc_id, made, time.monotonic() - began)

    def _known(self) -> Known:
        rules = self._rules()
        return Known(
            routes=rules.routes,
            priorities=rules.priorities,
            form=rules.form,
            models=self._ledger.models(self._settings.limits.lease_s),
            ours=self._ledger.own_series,
        )

    def _decide_study(self, archive_id: str, study: OpenStudy) -> float:
        """Decide by the routes that want the whole study; return when to look again."""
        began = time.monotonic()
        listed = self._archive.get(f"/studies/{study.orthanc_id}")
        if listed is None:
            self._ledger.forget_study(archive_id, study.orthanc_id)
            return 0.0
        noted = self._ledger.series_of_study(archive_id, listed["Series"])
        images = [one for one in noted if not one.ours]
        if not images and noted:
            self._ledger.forget_study(archive_id, study.orthanc_id)
            return 0.0
        idle_s = min((one.idle_s for one in images), default=0.0)
        quiet_s = max(self._settings.intake.study_quiet_s, self._settings.intake.quiet_s)
        if idle_s < quiet_s or len(noted) < len(listed["Series"]):
            return max(quiet_s - idle_s, _STUDY_AGAIN_S)
        found = [(one, self._facts_of(one)) for one in images]
        there = [(one, facts) for one, facts in found if facts is not None]
        arrived = Arrived(
            series=tuple(facts for _, facts in there),
            trigger="study",
            began_at=tuple(one.first_instance_at for one, _ in there),
            came_at=tuple(one.last_instance_at for one, _ in there),
            idle_s=idle_s,
            backlog=all(one.backlog for one in images),
        )
        outcome = decide(arrived, self._known())
        decision = StudyDecision(
            orthanc_id=study.orthanc_id,
            changed_at=study.changed_at,
            verdicts={
                one.orthanc_id: tuple(verdicts)
                for (one, _), verdicts in zip(there, outcome.verdicts, strict=True)
            },
            jobs=tuple(outcome.jobs),
            final=not outcome.waits,
        )
        made = self._ledger.decide_study(archive_id, decision)
        if made or not outcome.waits:
            _log("study decided", study.orthanc_id, made, time.monotonic() - began)
        if not outcome.waits:
            waiting = {one.orthanc_id for one in self._waiting}
            for one in images:
                if one.orthanc_id not in waiting:
                    self._facts.pop(one.orthanc_id, None)
        return _ASK_AGAIN_S

    def _facts_of(self, one: QuietSeries | SeriesOfStudy) -> SeriesFacts | None:
        """Return a series' facts, those read before where nothing came or went since."""
        at, facts = self._facts.get(one.orthanc_id, (_NEVER, None))
        if facts is not None and at == one.last_instance_at:
            now = self._archive.get(f"/series/{one.orthanc_id}")
            if now and len(now["Instances"]) == len(facts.instance_uids):
                uid = facts.series_uid
                others = self._archive.series_named(uid) if uid else []
                return replace(facts, namesakes=max(len(others) - 1, 0))
        read = series_facts(self._archive, one.orthanc_id, self._arrived.pop(one.orthanc_id, None))
        self._facts.pop(one.orthanc_id, None)
        if read is not None:
            self._facts[one.orthanc_id] = (one.last_instance_at, read)
        if len(self._facts) > _FACTS_KEPT:
            del self._facts[next(iter(self._facts))]  # the oldest
        return read


def _log(what: str, orthanc_id: str, made: Sequence[str], seconds: float) -> None:
    about = {"orthanc_id": orthanc_id, "ms": round(seconds * 1000, 1), "jobs": len(made)}
    log.info(what, extra=about)
    for key in made:
        log.info("job queued", extra={"job_key": key})


@contextmanager
def _apart(what: str, orthanc_id: str, *, told: bool) -> Iterator[None]:
    """Keep one resource that cannot be read from holding the others up."""
    try:
        yield
    except SegnodeError:
        raise
    except Exception as error:  # Orthanc's own; its text may quote a DICOM file
        if not told:
            about = {"orthanc_id": orthanc_id, "error": type(error).__name__}
            log.warning(what, extra=about)
