"""What a trained nnU-Net folder says of its network: `plans.json` and `dataset.json`.

nnU-Net finds classes by names that stand in these files. Each name is looked at before nnU-Net uses
it: it must lead to a class of nnU-Net's own packages or of `torch.nn`, and of the kind that is
meant, so that no data chooses what code runs.
"""

from __future__ import annotations

import json
import pydoc
import re
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import nnunetv2
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.label_handling import (
    LabelManager,
    determine_num_input_channels,
)
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch.nn import Module

from segnode_contract.errors import ModelFailed
from segnode_models.nnunet.reader import turns_to_ras

_PACKAGE = Path(nnunetv2.__path__[0])
_TRAINERS = "training.nnUNetTrainer"
_NORMALIZATION = "preprocessing.normalization"
_RESAMPLING = "nnunetv2.preprocessing.resampling."
_ARCHITECTURES = ("dynamic_network_architectures.",)
_PARTS = ("torch.nn.", *_ARCHITECTURES)
"""Packages of what networks are made of."""
_WRONG = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(TypeError, ValueError),
)
"""What nnU-Net raises at files that it does not understand; it has no class for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """How images are prepared for one configuration, and what its network is like."""

    manager: PlansManager
    configuration: ConfigurationManager
    dataset: dict[str, Any]
    """`dataset.json`."""
    labels: LabelManager
    channels: int
    """Of the input."""
    names: Mapping[int, str]
    """What the network finds, by `Segment.channel`: the label's value, or the region's index."""
    trainer: type[nnUNetTrainer]

    @property
    def heads(self) -> int:
        """Channels of the output: one for each label with the background, or for each region."""
        return int(self.labels.num_segmentation_heads)

    @property
    def turns_to_ras(self) -> bool:
        """Whether training turned its images."""
        return turns_to_ras(self.manager.plans)

    def network(self) -> Module:
        """Build the network, with random weights."""
        build = self.trainer.build_network_architecture
        try:
            network: Module = build(
                self.manager,
                self.configuration,
                self.channels,
                self.heads,
                enable_deep_supervision=False,
            )
        except _WRONG as error:
            raise _mismatch("nnU-Net cannot build the network that plans.json describes") from error
        return network


def read_plans(folder: Path, configuration: str, trainer: str) -> Plans:
    """Read what `folder` says of a configuration.

    Parameters
    ----------
    configuration, trainer
        Their names, from a checkpoint.

    Raises
    ------
    ModelFailed
        ``model-mismatch``, if a file is missing or names what is not nnU-Net's; ``extra-missing``,
        if the trainer needs another library.
    """
    dataset, plans = _json(folder / "dataset.json"), _json(folder / "plans.json")
    try:
        with warnings.catch_warnings(), redirect_stdout(None):
            warnings.simplefilter("ignore")  # plans of older releases are converted, and work
            return _checked(PlansManager(plans), dataset, configuration, trainer)
    except (*_WRONG, RuntimeError) as error:
        raise _mismatch(
            f"nnU-Net does not understand {folder.name}/plans.json with dataset.json, "
            f"configuration {configuration}"
        ) from error


def _checked(
    manager: PlansManager, dataset: dict[str, Any], configuration: str, trainer: str
) -> Plans:
    settings = manager.get_configuration(configuration)
    if settings.previous_stage_name is not None:
        raise ModelFailed(
            f"The configuration {configuration} is the second stage of a cascade, which needs the "
            f"result of {settings.previous_stage_name} as an input; only single stages run here.",
            code="model-mismatch",
        )
    _check_parts(settings)
    _check_kind(manager.label_manager_class, LabelManager, "label_manager")
    _check_kind(settings.preprocessor_class, DefaultPreprocessor, "preprocessor_name")
    for name in settings.normalization_schemes:
        found = recursive_find_python_class(
            str(_PACKAGE.joinpath(*_NORMALIZATION.split("."))), name, f"nnunetv2.{_NORMALIZATION}"
        )
        _check_kind(found, ImageNormalization, "normalization_schemes")
    for resampling in (settings.resampling_fn_data, settings.resampling_fn_seg):
        function = resampling.func
        if not (isinstance(function, FunctionType) and function.__module__.startswith(_RESAMPLING)):
            raise _foreign("resampling_fn_data or resampling_fn_seg")
    labels = manager.get_label_manager(dataset)
    if not labels.has_regions and list(labels.all_labels) != [*range(len(labels.all_labels))]:
        raise _mismatch(f"the labels in dataset.json are {labels.all_labels}, and not 0, 1, 2 …")
    return Plans(
        manager=manager,
        configuration=settings,
        dataset=dataset,
        labels=labels,
        channels=determine_num_input_channels(manager, settings, dataset),
        names=_names(dataset, labels),
        trainer=_trainer(trainer),
    )


def _names(dataset: dict[str, Any], labels: LabelManager) -> dict[int, str]:
    found = {
        name: value
        for name, value in dataset["labels"].items()
        if name != "ignore" and value not in (0, [0])
    }
    if labels.has_regions:  # numbered as they stand there
        return dict(enumerate(found))
    return {int(value): name for name, value in found.items()}


def _check_parts(settings: ConfigurationManager) -> None:
    """Check what nnU-Net will import by its path."""
    _check_part(settings.network_arch_class_name, _ARCHITECTURES)
    arguments: Mapping[str, Any] = settings.network_arch_init_kwargs
    imported = {name for name, value in arguments.items() if isinstance(value, str)}
    for name in imported | set(settings.network_arch_init_kwargs_req_import):
        if arguments[name] is not None:
            _check_part(arguments[name], _PARTS)


def _check_part(path: object, packages: tuple[str, ...]) -> None:
    found = None
    if isinstance(path, str) and path.startswith(packages):
        try:
            found = pydoc.locate(path)  # as nnU-Net will
        except pydoc.ErrorDuringImport as error:
            raise _lacking(path) from error
    # a path may lead out of its package again, through what a module imports: torch.nn…os.system
    inside = isinstance(found, type) and f"{found.__module__}.".startswith(packages)
    if not (inside and issubclass(found, Module)):  # type: ignore[arg-type] # told by `inside`
        raise _foreign("architecture")


def _check_kind(found: object, kind: type, key: str) -> None:
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise _foreign(key)


def _trainer(name: str) -> type[nnUNetTrainer]:
    """Find a trainer by reading nnU-Net's files, and import the one that has it.

    nnU-Net's own search imports them one after the other, of which some need further libraries,
    and goes on outside of its package.
    """
    folder = _PACKAGE.joinpath(*_TRAINERS.split("."))
    for path in sorted(folder.rglob("*.py")) if name.isidentifier() else ():
        if re.search(rf"^class {name}\b", path.read_text(encoding="utf-8"), re.MULTILINE):
            module = ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts)
            try:
                found = getattr(import_module(module), name)
            except ImportError as error:
                raise _lacking(name) from error
            return found  # type: ignore[no-any-return]
    raise ModelFailed(
        f"The model was trained by {name!r}, which is no trainer of nnunetv2; trainers from "
        "elsewhere are programs, and none is run here.",
        code="model-mismatch",
    )


def _json(path: Path) -> dict[str, Any]:
    where = f"{path.parent.name}/{path.name}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _mismatch(
            f"{where} is missing or no JSON; a folder as nnU-Net's training left it is needed"
        ) from error
    if not isinstance(data, dict):
        raise _mismatch(f"{where} holds a {type(data).__name__} and no object")
    return data


def _foreign(key: str) -> ModelFailed:
    return _mismatch(
        f"plans.json names something under '{key}' that is not nnU-Net's own; code is never taken "
        "from data"
    )


def _lacking(name: str) -> ModelFailed:
    return ModelFailed(
        f"The model's plans need {name}, which needs a library that is not installed; install what "
        "nnU-Net's documentation says for it.",
        code="extra-missing",
    )


def _mismatch(what: str) -> ModelFailed:
    return ModelFailed(f"{what}.", code="model-mismatch")
