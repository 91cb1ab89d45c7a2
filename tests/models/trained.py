"""Phantoms with a known answer, and small networks trained on them once and then kept.

A phantom is a body in air with three shapes: an organ, a lesion in it, and a rod beside it. Places
and sizes are drawn in millimetres from the seed, so that one seed gives the same anatomy on every
grid of the same extent.

``python -m tests.models.trained`` trains whatever is not in `.cache/models`.
"""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.networks.nets import UNet
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

CACHE = Path(__file__).parents[2] / ".cache/models"

SPACING_MM = (3.0, 2.0, 2.0)
"""Of the grid that the networks were trained on: slices, rows, columns."""
PATCH = (32, 48, 48)
CLIP_HU = (-200.0, 400.0)
"""Mapped onto 0 to 1 for the networks."""

Grid3 = tuple[int, int, int]
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A phantom: image and truth, all of shape ``(slices, rows, columns)``."""

    hu: NDArray[np.int16]
    spacing_mm: Triple
    organ: NDArray[np.bool_]
    """With the lesion in it."""
    lesion: NDArray[np.bool_]
    rod: NDArray[np.bool_]
    lesion_centre_mm: Triple
    """Along each axis, from the outer edge of the volume."""
    lesion_radius_mm: float


def shapes_phantom(
    seed: int,
    *,
    shape: Grid3 = (48, 64, 64),
    spacing_mm: Triple = SPACING_MM,
    noise_hu: float = 30.0,
) -> Shapes:
    """Draw a phantom; an extent of about 144 by 128 by 128 mm is meant, less cuts the body."""
    draw = np.random.default_rng(seed)
    extent = np.multiply(shape, spacing_mm)
    angle = draw.uniform(0, 2 * np.pi)
    organ_at = extent / 2 + (draw.uniform(-20, 20), 22 * np.sin(angle), 22 * np.cos(angle))
    organ_radii = draw.uniform((26, 20, 20), (38, 28, 28))
    towards = draw.normal(size=3)
    lesion_radius = float(draw.uniform(10, 13))
    lesion_at = organ_at + 0.7 * (organ_radii - lesion_radius) * towards / np.linalg.norm(towards)
    across = angle + np.pi + draw.uniform(-0.6, 0.6)
    rod_at = extent / 2 + (draw.uniform(-20, 20), 34 * np.sin(across), 34 * np.cos(across))
    rod_radius, rod_half = draw.uniform(9, 13), draw.uniform(25, 45)

    axes = [(np.arange(n) + 0.5) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    place = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    in_plane = np.linalg.norm((place - extent / 2)[..., 1:] / (0.46 * extent[1:]), axis=-1)
    organ = np.linalg.norm((place - organ_at) / organ_radii, axis=-1) <= 1
    lesion = np.linalg.norm(place - lesion_at, axis=-1) <= lesion_radius
    beside = np.linalg.norm((place - rod_at)[..., 1:], axis=-1) <= rod_radius
    rod = beside & (abs(place[..., 0] - rod_at[0]) <= rod_half)

    hu = np.where(in_plane <= 1, 0.0, -1000.0)
    for mask, value in ((organ, 100.0), (lesion, 220.0), (rod, 300.0)):
        hu[mask] = value
    hu += draw.normal(0, noise_hu, shape)
    return Shapes(
        hu=hu.round().clip(-1024, 3071).astype(np.int16),
        spacing_mm=spacing_mm,
        organ=organ,
        lesion=lesion,
        rod=rod,
        lesion_centre_mm=(float(lesion_at[0]), float(lesion_at[1]), float(lesion_at[2])),
        lesion_radius_mm=lesion_radius,
    )


def card_toml(*, kind: str, needs: str, network: str, segments: str) -> str:
    """Return the text of a card.

    Parameters
    ----------
    needs, network
        Further lines of the tables `input` and `network`.
    segments
        `SOFTMAX_SEGMENTS` say.
    """
    return f"""
name = "shapes"
version = "1.0.0"
kind = "{kind}"
intended_use = "Tests."
limitations = ["Knows phantoms alone."]
licence = "AGPL-3.0-or-later"
memory_bytes = 1_000_000_000
cpu = true
time_limit_s = 60

[input]
modality = "CT"
orientation = "HPL"
min_slices = 1
{needs}

[network]
{network}
{segments}"""


def _segment(number: int, label: str, *, plane: int, value: int, channel: int) -> str:
    return f"""
