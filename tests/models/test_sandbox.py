"""A bundle that tries to get out of its cell: what it can reach, and what it cannot."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from segnode_contract.errors import PermanentError
from segnode_models.trust import pins_of, pins_path, write_pins
from segnode_worker.model_client import KnownModel, ModelProcess
from segnode_worker.model_service import ModelService
from segnode_worker.sandbox import gpu_nodes, sandboxed, why_not

from .bundle import make_bundle
from .trained import SOFTMAX_SEGMENTS, card_toml, trained_softmax

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no cell can be made here: {why_not()}")

SPY = '''
"""Tries each way out, and tells by voxels which were open."""
import os
import socket
from pathlib import Path

PORT, SECRET, ROOT = {port}, {secret!r}, {root!r}


def overwrite_weights():
    for path in Path("/models").rglob("model.pt"):
        path.chmod(0o644)
        path.write_bytes(b"other")


def add_a_file():
    Path("/models/new.pins.json").write_text("{{}}")


def call_this_machine():
    socket.create_connection(("127.0.0.1", PORT), 1).close()


def call_another():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.sendto(b"name", ("192.0.2.1", 53))


def read_the_passwords():
    Path(SECRET).read_text()


def read_a_password_in_the_environment():
    assert any("PASSWORD" in name or "URL" in name for name in os.environ)


def see_other_processes():
    for status in Path("/proc").glob("[0-9]*/environ"):
        if b"SEGNODE_TEST_SECRET" in status.read_bytes():
            return
    raise LookupError


def become_root():
    os.setuid(0)


def be_who_the_worker_is():
    assert os.getuid() == {uid}


def change_the_program():
    (Path(ROOT) / "worker/segnode_models/server.py").open("a").close()


def change_a_library():
    import torch

    Path(torch.__file__).open("a").close()


def write_a_temporary_file():
    Path("/tmp/spy").write_text("here")


WAYS = [
    overwrite_weights,
    add_a_file,
    call_this_machine,
    call_another,
    read_the_passwords,
    read_a_password_in_the_environment,
    see_other_processes,
    become_root,
    be_who_the_worker_is,
    change_the_program,
    change_a_library,
    write_a_temporary_file,
]


def bend_another_model():
    from segnode_models.builtin.ct_tissue.model import CtTissue

    honest = CtTissue.segment

    def bent(self, volume, labels, told):
        findings = honest(self, volume, labels, told)
        labels[0] = 1
        return findings

    CtTissue.segment = bent


class Spy:
    def __init__(self):
        bend_another_model()
        self.open = []
        for number, way in enumerate(WAYS):
            try:
                way()
                self.open.append(number)
            except Exception:
                pass

    def __call__(self, data):
        data["pred"] = data["pred"] * 0
        for number in self.open:
            data["pred"][..., number] = 1
        return data
'''
WAYS = [line.strip(" ,\n") for line in SPY.partition("WAYS = [")[2].partition("]")[0].splitlines()]
WAYS = [way for way in WAYS if way]


@pytest.fixture
def door() -> Iterator[int]:
    """A server on this machine, as Redis is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def spied(
    tmp_path: Path, door: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ModelProcess, KnownModel]]:
    monkeypatch.setenv("SEGNODE_TEST_SECRET", "1")
    monkeypatch.setenv("SEGNODE_PASSWORD_ADMIN", "secret")
    secret = tmp_path / "environment"
    secret.write_text("SEGNODE_PASSWORD_ADMIN=secret")
    secret.chmod(0o644)  # whoever could see it could read it
    models = tmp_path / "models"
    folder = make_bundle(
        models / "shapes",
        trained_softmax(),
        change=lambda config: config["postprocessing"]["transforms"].append(
            {"_target_": "scripts.spy.Spy"}
        ),
    )
    (folder / "scripts").mkdir()
    (folder / "scripts/__init__.py").touch()
    (folder / "scripts/spy.py").write_text(
        SPY.format(
            port=door,
            secret=str(secret),
            root=str(Path(__file__).parents[2]),
            uid=os.getuid() if os.getuid() == 0 else -1,
        )
    )
    (folder / "card.toml").write_text(
        card_toml(kind="monai-bundle", needs="", network="", segments=SOFTMAX_SEGMENTS)
    )
    write_pins(models, "shapes", pins_of(folder))
    service = ModelService(models=models)
    service.start()
    process = ModelProcess(service)
    try:
        known = next(m for m in process.models(60).models if m.card.name == "shapes")
        yield process, known
    finally:
        service.stop()


def test_nothing_is_open_but_its_own_temporary_folder(
    spied: tuple[ModelProcess, KnownModel], tmp_path: Path
) -> None:
    process, known = spied
    before = pins_of(tmp_path / "models/shapes")
    labels = _run_spy(process, known)
    was_open = sorted(set(np.argwhere(labels[0])[:, 2].tolist()))
    assert [WAYS[number] for number in was_open] == ["write_a_temporary_file"]
    assert pins_of(tmp_path / "models/shapes") == before
    assert not Path("/tmp/spy").exists()


