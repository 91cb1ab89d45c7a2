"""SNOMED CT codes and colours for segments, by the names that models give them.

A name is taken only where all its words are those of a term in pydicom's dictionary of codes
(PS3.16); a code that is nearly right would be wrong in every archive that reads it.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from functools import cache

from highdicom.color import CIELabColor
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as DictionaryCode

from segnode_contract.card import Code

PRIVATE = "99SEGNODE"
"""Coding scheme of names that no code is known for."""
_LONGEST_VALUE = 16
_LONGEST_TEXT = 64
"""Signs of a Code Value (SH), and of a Code Meaning or Segment Label (LO)."""

# Keywords of `pydicom.sr.codedict.codes.SCT`; their words are the names that are known.
_SINGLE = """
    Liver Gallbladder Spleen Pancreas Stomach Duodenum SmallIntestine LargeIntestine Colon
    SigmoidColon Rectum Appendix Esophagus Bladder Urethra Prostate PeripheralZoneOfTheProstate
    TransitionZoneOfTheProstate Uterus Thyroid Thymus Trachea Larynx Pharynx Nasopharynx Oropharynx
    Hypopharynx Tongue OralCavity NasalCavity SoftPalate Mediastinum Diaphragm Pericardium
    Heart LeftAtrium RightAtrium LeftVentricle RightVentricle LeftVentricleMyocardium
    LeftAuricularAppendage RightAuricularAppendage CoronaryArtery
    Aorta AscendingAorta AorticArch DescendingAorta ThoracicAorta AbdominalAorta
    BrachiocephalicTrunk LeftSubclavianArtery RightSubclavianArtery SuperiorMesentericArtery
    SplenicArtery HepaticArtery SuperiorVenaCava InferiorVenaCava PortalVein SplenicVein HepaticVein
    SuperiorMesentericVein Artery Vein BileDuct CommonBileDuct PancreaticDuct
    Brain BrainStem Cerebellum Pituitary OpticChiasm ThirdVentricle FourthVentricle SpinalCord
    Skull Mandible Face Sternum HyoidBone Spine CervicalSpine ThoracicSpine LumbarSpine Sacrum
    MiddleLobeOfRightLung Vertebra EntireBody
""".split()  # noqa: SIM905 # one name a line reads worse
_SINGLE += [
    f"{part}{i}Vertebra" for part, n in (("C", 7), ("T", 12), ("L", 5)) for i in range(1, n + 1)
]
_PAIRED = """
    Lung UpperLobeOfLung LowerLobeOfLung Bronchus Kidney RenalPelvis RenalArtery RenalVein Ureter
    AdrenalGland Ovary Testis SeminalVesicle Breast SubclavianVein CommonCarotidArtery
    InternalCarotidArtery CarotidArtery InternalJugularVein BrachiocephalicVein PulmonaryArtery
    PulmonaryVein IliacArtery IliacVein CommonIliacArtery CommonIliacVein ExternalIliacArtery
    ExternalIliacVein InternalIliacArtery InternalIliacVein
    Hippocampus Amygdala CaudateNucleus Putamen GlobusPallidus NucleusAccumbens Thalamus
    LateralVentricle FrontalLobe ParietalLobe TemporalLobe OccipitalLobe
    Eye Lens Orbit OpticNerve ParotidGland SubmandibularGland LacrimalGland MaxillarySinus
    Rib CostalCartilage Clavicle Scapula Humerus RadiusBone Ulna Hip Ilium Ischium Femur Patella
    Tibia Fibula Calcaneus Talus ErectorSpinaeMuscle TrapeziusMuscle
""".split()  # noqa: SIM905 # as above
_TISSUES = ["Bone", "SkeletalMuscle", "Muscle", "AdiposeTissue", "WhiteMatter", "GrayMatter"]
_ABNORMAL = [
    *("Neoplasm", "Cyst", "Nodule", "Mass", "Lesion", "Edema", "Necrosis", "Hemorrhage"),
    "Hematoma",
]

_SAME_WORD = {
    **{"tumor": "neoplasm", "tumour": "neoplasm", "oedema": "edema", "haemorrhage": "hemorrhage"},
    **{"haematoma": "hematoma", "oesophagus": "esophagus", "grey": "gray", "clavicula": "clavicle"},
    **{"vertebrae": "vertebra", "kidneys": "kidney", "lungs": "lung", "ribs": "rib", "eyes": "eye"},
    **{"veins": "vein", "arteries": "artery", "bones": "bone", "cartilages": "cartilage"},
    **{"3rd": "third", "4th": "fourth", "brainstem": "brain stem"},
}
_SAME_NAME = {
    "small bowel": "SmallIntestine",
    "large bowel": "LargeIntestine",
    "urinary bladder": "Bladder",
    "thyroid gland": "Thyroid",
    "pituitary gland": "Pituitary",
    "prostate gland": "Prostate",
    "heart atrium left": "LeftAtrium",
    "heart atrium right": "RightAtrium",
    "heart ventricle left": "LeftVentricle",
    "heart ventricle right": "RightVentricle",
    "atrial appendage left": "LeftAuricularAppendage",
    "atrial appendage right": "RightAuricularAppendage",
    "iliac vena": "IliacVein",
    "adrenal": "AdrenalGland",
    "caudate": "CaudateNucleus",
    "accumbens area": "NucleusAccumbens",
    "pallidum": "GlobusPallidus",
    "radius": "RadiusBone",
    "eye lens": "Lens",
    "fat": "AdiposeTissue",
}
_ORGANS = {"liver", "hepatic", "kidney", "renal", "lung", "pulmonary", "pancreas", "pancreatic"} | {
    *("brain", "colon", "prostate", "spleen", "splenic", "bone", "breast", "thyroid", "adrenal"),
}
"""Words that say where something abnormal lies; the code says what it is, the label keeps both."""
_SMALL_WORDS = {"of", "the"}
_SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}
_RIBS = {str(number) for number in range(1, 13)}
_GOLDEN = 0.618034
_LIGHTNESSES = (70, 55, 85, 62, 78)
_STRONGEST = 80
"""Chroma; screens have less of it for most hues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """What a segment is (PS3.3 C.8.20.4)."""

    category: Code
    type: Code
    modifiers: tuple[Code, ...] = ()


