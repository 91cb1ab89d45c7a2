"""Folders that are MONAI bundles, laid out as those of the Model Zoo are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .trained import CLIP_HU, PATCH, SPACING_MM, Trained

Config = dict[str, Any]
Change = Callable[[Config], object]

AXES = "SPL"
"""MONAI's name of the axes that the networks were trained on, ours is HPL."""
ARGMAX = {"softmax": True}, {"argmax": True}
THRESHOLD = {"sigmoid": True}, {"threshold": 0.5}
"""Arguments of `Activationsd` and `AsDiscreted`."""


def make_bundle(
    folder: Path,
    trained: Trained,
    *,
    ending: tuple[Config, Config] = ARGMAX,
    change: Change = lambda config: None,
) -> Path:
    """Write a bundle around a trained network and return its folder.

    Parameters
    ----------
    ending
        What becomes of the network's output.
    change
        Takes the inference configuration before it is written.
    """
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    shutil.copyfile(trained.state_dict, folder / "models/model.pt")
    shutil.copyfile(trained.torchscript, folder / "models/model.ts")
    config = inference_config(trained, *ending)
    change(config)
    write_config(folder, "inference.json", config)
    write_config(folder, "metadata.json", metadata(trained))
    return folder


def write_config(folder: Path, name: str, config: Config) -> None:
    (folder / "configs" / name).write_text(json.dumps(config, indent=2))


def metadata(trained: Trained) -> Config:
    channels = trained.network["in_channels"]
    return {
        "version": "1.0.0",
        "monai_version": "1.6.1",
        "network_data_format": {
            "inputs": {"image": {"type": "image", "num_channels": channels}},
            "outputs": {"pred": {"type": "image"}},
        },
    }


def inference_config(trained: Trained, activation: Config, discretion: Config) -> Config:
    """Return a whole configuration, most of which is for MONAI's own tool and not for us."""
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "image_key": "image",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/nowhere",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "UNet", **trained.network},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "@image_key", "reader": "NibabelReader"},
                {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
                {"_target_": "Orientationd", "keys": "@image_key", "axcodes": AXES},
                {
                    "_target_": "Spacingd",
                    "keys": "@image_key",
                    "pixdim": list(SPACING_MM),
                    "mode": "bilinear",
                },
                {
                    "_target_": "ScaleIntensityRanged",
                    "keys": "@image_key",
                    "a_min": CLIP_HU[0],
                    "a_max": CLIP_HU[1],
                    "b_min": 0,
                    "b_max": 1,
                    "clip": True,
                },
                {"_target_": "EnsureTyped", "keys": "@image_key"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i} for i in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(PATCH),
            "sw_batch_size": 4,
            "overlap": 0.5,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", **activation},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "@image_key",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", **discretion},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_ext": ".nii.gz",
                    "output_postfix": "trans",
                    "separate_folder": False,
                    "print_log": False,
                },
            ],
        },
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": True,
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "initialize": ["$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }
