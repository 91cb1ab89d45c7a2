"""What a user of the command meets, good and bad."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path

import pydicom
import pytest

from segnode_cli import doctor
from segnode_cli.ct_series import ct_series
from segnode_cli.node import CONFIG, keep, prepare
from segnode_cli.phantom import chest_phantom
from segnode_cli.send import dicom_files, parse_peer, send_paths
from segnode_cli.servers import gpus, orthanc_settings, redis_settings, write_settings
from segnode_contract.errors import SetupError
from segnode_contract.ledger import Ledger, WorkerLedger
from segnode_contract.settings import load_settings
from segnode_models.device import chosen_device
from segnode_worker.owner import worker_name

SEGNODE = str(Path(sys.executable).parent / "segnode")
ROOT = Path(__file__).parents[2]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SEGNODE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    phantom = chest_phantom(spacing_mm=(6.0, 6.0, 6.0))
    images = ct_series(phantom.hu, spacing_mm=phantom.spacing_mm, seed="cli")
    for number, image in enumerate(images):
        image.save_as(folder / f"{number:03}.dcm", enforce_file_format=True)
    return folder


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "--study", "/nowhere", "--data", "{tmp}/d"], "/nowhere is not a folder"),
        (["send", "{tmp}", "--to", "A@127.0.0.1:1"], "No DICOM file was found in"),
        (["send", "/nowhere", "--to", "A@127.0.0.1:1"], "/nowhere does not exist"),
        (["send", "{tmp}", "--to", "here"], "AET@HOST:PORT is needed"),
        (["jobs", "--data", "{tmp}/none"], "There is no node in"),
        (["up", "--config", "{tmp}/none.toml"], "none.toml cannot be read"),
        (["segment", "{tmp}", "--model", "ct-tissue", "--out", "{tmp}/o"], "no DICOM file"),
        (["segment", "{tmp}", "--model", "liver", "--out", "{tmp}/o"], "no model 'liver'"),
    ],
)
def test_a_failure_is_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    done = run(*(part.format(tmp=tmp_path) for part in arguments))
    assert done.returncode == 1
    assert done.stderr.startswith("segnode: ")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_bad_usage_has_its_own_exit_code() -> None:
    assert run("nonsense").returncode == 2


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("up", "--data", tmp_path / "d", "--http-port", port)
    assert done.returncode == 1
    assert f"Port {port} for HTTP is in use" in done.stderr


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SetupError, match="5 MB left"):
        prepare(tmp_path / "d", CONFIG / "demo.toml", load_settings(CONFIG / "demo.toml"))


def test_secrets_are_made_once_and_kept_to_their_owner(tmp_path: Path) -> None:
    settings = load_settings(CONFIG / "demo.toml")
    first = prepare(tmp_path / "d", CONFIG / "demo.toml", settings)
    keep(first)
    write_settings(first, {"Orthanc": "/o", "redis-server": "/r"}, 1, first.data)
    second = prepare(tmp_path / "d", CONFIG / "demo.toml", settings)
    assert first.passwords == second.passwords
    assert len(set(first.passwords.values())) == 5
    for name in ("environment", "orthanc.json", "redis.conf", "supervisord.conf"):
        assert (first.data / name).stat().st_mode & 0o777 == 0o600
    assert first.data.stat().st_mode & 0o777 == 0o700


def test_servers_listen_on_this_machine_alone_and_ask_for_passwords(tmp_path: Path) -> None:
    settings = load_settings(CONFIG / "segnode.toml")
    node = prepare(tmp_path / "d", CONFIG / "segnode.toml", settings)
    orthanc = orthanc_settings(node)
    assert orthanc["AuthenticationEnabled"] is True
    assert orthanc["RemoteAccessAllowed"] is False
    assert orthanc["DicomAlwaysAllowStore"] is False
    assert set(orthanc["RegisteredUsers"]) == {"admin", "operator", "viewer", "worker"}
    assert f"requirepass {node.passwords['redis']}" in redis_settings(node)
    assert "bind 127.0.0.1" in redis_settings(node)


@pytest.mark.parametrize(
    ("visible", "workers"),
    [("0,1", {"worker": "0", "worker-2": "1"}), ("3", {"worker": "3"}), ("", {"worker": None})],
    ids=["two GPUs", "one that is named", "none"],
)
def test_each_gpu_has_a_worker_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str,
    workers: dict[str, str | None],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    settings = load_settings(CONFIG / "demo.toml")
    node = prepare(tmp_path / "d", CONFIG / "demo.toml", settings)
    path = write_settings(node, {"Orthanc": "/o", "redis-server": "/r"}, 2, tmp_path)
    programs = ConfigParser(interpolation=None)
    programs.read(path)
    sections = {name: dict(programs[f"program:{name}"]) for name in workers}
    named = {s.removeprefix("program:") for s in programs.sections() if "program:worker" in s}
    assert named == set(workers)
    for name, gpu in workers.items():
        wanted = None if gpu is None else f'CUDA_VISIBLE_DEVICES="{gpu}"'
        assert sections[name].get("environment") == wanted
        assert f"--hostname {name}@%%h" in sections[name]["command"]


def test_the_only_gpu_that_a_container_sees_is_the_first_for_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / name).touch()
    assert gpus(tmp_path) == ["0"]


def test_a_sender_runs_where_there_are_destinations_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (CONFIG / "demo.toml").read_text()
    web = '[[destinations]]\nname = "web"\nurl = "https://pacs.example/dicom-web"\n'
    user, password = "SEGNODE_DESTINATION_WEB_USER", "SEGNODE_DESTINATION_WEB_PASSWORD"
    for more, sender in (("", False), (web, True)):
        config = tmp_path / "segnode.toml"
        config.write_text(words + more)
        monkeypatch.setenv(user, "node")
        monkeypatch.setenv(password, "a secret")
        node = prepare(tmp_path / "d", config, load_settings(config))
        path = write_settings(node, {"Orthanc": "/o", "redis-server": "/r"}, 2, tmp_path)
        programs = ConfigParser(interpolation=None)
        programs.read(path)
        assert programs.has_section("program:sender") is sender
        assert (node.environment().get(password) == "a secret") is sender
        assert "a secret" not in path.read_text()
        keep(node)
        for name in (user, password):
            monkeypatch.delenv(name)
    # kept for next time, when the shell does not say it again
    assert prepare(tmp_path / "d", config, load_settings(config)).environment()[user] == "node"


def test_files_that_are_not_dicom_are_left_out(series: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(series, mixed)
    (mixed / "notes.txt").write_text("hello")
    (mixed / "empty.dcm").write_bytes(b"")
    whole = (mixed / "000.dcm").read_bytes()
    (mixed / "cut.dcm").write_bytes(whole[:200])
    assert len(dicom_files([mixed])) == len(list(series.iterdir()))


def test_a_peer_that_is_not_there_is_named(series: Path) -> None:
    done = run("send", series, "--to", "NOBODY@127.0.0.1:1")
    assert done.returncode == 1
    assert "NOBODY at 127.0.0.1:1 does not answer" in done.stderr


def test_a_real_receiver_gets_every_file(series: Path, tmp_path: Path) -> None:
    if shutil.which("storescp") is None:
        pytest.skip("dcmtk's storescp is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    receiver = subprocess.Popen(["storescp", "-od", str(inbox), "-aet", "INBOX", str(port)])
    try:
        for _ in range(50):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        sent = send_paths([series], parse_peer(f"INBOX@127.0.0.1:{port}", tmp_path))
    finally:
        receiver.terminate()
        receiver.wait()
    assert sent.stored == len(list(series.iterdir())) == len(list(inbox.iterdir()))
    assert len(sent.study_uids) == 1


def test_models_are_listed_with_their_cards() -> None:
    done = run("models", "list", "--json")
    assert {card["name"] for card in json.loads(done.stdout)} == {"ct-tissue", "ct-lung-density"}
    assert all(card["limitations"] for card in json.loads(done.stdout))


def test_a_folder_is_segmented_without_a_server(series: Path, tmp_path: Path) -> None:
    done = run("segment", series, "--model", "ct-tissue", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    made = [pydicom.dcmread(path) for path in (tmp_path / "out").iterdir()]
    assert {each.Modality for each in made} == {"SEG", "SR"}
    source = pydicom.dcmread(series / "000.dcm")
    assert {each.StudyInstanceUID for each in made} == {source.StudyInstanceUID}


def test_the_doctor_names_what_is_wrong_and_its_cure(tmp_path: Path) -> None:
    done = run("doctor", "--data", tmp_path / "none")
    assert done.returncode == 1
    assert "start one with segnode up" in done.stderr


def test_the_doctor_misses_the_pages_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "PARTS", tmp_path / "none")
    assert not doctor.examine(tmp_path)
    assert "scripts of the dashboard's pages are not there" in capsys.readouterr().err


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A folder of PCI devices: a GPU of NVIDIA, its sound, and another one's bridge."""
    pci = tmp_path / "pci"
    for name, vendor, kind in (
        ("0000:01:00.0", "0x10de", "0x030200"),
        ("0000:01:00.1", "0x10de", "0x040300"),
        ("0000:00:00.0", "0x8086", "0x060000"),
    ):
        (pci / name).mkdir(parents=True)
        (pci / name / "vendor").write_text(f"{vendor}\n")
        (pci / name / "class").write_text(f"{kind}\n")
    return pci


