"""Key pictures: what a worker hands over beside a segmentation, and the plugin keeps with it."""

from __future__ import annotations

MOST = 3
"""Pictures of one segmentation, numbered from 1."""
LARGEST = 400_000
"""Bytes of one picture."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""How a PNG begins (RFC 2083, 12.12)."""


def hand_over_path(instance_uid: str, number: int) -> str:
    """Return where a worker sends a picture of a segmentation, by its SOP Instance UID."""
    return f"/segnode/api/pictures/{instance_uid}/{number}"
