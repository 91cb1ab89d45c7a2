"""How slices lie, on phantoms with a known answer and on real scans."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread

from segnode_plugin.shape import Shape, shape_of

DATA = Path(__file__).parents[3] / "shared" / "data"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
TILTED = (1.0, 0.0, 0.0, 0.0, 0.9483, 0.3173)  # by 18.5 degrees
OBLIQUE = (1.0, 0.0, 0.0, 0.0, 0.7071, 0.7071)


def tags(
    cosines: tuple[float, ...], *positions: tuple[float, float, float]
) -> list[dict[str, str]]:
    return [
        {
            "ImageOrientationPatient": "\\".join(map(str, cosines)),
            "ImagePositionPatient": "\\".join(map(str, position)),
        }
        for position in positions
    ]


@pytest.mark.parametrize(
    ("cosines", "orientation", "obliquity"),
    [
        (AXIAL, "AXIAL", 0.0),
        (CORONAL, "CORONAL", 0.0),
        (SAGITTAL, "SAGITTAL", 0.0),
        (TILTED, "AXIAL", 18.5),
        (OBLIQUE, "OBLIQUE", 45.0),
    ],
    ids=["axial", "coronal", "sagittal", "tilted", "oblique"],
)
def test_orientation_is_that_of_the_normal(
    cosines: tuple[float, ...], orientation: str, obliquity: float
) -> None:
    shape = shape_of(tags(cosines, (0, 0, 0)))
    assert shape is not None
    assert shape.orientation == orientation
    assert shape.obliquity_deg == pytest.approx(obliquity, abs=0.05)
    assert shape.slice_spacing_mm is None


def test_spacing_gap_and_coverage_come_from_positions_in_any_order() -> None:
    at = (7.5, 0.0, 2.5, 15.0, 5.0, 2.5)  # 10 and 12.5 are missing, 2.5 is there twice
    shape = shape_of(tags(AXIAL, *((0.0, 0.0, z) for z in at)))
    assert shape == Shape(
        orientation="AXIAL",
        obliquity_deg=0.0,
        slice_spacing_mm=2.5,
        largest_gap_mm=7.5,
        coverage_mm=17.5,
    )


@pytest.mark.parametrize(
    "text", ["", "1\\2", "a\\b\\c\\d\\e\\f", "nan\\0\\0\\0\\1\\0", "1\\0\\0\\1\\0\\0"]
)
def test_an_orientation_that_is_none_has_no_shape(text: str) -> None:
    assert shape_of([{"ImageOrientationPatient": text, "ImagePositionPatient": "0\\0\\0"}]) is None


def test_images_in_several_orientations_have_no_shape() -> None:
    """A three-plane localizer, say."""
    images = tags(AXIAL, (0, 0, 0), (0, 0, 5)) + tags(SAGITTAL, (0, 0, 0))
    assert shape_of(images) is None
    assert shape_of(images[::-1]) is None


def test_a_real_tilted_head_is_axial_with_a_gap_of_seven_millimetres() -> None:
    folder = DATA / "qact-ge-tilt"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here")
    images = [dcmread(p, stop_before_pixels=True) for p in folder.rglob("*") if p.suffix == ".dcm"]
    placed = [i for i in images if "ImagePositionPatient" in i]
    shape = shape_of(
        {
            name: "\\".join(str(float(v)) for v in image[name].value)
            for name in ("ImageOrientationPatient", "ImagePositionPatient")
        }
        for image in placed
    )
    assert shape is not None
    assert shape.orientation == "AXIAL"
    assert shape.obliquity_deg == pytest.approx(18.5, abs=0.1)
    assert shape.largest_gap_mm == pytest.approx(7.0, abs=0.01)
