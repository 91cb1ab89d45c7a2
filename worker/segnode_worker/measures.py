"""The codes of what is measured: of its name, of how it was derived, and of its unit."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from segnode_worker.imprint import ascii_text

_SCHEME = "99SEGNODE"
PRIVATE_SCHEME = CodingSchemeIdentificationItem(
    designator=_SCHEME, name="segnode private codes", responsible_organization="segnode"
)
"""Of measures that no public scheme has a code for, and of names that a model made up."""

_INTENSITY = {"MR": codes.DCM.MRSignalIntensity}
_UNITS = {
    "ml": Code("ml", "UCUM", "milliliter"),
    "%": Code("%", "UCUM", "percent"),
    "[hnsf'U]": codes.UCUM.HounsfieldUnit,
    "1": codes.UCUM.NoUnits,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What a measurement is, in codes (PS3.16 TID 300)."""

    name: Code
    derivation: Code | None = None
    """Of CID 7464: which number of many voxels it is."""
    method: Code | None = None


_VOLUME = Measure(name=codes.SCT.Volume, method=codes.cid7474.SumOfSegmentedVoxelMethodForVolume)
_LAA = Measure(name=Code("LAA950PCT", _SCHEME, "Share of volume below -950 HU (LAA-950)"))
"""Emphysema index of the density mask; neither DICOM nor SNOMED CT has a code for it."""
_DERIVATIONS = {
    "Mean": codes.cid7464.Mean,
    "Mean density": codes.cid7464.Mean,
    "Standard deviation": codes.cid7464.StandardDeviation,
}


def measure(name: str, modality: str) -> Measure:
    """Return the codes of a measurement by the name that findings give it.

    Mean and standard deviation are modifiers of what the images show: attenuation in CT, signal in
    MR (as in PS3.17 RRR.2).
    """
    if name == "Volume":
        return _VOLUME
    if name == "LAA-950":
        return _LAA
    if name in _DERIVATIONS:
        shown = _INTENSITY.get(modality, codes.DCM.AttenuationCoefficient)
        return Measure(name=shown, derivation=_DERIVATIONS[name])
    text = ascii_text(name)
    letters = "".join(c for c in text.upper() if c.isalnum())[:7]
    return Measure(name=Code(f"{letters}-{zlib.crc32(name.encode()):08X}", _SCHEME, text))


def unit(ucum: str) -> Code:
    """Return the code of a unit; in UCUM a unit is its own code."""
    return _UNITS.get(ucum) or Code(ucum, "UCUM", ucum)