def test_its_program_is_not_read_once_a_file_is_another(
    spied: tuple[ModelProcess, KnownModel], tmp_path: Path
) -> None:
    process, known = spied
    script = tmp_path / "models/shapes/scripts/spy.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused = process.models(60)
    assert [m.card.name for m in refused.models if m.card.kind != "builtin"] == []
    assert "shapes/scripts/spy.py is not the file that was added" in refused.refused["shapes"]
    volume = hd.Volume(np.zeros((3, 4, 5), np.int16), np.eye(4), coordinate_system="PATIENT")
    with pytest.raises(PermanentError) as raised:
        process.segment(known.card, known.digest, volume, {})
    assert raised.value.code == "model-untrusted"
    assert not (tmp_path / "ran").exists()


def test_what_a_model_did_to_its_process_goes_with_the_model(
    spied: tuple[ModelProcess, KnownModel], tmp_path: Path
) -> None:
    process, known = spied
    tissue = next(m for m in process.models(60).models if m.card.name == "ct-tissue")
    air = hd.Volume(np.full((8, 32, 32), -1000, np.int16), np.eye(4), coordinate_system="PATIENT")
    honest, _ = process.segment(tissue.card, tissue.digest, air, {})
    assert not honest.any()
    _run_spy(process, known)
    bent, _ = process.segment(tissue.card, tissue.digest, air, {})
    assert bent.any()  # models share a process: README says so
    pins_path(tmp_path / "models", "shapes").unlink()
    honest, _ = process.segment(tissue.card, tissue.digest, air, {})
    assert not honest.any()


def _run_spy(process: ModelProcess, known: KnownModel) -> np.ndarray:
    volume = hd.Volume(
        np.zeros((32, 48, 48), np.int16), np.diag([3.0, 2.0, 2.0, 1]), coordinate_system="PATIENT"
    )
    labels, _ = process.segment(known.card, known.digest, volume, {})
    return labels


def test_a_python_below_the_cells_own_folders_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # where the cell has a folder of its own
    try:
        venv.create(folder / "venv")
        monkeypatch.setattr(sys, "prefix", str(folder / "venv"))
        command = [*sandboxed(None), str(folder / "venv/bin/python"), "-c", "print('started')"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout == "started\n", done.stderr
    finally:
        shutil.rmtree(folder)


def test_a_python_that_does_not_start_in_the_cell_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "/nowhere/python" in why_not()


DRIVER = """#!/bin/sh
# as nvidia-modprobe does: with -u the numbers are those of nvidia-uvm
cd "$DEVICES"
for word in "$@"; do
    case "$*,$word" in
        -u*,-c=0) touch nvidia-uvm nvidia-uvm-tools ;;
        -u*) ;;
        *,-c=255) touch nvidiactl ;;
        *,-c=*) touch "nvidia${word#-c=}" ;;
    esac
done
"""


def test_nodes_of_gpus_that_the_driver_has_not_made_yet_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, driver = tmp_path / "dev", tmp_path / "driver"
    devices.mkdir()
    for card in ("0000:01:00.0", "0000:02:00.0"):
        (driver / "gpus" / card).mkdir(parents=True)
    program = tmp_path / "bin/nvidia-modprobe"
    program.parent.mkdir()
    program.write_text(DRIVER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DEVICES", str(devices))
    assert gpu_nodes(devices, driver) == []  # no driver is loaded
    (driver / "version").touch()
    names = {node.name for node in gpu_nodes(devices, driver)}
    assert names == {"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"}


OPENED = """
import subprocess, sys
from segnode_worker.sandbox import sandboxed
sys.exit(subprocess.call([*sandboxed(None), "/bin/sh", "-c", "exec 3<>/dev/nvidia0"]))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a /dev of its own")
@pytest.mark.parametrize("mode", ["0666 root", "0660 video"])
def test_a_gpu_can_be_opened_in_the_cell_of_a_worker_that_is_root(
    tmp_path: Path, mode: str
) -> None:
    bits, group = mode.split()
    script = f"""
        set -e
        mount -t tmpfs -o mode=755 none {tmp_path}
        cd {tmp_path}
        mkdir shm pts
        for one in null:3 zero:5 full:7 random:8 urandom:9 tty:3 nvidia0:3; do
            mknod -m 666 ${{one%:*}} c 1 ${{one#*:}}
        done
        chgrp {group} nvidia0
        chmod {bits} nvidia0
        mount --bind . /dev
        exec "$@"
    """
    alone = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    command = [*alone, sys.executable, "-c", OPENED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
