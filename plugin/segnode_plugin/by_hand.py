"""A model run on one series because somebody asks for it, whatever the routes say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segnode_contract.card import Card
from segnode_contract.form import form_of
from segnode_contract.job import NewJob, Priority
from segnode_contract.ledger.intake import AnnouncedModel
from segnode_contract.route import Route
from segnode_plugin.deciding import card_of, new_job
from segnode_plugin.facts import SeriesFacts
from segnode_plugin.route_file import Rules
from segnode_plugin.routing import verdict

BY_HAND = "by hand"
"""What such a job has in place of its route's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A model, and whether it can be run on a series."""

    model: AnnouncedModel
    card: Card | None
    why_not: str
    """Empty where it can."""


def offers(facts: SeriesFacts, models: Mapping[str, AnnouncedModel]) -> list[Offer]:
    """Return every announced model, those that fit the series first."""
    found = [_offer(facts, model) for model in models.values()]
    return sorted(found, key=lambda offer: (bool(offer.why_not), offer.model.name))


def job_by_hand(
    facts: SeriesFacts,
    offer: Offer,
    rules: Rules,
    *,
    priority: Priority,
    came_at: tuple[float | None, float],
) -> NewJob:
    """Make the job of a model that fits.

    Its result is shown behind those of all routes; it goes to the workers to which the first route
    of this model goes. What a route made of the same images has the same key.

    Parameters
    ----------
    came_at
        When the first image came, None for not known, and when the last one came.
    """
    if offer.card is None or offer.why_not:
        raise ValueError(offer.why_not)
    lanes = [route.lane for route in rules.routes if route.model == offer.model.name]
    return new_job(
        len(rules.routes),
        _route(offer.model.name, offer.card, lanes[0] if lanes else "default"),
        [facts],
        (),
        offer.model,
        form=form_of(offer.card, rules.form),
        priority=priority,
        first_instance_at=came_at[0],
        last_instance_at=came_at[1],
    )


def _offer(facts: SeriesFacts, model: AnnouncedModel) -> Offer:
    card = card_of(model)
    return Offer(model=model, card=card, why_not=_why_not(facts, model.name, card))


def _why_not(facts: SeriesFacts, name: str, card: Card | None) -> str:
    if card is None:
        return "its card is of another version of segnode"
    if card.inputs:
        roles = ", ".join(one.role for one in card.inputs)
        return f"it takes several series together ({roles}), which only a route can choose"
    if card.builds_on:
        return f"it builds on the result of {card.builds_on}, which only a route can give it"
    said = verdict(_route(name, card, "default"), facts, min_slices=card.min_slices)
    return "" if said.taken else said.reason


def _route(name: str, card: Card, lane: str) -> Route:
    """Return a route that takes whatever the model itself can take."""
    return Route(
        name=BY_HAND,
        model=name,
        modality=card.modality,
        derived=True,
        scouts=True,
        copies=True,
        lane=lane,
    )
