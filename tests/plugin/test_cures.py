"""Every error that can end a job has a cure of its own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import segnode_models
import segnode_worker.archive  # has an error of its own
from segnode_contract import errors
from segnode_contract.errors import SegnodeError, TransientError
from segnode_plugin.web.cures import cure_of

WAIT = "The job is tried again by itself. "
_HELPERS = ("_unsuitable", "unsuitable", "_broken")
"""Functions whose first argument is a code."""
_CODE = re.compile(r"[a-z]+(-[a-z]+)*")
_OF_NO_JOB = (
    *("error", "transient", "permanent", "setup", "settings", "ledger-schema", "no-dicom"),
    *("folder", "no-folder", "broker-unavailable", "not-told", "lease-lost", "picture-refused"),
)
"""Codes with which no job and no delivery ends: commands and logs say them."""
_OF_DELIVERIES = ("peer-", "object-missing")


def classes(of: type[SegnodeError]) -> Iterator[type[SegnodeError]]:
    """Give a class of the tree and all below it, wherever they are defined."""
    yield of
    for each in of.__subclasses__():
        yield from classes(each)


def codes(of: type[SegnodeError] = SegnodeError) -> set[str]:
    """Return the codes with which a job or a delivery may end."""
    return {each.code for each in classes(of)}.difference(_OF_NO_JOB)


def is_known(code: str) -> bool:
    return cure_of(code) != cure_of("never-heard-of")


def codes_in_source() -> Iterator[str]:
    """Give what stands as a code in the source, as ``code="…"`` or before a sentence."""
    packages = (segnode_worker, segnode_models, errors)
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
    assert "archive-password" in codes()
    assert sorted(code for code in codes() if not is_known(code)) == []


def test_every_code_that_is_raised_has_a_cure() -> None:
    found = set(codes_in_source()).difference(_OF_NO_JOB)
    assert {"gantry-tilt", "too-few-slices", "undecodable", "bad-uid", "internal"} <= found
    assert sorted(code for code in found if not is_known(code)) == []


def test_what_the_ledger_itself_says_has_a_cure() -> None:
    for code in ("worker-lost", "sender-lost", "destination-unknown"):
        assert is_known(code)


def test_a_code_of_a_newer_version_has_one_too() -> None:
    assert "log" in cure_of("never-heard-of")


def test_a_cure_is_a_sentence() -> None:
    for code in codes():
        assert cure_of(code).endswith(".")
        assert _CODE.fullmatch(code)


def test_what_is_tried_again_by_itself_is_not_to_be_retried_by_hand() -> None:
    of_jobs = {code for code in codes(TransientError) if not code.startswith(_OF_DELIVERIES)}
    assert {"out-of-memory", "series-changed", "model-process-died"} <= of_jobs
    for code in (*of_jobs, "worker-lost", "archive-address", "archive-certificate"):
        said = cure_of(code, again=True)
        assert said.startswith(WAIT)
        assert "retry" not in said.lower()


def test_what_is_not_tried_again_is_not_said_to_be() -> None:
    for code in (*codes(), *codes_in_source()):
        assert "by itself" not in cure_of(code)
        assert "Next it" not in cure_of(code)
