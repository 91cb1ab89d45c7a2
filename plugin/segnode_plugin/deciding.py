"""From the facts of series to verdicts and jobs, route by route."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from segnode_contract.card import Card, parse_card
from segnode_contract.errors import CardError
from segnode_contract.form import AUTO, Form, form_of
from segnode_contract.identity import content_digest, job_key
from segnode_contract.job import NewJob, Priority
from segnode_contract.ledger.intake import AnnouncedModel, Verdict
from segnode_contract.route import PriorityRule, Route
from segnode_plugin.choosing import Choice, choose, fits
from segnode_plugin.clauses import refusal
from segnode_plugin.facts import SeriesFacts

_OURS = "a result of ours"
_MODALITY = 16  # CS of PS3.5 6.2 has no more
_NO_MODEL = "waits: no worker has announced the model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """Series to be decided on: one that is quiet, or all of a study that is."""

    series: tuple[SeriesFacts, ...]
    trigger: str
    """As `Route.trigger`: which routes decide."""
    came_at: tuple[float, ...]
    """When the last instance of each came, by the ledger's clock."""
    began_at: tuple[float | None, ...] = ()
    """When the first instance of each came; nothing where nobody asks."""
    idle_s: float = 0.0
    """How long ago the last instance of all came."""
    backlog: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a decision needs to know beside the series."""

    routes: Sequence[Route]
    priorities: Sequence[PriorityRule]
    models: Mapping[str, AnnouncedModel]
    ours: Callable[[str], bool]
    """Whether a Series Instance UID is that of a result of ours."""
    form: str = AUTO
    """As of `form_of`."""
    quote: bool = False
    """As of `routing.verdict`."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What was decided."""

    verdicts: list[list[Verdict]]
    """For each series, one of each route that decided."""
    jobs: list[NewJob] = field(default_factory=list)
    """A job on which another builds comes before it."""
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """Why series that a route takes have no job of it, or none yet."""

    reason: str
    waits: bool


_Made = dict[tuple[str, tuple[str, ...]], "NewJob | _Held"]
"""By route, and Series Instance UIDs."""


def decide(arrived: Arrived, known: Known) -> Outcome:
    """Decide on series by all routes of one trigger.

    A route that wants the whole study says at a single series whether that one would fit. One
    model runs on the same series once: of several routes that differ in what it builds on, the
    first decides.
    """
    outcome = Outcome(verdicts=[[] for _ in arrived.series])
    made: _Made = {}
    ours = {f.series_uid for f in arrived.series if known.ours(f.series_uid)}
    for rank, route in enumerate(known.routes):
        if arrived.trigger == "series" and route.trigger == "study":
            choice = _later(route, arrived, known)
        else:  # at a study the others' jobs are looked at as well, since some may build on them
            choice = choose(
                route,
                arrived.series,
                arrived.idle_s,
                min_slices=_min_slices(route, known),
                quote=known.quote,
            )
        verdicts, decides = list(choice.verdicts), route.trigger == arrived.trigger
        for group in choice.groups:
            uids = tuple(facts.series_uid for facts in group)
            if not ours.isdisjoint(uids):
                continue
            job = _job(rank, group, choice.roles, arrived, known, made)
            made[route.name, uids] = job
            if isinstance(job, _Held):
                outcome.waits |= job.waits and decides
                for place, facts in enumerate(arrived.series):
                    if facts.series_uid in uids:
                        verdicts[place] = replace(
                            verdicts[place], taken=job.waits, reason=job.reason
                        )
            elif decides:
                first = made.get((route.after, uids))
                if isinstance(first, NewJob) and first not in outcome.jobs:
                    # of a route that decides on series; its job may be of an older model still
                    outcome.jobs.append(first)
                outcome.jobs.append(job)
        outcome.waits |= choice.waits and decides
        if decides or arrived.trigger == "series":
            for place, said in enumerate(verdicts):
                own = arrived.series[place].series_uid in ours
                outcome.verdicts[place].append(
                    replace(said, taken=False, reason=_OURS) if own else said
                )
    return outcome


def _later(route: Route, arrived: Arrived, known: Known) -> Choice:
    """Say of single series whether they fit; the choice is made when the study is complete."""
    least = _min_slices(route, known)
    said = [fits(route, facts, min_slices=least, quote=known.quote) for facts in arrived.series]
    return Choice(
        verdicts=tuple(
            replace(one, reason=f"{one.reason}; waits until the study is complete")
            if one.taken
            else one
            for one in said
        )
    )


