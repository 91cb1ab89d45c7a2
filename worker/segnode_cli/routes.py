"""`segnode routes check`: what is wrong in a settings file, by pydicom's dictionary."""

from __future__ import annotations

from pathlib import Path

from pydicom.datadict import dictionary_VR, tag_for_keyword

from segnode_contract.settings import MODELS
from segnode_models.registry import cards_of
from segnode_plugin import route_check
from segnode_plugin.route_check import Complaint


class Keywords:
    """The attributes that pydicom knows."""

    def vr(self, keyword: str) -> str | None:
        """Return the value representation of a keyword, None for one that is not known."""
        return None if tag_for_keyword(keyword) is None else dictionary_VR(keyword)


def check_routes(config: Path, data: Path) -> list[Complaint]:
    """Return what is wrong in the settings file, as `route_check.check_routes`.

    The models are those of the node in `data`, whether it runs or not.
    """
    return route_check.check_routes(config, Keywords(), cards_of(data / MODELS))
