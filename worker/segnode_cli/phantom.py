"""A chest in code: an image whose anatomy is known to the millimetre.

Coordinates are millimetres: `up` from the lowest slice, `back` and `left` from the middle of the
chest, so that they grow as the array's axes do (head, posterior, left).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Values = NDArray[np.float32]

_SIZE_MM = (240.0, 384.0, 384.0)
_BLUR_MM = 0.75  # one deviation of the scanner's point spread
_AIR, _LUNG, _LOW, _FAT, _MUSCLE, _BLOOD = -1000, -860, -1000, -105, 52, 42
_MARROW, _CORTEX, _MARKER = 190, 650, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """An image in HPL orientation, shape ``(slices, rows, columns)``, and what each voxel is."""

    hu: NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    truth: Mapping[str, Mask]
    """Masks by name: ``body``, ``right_lung``, ``left_lung`` (vessels included, airway not),
    ``laa`` (low attenuation areas), ``airway``, ``bone`` (marker included) and ``marker``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Space:
    up: Values
    back: Values
    left: Values

    @property
    def shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(self.up.shape, self.back.shape, self.left.shape)

    def ellipse(self, half_left: float, half_back: float, *, power: float = 2.3) -> Values:
        """Return the distance from the long axis, 1 on the surface of a rounded tube."""
        across: Values = np.abs(self.left / half_left) ** power
        along: Values = np.abs(self.back / half_back) ** power
        return (across + along) ** (1 / power)

    def ball(self, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Mask:
        """Return an ellipsoid; centre and radii are (up, back, left)."""
        axes = zip((self.up, self.back, self.left), centre, radii, strict=True)
        up, back, left = (((axis - middle) / radius) ** 2 for axis, middle, radius in axes)
        inside: Mask = up + back + left < 1
        return inside

    def column(self, back: float, left: Values | float, radius: float) -> Mask:
        """Return a vertical, or with `left` by slice a slanting, cylinder."""
        return (self.back - back) ** 2 + (self.left - left) ** 2 < radius**2


def chest_phantom(
    *,
    spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.5),
    noise_hu: float = 12.0,
    seed: int = 1,
) -> Phantom:
    """Make a chest with arms on a table: 240 x 384 x 384 mm, the same for the same `seed`.

    The lungs touch behind a thin pleura at the front. A bony cube at the front of the patient's
    left chest, high up, shows every swap of sides, front and back or head and foot.
    """
    space = _space(spacing_mm)
    rng = np.random.default_rng(seed)
    body = _body(space)
    marker = _marker(space)
    cortex, marrow = _bones(space)
    airway, wall = _airway(space)
    right, left = _lungs(space, blocked=airway | wall | cortex | marrow)
    low = _low_attenuation(space, rng) & (right | left)
    vessels = _vessels(space, right, left, spacing_mm, rng)
    hu = _soft_tissue(space, body)
    for mask, value in (
        (right | left, _LUNG),
        (low, _LOW),
        (vessels, _BLOOD),
        (wall, _MUSCLE),
        (airway, _AIR),
        (marrow, _MARROW),
        (cortex, _CORTEX),
        (marker, _MARKER),
        (_table(space), -300),
    ):
        np.copyto(hu, value, where=mask)
    blurred = ndimage.gaussian_filter(hu, [_BLUR_MM / step for step in spacing_mm])
    noisy = blurred + rng.normal(0, noise_hu, hu.shape).astype(np.float32)
    return Phantom(
        hu=np.clip(np.rint(noisy), -1024, 3071).astype(np.int16),
        spacing_mm=spacing_mm,
        truth={
            "body": body,
            "right_lung": right,
            "left_lung": left,
            "laa": low & ~vessels,
            "airway": airway,
            "bone": cortex | marrow | marker,
            "marker": marker,
        },
    )


def _space(spacing_mm: tuple[float, float, float]) -> _Space:
    axes = [
        (np.arange(round(size / step), dtype=np.float32) + 0.5) * step
        for size, step in zip(_SIZE_MM, spacing_mm, strict=True)
    ]
    up, back, left = np.meshgrid(*axes, indexing="ij", sparse=True)
    return _Space(up=up, back=back - _SIZE_MM[1] / 2, left=left - _SIZE_MM[2] / 2)


def _body(space: _Space) -> Mask:
    trunk = space.ellipse(138, 108) < 1
    return np.broadcast_to(trunk | _arm(space, 27), space.shape)


def _arm(space: _Space, radius: float) -> Mask:
    return space.column(20, 163.0, radius) | space.column(20, -163.0, radius)


def _soft_tissue(space: _Space, body: Mask) -> Values:
    hu = np.full(space.shape, _AIR, dtype=np.float32)
    inner = space.ellipse(125, 95)
    middle = inner < 0.82
    below = np.where(space.left < 0, _dome(space, -1), _dome(space, 1))
    abdomen = middle & (space.up < below)
    for mask, value in (
        (body, _FAT),
        (_arm(space, 21), _MUSCLE),
        (inner < 1, _MUSCLE),
        (middle, _FAT + 30),
        (abdomen, _MUSCLE + 6),
        (_heart(space), _BLOOD),
        (_aorta(space, 12), _BLOOD),
    ):
        np.copyto(hu, value, where=mask)
    return hu


def _heart(space: _Space) -> Mask:
    return space.ball((98, -12, 14), (48, 44, 46)) & (space.up > 52)


def _aorta(space: _Space, radius: float) -> Mask:
    return space.column(38, 26.0, radius)


