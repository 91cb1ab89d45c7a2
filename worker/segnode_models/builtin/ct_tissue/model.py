"""ct-tissue: the body by tissue, from thresholds."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from segnode_contract.card import Card
from segnode_contract.findings import Findings, Measurement, Withheld
from segnode_models.builtin.body import Body, find_body
from segnode_models.builtin.ct_tissue.bone import Bone, find_bone
from segnode_models.builtin.ct_tissue.contrast import shows_contrast
from segnode_models.builtin.grid import to_float, voxel_ml
from segnode_models.model import InputVolume, Told

GAS, ADIPOSE, LEAN, BONE = 1, 2, 3, 4
"""Values in plane 1; plane 0 holds the body as 1."""

_BONE_SEGMENT = 5
_NO_BODY = "No body was found: nothing in the images is larger and denser than air."
_CONTRAST_TAG = (
    "The images' header tells of contrast medium, which a threshold cannot tell from bone."
)
_CONTRAST_SEEN = (
    "The images show bright, even regions as vessels or organs with contrast medium have, which a "
    "threshold cannot tell from bone."
)


class CtTissue:
    """Thresholds for each tissue (see the card) inside the body found by morphology."""

    def __init__(self, card: Card, device: torch.device) -> None:
        self.card = card
        self._device = device

    @torch.inference_mode()
    def segment(self, volume: InputVolume, labels: NDArray[np.uint8], told: Told) -> Findings:
        """Write the body into plane 0 and its tissues into plane 1 (see `Model`)."""
        body = find_body(volume.hu, volume.spacing_mm, self._device)
        if not body.mask.any():
            return self._findings(labels, volume, {s.number: _NO_BODY for s in self.card.segments})
        told(0.3)
        withheld = _reason_against_bone(volume, body)
        bone = None if withheld else find_bone(volume.hu, volume.spacing_mm, self._device)
        told(0.7)
        _write_labels(volume, body, bone, labels, told)
        return self._findings(labels, volume, {_BONE_SEGMENT: withheld} if withheld else {})

    def _findings(
        self, labels: NDArray[np.uint8], volume: InputVolume, withheld: dict[int, str]
    ) -> Findings:
        each_ml = voxel_ml(volume.spacing_mm)
        volumes = {
            s.number: float(np.count_nonzero(labels[s.plane] == s.value) * each_ml)
            for s in self.card.segments
            if s.number not in withheld
        }
        return Findings(
            withheld=tuple(Withheld(segment=n, reason=why) for n, why in withheld.items()),
            measurements=tuple(
                Measurement(
                    segment=s.number,
                    name="Volume",
                    value=volumes.get(s.number),
                    unit="ml",
                    reason=withheld.get(s.number, ""),
                )
                for s in self.card.segments
            ),
        )


def _reason_against_bone(volume: InputVolume, body: Body) -> str:
    if volume.attributes.get("ContrastBolus") == "yes":
        return _CONTRAST_TAG
    return _CONTRAST_SEEN if shows_contrast(body) else ""


def _write_labels(
    volume: InputVolume, body: Body, bone: Bone | None, labels: NDArray[np.uint8], told: Told
) -> None:
    """Classify slab by slab; what is no tissue's value stays body alone."""
    for slab in body.grid.slabs():
        hu = to_float(volume.hu[slab], body.mask.device)
        inside = body.on_source(hu, slab)
        tissue = torch.zeros_like(hu, dtype=torch.uint8)
        tissue[hu < -400] = GAS
        tissue[(hu >= -190) & (hu <= -30)] = ADIPOSE
        tissue[(hu > -30) & (hu <= 150)] = LEAN
        if bone is not None:
            tissue[bone.on_source(hu, slab)] = BONE
        tissue[~inside] = 0
        labels[0, slab] = inside.cpu().numpy()
        labels[1, slab] = tissue.cpu().numpy()
        told(0.7 + 0.3 * slab.stop / len(volume.hu))
