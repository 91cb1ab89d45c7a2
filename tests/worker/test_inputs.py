"""Several series on one grid, and a result that another model builds on."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from scipy.spatial.transform import Rotation

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.card import Card, InputSeries
from segnode_contract.errors import ModelFailed, UnsuitableSeries
from segnode_contract.findings import Findings
from segnode_worker.inputs import Fetched, PriorResult, digest_of, labels_of, laid_on, stack_inputs
from segnode_worker.segmentation import ResultIdentity, encode
from segnode_worker.stack import Stack, stack_series

from .conftest import SPACING_MM, Made

SLOPE = np.array([1.0, 2.0, -3.0])
"""HU per millimetre towards left, posterior and head: trilinear between voxels without error."""


def ramp(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    turn_deg: tuple[float, float, float] = (0, 0, 0),
) -> hd.Volume:
    """Return a volume about the origin whose values are `SLOPE` times the position."""
    turned = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    axes = turned @ (np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]) * spacing_mm)
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -axes @ ((np.array(shape) - 1) / 2)
    volume = hd.Volume(
        np.zeros(shape, np.float32), affine, coordinate_system="PATIENT", frame_of_reference_uid="1"
    )
    return volume.with_array(at(volume))


def at(volume: hd.Volume) -> NDArray[np.float32]:
    index = np.indices(volume.spatial_shape).reshape(3, -1)
    position = volume.affine[:3, :3] @ index + volume.affine[:3, 3:]
    return (SLOPE @ position).reshape(volume.spatial_shape).astype(np.float32)


@pytest.mark.parametrize(
    ("spacing_mm", "turn_deg"),
    [
        ((2.0, 1.0, 1.0), (0, 0, 0)),
        ((1.3, 0.7, 0.9), (0, 0, 0)),
        ((1.0, 1.0, 1.0), (20, -35, 50)),
        ((1.0, 1.0, 1.0), (0, 90, 0)),
        ((1.0, 1.0, 1.0), (0, 0, 180)),
    ],
    ids=["coarse", "anisotropic", "oblique", "sagittal", "flipped"],
)
def test_another_series_is_laid_on_the_first_by_millimetres(
    spacing_mm: tuple[float, float, float], turn_deg: tuple[float, float, float]
) -> None:
    grid = ramp((9, 14, 12), (2.0, 1.0, 1.5))
    other = ramp((60, 60, 60), spacing_mm, turn_deg)
    assert np.abs(laid_on(other, grid, "t1") - at(grid)).max() < 1e-3


@pytest.mark.parametrize("seed", range(20))
def test_a_series_on_the_very_same_grid_is_laid_as_it_is(seed: int) -> None:
    dice = np.random.default_rng(seed)
    turn = tuple(dice.uniform(-180, 180, 3))
    grid = ramp((6, 9, 8), (2.0, 0.7, 0.9), (turn[0], turn[1], turn[2]))
    shifted = grid.affine.copy()
    shifted[:3, 3] += dice.uniform(-300, 300, 3)
    grid = hd.Volume(grid.array, shifted, coordinate_system="PATIENT", frame_of_reference_uid="1")
    grid = grid.with_array(at(grid))
    rounded = hd.Volume(
        grid.array, shifted.round(6), coordinate_system="PATIENT", frame_of_reference_uid="1"
    )
    for other in (grid, rounded):
        assert np.abs(laid_on(other, grid, "t1") - grid.array).max() < 0.01


def test_outside_of_a_series_lies_its_least_value() -> None:
    grid, small = ramp((9, 40, 40), (1.0, 1.0, 1.0)), ramp((9, 30, 30), (1.0, 1.0, 1.0))
    laid = laid_on(small, grid, "t1")
    assert laid[4, 0, 0] == small.array.min()
    assert abs(laid[4, 20, 20] - at(grid)[4, 20, 20]) < 1e-3


def test_another_frame_of_reference_is_refused() -> None:
    grid = ramp((4, 4, 4), (1.0, 1.0, 1.0))
    other = hd.Volume(
        grid.array, grid.affine, coordinate_system="PATIENT", frame_of_reference_uid="2"
    )
    with pytest.raises(UnsuitableSeries, match="without registration") as raised:
        laid_on(other, grid, "flair")
    assert raised.value.code == "other-frame"


def test_a_series_that_covers_less_than_half_is_refused() -> None:
    grid, small = ramp((9, 40, 40), (1.0, 1.0, 1.0)), ramp((9, 20, 20), (1.0, 1.0, 1.0))
    with pytest.raises(UnsuitableSeries, match="covers 25% of the first one") as raised:
        laid_on(small, grid, "flair")
    assert raised.value.code == "apart"


def test_a_series_of_another_place_is_refused() -> None:
    grid = ramp((4, 4, 4), (1.0, 1.0, 1.0))
    far = grid.affine.copy()
    far[2, 3] += 500
    other = hd.Volume(grid.array, far, coordinate_system="PATIENT", frame_of_reference_uid="1")
    with pytest.raises(UnsuitableSeries) as raised:
        laid_on(other, grid, "flair")
    assert raised.value.code == "apart"


def two(card: Card, *, optional: bool = False) -> Card:
    inputs = (
        InputSeries(role="native", modality="CT", optional=False),
        InputSeries(role="late", modality="CT", optional=optional),
    )
    return replace(card, inputs=inputs)


@pytest.fixture
def late(series: list[Dataset], hu: NDArray[np.int16]) -> list[Dataset]:
    """Other images of the same patient in the same frame: the body is brighter by 100 HU."""
    brighter = np.where(hu > -500, hu + 100, hu).astype(np.int16)
    images = ct_series(brighter, spacing_mm=SPACING_MM, orientation="FPL", seed="late")
    for image in images:
        image.FrameOfReferenceUID = series[0].FrameOfReferenceUID
        image.StudyInstanceUID = series[0].StudyInstanceUID
    return images


def files(images: list[Dataset]) -> list[bytes]:
    return [as_file(image) for image in images]


def test_two_series_reach_the_model_voxel_upon_voxel(
    series: list[Dataset], late: list[Dataset], card: Card
) -> None:
    fetched = Fetched(files=files(series), others={"late": files(late)}, role="native")
    [inputs] = stack_inputs(fetched, two(card))
    native = inputs.stack.volume.array.astype(np.float32)
    difference = inputs.others["late"] - native
    assert np.abs(difference[native > -500] - 100).max() < 1e-2
    assert np.abs(difference[native <= -500]).max() < 1e-2


def test_what_is_wrong_with_another_series_is_said_too(
    series: list[Dataset], late: list[Dataset], card: Card
) -> None:
    for number, image in enumerate(late):
        image.ImagePositionPatient[1] += 0.5 * number
    fetched = Fetched(files=files(series), others={"late": files(late)}, role="native")
    [inputs] = stack_inputs(fetched, two(card))
    [said] = inputs.limitations
    assert said.startswith("Series 'late': The slices are stacked 9.5 degrees aside")


def test_the_digest_is_of_all_that_a_model_is_given(
    series: list[Dataset], late: list[Dataset], card: Card
) -> None:
    both = Fetched(files=files(series), others={"late": files(late)}, role="native")
    late[3].PixelData = bytes(len(late[3].PixelData))
    other = Fetched(files=files(series), others={"late": files(late)}, role="native")
    alone = Fetched(files=files(series), role="native")
    model = two(card, optional=True)
    digests = {digest_of(stack_inputs(each, model)) for each in (both, other, alone)}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("role", "others", "optional", "said"),
    [
        ("", False, False, "takes native, late, and the route gives one series"),
        ("native", False, False, "the route gives native"),
        ("late", False, True, "the route gives late"),
        ("native", True, False, None),
        ("native", False, True, None),
    ],
)
def test_a_route_that_gives_other_series_than_the_card_says_is_refused(
    series: list[Dataset],
    late: list[Dataset],
    card: Card,
    role: str,
    others: bool,
    optional: bool,
    said: str | None,
) -> None:
    more = {"late": files(late)} if others else {}
    fetched = Fetched(files=files(series), others=more, role=role)
    if said is None:
        assert set(stack_inputs(fetched, two(card, optional=optional))[0].others) == set(more)
        return
    with pytest.raises(UnsuitableSeries, match=said) as raised:
        stack_inputs(fetched, two(card, optional=optional))
    assert raised.value.code == "wrong-roles"


def test_a_result_is_read_back_as_the_labels_that_it_was_made_from(made: Made) -> None:
    found = labels_of(PriorResult(card=made.card, data=made.data), made.stack)
    assert found.any()
    assert np.array_equal(found, made.labels)


def test_a_result_is_read_back_on_images_that_come_in_another_order(
    made: Made, series: list[Dataset]
) -> None:
    again = stack_series(files(series[::-1]))
    found = labels_of(PriorResult(card=made.card, data=made.data), again)
    assert np.array_equal(found, made.labels)


def test_an_empty_result_is_read_back_as_nothing(
    stack: Stack, card: Card, identity: ResultIdentity
) -> None:
    nothing = np.zeros((2, *stack.volume.spatial_shape), np.uint8)
    data = b"".join(encode(stack, nothing, card, Findings(), identity, datetime(2026, 2, 3)))
    assert not labels_of(PriorResult(card=card, data=data), stack).any()


def test_the_result_of_other_images_is_refused(made: Made, late: list[Dataset]) -> None:
    with pytest.raises(ModelFailed, match="not one of these images"):
        labels_of(PriorResult(card=made.card, data=made.data), stack_series(files(late)))


@pytest.mark.parametrize("needs", ["", "another", "test-tissue"])
def test_a_model_gets_the_result_that_its_card_asks_for_and_no_other(
    made: Made, series: list[Dataset], card: Card, needs: str
) -> None:
    prior = PriorResult(card=made.card, data=made.data)
    fetched = Fetched(files=files(series), prior=prior)
    model = replace(card, name="then", builds_on=needs)
    if needs == made.card.name:
        found = stack_inputs(fetched, model)[0].prior
        assert found is not None
        assert np.array_equal(found, made.labels)
        return
    with pytest.raises(UnsuitableSeries, match="the route gives that of test-tissue"):
        stack_inputs(fetched, model)


def test_a_model_that_builds_on_another_is_not_run_without_it(
    series: list[Dataset], card: Card
) -> None:
    with pytest.raises(UnsuitableSeries, match="gives that of no other model"):
        stack_inputs(Fetched(files=files(series)), replace(card, builds_on="test-tissue"))