def gpu_check(folder: Path, pci: Path, device: str, detail: str = "") -> str:
    """Return what the doctor says of GPUs where a worker said this of itself."""
    url = f"sqlite:///{folder}/ledger.sqlite"
    ledger = Ledger(url)
    ledger.migrate()
    WorkerLedger(ledger, worker_name(7)).seen("ready", detail, {"device": device})
    WorkerLedger(ledger, "elsewhere/7").seen("ready", "", {"device": "NVIDIA A100"})
    ledger.close()
    return doctor._gpu({"SEGNODE_LEDGER_URL": url}, pci)


def test_the_doctor_names_a_gpu_that_its_worker_cannot_use(tmp_path: Path, card: Path) -> None:
    device, why = chosen_device("cuda:99")
    assert device == "cpu"
    with pytest.raises(SetupError, match=r"Worker .*/7: This machine has a GPU that .* cannot use"):
        gpu_check(tmp_path, card, "CPU (2 cores)", f"The model shapes is refused. {why}")


def test_the_doctor_does_not_complain_where_the_cpu_was_chosen(tmp_path: Path, card: Path) -> None:
    said = gpu_check(tmp_path, card, "CPU (2 cores)", "The model shapes is refused.")
    assert said.startswith("CPU (2 cores); the NVIDIA GPU at 0000:01:00.0 is not used: SEGNODE_DEV")
    assert gpu_check(tmp_path, card, "NVIDIA H100") == "NVIDIA H100"
    assert gpu_check(tmp_path, tmp_path / "none", "CPU (2 cores)") == "CPU (2 cores)"


