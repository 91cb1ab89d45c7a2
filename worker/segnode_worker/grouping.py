"""Which slices of a series belong together: a series may hold several stacks.

Another orientation, size or spacing makes another stack, and so does what lies at one place twice:
the phases of a contrast study, the echoes or b-values of an MR.
"""

from __future__ import annotations

from collections.abc import Sequence

from segnode_worker.geometry import alike, check_plane, doubled
from segnode_worker.slices import Slice
from segnode_worker.suitable import unsuitable

_MOST_STACKS = 4


def stacks_in(slices: Sequence[Slice], min_slices: int) -> tuple[list[list[Slice]], list[str]]:
    """Return the stacks that have enough slices, the largest first, and what was left out.

    Parameters
    ----------
    slices
        Of one series, in any order, localizers left out.
    min_slices
        What the model needs.

    Returns
    -------
    tuple
        The stacks, each a list of slices in any order, and a sentence for every smaller one.

    Raises
    ------
    UnsuitableSeries
        With the code ``geometry``, ``mixed-series``, ``too-few-slices`` or ``several-stacks``.
    """
    slices = sorted(slices, key=lambda one: one.name)
    for one in slices:
        check_plane(one)
    _check_one_series(slices)
    stacks = [part for stack in _by_plane(slices) for part in _by_phase(stack)]
    stacks.sort(key=lambda stack: (-len(stack), _name(stack)))
    enough = [stack for stack in stacks if len(stack) >= min_slices]
    if not enough:
        raise unsuitable(
            "too-few-slices",
            f"has {len(stacks[0])} slices that form a stack, and the model needs {min_slices}",
        )
    if len(enough) > _MOST_STACKS:
        raise unsuitable(
            "several-stacks",
            f"holds {len(enough)} stacks of slices that differ {_difference(enough)}; up to "
            f"{_MOST_STACKS} are segmented, so a route must choose, or the scanner send each as a "
            "series of its own",
        )
    return enough, [_left_out(stack, enough[0], min_slices) for stack in stacks[len(enough) :]]


def _check_one_series(slices: Sequence[Slice]) -> None:
    first = slices[0].image
    for what in ("series", "study"):
        own = getattr(first, f"{what}_uid")
        others = {getattr(one.image, f"{what}_uid") for one in slices} - {own}
        if others:
            raise unsuitable(
                "mixed-series",
                f"is no single one: its images are of the {what} {own} and of {min(others)}",
            )


def _by_plane(slices: Sequence[Slice]) -> list[list[Slice]]:
    stacks: list[list[Slice]] = []
    for one in slices:
        for stack in stacks:
            if not alike(stack[0], one):
                stack.append(one)
                break
        else:
            stacks.append([one])
    return stacks


def _by_phase(stack: list[Slice]) -> list[list[Slice]]:
    """Split slices that lie at one place by the first attribute that tells all of them apart."""
    if not doubled(stack):
        return [stack]
    for keyword in stack[0].phase:
        phases: dict[str, list[Slice]] = {}
        for one in stack:
            phases.setdefault(one.phase.get(keyword, ""), []).append(one)
        if len(phases) > 1 and not any(doubled(phase) for phase in phases.values()):
            return list(phases.values())
    return [stack]  # `arrange` names the place


def _name(stack: Sequence[Slice]) -> str:
    return min(one.name for one in stack)


def _difference(stacks: Sequence[Sequence[Slice]]) -> str:
    """Say how the first two differ."""
    first, second = stacks[0][0], stacks[1][0]
    plane = alike(first, second)
    if plane:
        return f"in {plane}"
    for keyword, value in first.phase.items():
        if value != second.phase.get(keyword):
            return f"in {keyword}"
    return "in nothing that is known"


def _left_out(stack: Sequence[Slice], main: Sequence[Slice], min_slices: int) -> str:
    return (
        f"{len(stack)} images of the series were not segmented: they differ "
        f"{_difference([main, stack])} from the others, and are fewer than {min_slices}."
    )
