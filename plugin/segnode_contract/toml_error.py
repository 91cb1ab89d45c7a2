"""Why a file is not TOML, in the words of who writes it."""

from __future__ import annotations

import re
import tomllib

_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)")
_END = " (at end of document)"
_LINE_ENDS = re.compile(r"[ \t]*(#[^\n]*)?(\n|\Z)")
_UNQUOTED = re.compile(r"[^\W\d]|[“”‘’]")


def not_toml(text: str, error: tomllib.TOMLDecodeError) -> str:
    """Return what is wrong, where, and what was probably done."""
    said = str(error)
    place = _PLACE.search(said)
    lines = text.replace("\r\n", "\n").split("\n")
    if place:
        line, column = int(place[1]), int(place[2])
    else:
        line, column = len(lines), len(lines[-1]) + 1
        said = said.replace(_END, f" (at line {line}, column {column}, the end of the file)")
    before = "\n".join([*lines[: line - 1], lines[line - 1][: column - 1]])
    after = "\n".join([lines[line - 1][column - 1 :], *lines[line:]])
    reason = _reason(said, before, after)
    return f"{said}; {reason}" if reason else said


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return which byte of a file is no UTF-8, and where."""
    before = error.object[: error.start]
    line = before.count(b"\n") + 1
    column = len(before.rpartition(b"\n")[2].decode(errors="replace")) + 1
    byte = error.object[error.start]
    return f"the byte 0x{byte:02x} (at line {line}, column {column}) is none; save it as UTF-8"


def _reason(said: str, before: str, after: str) -> str:
    in_table = said.startswith(("Invalid initial character for a key", "Unclosed inline table"))
    in_table &= before.count("{") > before.count("}")
    twice = said.startswith(("Cannot declare", "Cannot overwrite"))
    in_head = before.rpartition("\n")[2].lstrip().startswith("[")
    reasons = {
        "an inline table { … } stands on one line; a list [ … ] may take several": (
            in_table and _LINE_ENDS.match(after)
        ),
        "no comma stands before the } of an inline table": in_table and after.startswith("}"),
        "[[routes]] stands in double brackets each time, [node] once, and in single ones": (
            twice and in_head
        ),
        "this key stands above already": twice and not in_head,
        "between double quotes each backslash is written twice; between single ones once": (
            said.startswith("Unescaped '\\'")
        ),
        "a text ends with a quote on the line on which it begins": (
            said.startswith("Illegal character '\\n'")
        ),
        'a text stands between straight quotes, "CT"; true and false are in small letters': (
            said.startswith("Invalid value") and _UNQUOTED.match(after)
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
