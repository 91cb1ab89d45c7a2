"""`segnode explain`: what each route says of each series of a study, and why."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from segnode_cli.jobs import ledger_of
from segnode_cli.listing import Listing, administrator
from segnode_cli.node import node_variables
from segnode_cli.routes import check_routes
from segnode_cli.show import console, say
from segnode_contract.errors import SetupError
from segnode_contract.ledger import IntakeLedger
from segnode_contract.settings import load_settings
from segnode_plugin.facts import series_facts
from segnode_plugin.routing import verdict

_LONGEST = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One route's word on one series."""

    series_uid: str
    series: str
    """Number, modality and description, for people."""
    images: int
    route: str
    taken: bool
    reason: str


def print_explanation(data: Path, study_uid: str, as_json: bool) -> None:
    """Print, for the node in `data`, what its routes say of a study as it lies in the archive."""
    rows = explain(data, study_uid)
    config = Path(node_variables(data)["SEGNODE_CONFIG"])
    if check_routes(config):
        say(
            f"There are faults in {config}: `segnode routes check --config {config}`; until they "
            "are mended, the running node may follow older routes than these."
        )
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    table = Table("series", "images", "route", "takes it", "why")
    for row in rows:
        takes = "yes" if row.taken else "no"
        cells = (row.series, str(row.images), row.route, takes, row.reason)
        table.add_row(*(Text(_plain(cell)) for cell in cells))
    console.print(table)


def explain(data: Path, study_uid: str) -> list[Explained]:
    """Return every route's word on every series; nothing is recorded and nothing started.

    Raises
    ------
    SetupError
        If there is no node, or its archive has no such study.
    ArchiveUnavailable, LedgerUnavailable, SettingsError
        If one of them cannot be read.
    """
    known = node_variables(data)
    settings = load_settings(Path(known["SEGNODE_CONFIG"]))
    listing = Listing(administrator(settings, known))
    rows = []
    with ledger_of(data) as ledger:
        intake = IntakeLedger(ledger)
        for orthanc_id in listing.series_of_study(study_uid):
            facts = series_facts(listing, orthanc_id)
            if facts is None:
                continue
            ours = intake.own_series(facts.series_uid)
            for route in settings.routes:
                said = verdict(route, facts, quote=True)
                rows.append(
                    Explained(
                        series_uid=facts.series_uid,
                        series=_title(facts.attributes, facts.modality),
                        images=len(facts.instance_uids),
                        route=route.name,
                        taken=said.taken and not ours,
                        reason="a result of ours" if ours else said.reason,
                    )
                )
    if not rows:
        raise SetupError(f"The archive of the node in {data} has no study {study_uid[:64]}.")
    return rows


def _title(tags: Any, modality: str) -> str:
    words = (tags.get("SeriesNumber"), modality, tags.get("SeriesDescription"))
    return " ".join(word for word in words if isinstance(word, str) and word)


def _plain(text: str) -> str:
    """Return a text without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text[:_LONGEST])
