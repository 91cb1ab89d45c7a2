"""Routes: which series go to which model, when, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segnode_contract.condition import Condition
from segnode_contract.errors import SettingsError
from segnode_contract.job import Priority
from segnode_contract.spelling import hint

TRIGGERS = ("series", "study")
PREFERENCES = (
    "thin_slices",
    "soft_kernel",
    "sharp_kernel",
    "without_contrast",
    "with_contrast",
    "most_images",
    "largest_coverage",
)
MISSING = ("discard", "proceed")
PRIORITIES = tuple(priority.name.lower() for priority in Priority)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequiredSeries:
    """One of the series that a model takes together; what the route says holds for it too."""

    role: str
    """As the model's card calls it."""
    modality: str = ""
    """Another one than the route's."""
    where: Condition | None = None
    prefer: tuple[str, ...] = ()
    """Which one, where several fit, as `Route.prefer`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Send series that satisfy every condition to `model`."""

    name: str
    model: str
    modality: str
    min_instances: int = 1
    body_parts: tuple[str, ...] = ()
    """Body Part Examined must be one of these; empty takes any."""
    derived: bool = False
    """Take derived series too: reformatted, projected, captured."""
    scouts: bool = False
    """Take CT and MR series too that their words call a localizer; not those of Image Type
    LOCALIZER."""
    copies: bool = False
    """Take anonymised or modified copies made in Orthanc too."""
    where: Condition | None = None
    """What else must hold, see `condition`."""
    trigger: str = "series"
    """``study`` decides when the whole study has come, with all its series in view."""
    prefer: tuple[str, ...] = ()
    """The best series of the study only, by these, in order; empty takes every one that fits."""
    series: tuple[RequiredSeries, ...] = ()
    """Series of one study that make one job together; the result lies on the first."""
    wait_s: float = 600.0
    """How long after the study's last image a required series is waited for."""
    missing: str = "discard"
    """What then: ``discard``, or ``proceed`` with those that are there."""
    after: str = ""
    """Route above, whose result on the same series the model builds on."""
    priority: str = ""
    """``stat``, ``routine`` or ``background``; empty takes what `PriorityRule`s say."""
    shadow: bool = False
    """Run, measure and record, and keep the result out of the archive."""
    lane: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityRule:
    """Jobs of series for which `where` holds have `priority`, unless their route has its own."""

    priority: str
    where: Condition


def check_routes(routes: Sequence[Route], rules: Sequence[PriorityRule]) -> None:
    """Refuse routes that contradict themselves or each other.

    Raises
    ------
    SettingsError
        Naming the route, by its number from 1.
    """
    for number, rule in enumerate(rules, 1):
        _known(rule.priority, PRIORITIES, f"[[priorities]] {number}", "priority")
    for number, route in enumerate(routes, 1):
        where = f"[[routes]] {number}"
        _known(route.trigger, TRIGGERS, where, "trigger")
        _known(route.missing, MISSING, where, "missing")
        _known(route.priority or "routine", PRIORITIES, where, "priority")
        if route.wait_s < 0:
            raise SettingsError(f"{where} wait_s is {route.wait_s:g}; it cannot be negative.")
        _check_choice(route, where)
        _check_after(route, routes[: number - 1], where)
        _check_model(route, routes[: number - 1], where)


def _check_choice(route: Route, where: str) -> None:
    for word in route.prefer:
        _known(word, PREFERENCES, where, "prefer")
    for what in ("prefer", "series"):
        if getattr(route, what) and route.trigger != "study":
            raise SettingsError(
                f"{where} has '{what}', which needs the whole study in view; "
                'add trigger = "study".'
            )
    if route.series and route.prefer:
        raise SettingsError(f"{where} has 'prefer' beside 'series'; each series has its own.")
    roles = [one.role for one in route.series]
    for number, one in enumerate(route.series, 1):
        for word in one.prefer:
            _known(word, PREFERENCES, f"{where} series {number}", "prefer")
        if not one.role.isidentifier() or one.role in roles[: number - 1]:
            raise SettingsError(
                f"{where} series {number} has the role '{one.role}'; each needs one word of its "
                "own."
            )


def _check_after(route: Route, above: Sequence[Route], where: str) -> None:
    if not route.after:
        return
    first = next((one for one in above if one.name == route.after), None)
    if first is None:
        names = [one.name for one in above]
        raise SettingsError(
            f"{where} after is '{route.after}', which is no route above it"
            f"{hint(route.after, names)}."
        )
    if first.shadow:
        raise SettingsError(
            f"{where} after is '{route.after}', whose results are kept out of the archive."
        )
    if first.series or route.series:
        raise SettingsError(
            f"{where} has 'after', and one of both routes takes several series; a result is "
            "built upon within one series."
        )
    if first.trigger == "study" and route.trigger != "study":
        raise SettingsError(
            f"{where} after is '{route.after}', which decides on whole studies; add "
            'trigger = "study" here too.'
        )


def _check_model(route: Route, above: Sequence[Route], where: str) -> None:
    for other in above:
        same = (route.model, route.shadow) == (other.model, other.shadow)
        if same and route.after != other.after and route.trigger != other.trigger:
            raise SettingsError(
                f"{where} runs the model of '{other.name}', on the result of another route and at "
                "another moment, so that each would take the other's place; give both the same "
                "trigger."
            )


def _known(word: str, known: Sequence[str], where: str, key: str) -> None:
    if word not in known:
        raise SettingsError(
            f"{where} {key} is '{word}'; one of {', '.join(known)} is needed{hint(word, known)}."
        )