[[segments]]
number = {number}
label = "{label}"
plane = {plane}
value = {value}
channel = {channel}
category = {{ value = "123037004", scheme = "SCT", meaning = "Body structure" }}
type = {{ value = "113343008", scheme = "SCT", meaning = "Organ" }}
colour = [36893, 37740, {30000 + number}]
"""


SOFTMAX_SEGMENTS = "".join(
    [
        _segment(1, "Organ", plane=0, value=1, channel=1),
        _segment(2, "Rod", plane=0, value=2, channel=2),
    ]
)
"""Of `trained_softmax`: one plane."""
SIGMOID_SEGMENTS = "".join(
    [
        _segment(1, "Organ", plane=0, value=1, channel=0),
        _segment(2, "Lesion", plane=1, value=1, channel=1),
    ]
)
"""Of `trained_sigmoid`: two planes, since the lesion lies in the organ."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network, as the files that users bring."""

    network: dict[str, Any]
    """Keyword arguments of `monai.networks.nets.UNet`, all of them JSON."""
    state_dict: Path
    """For ``torch.load(weights_only=True)``."""
    torchscript: Path

    def module(self) -> UNet:
        """Return the network itself, ready to infer."""
        network = UNet(**self.network)
        network.load_state_dict(torch.load(self.state_dict, weights_only=True))
        return network.eval()


def trained_softmax() -> Trained:
    """Return a network of three channels for softmax: background, organ, rod."""
    return _trained(
        "softmax",
        3,
        lambda shapes: np.stack([~(shapes.organ | shapes.rod), shapes.organ, shapes.rod]),
        lambda logits, truth: functional.cross_entropy(logits, truth.argmax(1)),
        lambda logits: logits.softmax(1),
    )


def trained_sigmoid() -> Trained:
    """Return a network of two channels for sigmoid: organ, and the lesion in it."""
    return _trained(
        "sigmoid",
        2,
        lambda shapes: np.stack([shapes.organ, shapes.lesion]),
        functional.binary_cross_entropy_with_logits,
        torch.sigmoid,
    )


def _trained(
    name: str,
    channels: int,
    truth: Callable[[Shapes], NDArray[np.bool_]],
    loss: Callable[[Tensor, Tensor], Tensor],
    activation: Callable[[Tensor], Tensor],
) -> Trained:
    network: dict[str, Any] = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": channels,
        "channels": [8, 16, 32],
        "strides": [2, 2],
        "num_res_units": 0,
        # its statistics do not depend on where a patch lies, as those of instance norm do
        "norm": "batch",
    }
    folder = made_once(
        f"{name}-{_source_digest()}",
        lambda made: _save(_train(network, truth, loss, activation), made),
    )
    return Trained(network=network, state_dict=folder / "model.pt", torchscript=folder / "model.ts")


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of `CACHE`, which `make` fills where it is not there yet.

    Where several processes want it one makes it, and the others wait.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / name
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            made = Path(tempfile.mkdtemp(dir=CACHE, prefix=f".{name}-"))
            make(made)
            made.rename(folder)
    return folder


def _source_digest() -> str:
    versions = f"{torch.__version__} {monai.__version__}"
    return hashlib.sha256(Path(__file__).read_bytes() + versions.encode()).hexdigest()[:16]


def _train(
    arguments: dict[str, Any],
    truth: Callable[[Shapes], NDArray[np.bool_]],
    loss: Callable[[Tensor, Tensor], Tensor],
    activation: Callable[[Tensor], Tensor],
    steps: int = 400,
) -> UNet:
    with _reproducible():
        network = UNet(**arguments)
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        for images, masks in _patches(truth, steps):
            logits = network(images)
            found = activation(logits)
            overlap = 2 * (found * masks).sum((0, 2, 3, 4)) + 1
            dice = overlap / ((found + masks).sum((0, 2, 3, 4)) + 1)
            optimizer.zero_grad()
            (loss(logits, masks) + (1 - dice).mean()).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@contextmanager
def _reproducible() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, and others want the cores as well
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)


def _patches(
    truth: Callable[[Shapes], NDArray[np.bool_]], steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs of image and mask, ``(2, channels, slices, rows, columns)``."""
    low, high = CLIP_HU
    phantoms = []
    for seed in range(1000, 1024):
        shapes = shapes_phantom(seed)
        image = (shapes.hu.astype(np.float32).clip(low, high) - low) / (high - low)
        phantoms.append((image[None], truth(shapes).astype(np.float32)))
    draw = np.random.default_rng(0)
    for _ in range(steps):
        batch = []
        for number in draw.integers(len(phantoms), size=2):
            image, masks = phantoms[number]
            z, y, x = (
                draw.integers(n - p + 1) for n, p in zip(image.shape[1:], PATCH, strict=True)
            )
            here = np.s_[:, z : z + PATCH[0], y : y + PATCH[1], x : x + PATCH[2]]
            batch.append((torch.from_numpy(image[here]), torch.from_numpy(masks[here])))
        images, masks = zip(*batch, strict=True)
        yield torch.stack(images), torch.stack(masks)


def _save(network: UNet, folder: Path) -> None:
    torch.save(network.state_dict(), folder / "model.pt")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        torch.jit.script(network).save(str(folder / "model.ts"))


if __name__ == "__main__":
    for one in (trained_softmax(), trained_sigmoid()):
        print(one.torchscript.parent)