def _min_slices(route: Route, known: Known) -> int:
    model = known.models.get(route.model)
    card = card_of(model) if model else None
    return card.min_slices if card else 0


def card_of(model: AnnouncedModel) -> Card | None:
    """Return the card of a model, None for one that cannot be read here."""
    return _parsed(model.card)


@lru_cache(maxsize=64)  # one decision asks for every route's
def _parsed(text: str) -> Card | None:
    try:
        return parse_card(text, where="card")
    except CardError:
        return None


def _job(  # noqa: PLR0917 # a job, and all that decides about it
    rank: int,
    group: Sequence[SeriesFacts],
    roles: tuple[str, ...],
    arrived: Arrived,
    known: Known,
    made: _Made,
) -> NewJob | _Held:
    route = known.routes[rank]
    model = known.models.get(route.model)
    if model is None:
        return _Held(reason=_NO_MODEL, waits=True)
    series_uids = tuple(facts.series_uid for facts in group)
    first = made.get((route.after, series_uids)) if route.after else None
    if route.after and first is None:
        reason = f"the route '{route.after}', after which it comes, does not take this series"
        return _Held(reason=reason, waits=False)
    if isinstance(first, _Held):
        return replace(first, reason=f"comes after '{route.after}': {first.reason}")
    places = [place for place, f in enumerate(arrived.series) if f.series_uid in series_uids]
    began_at = [at for place in places for at in arrived.began_at[place : place + 1] if at]
    job = new_job(
        rank,
        route,
        group,
        roles,
        model,
        form=_form(model, known.form),
        builds_on=first.key if first else "",
        priority=_priority(route, known.priorities, group[0], backlog=arrived.backlog),
        first_instance_at=min(began_at, default=None),
        last_instance_at=max(arrived.came_at[place] for place in places),
    )
    for (name, uids), other in made.items():
        if (
            isinstance(other, NewJob)
            and uids == series_uids
            and (other.model, other.shadow) == (job.model, job.shadow)
            and other.key != job.key
        ):
            reason = f"the route '{name}' above runs this model on it already"
            return _Held(reason=reason, waits=False)
    return job


def new_job(
    rank: int,
    route: Route,
    group: Sequence[SeriesFacts],
    roles: tuple[str, ...],
    model: AnnouncedModel,
    *,
    form: Form,
    builds_on: str = "",
    priority: Priority = Priority.ROUTINE,
    first_instance_at: float | None = None,
    last_instance_at: float,
) -> NewJob:
    """Make the job of a route for series that it took together."""
    instance_uids = [uid for facts in group for uid in facts.instance_uids]
    parameters: dict[str, object] = {}
    if roles:
        parameters["roles"] = list(roles)
        parameters["series"] = [facts.series_uid for facts in group]
    if route.shadow:
        parameters["shadow"] = True
    return NewJob(
        key=job_key(
            series_uids=[facts.series_uid for facts in group],
            instance_uids=instance_uids,
            model=model.name,
            model_digest=model.digest,
            parameters=parameters,
            form=form,
            builds_on=[builds_on] if builds_on else (),
        ),
        study_uid=group[0].study_uid,
        series_uids=tuple(facts.series_uid for facts in group),
        roles=roles,
        content=content_digest(instance_uids),
        instance_count=len(instance_uids),
        route=route.name,
        route_rank=rank,
        model=model.name,
        model_version=model.version,
        model_digest=model.digest,
        lane=route.lane,
        modality=group[0].modality[:_MODALITY],
        first_instance_at=first_instance_at,
        last_instance_at=last_instance_at,
        priority=priority,
        builds_on=builds_on,
        alone=bool(route.prefer or route.series),
        shadow=route.shadow,
        form=form,
    )


def _form(model: AnnouncedModel, setting: str) -> Form:
    card = card_of(model)
    return form_of(card, setting) if card else Form.BINARY


def _priority(
    route: Route, rules: Sequence[PriorityRule], facts: SeriesFacts, *, backlog: bool
) -> Priority:
    if backlog:
        return Priority.BACKGROUND
    if route.priority:
        return Priority[route.priority.upper()]
    for rule in rules:
        if refusal(rule.where, facts) is None:
            return Priority[rule.priority.upper()]
    return Priority.ROUTINE
