"""Workers on a second machine, which is told three addresses and passwords and nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
import pytest
import redis
import torch
from numpy.typing import NDArray
from pydicom import Dataset
from sqlalchemy import text

from segnode_cli.ct_series import ct_series
from segnode_cli.jobs import ledger_of, view_of
from segnode_cli.node import CONFIG
from segnode_cli.phantom import chest_phantom
from segnode_cli.send import Peer, send_paths
from segnode_cli.supervise import check_programs
from segnode_contract.errors import BrokerUnavailable, SetupError
from segnode_contract.ledger.view import Job
from segnode_models.trust import pins_of, write_pins
from segnode_plugin.dispatch import CeleryBell
from segnode_worker.archive import DicomWebArchive
from segnode_worker.owner import process_of
from segnode_worker.sandbox import why_not

from ..faults.databases import programs
from .conftest import need
from .second_machine import (
    Certificate,
    NotAllowed,
    SecondMachine,
    TlsNode,
    certificate_for,
    second_machine,
    tls_node,
    wait_for,
    worker,
)

NODE = "reading room"
LEASE_S = 90.0
FIRST_WAIT_S = 7.0
"""After an error that may pass. Like the lease, no worker would do so by itself."""
CHANGED = {
    'name = "segnode" ': f'name = "{NODE}" ',
    "quiet_s = 5 ": "quiet_s = 1 ",
    "lease_s = 60 ": f"lease_s = {LEASE_S} ",
    "ring_s = 30 ": "ring_s = 1 ",
    "back_off_s = [5,": f"back_off_s = [{FIRST_WAIT_S},",
    "free_mb = 2048 ": "free_mb = 0 ",
}
DENSE_HU = 300
DENSE_ROUTE = """
[[routes]]
name = "dense"
model = "dense"
modality = "CT"
body_parts = ["HEAD"]
"""
DENSE_CARD = f"""
name = "dense"
version = "1.0.0"
kind = "torchscript"
intended_use = "Tests."
limitations = ["It is a threshold of {DENSE_HU} HU."]
licence = "AGPL-3.0-or-later"
memory_bytes = 100_000_000
cpu = true
time_limit_s = 60
[input]
modality = "CT"
orientation = "HPL"
min_slices = 1
spacing_mm = [10, 4, 4]
intensity = {{ clip = [0, {2 * DENSE_HU}], scale = [0, 1] }}
[network]
patch = [16, 48, 48]
activation = "none"
[[segments]]
number = 1
label = "Dense"
plane = 0
value = 1
channel = 0
category = {{ value = "123037004", scheme = "SCT", meaning = "Body structure" }}
type = {{ value = "272673000", scheme = "SCT", meaning = "Bone" }}
colour = [36893, 37740, 30000]
"""
SPACING_MM = (10.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def machine() -> Iterator[SecondMachine]:
    need(shutil.which("ip"), "iproute2 is not installed")
    try:
        with second_machine() as machine:
            yield machine
    except NotAllowed as error:
        pytest.skip(f"no network namespace can be made here: {error}")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, machine: SecondMachine) -> Iterator[TlsNode]:
    try:
        check_programs()
    except SetupError as error:
        need(False, error.sentence)
    need(programs(), "PostgreSQL is not installed")
    words = (CONFIG / "segnode.toml").read_text()
    for usual, changed in CHANGED.items():
        assert usual in words
        words = words.replace(usual, changed)
    folder = tmp_path_factory.mktemp("tls")
    with tls_node(folder, words + DENSE_ROUTE, machine.here) as node:
        yield node


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, machine: SecondMachine) -> Certificate:
    """An authority that vouches for no server here."""
    return certificate_for(tmp_path_factory.mktemp("other") / "tls", machine.here)


@pytest.fixture(scope="module")
def hu() -> NDArray[np.int16]:
    """Return a chest, of shape ``(slices, rows, columns)``."""
    return chest_phantom(spacing_mm=SPACING_MM).hu


Send = Callable[..., list[str]]


@pytest.fixture
def send(node: TlsNode, hu: NDArray[np.int16], tmp_path: Path) -> Send:
    """What sends new studies to Orthanc and returns their UIDs."""

    def send_studies(body_part: str = "CHEST", count: int = 1) -> list[str]:
        with TemporaryDirectory(dir=tmp_path) as folder:
            for _ in range(count):
                for image in ct_series(hu, spacing_mm=SPACING_MM, body_part=body_part):
                    path = Path(folder, f"{image.SOPInstanceUID}.dcm")
                    image.save_as(path, enforce_file_format=True)
            to = Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port)
            return list(send_paths([Path(folder)], to).study_uids)

    return send_studies


def jobs_of(node: TlsNode, study_uids: list[str], model: str = "ct-tissue") -> list[Job]:
    with view_of(node.data) as view:
        rows = [row for uid in study_uids for row in view.jobs(study_uid=uid)]
        return [job for row in rows if row.model == model and (job := view.job(row.key))]


def wait_for_jobs(
    node: TlsNode, study_uids: list[str], holds: Callable[[Job], object], model: str = "ct-tissue"
) -> list[Job]:
    """Wait until the jobs of a model, one of each study, are as they should be."""

    def all_hold() -> bool:
        jobs = jobs_of(node, study_uids, model)
        return len(jobs) == len(study_uids) and all(holds(job) for job in jobs)

    wait_for(all_hold, f"jobs of {model}")
    return jobs_of(node, study_uids, model)


def is_done(job: Job) -> bool:
    return job.row.state == "done"


def seg_of(node: TlsNode, job: Job) -> Dataset:
    seg, report = job.row.objects
    assert seg.confirmed_at is not None
    assert report.confirmed_at is not None
    told = node.connections(node.authority)
    archive = DicomWebArchive(
        told["SEGNODE_ARCHIVE_URL"],
        told["SEGNODE_ARCHIVE_USER"],
        told["SEGNODE_ARCHIVE_PASSWORD"],
        certificate=told["SEGNODE_ARCHIVE_CERTIFICATE"],
    )
    data = archive.fetch_instance(job.row.study_uid, seg.series_uid, seg.instance_uid)
    assert data is not None
    return pydicom.dcmread(BytesIO(data))


def test_a_machine_that_knows_three_addresses_does_the_work(
    node: TlsNode, machine: SecondMachine, send: Send, tmp_path: Path
) -> None:
    with worker(tmp_path / "machine-2", node.connections(node.authority), machine) as elsewhere:
        name = elsewhere.name(node)
        [job] = wait_for_jobs(node, send(), is_done)
        encrypted = connections_from(node, machine.there)
    assert name.startswith("machine-2-")
    [run] = job.runs
    assert run.worker.startswith(f"{name}/")
    assert (job.row.model, job.row.lane) == ("ct-tissue", "default")
    assert seg_of(node, job).DeviceSerialNumber == NODE
    assert encrypted
    assert all(encrypted)


def connections_from(node: TlsNode, address: str) -> list[bool]:
    """Return of each connection to the ledger from an address whether it is encrypted."""
    asked = (
        "select ssl from pg_stat_ssl join pg_stat_activity using (pid)"
        " where client_addr = cast(:address as inet)"
    )
    with ledger_of(node.data) as ledger, ledger.read() as connection:
        return list(connection.scalars(text(asked), {"address": address}))


PLAIN = """
import sys, psycopg, redis, urllib3
from sqlalchemy.engine import make_url
ledger, broker, login, *archives = sys.argv[1:]
def said(ask):
    try:
        ask()
        print("taken")
    except Exception as error:
        print(type(error).__name__, str(error).replace("\\n", " "))
