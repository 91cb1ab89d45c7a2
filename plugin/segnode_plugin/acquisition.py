"""What the scanner's free words say of a series, where they can be read."""

from __future__ import annotations

import re
from typing import Any

_SIEMENS = re.compile(r"[A-Z]{1,2}(\d{2})[A-Z]?(\W.*)?")
"""B31f, Br40d, H70h: from about 50 on edges are enhanced."""
_TOSHIBA = re.compile(r"FC(\d{2})(\W.*)?")
_SIEMENS_SHARP = 50
_TOSHIBA_SHARP = 30
_SOFT = ("STANDARD", "SOFT", "STND", "STD", "A", "B", "C", "SA", "SB", "SMOOTH", "BRAIN")
_SHARP = (
    "BONE",
    "BONEPLUS",
    "LUNG",
    "DETAIL",
    "EDGE",
    "CHST",
    "D",
    "E",
    "L",
    "YA",
    "YB",
    "YC",
    "YD",
)
"""Words of GE and Philips."""
_NO_AGENT = re.compile(
    r"(NO|NONE|N|0(?!\S)|WITHOUT|W/O|OHNE|SANS|SENZA|SIN|NATIVE?|UNENHANCED|"
    r"NON[- ](CONTRAST|ENHANCED))(?!\w)"
)


def kernel_class(value: Any) -> str:
    """Return SOFT, SHARP or UNKNOWN for a Convolution Kernel (PS3.3 C.8.2.1)."""
    word = value.split("\\")[0].strip().upper()[:64] if isinstance(value, str) else ""
    if word in _SOFT:
        return "SOFT"
    if word in _SHARP:
        return "SHARP"
    for pattern, sharp in ((_TOSHIBA, _TOSHIBA_SHARP), (_SIEMENS, _SIEMENS_SHARP)):
        found = pattern.fullmatch(word)
        if found:
            return "SHARP" if int(found[1]) >= sharp else "SOFT"
    return "UNKNOWN"


def contrast(agent: Any) -> str:
    """Return YES, NO or UNKNOWN for a Contrast/Bolus Agent (PS3.3 C.7.6.4).

    That the attribute is missing tells nothing: many scanners write none.
    """
    word = agent.strip().upper()[:64] if isinstance(agent, str) else ""
    if not any(sign.isalnum() for sign in word):
        return "UNKNOWN"
    return "NO" if _NO_AGENT.match(word) else "YES"