def _dome(space: _Space, side: int) -> Values:
    """Return the height of the diaphragm; the right dome stands 8 mm higher."""
    centre, top = 62 * side, 66 if side < 0 else 58
    slope = ((space.left - centre) / 70) ** 2 + (space.back / 75) ** 2
    return np.maximum(top - 34 * slope, 14)


def _lungs(space: _Space, blocked: Mask) -> tuple[Mask, Mask]:
    """Return right and left lung: the inside of the ribs less diaphragm and mediastinum."""
    narrowing = 1 - 0.55 * np.clip((space.up - 150) / 75, 0, 1) ** 2
    hollow = space.ellipse(110, 81) / narrowing < 1
    hollow = hollow & (space.up < 222) & ~blocked & ~_heart(space)
    hollow = hollow & ~_aorta(space, 15) & ~space.column(58, 0.0, 27)
    front = np.clip((space.back + 58) / 22, 0, 1)
    half_width = 1.2 + front * np.where(space.up > 150, 24, 20)
    right = hollow & (space.left < -half_width) & (space.up > _dome(space, -1))
    left = hollow & (space.left > half_width) & (space.up > _dome(space, 1))
    return right, left


def _airway(space: _Space) -> tuple[Mask, Mask]:
    """Return lumen and wall of trachea and main bronchi; they part 150 mm up."""
    lumen, outside = _tubes(space, 0), _tubes(space, 2)
    return lumen, outside & ~lumen


def _tubes(space: _Space, grow: float) -> Mask:
    slant = np.clip(150 - space.up, 0, 36) * 1.1
    trachea = space.column(14, 0.0, 9 + grow) & (space.up > 148 - grow)
    bronchi = space.column(14, slant, 6.5 + grow) | space.column(14, -slant, 6.5 + grow)
    return trachea | (bronchi & (space.up <= 150) & (space.up > 114 - grow))


def _bones(space: _Space) -> tuple[Mask, Mask]:
    """Return cortex and marrow of spine, ribs, breastbone and arms."""
    whole, marrow = (_bone_surface(space, shrink) for shrink in (0.0, 2.2))
    return whole & ~marrow, marrow


def _bone_surface(space: _Space, shrink: float) -> Mask:
    level = np.abs((space.up % 26) - 13) < 10.5 - shrink / 2
    canal = space.column(80, 0.0, 8.5 + shrink)
    vertebra = space.column(58, 0.0, 21 - shrink) & ~canal
    arch = space.column(80, 0.0, 15 - shrink) & ~canal
    tip = (np.abs(space.left) < 4 - shrink) & (np.abs(space.back - 93) < 8 - shrink)
    ring = np.abs(space.ellipse(119, 89) - 1) * 100 < 5 - shrink
    phase = (space.up + 0.45 * space.back) % 28
    rib = ring & (np.abs(phase - 14) < 5.5 - shrink) & (np.abs(space.left) > 30)
    plate = (np.abs(space.left) < 17 - shrink) & (np.abs(space.back + 89) < 5.5 - shrink)
    sternum = plate & (space.up > 70) & (space.up < 215)
    bones: Mask = ((vertebra | arch | tip) & level) | rib | sternum
    return bones | _arm(space, 11 - shrink)


def _marker(space: _Space) -> Mask:
    inside: Mask = np.abs(space.up - 160) < 9
    for axis, middle in ((space.back, -79), (space.left, 74)):
        inside = inside & (np.abs(axis - middle) < 9)
    return inside


def _low_attenuation(space: _Space, rng: np.random.Generator) -> Mask:
    """Return round holes of 6 to 14 mm, more of them towards the apex."""
    low = np.zeros(space.shape, dtype=bool)
    for _ in range(90):
        centre = (rng.triangular(60, 200, 215), rng.uniform(-60, 65), rng.uniform(-95, 95))
        radius = rng.uniform(6, 14)
        _stamp(low, space, centre, radius)
    return low


def _vessels(
    space: _Space,
    right: Mask,
    left: Mask,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> Mask:
    """Return straight vessels from each hilum into its lung, thinner as they go."""
    vessels = np.zeros(right.shape, dtype=bool)
    for lung, hilum in ((right, (115.0, 14.0, -42.0)), (left, (115.0, 14.0, 42.0))):
        inside = np.argwhere(lung)
        ends = (inside[rng.integers(len(inside), size=45)] + 0.5) * np.array(spacing_mm)
        ends -= np.array([0, _SIZE_MM[1] / 2, _SIZE_MM[2] / 2])
        for end in ends:
            steps = int(np.linalg.norm(end - hilum) / 2) + 1
            for part in np.linspace(0, 1, steps):
                point = np.array(hilum) + part * (end - hilum)
                _stamp(vessels, space, (point[0], point[1], point[2]), 3.6 - 2.4 * part)
    return vessels & (right | left)


def _stamp(mask: Mask, space: _Space, centre: tuple[float, float, float], radius: float) -> None:
    """Set a ball in `mask`, looking only at the voxels around it."""
    near = [
        slice(*np.searchsorted(axis.ravel(), (middle - radius, middle + radius)))
        for axis, middle in zip((space.up, space.back, space.left), centre, strict=True)
    ]
    up, back, left = space.up[near[0]], space.back[:, near[1]], space.left[:, :, near[2]]
    local = _Space(up=up, back=back, left=left)
    mask[near[0], near[1], near[2]] |= local.ball(centre, (radius, radius, radius))


def _table(space: _Space) -> Mask:
    """Return the upper shell of a table, 12 mm behind the back."""
    return (np.abs(space.back - 122) < 1.6) & (np.abs(space.left) < 170)
