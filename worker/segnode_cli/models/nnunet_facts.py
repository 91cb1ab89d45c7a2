"""What the files of a trained nnU-Net say about the model, for a draft card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segnode_cli.models.facts import (
    AXES,
    ModelFacts,
    by_number,
    channels_of,
    json_of,
    licence_of,
    segments_of,
    table_of,
    text_of,
)
from segnode_cli.models.inspect import plain
from segnode_contract.errors import SetupError
from segnode_models.nnunet.reader import turns_to_ras


def nnunet_facts(folder: Path, title: str) -> ModelFacts:
    """Read a trained folder; `SetupError` where no volume can be segmented with it."""
    dataset, plans = json_of(folder, "dataset.json"), json_of(folder, "plans.json")
    trainer, planner, configuration = _trained(folder, title, plans)
    names = by_number(dataset.get("channel_names") or dataset.get("modality"))
    if not names:
        raise SetupError(f"{title}/dataset.json names no channels; it is not one of nnU-Net v2.")
    labels, apart = _labels(title, dataset)
    folds, checkpoint = _folds(folder, title)
    many = f"each takes its time: {len(folds)} take {len(folds)} times that of one"
    return ModelFacts(
        kind="nnunet",
        source="dataset.json and plans.json",
        name=" ".join((_name(folder, title, dataset), configuration, planner, trainer)),
        version="",
        intended_use=text_of(dataset, "description"),
        licence=licence_of(folder) or text_of(dataset, "licence") or text_of(dataset, "license"),
        channels=channels_of([names[number] for number in sorted(names)], ""),
        # reoriented to RAS, then axes reversed: indices grow towards head, anterior, right
        orientation="HAR" if turns_to_ras(plans) else "",
        orientation_hint=f"{AXES.format(order='from the last to the first')}: (L, P, S) is HPL",
        network={"folds": folds, "checkpoint": checkpoint, "mirroring": True},
        notes={
            "mirroring": "as nnU-Net does; false is up to 8 times faster",
            **({"folds": many} if len(folds) > 1 else {}),
        },
        segments=segments_of(title, labels, apart=apart),
        named=True,
        weights_bytes=max((folder / f"fold_{fold}" / checkpoint).stat().st_size for fold in folds),
    )


def _trained(folder: Path, title: str, plans: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what the folder's name says of trainer, plans and configuration.

    Empty where it was renamed; of trainer and plans also where they are nnU-Net's usual ones.
    """
    *before, name = folder.name.split("__")
    configurations = table_of(plans, "configurations")
    if not before or name not in configurations:
        return "", "", ""
    trainer, planner = before if len(before) == 2 else ("", "")
    if "previous_stage" in table_of(configurations, name):
        raise SetupError(
            f"{title} is the second stage of a cascade, which needs the result of the first; add "
            "a 3d_fullres or 3d_lowres model."
        )
    return (
        plain(trainer.removeprefix("nnUNetTrainer")),
        plain(planner.removeprefix("nnUNet").removesuffix("Plans")),
        plain(name),
    )


def _name(folder: Path, title: str, dataset: Mapping[str, Any]) -> str:
    """Return the name of the data set; that in dataset.json is one for TotalSegmentator's parts."""
    named = re.fullmatch(r"Dataset\d+_(.+)", folder.parent.name)
    if named and "__" in folder.name:
        return named[1]
    return text_of(dataset, "name") or title


def _labels(title: str, dataset: Mapping[str, Any]) -> tuple[dict[int, str], bool]:
    """Return the name by label, or by output channel where regions may overlap."""
    labels = table_of(dataset, "labels")
    regions = [label for label in labels.values() if isinstance(label, list) and len(label) > 1]
    found: dict[int, str] = {}
    for name, label in labels.items():
        values = label if isinstance(label, list) else [label]
        if not all(isinstance(value, int) and value >= 0 for value in values) or not values:
            raise SetupError(
                f"{title}/dataset.json: the label of {plain(name, 40)!r} is no number."
            )
        if set(values) == {0} or name == "ignore":
            continue
        found[len(found) if regions else values[0]] = plain(name, 100)
    if regions and len(found) != len(dataset.get("regions_class_order") or ()):
        raise SetupError(
            f"{title}/dataset.json has {len(found)} regions, and another number of them in "
            "regions_class_order."
        )
    return found, bool(regions)


def _folds(folder: Path, title: str) -> tuple[list[str], str]:
    """Return the folds that are trained, and the file of weights that each has."""
    for checkpoint in ("checkpoint_final.pth", "checkpoint_best.pth"):
        found = sorted(
            path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}")
        )
        numbers = [fold for fold in found if fold.isdecimal() and fold.isascii()]
        if numbers or "all" in found:
            return numbers or ["all"], checkpoint
    raise SetupError(f"{title} has no trained fold: no fold_0/checkpoint_final.pth or its like.")
