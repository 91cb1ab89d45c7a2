"""From changes in the archive to jobs in the ledger."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from segnode_contract.errors import SegnodeError
from segnode_contract.ledger import IntakeLedger
from segnode_contract.ledger.intake import Decision, QuietSeries
from segnode_contract.settings import Route, Settings
from segnode_plugin.facts import Index, SeriesFacts, series_facts
from segnode_plugin.routing import new_job, verdict

log = logging.getLogger(__name__)

_BATCH = 1000
_NEVER = float("-inf")
_TICK_S = 2.0
"""Deciding on a long row of series is broken off after this long, for changes that came since."""
_ASK_AGAIN_S = 5.0
"""How often a series that waits for a model, or cannot be read, is looked at."""


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
        routes: Callable[[], Sequence[Route]] | None = None,
    ) -> None:
        self._archive = archive
        self._ledger = ledger
        self._settings = settings
        self._routes = routes or (lambda: settings.routes)
        self._asked: dict[QuietSeries, float] = {}
        """Series that stay undecided, and when they were looked at."""
        self._unread: set[str] = set()
        """Instances that the archive could not read when they came."""
        self._rescan_at = _NEVER

    def tick(self) -> None:
        """Note what changed, then decide what is due."""
        self._routes()  # a broken file is told of at once
        archive_id = self._archive.archive_id()
        self._note_changes(archive_id)
        if self._unread:
            self._read_again(archive_id)
        self._rescan(archive_id)
        for key in self._ledger.replace_stranded(self._settings.limits.lease_s):
            log.info("job to be made for another model version", extra={"job_key": key})
        quiet = self._ledger.quiet(archive_id, self._settings.intake.quiet_s)
        self._asked = {one: self._asked.get(one, _NEVER) for one in quiet}
        enough = time.monotonic() + _TICK_S
        for one in quiet:
            if time.monotonic() > enough:
                return  # new changes first
            if time.monotonic() - self._asked[one] >= _ASK_AGAIN_S:
                self._try_to_decide(archive_id, one)

    def _try_to_decide(self, archive_id: str, quiet: QuietSeries) -> None:
        first = self._asked[quiet] == _NEVER
        self._asked[quiet] = time.monotonic()
        try:
            self._decide(archive_id, quiet)
        except SegnodeError:
            raise
        except Exception as error:  # one series that cannot be read must not hold the others
            if first:
                # its text may quote a DICOM file
                about = {"orthanc_id": quiet.orthanc_id, "error": type(error).__name__}
                log.warning("series not decided", extra=about)

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
            self._ledger.note(archive_id, last, every)
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
        return sorted(found), unread

    def _read(self, uri: str) -> Any:
        """Return what the archive says, None where it fails at this one: the others go on."""
        try:
            return self._archive.get(uri)
        except Exception as error:  # Orthanc's own, which is not known here
            log.warning("not read", extra={"uri": uri, "error": type(error).__name__})
            return None

    def _decide(self, archive_id: str, quiet: QuietSeries) -> None:
        facts = series_facts(self._archive, quiet.orthanc_id)
        if facts is None:
            self._ledger.forget(archive_id, quiet.orthanc_id)
            return
        for key in self._ledger.decide(archive_id, self._decision(quiet, facts)):
            log.info("job queued", extra={"job_key": key})

    def _decision(self, quiet: QuietSeries, facts: SeriesFacts) -> Decision:
        routes = self._routes()
        verdicts = tuple(verdict(route, facts) for route in routes)
        if self._ledger.own_series(facts.series_uid):
            verdicts = tuple(replace(v, taken=False, reason="a result of ours") for v in verdicts)
        models = self._ledger.models(self._settings.limits.lease_s)
        present = {route.name for route in routes if route.model in models}
        waits = [v.route for v in verdicts if v.taken and v.route not in present]
        verdicts = tuple(
            replace(v, reason="waits: no worker has announced the model") if v.route in waits else v
            for v in verdicts
        )
        taken = [n for n, v in enumerate(verdicts) if v.taken and v.route in present]
        return Decision(
            orthanc_id=quiet.orthanc_id,
            last_instance_at=quiet.last_instance_at,
            study_uid=facts.study_uid,
            series_uid=facts.series_uid,
            instance_count=len(facts.instance_uids),
            verdicts=verdicts,
            jobs=tuple(
                new_job(
                    routes[rank], rank, facts, models[routes[rank].model], quiet.last_instance_at
                )
                for rank in taken
            ),
            final=not waits,
        )