at = make_url(ledger)
said(lambda: psycopg.connect(
    host=at.host, port=at.port, user=at.username, password=at.password, sslmode="disable"))
said(redis.Redis.from_url(broker).ping)
login = urllib3.make_headers(basic_auth=login)
for url in archives:
    said(lambda: print(end=f"{urllib3.request('GET', url, headers=login, timeout=20).status} "))
"""


def test_servers_turn_away_who_speaks_plainly(node: TlsNode, machine: SecondMachine) -> None:
    told = node.connections(node.authority)
    broker = told["SEGNODE_BROKER_URL"].replace("rediss", "redis").split("?")[0]
    login = ":".join(node.login("worker"))
    proxy = told["SEGNODE_ARCHIVE_URL"].replace("https", "http") + "/studies"
    past_proxy = f"http://{node.address}:{node.http_port}/dicom-web/studies"
    done = machine.python(PLAIN, node.ledger, broker, login, proxy, past_proxy)
    said = done.stdout.splitlines()
    assert [words.split()[0] for words in said] == [
        "OperationalError",
        "ConnectionError",
        "MaxRetryError",
        "401",  # to the right password: so Orthanc answers whoever is not on its own machine
    ]
    assert "no encryption" in said[0]


def test_a_worker_that_does_not_trust_ledger_or_broker_says_so_and_is_not_ready(
    node: TlsNode, machine: SecondMachine, stranger: Certificate, tmp_path: Path
) -> None:
    to_ledger = node.connections(stranger.authority, node.authority, node.authority)
    to_broker = node.connections(node.authority, broker=stranger.authority)
    with (
        worker(tmp_path / "ledger", to_ledger, machine) as without_ledger,
        worker(tmp_path / "broker", to_broker, machine) as without_broker,
    ):
        said = without_ledger.await_words("The ledger does not answer")
        assert "certificate verify failed" in said
        assert "Check SEGNODE_LEDGER_URL" in said
        said = without_broker.await_words("Redis does not take this worker")
        assert "certificate verify failed" in said
        assert "SEGNODE_BROKER_URL" in said
        with view_of(node.data) as view:
            ready = {worker.name.rpartition("/")[2] for worker in view.workers()}
    for one in (without_ledger, without_broker):
        assert str(one.process.pid) not in ready
        assert one.process.returncode == -signal.SIGTERM  # at once, and not by force


def test_a_job_waits_while_the_archive_is_not_trusted(
    node: TlsNode, machine: SecondMachine, stranger: Certificate, send: Send, tmp_path: Path
) -> None:
    mistaken = node.connections(node.authority, archive=stranger.authority)
    with worker(tmp_path / "machine-2", mistaken, machine) as elsewhere:
        study = send()
        [job] = wait_for_jobs(node, study, lambda job: job.row.error_code)
        elsewhere.await_words("code=archive-certificate")
    assert (job.row.state, job.row.error_code) == ("queued", "archive-certificate")
    assert "is not the one that SEGNODE_ARCHIVE_CERTIFICATE names" in str(job.row.error_sentence)
    [run] = job.runs
    assert run.ended_at is not None
    assert job.row.not_before - run.ended_at == pytest.approx(FIRST_WAIT_S, abs=0.1)
    with worker(tmp_path / "machine-2", node.connections(node.authority), machine):
        wait_for_jobs(node, study, is_done)


def test_a_certificate_that_cannot_be_read_ends_a_worker(
    node: TlsNode, machine: SecondMachine, tmp_path: Path
) -> None:
    mistaken = node.connections(node.authority, archive=tmp_path / "typo.pem")
    with worker(tmp_path / "machine-2", mistaken, machine) as elsewhere:
        said = elsewhere.await_words("typo.pem")
        assert "No such file or directory" in said
        assert "SEGNODE_ARCHIVE_CERTIFICATE" in said
        assert elsewhere.process.wait(30) == 1


def test_who_says_nothing_of_trust_takes_no_broker_that_nobody_vouches_for(node: TlsNode) -> None:
    address, _, trust = node.connections(node.authority)["SEGNODE_BROKER_URL"].partition("?")
    assert "ssl_ca_certs" in trust
    with pytest.raises(BrokerUnavailable) as failure:
        CeleryBell(address).waiting("default")
    assert "CERTIFICATE_VERIFY_FAILED" in str(failure.value.__cause__)


def test_a_worker_says_that_the_broker_left_it_and_finds_it_again(
    node: TlsNode, machine: SecondMachine, send: Send, tmp_path: Path
) -> None:
    told = node.connections(node.authority)
    with worker(tmp_path / "machine-2", told, machine) as elsewhere:
        elsewhere.name(node)
        with closing(redis.Redis.from_url(told["SEGNODE_BROKER_URL"])) as client:
            wait_for(lambda: "brpop" in {one["cmd"] for one in client.client_list()}, "a worker")
            client.client_kill_filter(_type="normal", skipme=True)
        elsewhere.await_words("Connection to broker lost")
        wait_for_jobs(node, send(), is_done)


@pytest.fixture
def with_dense_model(tmp_path: Path) -> Path:
    """The data folder of a worker to which a model was added: what is denser than 300 HU."""
    need(not why_not(), f"no sandbox for models can be made: {why_not()}")
    data = tmp_path / "machine-1"
    folder = data / "models" / "dense"
    folder.mkdir(parents=True)
    (folder / "card.toml").write_text(DENSE_CARD)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        torch.jit.script(torch.nn.Identity()).save(str(folder / "model.ts"))
    write_pins(folder.parent, "dense", pins_of(folder))
    return data


def test_workers_share_the_jobs_of_models_that_they_have(
    node: TlsNode,
    machine: SecondMachine,
    hu: NDArray[np.int16],
    send: Send,
    with_dense_model: Path,
    tmp_path: Path,
) -> None:
    told = node.connections(node.authority)
    with worker(with_dense_model, told) as here:
        own = here.name(node)
        head = send("HEAD")
        [first] = wait_for_jobs(node, head, lambda job: job.runs)
        with worker(tmp_path / "machine-2", told, machine) as elsewhere:
            with held(first.runs[0].worker):
                assert lease_s(node, first) == pytest.approx(LEASE_S, abs=0.5)
                head += send("HEAD")
                others = [*head[1:], *send("CHEST", 2)]
                shared = wait_for_jobs(node, others, is_done)
                waiting = jobs_of(node, head, "dense")
            [first] = wait_for_jobs(node, head[:1], is_done)
            dense = wait_for_jobs(node, head, is_done, "dense")
            other = elsewhere.name(node)
    assert [(job.row.state, job.runs) for job in waiting] == [("queued", ())] * 2
    assert {worker_of(job) for job in shared} == {other}
    assert {worker_of(job) for job in (first, *dense)} == {own}
    assert all(len(job.runs) == 1 for job in (first, *shared, *dense))
    assert seg_of(node, dense[0]).pixel_array.sum() == (hu > DENSE_HU).sum()


def worker_of(job: Job) -> str:
    """Return the name of the worker whose child did a job."""
    return job.runs[-1].worker.rsplit("/", 2)[0]


@contextmanager
def held(child: str) -> Iterator[None]:
    """Stop a worker's child, which a name of the ledger tells, for a while."""
    pid = process_of(child)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def lease_s(node: TlsNode, job: Job) -> float:
    """Return for how long a job was claimed."""
    asked = "select lease_until from job where key = :key"
    with ledger_of(node.data) as ledger, ledger.read() as connection:
        until = connection.scalar(text(asked), {"key": job.row.key})
    assert until is not None, "the job ended before it was held"
    return float(until) - job.runs[0].started_at
