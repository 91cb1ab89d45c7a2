"""Every error that can end a job has a cure of its own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import segnode_cli
import segnode_models
import segnode_worker
from segnode_contract import errors
from segnode_contract.errors import SegnodeError
from segnode_plugin.web.cures import cure_of, is_known

_HELPERS = ("_unsuitable", "unsuitable", "_broken")
"""Functions whose first argument is a code."""
_CODE = re.compile(r"[a-z]+(-[a-z]+)*")


def classes(of: type[SegnodeError]) -> Iterator[type[SegnodeError]]:
    """Give the classes of the tree itself; others define some for their own use."""
    if of.__module__ == errors.__name__:
        yield of
    for each in of.__subclasses__():
        yield from classes(each)


def codes_in_source() -> Iterator[str]:
    """Give what stands as a code in the source, as ``code="…"`` or before a sentence."""
    packages = (segnode_worker, segnode_models, segnode_cli, errors)
    for folder in {Path(package.__file__ or "").parent for package in packages}:
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield from codes_in(node)


def codes_in(call: ast.Call) -> Iterator[str]:
    values = [keyword.value for keyword in call.keywords if keyword.arg in ("code", "error_code")]
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    if name in _HELPERS:
        values += call.args[:1]
    if name == "_as":
        values += call.args[2:3]
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value


def test_every_code_of_the_tree_has_a_cure() -> None:
    assert sorted(each.code for each in classes(SegnodeError) if not is_known(each.code)) == []


def test_every_code_that_is_raised_has_a_cure() -> None:
    found = set(codes_in_source())
    assert {"gantry-tilt", "too-few-slices", "undecodable", "bad-uid", "internal"} <= found
    assert sorted(code for code in found if not is_known(code)) == []


def test_what_the_ledger_itself_says_has_a_cure() -> None:
    for code in ("worker-lost", "sender-lost", "destination-unknown", "lease-lost"):
        assert is_known(code)


def test_a_code_of_a_newer_version_has_one_too() -> None:
    assert "log" in cure_of("never-heard-of")


def test_a_cure_is_a_sentence() -> None:
    for each in classes(SegnodeError):
        assert cure_of(each.code).endswith((".", "!"))
        assert _CODE.fullmatch(each.code)


def test_what_was_given_up_is_not_said_to_be_tried_again() -> None:
    for each in classes(SegnodeError):
        said = cure_of(each.code, given_up=True)
        assert "is tried again by itself" not in said
        assert said.endswith("retry it once the cause is gone.")
