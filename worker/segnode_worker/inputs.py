"""What a model is given: the images, other series laid on them, a result that it builds on."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from segnode_contract.card import Card
from segnode_contract.errors import ModelFailed, ProofFailed, UnsuitableSeries
from segnode_contract.form import Form
from segnode_worker.attributes import BROKEN
from segnode_worker.decoded import Held, read_held, slice_of
from segnode_worker.stack import Stack, stack_series, stacks_of_series

_LEAST_COVERED = 0.5
_HALF = 0.501
"""Of a voxel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorResult:
    """The segmentation on which a model builds."""

    card: Card
    """Of the model that made it."""
    data: bytes
    """A Part 10 file of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What the archive gave for one job."""

    files: Sequence[bytes]
    """The instances of the series that the result lies on, Part 10 files in any order."""
    others: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    """Those of the other series, by role."""
    role: str = ""
    """What the first series is to the model, where it takes several."""
    prior: PriorResult | None = None

    @property
    def every_file(self) -> list[bytes]:
        """The instances of all series."""
        return [*self.files, *(file for files in self.others.values() for file in files)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a model is given, all on the grid of `stack.volume`."""

    stack: Stack
    others: Mapping[str, NDArray[np.float32]]
    """Modality values of the other series, by role."""
    prior: NDArray[np.uint8] | None
    """Label planes of the result that the model builds on, by the card of who made it."""
    digest: str
    """SHA-256 of all of it."""
    limitations: tuple[str, ...]
    """Sentences on what of all these series is not as it should be."""


def stack_inputs(fetched: Fetched, card: Card) -> list[Inputs]:
    """Stack what was fetched; one for each stack of the first series.

    Raises
    ------
    UnsuitableSeries
        If a series is no volume, or they do not fit the card or each other.
    BrokenInstance
        If a file does not parse or decode.
    ModelFailed
        If the result to build on cannot be read.
    """
    _check_roles(fetched, card)
    modalities = {one.role: one.modality for one in card.inputs}
    stacks = stacks_of_series(
        fetched.files,
        min_slices=card.min_slices,
        modality=card.modality,
        largest_gap_mm=card.largest_gap_mm,
    )
    if len(stacks) > 1 and fetched.prior is not None:
        raise UnsuitableSeries(
            f"The series holds {len(stacks)} stacks of slices, and the model {card.name}, which "
            "builds on the result of another, takes one; the scanner must send each as a series of "
            "its own.",
            code="several-stacks",
        )
    others = {
        role: stack_series(files, min_slices=2, modality=modalities[role])
        for role, files in fetched.others.items()
    }
    every = [_inputs(stacks[0], others, fetched.prior)]
    notes = []
    for number, stack in enumerate(stacks[1:], 2):
        try:
            every.append(_inputs(stack, others, fetched.prior))
        except UnsuitableSeries as error:
            notes.append(f"Stack {number} of the series was not segmented: {error.sentence}")
    return [replace(one, limitations=(*one.limitations, *notes)) for one in every]


def _inputs(stack: Stack, others: Mapping[str, Stack], prior: PriorResult | None) -> Inputs:
    digest = hashlib.sha256(stack.digest.encode())
    laid = {}
    for role, other in others.items():
        laid[role] = laid_on(other.volume, stack.volume, role)
        digest.update(f"{role} {other.digest}".encode())
    labels = None
    if prior is not None:
        labels = labels_of(prior, stack)
        digest.update(labels.data)
    alone = not laid and labels is None
    return Inputs(
        stack=stack,
        others=laid,
        prior=labels,
        digest=stack.digest if alone else digest.hexdigest(),
        limitations=(
            *stack.limitations,
            *(f"Series '{role}': {said}" for role, o in others.items() for said in o.limitations),
        ),
    )


def digest_of(every: Sequence[Inputs]) -> str:
    """Return the SHA-256 of what a model is given for all stacks of a series."""
    if len(every) == 1:
        return every[0].digest
    return hashlib.sha256(" ".join(inputs.digest for inputs in every).encode()).hexdigest()


def _check_roles(fetched: Fetched, card: Card) -> None:
    given = [role for role in (fetched.role, *fetched.others) if role]
    takes = [one.role for one in card.inputs]
    needs = {one.role for one in card.inputs if not one.optional}
    if given[:1] != takes[:1] or not needs <= set(given) <= set(takes):
        raise UnsuitableSeries(
            f"The model {card.name} takes {', '.join(takes) or 'one series'}, and the route gives "
            f"{', '.join(given) or 'one series'}; mend the route's series.",
            code="wrong-roles",
        )
    if bool(card.builds_on) != (fetched.prior is not None) or (
        fetched.prior is not None and fetched.prior.card.name != card.builds_on
    ):
        has = fetched.prior.card.name if fetched.prior else "no other model"
        raise UnsuitableSeries(
            f"The model {card.name} builds on the result of {card.builds_on or 'no other model'}, "
            f"and the route gives that of {has}; mend the route's 'after'.",
            code="wrong-prior",
        )


def laid_on(volume: hd.Volume, grid: hd.Volume, role: str) -> NDArray[np.float32]:
    """Return a volume's values on another's grid, trilinear between voxels' centres.

    Outside of the volume's voxels lies its least value. Nothing is registered: both must have been
    acquired in one frame of reference (PS3.3 C.7.4.1).

    Parameters
    ----------
    volume, grid
        In LPS millimetres, each with its own affine.

    Returns
    -------
    numpy.ndarray
        Shape of `grid`, axes ``(slices, rows, columns)``.

    Raises
    ------
    UnsuitableSeries
        If they have different frames of reference, or the volume covers too little of the grid.
    """
    if volume.frame_of_reference_uid != grid.frame_of_reference_uid:
        raise UnsuitableSeries(
            f"The series '{role}' has another Frame of Reference UID than the first one; they "
            "cannot be laid on each other without registration. Let the route choose series of one "
            "acquisition.",
            code="other-frame",
        )
    to_index = np.linalg.inv(volume.affine) @ grid.affine
    values = volume.array.astype(np.float32)
    laid: NDArray[np.float32] = affine_transform(
        values,
        to_index[:3, :3],
        offset=to_index[:3, 3],
        output_shape=grid.spatial_shape,
        order=1,
        mode="nearest",
    )
    covered, least = 0, values.min()
    for number in range(len(laid)):
        inside = _inside(to_index, number, laid.shape[1:], volume.spatial_shape)
        laid[number][~inside] = least
        covered += int(np.count_nonzero(inside))
    if covered < _LEAST_COVERED * laid.size:
        raise UnsuitableSeries(
            f"The series '{role}' covers {covered / laid.size:.0%} of the first one; at least "
            f"{_LEAST_COVERED:.0%} is needed. Let the route choose a series of the same region.",
            code="apart",
        )
    return laid


def _inside(
    to_index: NDArray[np.float64],
    number: int,
    plane: tuple[int, ...],
    size: tuple[int, ...],
) -> NDArray[np.bool_]:
    """Return which pixels of a slice of the grid lie in a voxel of the other volume.

    A voxel reaches half its size beyond its centre, and a little more for what rounding does.
    """
    rows, columns = np.arange(plane[0])[:, None], np.arange(plane[1])[None, :]
    inside = np.ones(plane, np.bool_)
    for axis, count in enumerate(size):
        by_slice, by_row, by_column, start = to_index[axis]
        index = by_slice * number + by_row * rows + by_column * columns + start
        inside &= (index >= -_HALF) & (index <= count - 1 + _HALF)
    return inside


def labels_of(prior: PriorResult, stack: Stack) -> NDArray[np.uint8]:
    """Return the label planes that a segmentation of ours holds, binary or a label map.

    Returns
    -------
    numpy.ndarray
        Shape ``(planes, slices, rows, columns)``, on the grid of `stack.volume`.

    Raises
    ------
    ModelFailed
        If it is not of these images.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values, which may be a patient's
            made = read_held(prior.data)
            labels = _labels(made, prior.card, stack)
    except (ProofFailed, *BROKEN) as error:
        raise ModelFailed(
            f"The result of {prior.card.name} that the model builds on is not one of these images; "
            "`segnode verify` compares it with the ledger."
        ) from error
    return stack.on_grid(labels)


def _labels(made: Held, card: Card, stack: Stack) -> NDArray[np.uint8]:
    """Return what it holds on the slices of the stack."""
    named = {
        image.ReferencedSOPInstanceUID
        for series in made.head.ReferencedSeriesSequence
        for image in series.ReferencedInstanceSequence
    }
    if named != {source.uid for source in stack.sources}:
        raise ValueError("other images")
    labels = np.zeros((card.planes, *stack.values.shape), np.uint8)
    positions = np.array([source.position for source in stack.sources])
    places = [slice_of(frame, positions, stack.sources) for frame in made.frames]
    if made.head.SegmentationType == Form.LABELMAP:
        values = np.zeros(256, np.uint8)
        for segment in card.segments:
            values[segment.number] = segment.value
        for numbers, place in zip(made.numbers(), places, strict=True):
            labels[0, place] = values[numbers]
        return labels
    segments = {segment.number: segment for segment in card.segments}
    for number, (place, frame) in enumerate(zip(places, made.frames, strict=True)):
        segment = segments[frame.segment or 0]
        bits = made.bits(number).reshape(labels.shape[2:])
        labels[segment.plane, place][bits] = segment.value
    return labels
