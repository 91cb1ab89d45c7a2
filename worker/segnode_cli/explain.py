"""`segnode explain` and `segnode replay`: what the routes say of what lies in the archive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from rich.table import Table
from rich.text import Text

from segnode_cli.jobs import actor, ledger_of
from segnode_cli.listing import Listing, administrator
from segnode_cli.node import node_variables
from segnode_cli.routes import check_routes
from segnode_cli.show import console, say
from segnode_contract.errors import SetupError
from segnode_contract.ledger import IntakeLedger, LedgerView
from segnode_contract.settings import load_settings
from segnode_plugin.deciding import Known
from segnode_plugin.explaining import (
    Explained,
    counts,
    explained,
    studies_since,
    to_reopen,
    words_on,
)

_LONGEST = 200
_AT_ONCE = 500
"""Series that are given back to intake in one transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A node's archive and ledger, and what decides."""

    listing: Listing
    intake: IntakeLedger
    view: LedgerView
    known: Known


@contextmanager
def opened(data: Path) -> Iterator[Opened]:
    """Open what the node in `data` has.

    Raises
    ------
    SetupError
        If there is no node.
    ArchiveUnavailable, LedgerUnavailable, SettingsError
        If one of them cannot be read.
    """
    variables = node_variables(data)
    config = Path(variables["SEGNODE_CONFIG"])
    settings = load_settings(config)
    if check_routes(config, data):
        say(
            f"There are faults in {config}: `segnode routes check --config {config}`; until they "
            "are mended, the running node may follow older routes than these."
        )
    with ledger_of(data) as ledger:
        intake = IntakeLedger(ledger)
        yield Opened(
            listing=Listing(administrator(settings, variables)),
            intake=intake,
            view=LedgerView(ledger),
            known=Known(
                routes=settings.routes,
                priorities=settings.priorities,
                form=settings.results.form,
                models=intake.models(settings.limits.lease_s),
                ours=intake.own_series,
                quote=True,
            ),
        )


def print_explanation(data: Path, study_uid: str, as_json: bool) -> None:
    """Print, for the node in `data`, what its routes say of a study as it lies in the archive."""
    rows = explain(data, study_uid)
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    table = Table("series", "images", "route", "takes it", "why", "job")
    for row in rows:
        takes = "yes" if row.taken else "no"
        cells = (row.series, str(row.images), row.route, takes, row.reason, _job(row))
        table.add_row(*(Text(_plain(cell)) for cell in cells))
    console.print(table)


def explain(data: Path, study_uid: str) -> list[Explained]:
    """Return every route's word on every series; nothing is recorded and nothing started.

    Raises
    ------
    SetupError
        If the archive of the node in `data` has no such study; else as `opened`.
    """
    with opened(data) as node:
        studies = node.listing.studies_named(study_uid)
        words = [
            word
            for study in studies
            for word in words_on(node.listing, study, node.known, node.intake.idle_s)
        ]
        if not studies:
            raise SetupError(f"The archive of the node in {data} has no study {study_uid[:64]}.")
        return explained(words, node.view)


def replay(data: Path, since: datetime, *, run: bool, as_json: bool) -> None:
    """Print which jobs the routes want of studies that changed since a moment.

    Parameters
    ----------
    since
        With its time zone.
    run
        Give the series whose jobs are missing back to intake, which makes them.
    """
    rows: list[Explained] = []
    again: list[str] = []
    with opened(data) as node:
        for study in studies_since(node.listing.studies(), since):
            words = words_on(node.listing, study, node.known, node.intake.idle_s, backlog=True)
            found = explained(words, node.view)
            rows += [row for row in found if row.taken]
            again += to_reopen(words, found, node.known)
        if run and again:
            _reopen(node.intake, again)
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        _print_replay(rows)
    _tell(rows, len(again), run=run)


def _reopen(intake: IntakeLedger, series: list[str]) -> None:
    archive_id = intake.newest_archive()
    if archive_id is None:
        raise SetupError(
            "The node has not read its archive yet; see that Orthanc runs with the plugin."
        )
    for first in range(0, len(series), _AT_ONCE):
        intake.reopen(archive_id, series[first : first + _AT_ONCE], actor())


def _print_replay(rows: list[Explained]) -> None:
    table = Table("study", "series", "images", "route", "job")
    for row in rows:
        cells = (row.study_uid, row.series, str(row.images), row.route, _job(row))
        table.add_row(*(Text(_plain(cell)) for cell in cells))
    console.print(table)


def _tell(rows: list[Explained], series: int, *, run: bool) -> None:
    stand = counts(rows)
    say(", ".join(f"{count} {state}" for state, count in stand) or "no job")
    if {"failed", "dead"} & {state for state, _ in stand}:
        say("`segnode retry KEY` runs failed and dead jobs again; --json shows their keys")
    if run:
        say(f"{series} series were given back to intake; what they lack is made as background work")
    elif series:
        say("nothing was started; --run starts what is missing")


def _job(row: Explained) -> str:
    if not row.job:
        return "waits" if row.taken else ""
    shadow = ", shadow" if row.shadow else ""
    return f"{row.state}: {row.model}, {row.priority}{shadow}"


def _plain(text: str) -> str:
    """Return a text without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text[:_LONGEST])
