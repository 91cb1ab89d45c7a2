"""The reader that a trained nnU-Net had its images from, which `plans.json` names.

Apart from what imports nnU-Net, since a card is drafted without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def turns_to_ras(plans: Mapping[str, Any]) -> bool:
    """Return whether training turned its images: the last axis grows to the right, the second to
    anterior, the first to the head."""
    return str(plans.get("image_reader_writer")).endswith("WithReorient")
