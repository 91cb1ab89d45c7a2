"""Alerts at the command line: who logs in where, and a trial."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from segnode_cli.node import CONFIG, Node, keep, prepare
from segnode_contract.alerts import SMTP_LOGIN, WEBHOOK_TOKEN
from segnode_contract.errors import SettingsError
from segnode_contract.settings import load_settings

from ..conftest import free_port
from ..plugin.receivers import hook_server, mail_server

SEGNODE = str(Path(sys.executable).with_name("segnode"))
SECRET = "made-up-word"


def node_with(folder: Path, mail_port: int, hook_port: int) -> Node:
    config = folder / "segnode.toml"
    alerts = f"""
[alerts]
email_to = ["it@hospital.example"]
email_from = "segnode@hospital.example"
smtp_host = "127.0.0.1"
smtp_port = {mail_port}
smtp_tls = "none"
webhook = "http://127.0.0.1:{hook_port}/{SECRET}"
"""
    config.write_text((CONFIG / "demo.toml").read_text() + alerts)
    return prepare(folder / "data", config, load_settings(config))


def doctor(node: Node, *words: str) -> str:
    command = [SEGNODE, "doctor", "--data", str(node.data), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert SECRET not in done.stdout + done.stderr
    return " ".join(done.stderr.split())


def test_what_mail_server_and_webhook_ask_for_reaches_the_node_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (*SMTP_LOGIN, WEBHOOK_TOKEN)
    for name in names:
        monkeypatch.setenv(name, SECRET)
    demo = CONFIG / "demo.toml"
    without = prepare(tmp_path / "other", demo, load_settings(demo))
    assert not set(names) & set(without.environment()), "nobody is told of anything there"
    keep(node_with(tmp_path, 25, 80))
    for name in names:
        monkeypatch.delenv(name)
    known = node_with(tmp_path, 25, 80).environment()
    assert {name: known.get(name) for name in names} == dict.fromkeys(names, SECRET)
    monkeypatch.setenv(SMTP_LOGIN[0], "another")
    with pytest.raises(SettingsError, match="SEGNODE_SMTP_PASSWORD is not"):
        node_with(tmp_path, 25, 80)


def test_the_doctor_looks_at_each_channel_and_sends_a_trial_when_told_to(tmp_path: Path) -> None:
    with mail_server() as mail, hook_server() as hook:
        node = node_with(tmp_path, mail.port, hook.port)
        keep(node)
        said = doctor(node)
        assert f"✓ by email 127.0.0.1:{mail.port} without encryption" in said
        assert f"✓ by webhook 127.0.0.1:{hook.port} on this machine" in said
        assert (mail.mails, hook.bodies) == ([], [])
        assert said.count("a trial was sent") == 0
        assert doctor(node, "--alert").count("a trial was sent") == 2
    assert mail.subjects() == ["[segnode] 1 alert"]
    assert "nothing is wrong" in mail.text()
    assert hook.alerts == [[("trial", "raised")]]


def test_the_doctor_names_a_channel_that_does_not_answer(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    node = node_with(tmp_path, *ports)
    keep(node)
    said = doctor(node)
    assert f"The mail server 127.0.0.1:{ports[0]} does not answer" in said
    assert f"The webhook at 127.0.0.1:{ports[1]} does not answer" in said