def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    data = tmp_path / "n"
    up = subprocess.Popen(
        # a shell that started these tests in the background had SIGINT ignored
        ["/usr/bin/env", "--default-signal=INT", SEGNODE, "up", "--data", str(data)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert up.stderr is not None
    for line in up.stderr:
        if "Ctrl-C" in line:
            break
    assert remaining(data) != []
    up.send_signal(signal.SIGINT)
    try:
        assert up.wait(90) == 0
    except subprocess.TimeoutExpired:
        left = remaining(data)
        logs = [log.read_text()[-1000:] for log in (data / "logs").iterdir()]
        up.kill()
        up.wait()
        pytest.fail(f"the node did not end: {left}\n" + "\n".join(logs))
    finally:
        up.stderr.close()
    assert remaining(data) == []


def remaining(data: Path) -> list[str]:
    """Return the command lines of processes that name the folder or stand in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            folder = str((process / "cwd").readlink())
        except OSError:
            continue
        if "segnode up" not in line and (str(data) in line or str(data) in folder):
            found.append(line)
    return found


@pytest.mark.parametrize("more", [[], ["-f", "compose.cell.yaml"]], ids=["plain", "with cell"])
def test_compose_is_valid(more: list[str]) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed")
    names = ("ADMIN", "OPERATOR", "VIEWER", "WORKER", "REDIS", "LEDGER")
    profiles = ("--profile", "cpu", "--profile", "gpu")
    done = subprocess.run(
        ["docker-compose", "-f", "compose.yaml", *more, *profiles, "config"],
        cwd=ROOT,
        env={**os.environ, **{f"SEGNODE_PASSWORD_{name}": "word" for name in names}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "worker-gpu" in done.stdout
    # rights that are as good as root's on the machine are for who asks for them
    assert ("SYS_ADMIN" in done.stdout) == bool(more)


def test_compose_refuses_to_start_without_passwords() -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed")
    done = subprocess.run(
        ["docker-compose", "config"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "see README" in done.stderr
