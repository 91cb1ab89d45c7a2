"""From changes in the archive to jobs in the ledger."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Protocol

from segnode_contract.errors import SegnodeError
from segnode_contract.ledger import IntakeLedger
from segnode_contract.ledger.intake import Decision, QuietSeries
from segnode_contract.settings import Settings
from segnode_plugin.facts import SeriesFacts, series_facts
from segnode_plugin.routing import new_job, verdict

log = logging.getLogger(__name__)

_BATCH = 1000


class Archive(Protocol):
    """The archive whose changes are read. `OrthancArchive` in service."""

    def get(self, uri: str) -> Any: ...
    def archive_id(self) -> str: ...


class Intake:
    """Reads changes from the stored cursor, and decides on series that are quiet.

    Orthanc's own stable events are not used: they are lost when it stops early, in every version
    from 1.10.1 to 1.13.0.
    """

    def __init__(self, archive: Archive, ledger: IntakeLedger, settings: Settings) -> None:
        self._archive = archive
        self._ledger = ledger
        self._settings = settings
        self._told: set[str] = set()

    def tick(self) -> None:
        """Note what changed, then decide what is due."""
        archive_id = self._archive.archive_id()
        self._note_changes(archive_id)
        for quiet in self._ledger.quiet(archive_id, self._settings.intake.quiet_s):
            try:
                self._decide(archive_id, quiet)
            except SegnodeError:
                raise
            except Exception as error:  # one series that cannot be read must not hold the others
                # its text may quote a DICOM file
                self._unreadable(quiet.orthanc_id, type(error).__name__)

    def _unreadable(self, orthanc_id: str, error: str) -> None:
        if orthanc_id not in self._told:
            self._told.add(orthanc_id)
            log.warning("series not decided", extra={"orthanc_id": orthanc_id, "error": error})

    def _note_changes(self, archive_id: str) -> None:
        cursor = self._ledger.cursor(archive_id)
        last = self._archive.get("/changes?last")["Last"]
        if cursor is None or cursor > last:
            every = self._archive.get("/series")
            log.info("archive read from the start", extra={"series": len(every)})
            self._ledger.note(archive_id, last, every)
            return
        while cursor < last:
            page = self._archive.get(f"/changes?since={cursor}&limit={_BATCH}")
            cursor = page["Last"]
            self._ledger.note(archive_id, cursor, self._touched(page["Changes"]))
            if page["Done"]:
                return

    def _touched(self, changes: list[dict[str, Any]]) -> list[str]:
        new = {change["ID"] for change in changes if change["ChangeType"] == "NewInstance"}
        found = (self._archive.get(f"/instances/{orthanc_id}") for orthanc_id in new)
        return sorted({instance["ParentSeries"] for instance in found if instance})

    def _decide(self, archive_id: str, quiet: QuietSeries) -> None:
        facts = series_facts(self._archive, quiet.orthanc_id)
        if facts is None:
            self._ledger.forget(archive_id, quiet.orthanc_id)
            return
        for key in self._ledger.decide(archive_id, self._decision(quiet, facts)):
            log.info("job queued", extra={"job_key": key})

    def _decision(self, quiet: QuietSeries, facts: SeriesFacts) -> Decision:
        routes = self._settings.routes
        verdicts = tuple(verdict(route, facts) for route in routes)
        if self._ledger.own_series(facts.series_uid):
            verdicts = tuple(replace(v, taken=False, reason="a result of ours") for v in verdicts)
        models = self._ledger.models()
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
