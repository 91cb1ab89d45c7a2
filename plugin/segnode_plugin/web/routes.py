"""The pages of routes: what they are, what they say of a study, what they want of older ones."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Protocol

from flask import Blueprint, Response, abort, redirect, render_template, request
from werkzeug.wrappers import Response as Redirect

from segnode_contract.condition import Condition
from segnode_contract.errors import SettingsError
from segnode_contract.ledger import IntakeLedger, LedgerView
from segnode_contract.ledger.intake import AnnouncedModel
from segnode_contract.settings import Settings
from segnode_plugin.access import UID
from segnode_plugin.clauses import describe
from segnode_plugin.deciding import Known, card_of
from segnode_plugin.explaining import (
    STARTED_ANEW,
    Explained,
    Word,
    counts,
    explained,
    studies_since,
    to_reopen,
    words_on,
)
from segnode_plugin.facts import Index
from segnode_plugin.route_check import Complaint, Dictionary, check_routes
from segnode_plugin.route_file import RouteFile

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_STUDIES = 20_000
"""So many studies are looked at for one page at most,"""
_PATIENCE_S = 4.0
"""or as many as this time allows,"""
_ROWS = 500
"""or until so many jobs are found."""
_MOST = 10_000_000


class Archive(Index, Dictionary, Protocol):
    """The archive of these pages. `OrthancArchive` in service."""

    def archive_id(self) -> str: ...
    def studies_named(self, study_uid: str) -> list[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What was seen of some of the archive's studies."""

    rows: list[Explained]
    again: list[str] = field(default_factory=list)
    """Series to be decided again, so that what is missing is made."""
    looked_at: int
    """Studies of the archive's list, from the first of this page."""
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePages:
    """What the pages are made from."""

    archive: Archive
    file: RouteFile
    intake: IntakeLedger
    view: LedgerView
    settings: Settings

    def blueprint(self) -> Blueprint:
        """Make the pages."""
        pages = Blueprint("routes", __name__, url_prefix="/segnode")
        pages.add_app_template_filter(_in_words, "in_words")
        pages.get("/routes")(self.routes)
        pages.get("/studies/<uid>/explain")(self.explain)
        pages.get("/replay")(self.replay)
        pages.post("/replay", endpoint="start")(self.start)
        return pages

    def routes(self) -> str:
        """Show the routes that are followed, and what is wrong in their file."""
        rules = self.file()
        return render_template(
            "routes.html",
            rules=rules,
            since=self.file.since,
            path=self.file.path.name,
            trouble=self.file.trouble,
            complaints=self._complaints(),
            models=self._models(),
        )

    def explain(self, uid: str) -> str:
        """Show what the routes say of a study now."""
        studies = self.archive.studies_named(uid) if re.fullmatch(UID, uid) else []
        known = self._known()
        words = [word for each in studies for word in self._words(each, known)]
        if not studies:
            abort(404)
        rows = explained(words, self.view)
        series = [(key, list(group)) for key, group in groupby(rows, lambda row: row.series_uid)]
        return render_template("explain.html", uid=uid, series=series)

    def replay(self) -> str:
        """Show which jobs the routes want of studies since a day."""
        since, first = _asked(request.args.get)
        found = None
        if since is not None:
            found = self._replayed(since, first, _STUDIES, _PATIENCE_S)
        return render_template(
            "replay.html",
            since=since or datetime.now(UTC) - timedelta(days=1),
            first=first,
            found=found,
            counts=counts(found.rows) if found else [],
            started=request.args.get("started", -1, int),
            missing=sum(row.state in STARTED_ANEW for row in found.rows) if found else 0,
        )

    def start(self) -> Redirect | Response:
        """Give the series whose jobs are missing back to intake."""
        since, first = _asked(request.form.get)
        count = request.form.get("count", 0, int)
        if since is None or not 0 < count <= _STUDIES:
            abort(400)
        again = self._replayed(since, first, count, _PATIENCE_S * 10).again
        if again:
            self.intake.reopen(self.archive.archive_id(), again, request.remote_user or "")
        day = since.strftime("%Y-%m-%d")
        return redirect(f"/segnode/replay?since={day}&first={first}&started={len(again)}")

    def _replayed(self, since: datetime, first: int, count: int, patience_s: float) -> Replayed:
        """Look at studies from the end of the archive's list, where the newest stand."""
        listed = (self.archive.get("/studies") or [])[::-1][first : first + count]
        known, looked_at = self._known(), 0
        rows: list[Explained] = []
        again: list[str] = []
        enough = time.monotonic() + patience_s
        for each in listed:
            if time.monotonic() > enough or len(rows) > _ROWS:
                break
            looked_at += 1
            study = self.archive.get(f"/studies/{each}")
            for one in studies_since([study] if study else [], since):
                words = self._words(one, known, backlog=True)
                found = explained(words, self.view)
                rows += [row for row in found if row.taken]
                again += to_reopen(words, found, known)
        more = looked_at < len(listed) or len(listed) == count
        return Replayed(rows=rows, again=again, looked_at=looked_at, more=more)

    def _words(self, study: str, known: Known, *, backlog: bool = False) -> list[Word]:
        return words_on(self.archive, study, known, self.intake.idle_s, backlog=backlog)

    def _known(self) -> Known:
        rules = self.file()
        return Known(
            routes=rules.routes,
            priorities=rules.priorities,
            form=rules.form,
            models=self._models(),
            ours=self.intake.own_series,
            quote=True,
        )

    def _models(self) -> dict[str, AnnouncedModel]:
        return self.intake.models(self.settings.limits.lease_s)

    def _complaints(self) -> list[Complaint]:
        cards = {name: card_of(model) for name, model in self._models().items()}
        try:
            return check_routes(self.file.path, self.archive, cards)
        except SettingsError as error:
            return [Complaint(line=0, column=0, sentence=error.sentence)]


def _asked(get: Callable[..., str | None]) -> tuple[datetime | None, int]:
    """Return the day (UTC) from which on studies are asked for, and the first one of the list."""
    day, first = get("since") or "", get("first") or "0"
    try:
        since = datetime.fromisoformat(f"{day}T00:00Z") if _DAY.fullmatch(day) else None
    except ValueError:
        since = None
    return since, min(int(first), _MOST) if first.isascii() and first.isdigit() else 0


def _in_words(condition: Condition) -> str:
    words = describe(condition)
    return words[1:-1] if words.startswith("(") and words.endswith(")") else words
