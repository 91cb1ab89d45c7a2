"""Real nnU-Net folders, small: nnU-Net's own fingerprint, plans, preprocessing and trainer.

``python -m tests.models.nnunet_folder FOLDER`` trains them into FOLDER, in about two minutes on one
core; `trained_nnunets` does so once and keeps them in `.cache/models`. Training runs in a process
of its own: nnU-Net prints, starts processes, and is steered by environment variables.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from .trained import Grid3, Shapes, Triple, made_once, shapes_phantom

ROOT = Path(__file__).parents[2]
CASES = 12
PATCH = [32, 40, 40]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a network learns from; its first axis is the slices."""

    name: str
    labels: dict[str, int | list[int]]
    shape: Grid3
    spacing_mm: Triple
    trainer: str
    steps: dict[str, int]
    """Of training in each epoch, by fold."""

    def phantom(self, seed: int) -> Shapes:
        """Draw a phantom on the grid of training."""
        return shapes_phantom(seed, shape=self.shape, spacing_mm=self.spacing_mm)


LABELS = Dataset(
    name="Dataset001_Labels",
    labels={"background": 0, "organ, low columns": 1, "organ, high columns": 2, "rod": 3},
    shape=(48, 64, 64),
    spacing_mm=(3.0, 2.0, 2.0),
    trainer="nnUNetTrainerNoDA",
    steps={"0": 75, "1": 8},
)
"""Only their place tells the halves of the organ apart, so that a turned image shows."""

REGIONS = Dataset(
    name="Dataset002_Regions",
    labels={"background": 0, "organ": [1, 2], "lesion": 2, "rod": 3},
    shape=(72, 64, 43),
    spacing_mm=(2.0, 2.0, 3.0),
    trainer="nnUNetTrainer",
    steps={"all": 75},
)
"""The lesion is in the organ as well. Columns are widest, so that nnU-Net puts them first."""


def label_map(dataset: Dataset, shapes: Shapes) -> NDArray[np.uint8]:
    """Return the truth of a phantom, in the dataset's values."""
    labels = shapes.organ.astype(np.uint8)
    if dataset is LABELS:
        middle = np.nonzero(shapes.organ)[2].mean()
        labels[shapes.organ & (np.arange(labels.shape[2]) > middle)] = 2
    else:
        labels[shapes.lesion] = 2
    labels[shapes.rod] = 3
    return labels


def write_nifti(array: NDArray[Any], spacing_mm: Triple, path: Path) -> None:
    """Write an array of (slices, rows, columns), which grow to head, posterior and left."""
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing_mm[::-1])
    SimpleITK.WriteImage(image, str(path))


@dataclass(frozen=True, kw_only=True)
class TrainedNnunets:
    """Output folders as nnU-Net leaves them: plans, dataset, and a checkpoint for each fold."""

    labels: Path
    regions: Path


def trained_nnunets() -> TrainedNnunets:
    """Return both folders, trained now or before."""
    source = Path(__file__).read_text(encoding="utf-8") + inspect.getsource(shapes_phantom)
    made_by = f"{source} {version('nnunetv2')} {version('torch')}"
    folder = made_once(f"nnunet-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}", _train_apart)
    return TrainedNnunets(labels=folder / "labels", regions=folder / "regions")


def _train_apart(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.models.nnunet_folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def _train_all(folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        places = {f"nnUNet_{name}": f"{work}/{name}" for name in ("raw", "preprocessed", "results")}
        os.environ |= places
        for dataset, name in ((LABELS, "labels"), (REGIONS, "regions")):
            os.environ |= {"nnUNet_n_proc_DA": "1"}  # the planner takes no 0
            _write_raw(dataset, Path(work, "raw", dataset.name))
            _plan(dataset, Path(work, "preprocessed", dataset.name))
            os.environ |= {"nnUNet_n_proc_DA": "0"}  # patches come from this process, by its seed
            for fold in dataset.steps:
                _train(dataset, fold, Path(work, "preprocessed", dataset.name))
            (results,) = Path(work, "results", dataset.name).iterdir()
            shutil.copytree(results, folder / name)


def _write_raw(dataset: Dataset, folder: Path) -> None:
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for seed in range(2000, 2000 + CASES):
        shapes, path = dataset.phantom(seed), folder / "imagesTr" / f"case{seed}_0000.nii.gz"
        write_nifti(shapes.hu, dataset.spacing_mm, path)
        path = folder / "labelsTr" / f"case{seed}.nii.gz"
        write_nifti(label_map(dataset, shapes), dataset.spacing_mm, path)
    described: dict[str, Any] = {"channel_names": {"0": "CT"}, "labels": dataset.labels}
    described |= {"numTraining": CASES, "file_ending": ".nii.gz"}
    if dataset is REGIONS:
        described["regions_class_order"] = [1, 2, 3]
    (folder / "dataset.json").write_text(json.dumps(described), encoding="utf-8")


def _plan(dataset: Dataset, folder: Path) -> None:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    DatasetFingerprintExtractor(dataset.name, 1).run()
    ExperimentPlanner(dataset.name).plan_experiment()
    path = folder / "nnUNetPlans.json"
    plans = json.loads(path.read_text(encoding="utf-8"))
    planned = plans["configurations"]["3d_fullres"]
    planned |= {"patch_size": PATCH, "batch_size": 2}  # several patches for each phantom
    planned["architecture"]["arch_kwargs"] |= {
        "n_stages": 3,
        "features_per_stage": [8, 16, 32],
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
    }
    plans["configurations"] = {"3d_fullres": planned}
    path.write_text(json.dumps(plans), encoding="utf-8")
    DefaultPreprocessor(verbose=False).run(dataset.name, "3d_fullres", "nnUNetPlans", 1)


def _train(dataset: Dataset, fold: str, folder: Path) -> None:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import (
        nnUNetTrainerNoDA,
    )

    random.seed(0)
    np.random.seed(0)  # nnU-Net draws patches from it
    torch.manual_seed(0)
    kinds = {kind.__name__: kind for kind in (nnUNetTrainer, nnUNetTrainerNoDA)}
    plans = json.loads((folder / "nnUNetPlans.json").read_text(encoding="utf-8"))
    trainer = kinds[dataset.trainer](
        plans=plans | {"continue_training": False},
        configuration="3d_fullres",
        fold=fold if fold == "all" else int(fold),
        dataset_json=json.loads((folder / "dataset.json").read_text(encoding="utf-8")),
        device=torch.device("cpu"),
    )
    trainer.num_epochs = 6
    trainer.num_iterations_per_epoch = dataset.steps[fold]
    trainer.num_val_iterations_per_epoch = 2
    trainer.configure_optimizers = lambda: _adam(trainer)
    trainer.logger.plot_progress_png = lambda _: None  # it would take longer than the epoch
    trainer.run_training()


def _adam(trainer: Any) -> tuple[Any, Any]:
    """Learn sooner than with nnU-Net's own settings, which are for a thousand epochs."""
    import torch
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    rate = 6e-3
    optimizer = torch.optim.Adam(trainer.network.parameters(), rate)
    return optimizer, PolyLRScheduler(optimizer, rate, trainer.num_epochs)


if __name__ == "__main__":
    _train_all(Path(sys.argv[1]))