def coded(name: str) -> Coded | None:
    """Return the codes of a segment by its name, None where no code is known for all of it.

    ``kidney_right``, ``Right kidney`` and ``KidneyRight`` are one.
    """
    words = _words(name)
    known = _known()
    whole = known.get(_key(words))
    if whole is not None:
        return _coded(whole)
    sides = [word for word in words if word in _SIDES]
    rest = [word for word in words if word not in _SIDES]
    if "rib" in rest and len(rest) == 2:
        rest = [word for word in rest if word not in _RIBS]
    keyword = known.get(_key(rest))
    if keyword is None:
        abnormal = [word for word in rest if word not in _ORGANS]
        keyword = known.get(_key(abnormal)) if len(abnormal) < len(rest) else None
        keyword = keyword if keyword in _ABNORMAL else None
    if keyword is None or len(sides) > 1 or (sides and keyword not in {*_PAIRED, *_ABNORMAL}):
        return None
    return _coded(keyword, *sides)


def private_code(name: str, label: str) -> Coded:
    """Return codes for a segment that no code is known for: a body structure, by its own name."""
    words = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")
    if not words or len(words) > _LONGEST_VALUE:
        digest = hashlib.sha256(name.encode()).hexdigest()[:6].upper()
        words = f"{words[: _LONGEST_VALUE - 7]}-{digest}".lstrip("-")
    return Coded(
        category=Code(value="123037004", scheme="SCT", meaning="Body structure"),
        type=Code(value=words, scheme=PRIVATE, meaning=label[:_LONGEST_TEXT]),
    )


def colour(number: int) -> tuple[int, int, int]:
    """Return the colour of the segment `number`, bright enough for black and unlike its neighbours.

    Hues a golden angle apart do not come close again soon; five lightnesses take turns.

    Returns
    -------
    tuple
        CIELab as DICOM encodes it (PS3.3 C.10.7.1.1), 0 to 65535 each.
    """
    lightness = _LIGHTNESSES[number % len(_LIGHTNESSES)]
    hue = 2 * math.pi * _GOLDEN * number
    strengths = range(_STRONGEST, 0, -5)
    shades = (
        CIELabColor(lightness, strength * math.cos(hue), strength * math.sin(hue))
        for strength in strengths
    )
    return next(shade for shade in shades if _on_screens(shade)).value


def _on_screens(shade: CIELabColor) -> bool:
    """Return whether screens have a colour (sRGB)."""
    try:
        shade.to_rgb()
    except ValueError:
        return False
    return True


def _coded(keyword: str, *sides: str) -> Coded:
    category = codes.SCT.AnatomicalStructure
    if keyword in _TISSUES:
        category = codes.SCT.Tissue
    elif keyword in _ABNORMAL:
        category = codes.SCT.MorphologicallyAbnormalStructure
    return Coded(
        category=_code(category),
        type=_code(getattr(codes.SCT, keyword)),
        modifiers=tuple(_code(_SIDES[side]) for side in sides),
    )


def _code(entry: DictionaryCode) -> Code:
    meaning = entry.meaning[0].upper() + entry.meaning[1:]
    return Code(value=entry.value, scheme="SCT", meaning=meaning)


@cache
def _known() -> dict[tuple[str, ...], str]:
    """Return the keyword for each set of words."""
    known = {_key(_words(name)): keyword for name, keyword in _SAME_NAME.items()}
    for keyword in (*_SINGLE, *_PAIRED, *_TISSUES, *_ABNORMAL):
        known[_key(_words(keyword))] = keyword
    return known


def _words(name: str) -> list[str]:
    """Return the words of a name, small and in one spelling each."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    words = re.split(r"[\W_]+", apart)
    spelt = " ".join(_SAME_WORD.get(word, word) for word in words).split()
    return [word for word in spelt if word not in _SMALL_WORDS]


def _key(words: list[str]) -> tuple[str, ...]:
    return tuple(sorted(words))
