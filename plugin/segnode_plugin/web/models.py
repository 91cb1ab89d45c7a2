"""The models that workers announced: cards, where they are loaded, and how they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flask import Blueprint, abort, render_template

from segnode_contract.card import Card
from segnode_contract.job import JobState, Stage
from segnode_contract.ledger.statistics import Buckets, ModelRow, Statistics
from segnode_contract.ledger.tally import LATENCY, OUTCOMES
from segnode_contract.workers import SILENT_S
from segnode_plugin.web.colour import colours_of
from segnode_plugin.web.days import RANGES, asked_days, day_text
from segnode_plugin.web.holders import Holder, alive, holders
from segnode_plugin.web.plots import plot_of
from segnode_plugin.web.site import Site
from segnode_plugin.web.timing import Times, times_of

_DAYS = 30
"""What the list counts."""
_LINES = ("p50", "p95")


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A model's version, and who offers or holds it."""

    row: ModelRow
    offered: bool
    """Whether a worker announced it lately, so that jobs of it can run."""
    holders: tuple[Holder, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """How runs of a model ended that are not tried again by themselves."""

    done: int
    failed: int
    dead: int

    @property
    def success(self) -> float | None:
        """Return the share of results, None where no run ended."""
        ended = self.done + self.failed + self.dead
        return self.done / ended if ended else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A model as a line of the list."""

    newest: Version
    others: int
    """How many other versions were announced."""
    card: Card | None
    ends: Ends
    infer: Times
    whole: Times


def pages(site: Site) -> Blueprint:
    """Make the list, and the page of one model."""
    blueprint = Blueprint("models", __name__, url_prefix="/segnode")
    blueprint.add_app_template_filter(day_text, "day")

    @blueprint.get("/models")
    def models() -> str:
        return _list(site)

    @blueprint.get("/models/<name>")
    def model(name: str) -> str:
        return _model(site, name)

    return blueprint


def _list(site: Site) -> str:
    statistics = Statistics(site.ledger)
    days = statistics.last_days(_DAYS)
    tallied = statistics.by_model(days, (Stage.INFER, LATENCY, *OUTCOMES))
    versions = _versions(site, statistics.models())
    view = site.view
    return render_template(
        "models.html",
        models=[
            _listed(found, view.card(name, found[0].row.digest), tallied.get(name, {}))
            for name, found in versions.items()
        ],
        days=days,
        refusals=[w for w in alive(view.workers(), view.now()) if w.detail],
    )


def _listed(
    versions: Sequence[Version], card: Card | None, tallied: Mapping[str, Buckets]
) -> Listed:
    return Listed(
        newest=versions[0],
        others=len(versions) - 1,
        card=card,
        ends=_ends(tallied),
        infer=times_of(tallied.get(Stage.INFER, {})),
        whole=times_of(tallied.get(LATENCY, {})),
    )


def _ends(tallied: Mapping[str, Buckets]) -> Ends:
    def count(outcome: JobState) -> int:
        return sum(tallied.get(outcome, {}).values())

    return Ends(done=count(JobState.DONE), failed=count(JobState.FAILED), dead=count(JobState.DEAD))


def _model(site: Site, name: str) -> str:
    statistics = Statistics(site.ledger)
    versions = _versions(site, statistics.models()).get(name)
    if versions is None:
        abort(404)
    days = asked_days(statistics)
    card = site.view.card(name, versions[0].row.digest)
    by_day = statistics.by_day(days, (*Stage, LATENCY, *OUTCOMES), name)
    times = _times(by_day)
    return render_template(
        "model.html",
        name=name,
        versions=versions,
        card=card,
        network=_network(card),
        colours=colours_of(card) if card else {},
        days=days,
        ranges=RANGES,
        ends={day: _ends(measures) for day, measures in by_day.items()},
        times=times,
        drawn={measure: plot_of(days, found, _LINES) for measure, found in times.items()},
    )


def _versions(site: Site, rows: Sequence[ModelRow]) -> dict[str, list[Version]]:
    """Return the versions of each model, of each the one first that is offered now."""
    view = site.view
    now = view.now()
    held = holders(alive(view.workers(), now))
    found: dict[str, list[Version]] = {}
    for row in rows:
        version = Version(
            row=row,
            offered=now - row.announced_at < SILENT_S,
            holders=tuple(h for h in held if h.model == row.name and h.digest == row.digest[:12]),
        )
        found.setdefault(row.name, []).append(version)
    # much as intake takes them: what no worker offers counts where there is no other only
    return {name: sorted(each, key=lambda v: not v.offered) for name, each in found.items()}


def _times(by_day: Mapping[int, Mapping[str, Buckets]]) -> dict[str, dict[int, Times]]:
    """Return the times by measure and day; the whole first, then stages in their order."""
    times = {
        measure: {
            day: times_of(found[measure]) for day, found in by_day.items() if measure in found
        }
        for measure in (LATENCY, *map(str, Stage))
    }
    return {measure: found for measure, found in times.items() if found}


def _network(card: Card | None) -> dict[str, Any]:
    """Return what the card says of the network, by name; nothing for a built-in model."""
    told = asdict(card.network) if card and card.network else {}
    return {name.replace("_", " "): value for name, value in told.items() if value is not None}
