"""One real CT with reference labels, phantoms, and the built-in models on the CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
import torch

from segnode_cli.phantom import Phantom, chest_phantom
from segnode_contract.findings import Findings
from segnode_models.model import InputVolume, Model
from segnode_models.registry import builtin_models


@dataclass(frozen=True, kw_only=True)
class ReferenceCt:
    """An abdominal CT without contrast medium, HPL, 3 mm, and labels made by TotalSegmentator."""

    hu: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0)

    def ml(self, mask: np.ndarray) -> float:
        return float(mask.sum()) * float(np.prod(self.spacing_mm)) / 1000

    def labelled(self, *numbers: int) -> np.ndarray:
        return np.isin(self.labels, numbers)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    labels: np.ndarray
    findings: Findings

    def value(self, segment: int, name: str) -> float | None:
        (found,) = [m for m in self.findings.measurements if (m.segment, m.name) == (segment, name)]
        return found.value

    def reason(self, segment: int) -> str:
        """Return why the segment was left out; empty where it was not."""
        return "".join(w.reason for w in self.findings.withheld if w.segment == segment)


@pytest.fixture(scope="session")
def ct(shared_data: Path) -> ReferenceCt:
    folder = shared_data / "ts-ct-built"
    slices = sorted(
        (pydicom.dcmread(path) for path in (folder / "dicom").glob("*.dcm")),
        key=lambda instance: instance.ImagePositionPatient[2],
    )
    hu = np.stack(
        [s.pixel_array * s.RescaleSlope + s.RescaleIntercept for s in slices],
        dtype=np.int16,
        casting="unsafe",
    )
    image = SimpleITK.ReadImage(str(folder / "ref/label.nii.gz"))
    labels = SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(image, "LPS"))
    return ReferenceCt(hu=hu, labels=labels)


@pytest.fixture(scope="session")
def phantom() -> Callable[..., Phantom]:
    return cache(chest_phantom)


@pytest.fixture(scope="session")
def models() -> dict[str, Model]:
    torch.set_num_threads(1)  # more wait for each other where cores are shared
    return {listed.card.name: listed.load("cpu") for listed in builtin_models()}


@pytest.fixture(scope="session")
def run(models: dict[str, Model]) -> Callable[..., Outcome]:
    def run(
        name: str,
        hu: np.ndarray,
        spacing_mm: tuple[float, float, float],
        **attributes: str,
    ) -> Outcome:
        labels = np.zeros((models[name].card.planes, *hu.shape), dtype=np.uint8)
        volume = InputVolume(hu=hu, spacing_mm=spacing_mm, attributes=attributes)
        return Outcome(labels=labels, findings=models[name].segment(volume, labels, lambda _: None))

    return run


@pytest.fixture(scope="session")
def dice() -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda a, b: 2 * (a & b).sum() / (a.sum() + b.sum())
