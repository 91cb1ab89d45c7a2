"""The history: one line per thing that happened, never changed."""

from __future__ import annotations

from sqlalchemy import Connection

from segnode_contract.ledger import schema
from segnode_contract.ledger.clock import now_s


def record(
    connection: Connection,
    job_key: str | None,
    actor: str,
    kind: str,
    detail: str = "",
    *,
    person: bool = False,
) -> None:
    """Append an event to the history, of a job where there is one.

    Parameters
    ----------
    detail
        Names no patient.
    person
        Whether somebody did it by hand.
    """
    connection.execute(
        schema.event.insert().values(
            job_key=job_key, at=now_s(), actor=actor, kind=kind, detail=detail, person=person
        )
    )
