"""The side of pictures: of which objects there may be some."""

from __future__ import annotations

from sqlalchemy import or_, select

from segnode_contract.ledger import schema
from segnode_contract.ledger.engine import Ledger


class PictureLedger:
    """Reading only."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def is_segmentation(self, instance_uid: str) -> bool:
        """Return whether a SOP Instance UID is that of a segmentation that a job has stored."""
        result = schema.result
        query = select(result.c.instance_uid).where(
            result.c.instance_uid == instance_uid,
            result.c.role.startswith("SEG"),
            or_(result.c.stored_at.is_not(None), result.c.confirmed_at.is_not(None)),
        )
        with self._ledger.read() as connection:
            return connection.scalar(query) is not None
