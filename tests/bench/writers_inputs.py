"""What every writer is given: a CT series, and the labels of a model on its slices.

Parts of a body are ellipsoids that touch nothing else, so that every tool can hold them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segnode_cli.ct_series import ct_series
from segnode_contract.card import Card, parse_card

SPACING_MM = (1.0, 0.75, 0.75)
_SEED = 20260102
_CELLS = (5, 4, 6)
"""A part lies in one of these cells alone: of 600 slices it has about 110."""
_HEAD = """
name = "bench-parts"
version = "1"
kind = "builtin"
intended_use = "Measuring."
limitations = ["It knows ellipsoids only."]
licence = "AGPL-3.0-or-later"
memory_bytes = 1000000
time_limit_s = 600
[input]
modality = "CT"
orientation = "HPL"
min_slices = 1
"""
_ANATOMY = '{ value = "91723000", scheme = "SCT", meaning = "Anatomical structure" }'
_ORGAN = '{ value = "113343008", scheme = "SCT", meaning = "Organ" }'


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One series with its labels, in a folder of its own."""

    segments: int
    slices: int

    def __str__(self) -> str:
        parts = "1 segment" if self.segments == 1 else f"{self.segments} segments"
        return f"{parts} on {self.slices} slices"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices from the feet up, rows, columns."""
        return self.slices, 512, 512


CASES = (Case(segments=104, slices=600), Case(segments=1, slices=300))


def make_inputs(folder: Path, case: Case) -> float:
    """Write images, labels and what dcmqi wants; return the share of voxels that have a label."""
    labels = parts(case)
    (folder / "images").mkdir(parents=True)
    np.save(folder / "labels.npy", labels)
    noise = np.random.default_rng(_SEED).integers(-20, 20, case.shape, np.int16)
    hu = noise + np.where(labels > 0, np.int16(60), np.int16(-900))
    images = ct_series(hu, spacing_mm=SPACING_MM, seed=f"{_SEED} {case.segments}")
    for number, image in enumerate(images, 1):
        image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]  # no route of a node takes it
        image.save_as(folder / "images" / f"{number:04}.dcm", enforce_file_format=True)
    names = {"study": images[0].StudyInstanceUID, "series": images[0].SeriesInstanceUID}
    uids = [image.SOPInstanceUID for image in images]
    (folder / "uids.json").write_text(json.dumps({**names, "instances": uids}))
    _write_for_dcmqi(folder, case, labels, [float(mm) for mm in images[0].ImagePositionPatient])
    return float(np.count_nonzero(labels) / labels.size)


def parts(case: Case) -> NDArray[np.uint8]:
    """Return label numbers of `case.shape`, the same on every machine."""
    random = np.random.default_rng(_SEED)
    labels = np.zeros(case.shape, np.uint8)
    cells = np.array(_CELLS if case.segments > 1 else (1, 1, 1))
    size = np.array(case.shape) / cells
    places = random.permutation(int(cells.prod()))[: case.segments]
    for number, place in enumerate(places, 1):
        # a part alone is as large as a liver
        radii = size / 2 * random.uniform(*((0.88, 1.0) if case.segments > 1 else (0.4, 0.8)), 3)
        middle = (np.array(np.unravel_index(place, cells)) + 0.5) * size
        box = tuple(
            slice(int(np.ceil(c - r)), int(c + r) + 1) for c, r in zip(middle, radii, strict=True)
        )
        away = np.ogrid[box]
        inside = sum(((a - c) / r) ** 2 for a, c, r in zip(away, middle, radii, strict=True)) < 1
        labels[box][inside] = number
    return labels


def card_of(segments: int) -> Card:
    """Return the card of a model that gives them; values are numbers."""
    text = _HEAD
    for number, colour in enumerate(_colours(segments), 1):
        text += f'[[segments]]\nnumber = {number}\nlabel = "Part {number}"\nplane = 0\n'
        text += f"value = {number}\ncolour = {colour}\ncategory = {_ANATOMY}\ntype = {_ORGAN}\n"
    return parse_card(text, where="the bench")


def _colours(count: int) -> Iterator[list[int]]:
    return ([20000 + 400 * n, 30000 + 97 * n, 40000 - 97 * n] for n in range(count))


def _write_for_dcmqi(
    folder: Path, case: Case, labels: NDArray[np.uint8], origin: list[float]
) -> None:
    import SimpleITK

    image: Any = SimpleITK.GetImageFromArray(labels)
    image.SetSpacing(SPACING_MM[::-1])
    image.SetOrigin(origin)  # axes are those of the patient, LPS
    SimpleITK.WriteImage(image, str(folder / "labels.nrrd"))
    (folder / "segments.json").write_text(json.dumps(_for_dcmqi(case.segments)))


def _for_dcmqi(segments: int) -> dict[str, object]:
    def code(value: str, meaning: str) -> dict[str, str]:
        return {"CodeValue": value, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning}

    items = [
        {
            "labelID": number,
            "SegmentLabel": f"Part {number}",
            "SegmentDescription": f"Part {number}",
            "SegmentAlgorithmType": "AUTOMATIC",
            "SegmentAlgorithmName": "bench",
            "SegmentedPropertyCategoryCodeSequence": code("91723000", "Anatomical structure"),
            "SegmentedPropertyTypeCodeSequence": code("113343008", "Organ"),
        }
        for number in range(1, segments + 1)
    ]
    return {
        "ContentCreatorName": "bench",
        "SeriesNumber": "9000",
        "SeriesDescription": "Segmentation",
        "InstanceNumber": "1",
        "segmentAttributes": [items],
    }
