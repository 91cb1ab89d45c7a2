"""A real node, started as `segnode up` does, whose every part a test can strike."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xmlrpc.client import Fault, ServerProxy

import redis
from pynetdicom import AE, build_context
from supervisor.xmlrpc import SupervisorTransport

from segnode_cli import node as nodes
from segnode_cli import supervise
from segnode_cli.health import pages_answer, redis_answers, workers_answer
from segnode_cli.node import Node, prepare
from segnode_cli.send import CALLING
from segnode_cli.servers import program, write_settings
from segnode_contract.errors import SegnodeError
from segnode_contract.job import OPEN_STATES
from segnode_contract.ledger import Ledger, LedgerView
from segnode_contract.ledger.view import JobRow
from segnode_contract.settings import Intake, Limits, load_settings

from .databases import Postgresql
from .judge import ArchiveAway, Judge
from .links import ArchiveLink, SlowLink
from .phantom import Series
from .points import FOLDER, Points

HERE = Path(__file__).resolve().parent
CHILDREN = 2
LEDGER = "ledger"
"""The folder that the ledger moves to when it gets a disk of its own."""

SHORT: Mapping[type, Mapping[str, object]] = {
    Intake: {"quiet_s": 0.5, "rescan_s": 6.0},
    Limits: {
        "lease_s": 6.0,
        "ring_s": 3.0,
        "back_off_s": [0.5, 1.5, 4.5, 12.0, 30.0, 60.0, 90.0],
        "stop_s": 4.0,
        "free_mb": 0,
    },
}
"""Waits ten times shorter than in production."""

PRODUCTION: Mapping[type, Mapping[str, object]] = {Intake: {}, Limits: {"free_mb": 0}}

_SETTINGS = """
[node]
name = "faulty"
[listen]
[dicom]
[intake]
{intake}
[limits]
{limits}
[[users]]
name = "admin"
role = "administrator"
[[users]]
name = "viewer"
role = "viewer"
[[users]]
name = "worker"
role = "worker"
[[modalities]]
aet = "SEGNODE_SEND"
host = "127.0.0.1"
[[routes]]
name = "tissue"
model = "ct-tissue"
modality = "CT"
"""


class Unwell(Exception):
    """The node did not come to itself again."""


@dataclass(frozen=True, kw_only=True)
class _Node(Node):
    extra: Mapping[str, str]

    def environment(self) -> dict[str, str]:
        return {**Node.environment(self), **self.extra}


@dataclass(kw_only=True)
class FaultyNode:
    """The running node, and what was sent to it."""

    node: Node
    points: Points
    archive: ArchiveLink
    broker: SlowLink
    judge: Judge
    limits: Limits
    quiet_s: float
    database: Postgresql | None
    sent: list[Series] = field(default_factory=list)
    trial: list[Series] = field(default_factory=list)
    """What was sent since `begin`."""
    differs: set[str] = field(default_factory=set)
    """What `segnode verify` has found before."""
    ending: set[int] = field(default_factory=set)
    """Processes that were asked to end."""
    since: float = 0.0
    """When the injury happened, or ended: recovery is counted from here."""
    took: float | None = None
    """Seconds from the injury to the last result, as soon as it is there."""

    # what a trial does

    def begin(self) -> None:
        """Begin a trial."""
        self.trial = []
        self.injured()

    def send(self, series: Series, count: int | None = None, start: int = 0) -> None:
        """Send images ``[start:count]`` by C-STORE; all of them must be taken."""
        images = series.images[start:count]
        entity = AE(ae_title=CALLING)
        entity.requested_contexts = [
            build_context(images[0].SOPClassUID, images[0].file_meta.TransferSyntaxUID)
        ]
        link = entity.associate(
            "127.0.0.1", self.node.dicom_port, ae_title=self.node.settings.dicom.aet
        )
        if not link.is_established:
            raise Unwell("Orthanc took no association")
        try:
            for number, image in enumerate(images, start):
                status = link.send_c_store(image)
                if "Status" not in status or status.Status != 0:
                    # a quiet period may pass over what came so far, with or without this one
                    series.sent(number)
                    series.sent(number + 1)
                    raise Unwell("Orthanc did not take an image")
        finally:
            if link.is_established:
                link.release()
        series.sent(count or len(series.images))
        if series not in self.sent:
            self.sent.append(series)
        if series not in self.trial:
            self.trial.append(series)
        self.injured()

    def send_until_taken(self, series: Series, seconds: float = 60.0) -> None:
        """Send all images, and again as a modality does as long as they are not taken."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.send(series)
                return
            except Unwell:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def injured(self) -> None:
        """Note that the injury was now."""
        self.since = time.monotonic()
        self.took = None

    def struck(self, point: str, seconds: float = 40.0) -> int:
        """Wait until a process was struck at `point`; return its id."""
        wait_for(lambda: self.points.hit(point) is not None, seconds, f"a fault at {point}")
        self.injured()
        return self.points.hit(point) or 0

    def meanwhile(self, seconds: float) -> None:
        """Let time pass, and note when all that was sent has its result."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self.took is None and all(self._ended(series) for series in self.trial):
                self.took = time.monotonic() - self.since
            time.sleep(min(0.2, left))

    def settle(self, seconds: float) -> None:
        """Wait for the end of all that was sent."""
        open_series = list(self.trial)
        deadline = time.monotonic() + seconds
        while open_series and time.monotonic() < deadline:
            open_series = [series for series in open_series if not self._ended(series)]
            time.sleep(0.1)
        if not open_series and self.took is None:
            self.took = time.monotonic() - self.since
        uids = {series.study_uid for series in self.trial}
        while time.monotonic() < deadline + 10:
            jobs = self.jobs()
            if jobs is not None and not any(
                job.state in OPEN_STATES for job in jobs if job.study_uid in uids
            ):
                break
            time.sleep(0.2)

    def jobs(self) -> list[JobRow] | None:
        """Return the newest jobs, None while the ledger does not answer."""
        try:
            with closing(Ledger(self.node.environment()["SEGNODE_LEDGER_URL"])) as ledger:
                return LedgerView(ledger).jobs(limit=500)
        except SegnodeError:
            return None

    def job(self, series: Series) -> JobRow | None:
        """Return the newest job of a series."""
        found = [job for job in self.jobs() or [] if job.study_uid == series.study_uid]
        return found[0] if found else None

    def _ended(self, series: Series) -> bool:
        try:
            if self.judge.has_result(series):
                return True
        except ArchiveAway:
            return False
        job = self.job(series) if series.codes else None
        return (
            job is not None and job.state in ("failed", "dead") and job.error_code in series.codes
        )

    # its processes

    def pid(self, name: str) -> int:
        """Return the id of a process of supervisor's, 0 while it is down."""
        return int(self._info(name)["pid"])

    def start(self, name: str) -> None:
        """Start a process that was stopped."""
        with self._supervisor() as ask:
            try:
                ask.startProcess(name, False)
            except Fault as fault:
                if "ALREADY_STARTED" not in fault.faultString:
                    raise

    def stop(self, name: str) -> None:
        """Stop a process by SIGTERM, and wait until it ended."""
        with self._supervisor() as ask:
            ask.stopProcess(name, True)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; supervisor starts the process anew when it ends."""
        self.end([self.pid(name)], number)

    def end(self, pids: Sequence[int], number: signal.Signals) -> None:
        """End processes; `heal` waits until they are gone, which a graceful end takes time for."""
        send_signal(pids, number)
        self.ending.update(pids)
        self.injured()

    def worker_tree(self) -> list[int]:
        """Return the worker's parent, its children and the model process."""
        parent = self.pid("worker")
        return [parent, *descendants(parent)]

    def model_pid(self) -> int:
        """Return the model process's id."""
        [pid] = [pid for pid in self.worker_tree() if "odd_server.py" in command_line(pid)]
        return pid

    def redis(self) -> redis.Redis:
        """Return a client that reaches Redis past the link."""
        return redis.Redis(
            host="127.0.0.1",
            port=self.node.redis_port,
            password=self.node.passwords["redis"],
        )

    def flush(self) -> None:
        """Empty Redis."""
        with closing(self.redis()) as client:
            client.flushall()

    def rings(self) -> int:
        """Return the number of rings that wait in Redis."""
        with closing(self.redis()) as client:
            return int(client.llen("segnode:default"))

    def heal(self, seconds: float = 60.0) -> None:
        """End whatever a trial left behind, and wait until the node is whole.

        Raises
        ------
        Unwell
            If it does not become so.
        """
        self.points.clear()
        self.archive.mend()
        wait_for(lambda: not any(map(command_line, self.ending)), seconds, "an end")
        self.ending.clear()
        self.broker.delay_s, self.broker.cut = 0.0, False
        for name in ("redis", "orthanc", "worker"):
            if self.pid(name):
                for pid in (self.pid(name), *descendants(self.pid(name))):
                    continue_(pid)
            else:
                self.start(name)
        wait_for(self._whole, seconds, "the node to be whole")

    def _whole(self) -> bool:
        infos = [self._info(name) for name in ("redis", "orthanc", "worker")]
        return (
            all(info["statename"] == "RUNNING" for info in infos)
            and redis_answers(self.node)
            and pages_answer(self.node)
            # by supervisor's own clock, which may be wrong on purpose
            and workers_answer(self.node, time.time() - infos[2]["now"] + infos[2]["start"], 1)
        )

    def _info(self, name: str) -> dict[str, Any]:
        with self._supervisor() as ask:
            info: dict[str, Any] = ask.getProcessInfo(name)
        return info

    @contextmanager
    def _supervisor(self) -> Iterator[Any]:
        transport = SupervisorTransport(serverurl=f"unix://{self.node.data}/supervisor.sock")
        with closing(transport):
            yield ServerProxy("http://127.0.0.1", transport=transport).supervisor

    # Orthanc without the plugin

    @contextmanager
    def orthanc_alone(self) -> Iterator[None]:
        """Run Orthanc on the node's archive without the plugin, which refuses much."""
        settings = json.loads((self.node.data / "orthanc.json").read_text())
        del settings["PythonScript"]
        config = self.node.data / "orthanc-alone.json"
        config.write_text(json.dumps(settings))
        process = subprocess.Popen(
            [supervise.check_programs()["Orthanc"], config],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: self._orthanc("GET", "/system") == 200, 30, "Orthanc without plugin")
            yield
        finally:
            process.terminate()
            process.wait(60)

    def delete_changes(self) -> None:
        """Have Orthanc delete its record of changes."""
        assert self._orthanc("DELETE", "/changes") == 200

    def _orthanc(self, method: str, path: str) -> int:
        word = b64encode(":".join(self.node.login("administrator")).encode()).decode()
        link = http.client.HTTPConnection("127.0.0.1", self.node.http_port, timeout=10)
        try:
            link.request(method, path, headers={"Authorization": f"Basic {word}"})
            return link.getresponse().status
        except OSError:
            return 0
        finally:
            link.close()

    # a second worker

    @contextmanager
    def second_worker(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """Have another worker beside supervisor's, as on another machine."""
        log = self.node.data / "logs" / "second.log"
        data = self.node.data / "second"
        data.mkdir(exist_ok=True)
        command = [program("celery"), "-A", "tests.faults.worker_app", "worker", "-n", "second@%h"]
        command += ["--queues", "default", "--concurrency", "1", "--loglevel", "WARNING"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        if os.geteuid() == 0:
            # a host of another name
            rename = 'hostname segnode-second && exec "$@"'
            command = ["/usr/bin/unshare", "--uts", "/bin/sh", "-c", rename, "sh", *command]
        variables = {**self.node.environment(), "SEGNODE_DATA": str(data), **environment}
        began = time.time()
        with log.open("ab") as out:
            process = subprocess.Popen(
                command,
                env={**os.environ, **variables},
                cwd=data,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_for(lambda: workers_answer(self.node, began, 1), 60, "the second worker")
            yield process
        finally:
            for pid in (process.pid, *descendants(process.pid)):
                continue_(pid)
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def faulty_node(
    *,
    waits: Mapping[type, Mapping[str, object]] = SHORT,
    database: Postgresql | None = None,
    disks: Sequence[str] = (),
    **environment: str,
) -> Iterator[FaultyNode]:
    """Start a node with points and links.

    Parameters
    ----------
    waits
        `SHORT` or `PRODUCTION`.
    database
        Where the ledger is; SQLite where absent.
    disks
        Folders below the node's data that get a small disk of their own.
    environment
        More variables for all its processes.
    """
    with tempfile.TemporaryDirectory(prefix="segnode-faults-") as folder:
        data = Path(folder) / "node"
        if LEDGER in disks:
            environment["SEGNODE_LEDGER_URL"] = f"sqlite:///{data}/{LEDGER}/ledger.sqlite"
        config = Path(folder) / "segnode.toml"
        config.write_text(
            _SETTINGS.format(
                intake=_lines(Intake, waits[Intake]), limits=_lines(Limits, waits[Limits])
            )
        )
        settings = load_settings(config)
        plain = prepare(data, config, settings)
        (data / "faults").mkdir()
        archive, broker = ArchiveLink(plain.http_port), SlowLink(plain.redis_port)
        word = plain.passwords["redis"]
        extra = {
            FOLDER: str(data / "faults"),
            "PYTHONPATH": os.pathsep.join(
                (str(HERE / "clock"), str(HERE.parents[1]), os.environ.get("PYTHONPATH", ""))
            ),
            "SEGNODE_ENTRY": str(nodes.ROOT / "plugin" / "orthanc_entry.py"),
            "SEGNODE_ARCHIVE_URL": f"http://127.0.0.1:{archive.port}/dicom-web",
            "SEGNODE_BROKER_URL": f"redis://:{word}@127.0.0.1:{broker.port}/0",
            **({"SEGNODE_LEDGER_URL": database.url} if database else {}),
            **environment,
        }
        values = {f.name: getattr(plain, f.name) for f in fields(Node)}
        node = _Node(**values, extra=extra)
        with (
            _small_disks([data / disk for disk in disks]),
            archive.running(),
            broker.running(),
            # `running` has no door for another Celery application, and needs none in service
            patch.object(supervise, "write_settings", _write_faulty),
            supervise.running(node, CHILDREN, lambda _: None),
        ):
            yield FaultyNode(
                node=node,
                points=Points(data / "faults"),
                archive=archive,
                broker=broker,
                judge=Judge(node.http_port, *node.login("viewer")),
                limits=settings.limits,
                quiet_s=settings.intake.quiet_s,
                database=database,
            )


def wait_for(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until `holds`.

    Raises
    ------
    Unwell
        If it does not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise Unwell(f"waited {seconds:g} s for {what}")
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below `pid`."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def command_line(pid: int) -> str:
    """Return the command of a process, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def send_signal(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to processes, those that are gone left out."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def continue_(pid: int) -> None:
    """Let a stopped process go on."""
    send_signal([pid], signal.SIGCONT)


def _lines(table: type, values: Mapping[str, object]) -> str:
    known = {one.name for one in fields(table)}
    return "\n".join(f"{key} = {json.dumps(v)}" for key, v in values.items() if key in known)


def _write_faulty(node: Node, programs: Mapping[str, str], workers: int, sockets: Path) -> Path:
    config = write_settings(node, programs, workers, sockets)
    text, changed = re.subn(
        r"-A segnode_worker\.app ", "-A tests.faults.worker_app ", config.read_text()
    )
    assert changed == 1
    config.write_text(text)
    orthanc = node.data / "orthanc.json"
    settings = json.loads(orthanc.read_text())
    orthanc.write_text(json.dumps({**settings, "PythonScript": str(HERE / "orthanc_script.py")}))
    return config


@contextmanager
def _small_disks(folders: Sequence[Path], size: str = "48m") -> Iterator[None]:
    for folder in folders:
        folder.mkdir(exist_ok=True)
        subprocess.run(
            ["/usr/bin/mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True
        )
    try:
        yield
    finally:
        for folder in folders:
            subprocess.run(["/usr/bin/umount", "-l", folder], check=True)
