"""Whether a route takes a series, and if not, why."""

from __future__ import annotations

import re

from segnode_contract.ledger.intake import Verdict
from segnode_contract.route import Route
from segnode_plugin.clauses import refusal
from segnode_plugin.facts import SeriesFacts

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_REFORMATTED = re.compile(
    r"(?<![A-Z])(MPR|MIP|MINIP|MAX_IP|MIN_IP|PROJECTION|REFORMATTED|RESAMPLED|VOLREN|VRT)(?![A-Z])"
)
_SCOUT = re.compile(
    r"(?<![A-Z])(LOCALIZER|LOCALISER|SCOUT|TOPOGRAM|SURVIEW|PILOT)S?(?![A-Z])", re.IGNORECASE
)
"""Words of five vendors."""


def verdict(
    route: Route, facts: SeriesFacts, *, min_slices: int = 0, quote: bool = False
) -> Verdict:
    """Say whether `route` takes the series, with the condition that decided.

    Parameters
    ----------
    min_slices
        So many the route's model needs.
    quote
        As of `clauses.refusal`; what the ledger keeps is made without it.
    """
    reason = _refusal(route, facts, min_slices, quote=quote)
    return Verdict(route=route.name, taken=reason is None, reason=reason or "every condition holds")


def _refusal(route: Route, facts: SeriesFacts, min_slices: int, *, quote: bool) -> str | None:
    nameless = _without_address(facts)
    if nameless is not None:
        return nameless
    if facts.modality != route.modality.upper():
        return f"Modality is {facts.modality or 'missing'}, {route.modality} is wanted"
    made = _made_from_others(route, facts)
    if made is not None:
        return made
    few = _too_few(route, facts, min_slices)
    if few is not None:
        return few
    if route.body_parts and facts.body_part not in {part.upper() for part in route.body_parts}:
        wanted = " or ".join(route.body_parts)
        return f"Body Part Examined is {facts.body_part or 'missing'}, {wanted} is wanted"
    return refusal(route.where, facts, quote=quote) if route.where else None


def _without_address(facts: SeriesFacts) -> str | None:
    if not all((facts.study_uid, facts.series_uid, *facts.instance_uids)):
        return "the UID of the study, of the series or of an image is none"
    if facts.namesakes:
        # DICOMweb has no address for one of them, and a result would hang on either patient
        return (
            f"{facts.namesakes + 1} series in the archive have this Series Instance UID, of other "
            "studies or patients; delete them there, and send the right one again"
        )
    return None


def _too_few(route: Route, facts: SeriesFacts, min_slices: int) -> str | None:
    count = len(facts.instance_uids)
    if count < route.min_instances:
        return f"{count} instances, at least {route.min_instances} are wanted"
    frames = str(facts.attributes.get("NumberOfFrames", "")).strip()
    each = int(frames) if frames.isascii() and frames.isdigit() and len(frames) < 10 else 1
    if count * each < min_slices:
        images = "1 image" if count == 1 else f"{count} images"
        return f"{images}; the model {route.model} needs {min_slices} slices"
    return None


def _made_from_others(route: Route, facts: SeriesFacts) -> str | None:
    if "LOCALIZER" in facts.image_type:
        return "Image Type says LOCALIZER"
    scout = _called_scout(facts)
    if scout and not route.scouts:
        return f"it is called a localizer ({scout}), and scouts are not wanted"
    if facts.copied and not route.copies:
        return "it is an anonymised or modified copy made in Orthanc, and copies are not wanted"
    derived = _derivation(facts)
    if derived and not route.derived:
        return f"{derived}, and derived series are not wanted"
    return None


def _called_scout(facts: SeriesFacts) -> str | None:
    """Return the word that calls it one: not every scanner writes LOCALIZER (C.8.2.1.1.1)."""
    if facts.modality in ("CT", "MR"):
        for keyword in ("SeriesDescription", "ProtocolName"):
            value = facts.attributes.get(keyword)
            found = _SCOUT.search(value) if isinstance(value, str) else None
            if found:
                return f"{keyword}: {found[1].upper()}"
    return None


def _derivation(facts: SeriesFacts) -> str | None:
    """Return what says that the images were made from others (PS3.3 C.7.6.1.1.2, C.8.16.1).

    DERIVED as value 1 alone says nothing: many scanners write it on what they reconstruct.
    """
    if facts.sop_class_uid.startswith(_SECONDARY_CAPTURE):
        return "SOP Class is Secondary Capture"
    if facts.image_type[1:2] == ("SECONDARY",):
        return "Image Type says SECONDARY"
    for value in facts.image_type[2:]:
        if _REFORMATTED.search(value):
            return f"Image Type says {value[:16]}"
    return None
