"""Tables as files that are safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

from flask import Response

_FORMULA = re.compile(r"(^|[;,\t\r\n])(?=\s*[=+\-@＝＋－＠])|^(?=[\t\r\n])")
"""Where a text begins so, or would after a cut at another separator, some spreadsheets run it."""

Cell = str | int | float | None


def csv_text(head: Iterable[str], rows: Iterable[Iterable[Cell]]) -> str:
    """Write a table as RFC 4180 says; texts that look like formulas get an apostrophe in front."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow(head)
    writer.writerows([_tame(cell) for cell in row] for row in rows)
    return lines.getvalue()


def download(name: str, text: str) -> Response:
    """Answer with a file of this name; its first bytes tell a spreadsheet that it is UTF-8."""
    return Response(
        text.encode("utf-8-sig"),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _tame(cell: Cell) -> Cell:
    return _FORMULA.sub(r"\1'", cell) if isinstance(cell, str) else cell
