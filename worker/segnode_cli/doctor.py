"""`segnode doctor`: every part checked, each failure with its cure."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import redis

from segnode_cli.node import CONFIG, FREE_BYTES, PARTS, VIEWER, read_environment
from segnode_cli.servers import program
from segnode_cli.show import console, say
from segnode_cli.supervise import check_programs
from segnode_contract.destination import Destination
from segnode_contract.errors import SegnodeError, SetupError
from segnode_contract.ledger import Ledger, LedgerView
from segnode_contract.ledger.view import WorkerRow
from segnode_contract.settings import MODELS, load_settings
from segnode_contract.workers import SILENT_S
from segnode_models.device import UNUSED
from segnode_models.registry import offer_of
from segnode_models.trust import pinned_models
from segnode_plugin.notice import trial as trial_of
from segnode_plugin.telling import Channel, channels
from segnode_worker.archive import trust_in
from segnode_worker.owner import host
from segnode_worker.receivers import receiver_of
from segnode_worker.sandbox import why_not

Check = Callable[[], str]
_NVIDIA, _DISPLAY = "0x10de", "0x03"
"""Vendor and base class of a GPU on the PCI bus; its sound is another device."""


def examine(data: Path, *, alert: bool = False) -> bool:
    """Run every check, print a line for each, and return whether all passed.

    With `alert` people are told of a trial, too.
    """
    known = read_environment(data)
    checks: dict[str, Check] = {
        "programs": lambda: ", ".join(check_programs().values()),
        "interpreter": _interpreter,
        "viewer": _viewer,
        "pages": _pages,
        "settings": lambda: _settings(known),
        "models": lambda: _models(data),
        "sandbox": lambda: _sandbox(data),
        "free space": lambda: _free_space(data),
        "node": lambda: _node(known, data),
    } | _alerts(known, trial=alert)
    if known:
        checks |= {
            "ledger": lambda: _ledger(known),
            "Redis": lambda: _redis(known),
            "Orthanc": lambda: _orthanc(known),
            "DICOM": lambda: _dicom(known),
            "processes": lambda: _processes(data),
            "worker": lambda: _worker(known),
            "GPU": lambda: _gpu(known),
        } | _destinations(known)
    failed = [name for name, check in checks.items() if not _report(name, check)]
    return not failed


def _destinations(known: dict[str, str]) -> dict[str, Check]:
    """Return a check for each destination that the settings name."""
    try:
        settings = load_settings(Path(known["SEGNODE_CONFIG"]))
    except SegnodeError:
        return {}  # the check of the settings says so

    def check(one: Destination) -> str:
        return receiver_of(one, settings.dicom.aet, known).check()

    return {f"to {one.name}": partial(check, one) for one in settings.destinations}


def _alerts(known: dict[str, str], *, trial: bool) -> dict[str, Check]:
    """Return a check for each way by which people are told."""
    try:
        settings = load_settings(_config(known))
    except SegnodeError:
        return {}  # as above
    try:
        found = channels(settings.alerts, {**known, **os.environ})
    except SegnodeError as error:
        return {"alerts": partial(_fails, error)}
    if not found:
        return {"alerts": lambda: "off; email_to or webhook in [alerts] turns them on"}
    notice = trial_of(settings.node.name, settings.alerts.quiet_s, time.time())

    def check(channel: Channel) -> str:
        said = channel.check()
        if trial:
            channel.tell(notice)
        return f"{said}; a trial was sent" if trial else said

    return {f"by {channel.name}": partial(check, channel) for channel in found}


def _fails(error: SegnodeError) -> str:
    raise error


def _models(data: Path) -> str:
    offer = offer_of(data / MODELS)
    for error in offer.refused.values():
        raise error
    return ", ".join(listed.card.name for listed in offer.models.values())


def _sandbox(data: Path) -> str:
    trouble = why_not()
    if not trouble:
        return "bubblewrap makes cells for added models"
    if pinned_models(data / MODELS):
        raise SetupError(
            f"No cell can be made for the added models, which are refused: {trouble}. Give a "
            "container the rights that compose.cell.yaml has; or accept the risk with sandbox = "
            "false in [models]."
        )
    return f"none can be made ({trouble}); no model was added that needs one"


def _report(name: str, check: Check) -> bool:
    try:
        said = check()
    except SegnodeError as error:
        console.print(f"[red]✗[/red] {name:12} ", end="")
        say(error.sentence)
        return False
    console.print(f"[green]✓[/green] {name:12} ", end="")
    say(said)
    return True


def _interpreter() -> str:
    system = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    if system != [str(part) for part in sys.version_info[:2]]:
        raise SetupError(
            f"This venv has Python {sys.version_info[0]}.{sys.version_info[1]}, Orthanc embeds "
            f"/usr/bin/python3, {'.'.join(system)}; delete .venv and run make demo."
        )
    return f"Python {'.'.join(system)}, as Orthanc embeds it"


def _viewer() -> str:
    if not (VIEWER / "index.html").exists():
        raise SetupError("The viewer is not there; make demo fetches it.")
    return str(VIEWER)


def _pages() -> str:
    if not PARTS.is_dir():  # set-up puts it there whole or not at all
        raise SetupError(
            "The scripts of the dashboard's pages are not there, which so do not renew themselves; "
            "make demo fetches them."
        )
    return str(PARTS)


def _settings(known: dict[str, str]) -> str:
    path = _config(known)
    return f"{path}, {len(load_settings(path).routes)} routes"


def _config(known: dict[str, str]) -> Path:
    return Path(known.get("SEGNODE_CONFIG", CONFIG / "segnode.toml"))


def _free_space(data: Path) -> str:
    folder = data if data.exists() else Path()
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        raise SetupError(
            f"{free >> 20} MB are left for {folder.resolve()}, {FREE_BYTES >> 20} MB are needed; "
            "make room."
        )
    return f"{free >> 30} GB"


def _node(known: dict[str, str], data: Path) -> str:
    if not known:
        raise SetupError(f"There is no node in {data}; start one with segnode up.")
    mode = (data / "environment").stat().st_mode & 0o777
    if mode & 0o077 or data.stat().st_uid != os.getuid():
        raise SetupError(
            f"{data / 'environment'} holds passwords and has mode {mode:04o}; chmod 600 it."
        )
    return str(data)


def _ledger(known: dict[str, str]) -> str:
    ledger = Ledger.open(known["SEGNODE_LEDGER_URL"])
    version = ledger.schema_version()
    ledger.close()
    return f"schema {version}"


def _redis(known: dict[str, str]) -> str:
    client = redis.Redis.from_url(known["SEGNODE_BROKER_URL"])
    try:
        client.ping()
    except redis.RedisError as error:
        raise SetupError(
            f"Redis does not answer on port {known['SEGNODE_REDIS_PORT']} "
            f"({type(error).__name__}); is the node up? segnode up starts it."
        ) from error
    finally:
        client.close()
    return f"answers on port {known['SEGNODE_REDIS_PORT']}"


def _orthanc(known: dict[str, str]) -> str:
    address = known["SEGNODE_ARCHIVE_URL"].removesuffix("/dicom-web")
    try:
        trust = trust_in(known.get("SEGNODE_ARCHIVE_CERTIFICATE", ""))
        with urllib.request.urlopen(f"{address}/system", timeout=5, context=trust):  # noqa: S310 # our own
            raise SetupError(f"Orthanc at {address} answers without a password; stop it at once.")
    except urllib.error.HTTPError as error:
        if error.code != 401:  # Unauthorized
            raise SetupError(f"Orthanc at {address} answers {error.code}; see its log.") from error
    except (urllib.error.URLError, OSError) as error:
        raise SetupError(
            f"Orthanc does not answer at {address}; is the node up? segnode up starts it."
        ) from error
    return f"answers at {address}, and refuses strangers"


def _dicom(known: dict[str, str]) -> str:
    port = known["SEGNODE_DICOM_PORT"]
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", int(port))) != 0:
            raise SetupError(f"Nothing listens on port {port} for DICOM; segnode up starts it.")
    return f"listens on port {port}"


def _processes(data: Path) -> str:
    ask = [program("supervisorctl"), "-c", str(data / "supervisord.conf"), "status"]
    said = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.splitlines()
    states = dict(line.split()[:2] for line in said if len(line.split()) > 1)
    names = {"redis", "orthanc", "worker", *states}
    stopped = sorted(name for name in names if states.get(name) != "RUNNING")
    if stopped:
        raise SetupError(
            f"{', '.join(stopped)} not running; segnode up starts the node, and "
            f"{data / 'logs'} says why a process ended."
        )
    return f"{', '.join(states)} are running"


def _worker(known: dict[str, str]) -> str:
    alive = _alive(known)
    if not alive:
        raise SetupError("No worker says that it lives; segnode up starts one.")
    for worker in alive:
        if worker.state != "ready":
            raise SetupError(f"Worker {worker.name} takes no jobs: {worker.detail}")
    return f"{len(alive)} ready"


def _gpu(known: dict[str, str], pci: Path = Path("/sys/bus/pci/devices")) -> str:
    """Return what workers of this machine run on; fail where one cannot use the GPU there is."""
    here = [worker for worker in _alive(known) if worker.name.startswith(f"{host()}/")]
    for worker in here:
        if UNUSED in worker.detail:
            reason = worker.detail[worker.detail.index(UNUSED) :]
            raise SetupError(f"Worker {worker.name}: {reason}")
    used = {str((worker.report or {}).get("device", "no device yet")) for worker in here}
    said = ", ".join(sorted(used)) or "no worker of this machine says what it runs on"
    cards = [
        card.name
        for card in sorted(pci.glob("*"))
        if (card / "vendor").read_text(encoding="ascii").strip() == _NVIDIA
        and (card / "class").read_text(encoding="ascii").startswith(_DISPLAY)
    ]
    if not cards or not used or not all(device.startswith("CPU") for device in used):
        return said
    return (
        f"{said}; the NVIDIA GPU at {', '.join(cards)} is not used: SEGNODE_DEVICE or "
        "CUDA_VISIBLE_DEVICES says so, or its driver is not loaded (see nvidia-smi)"
    )


def _alive(known: dict[str, str]) -> list[WorkerRow]:
    ledger = Ledger.open(known["SEGNODE_LEDGER_URL"])
    view = LedgerView(ledger)
    workers, now = view.workers(), view.now()
    ledger.close()
    return [worker for worker in workers if now - worker.seen_at < SILENT_S]
