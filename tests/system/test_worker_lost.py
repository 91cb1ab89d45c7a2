"""Workers that are killed or asked to stop in the middle of a job, on a whole node."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import text

from segnode_cli.ct_series import ct_series
from segnode_cli.jobs import ledger_of, view_of
from segnode_cli.node import CONFIG, Node
from segnode_cli.phantom import Phantom, chest_phantom
from segnode_cli.send import Peer, send_paths
from segnode_cli.servers import program
from segnode_contract.ledger.view import Job, JobRow

from .conftest import whole_node

SHORT = {
    "quiet_s = 5 ": "quiet_s = 1 ",
    "ring_s = 30 ": "ring_s = 3 ",
    "stop_s = 40 ": "stop_s = 4 ",
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    words = (CONFIG / "segnode.toml").read_text()
    for usual, short in SHORT.items():
        assert usual in words
        words = words.replace(usual, short)
    with whole_node(tmp_path_factory.mktemp("lost"), words, 2) as node:
        yield node


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return chest_phantom()


def supervisor(node: Node, *order: str) -> str:
    ask = [program("supervisorctl"), "-c", str(node.data / "supervisord.conf"), *order]
    return subprocess.run(ask, capture_output=True, text=True, check=True).stdout


def parent(node: Node) -> int:
    return int(supervisor(node, "pid", "worker"))


def model_process(node: Node) -> int:
    """Return the process that runs models: what is innermost below the worker's parent."""
    below = [parent(node)]
    for pid in below:  # grows while it is read
        below += [
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
    words = [(pid, Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")) for pid in below]
    [found] = [
        pid
        for pid, line in words
        if line[0].rpartition(b"/")[2].startswith(b"python") and b"segnode_models.server" in line
    ]
    return found


def send(node: Node, phantom: Phantom, folder: Path) -> str:
    """Send a series, and return its Study Instance UID."""
    for number, image in enumerate(
        ct_series(phantom.hu, spacing_mm=phantom.spacing_mm, seed=str(folder))
    ):
        image.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    sent = send_paths([folder], Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port))
    [study_uid] = sent.study_uids
    return study_uid


def job_at_the_model(node: Node, phantom: Phantom, folder: Path) -> str:
    """Send a series and hold the model process in the middle of it; return the job's key."""
    study_uid = send(node, phantom, folder)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with view_of(node.data) as view:
            jobs = view.jobs(study_uid=study_uid)
        if jobs and jobs[0].stages and jobs[0].stages[-1].stage == "infer":
            os.kill(model_process(node), signal.SIGSTOP)
            return jobs[0].key
        time.sleep(0.02)
    raise AssertionError("the job did not come to its model")


def wait_for(node: Node, key: str, holds: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with view_of(node.data) as view:
            job = view.job(key)
        assert job is not None
        if holds(job):
            return job
        time.sleep(0.1)
    raise AssertionError(f"not within a minute: {job}")


def is_done(job: Job) -> bool:
    return job.row.state == "done"


def test_a_killed_child_is_reported_by_its_parent(
    node: Node, phantom: Phantom, tmp_path: Path
) -> None:
    key = job_at_the_model(node, phantom, tmp_path)
    with view_of(node.data) as view:
        job = view.job(key)
    assert job is not None
    os.kill(int(job.runs[-1].worker.split("/")[2]), signal.SIGKILL)
    os.kill(model_process(node), signal.SIGCONT)
    job = wait_for(node, key, is_done)
    assert [run.outcome for run in job.runs] == ["lost", "done"]
    # long before its lease would have run out
    assert job.runs[1].started_at - job.runs[0].started_at < 30
    assert [each.role for each in job.row.objects] == ["SEG", "SR"]


@pytest.fixture
def no_memory() -> Iterator[Callable[[int], None]]:
    """Give a process no more memory than it has, so that the kernel ends it (cgroups(7))."""
    groups = Path("/sys/fs/cgroup/memory")
    group = groups / f"segnode-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no memory cgroup (version 1) can be made here")

    def strike(pid: int) -> None:
        (group / "memory.limit_in_bytes").write_text("1M")
        (group / "cgroup.procs").write_text(str(pid))

    yield strike
    for _ in range(100):
        with suppress(OSError):  # busy for as long as it holds a process
            group.rmdir()
            return
        time.sleep(0.1)


def test_a_child_that_the_kernel_ends_for_want_of_memory_is_named(
    node: Node, phantom: Phantom, tmp_path: Path, no_memory: Callable[[int], None]
) -> None:
    key = job_at_the_model(node, phantom, tmp_path)
    with view_of(node.data) as view:
        job = view.job(key)
    assert job is not None
    no_memory(int(job.runs[-1].worker.split("/")[2]))
    os.kill(model_process(node), signal.SIGCONT)
    job = wait_for(node, key, is_done)
    assert [run.outcome for run in job.runs] == ["lost", "done"]
    [lost] = [event for event in job.events if "ended or went silent" in event.detail]
    assert "for want of memory" in lost.detail


def test_a_killed_workers_jobs_are_freed_by_the_next_one(
    node: Node, phantom: Phantom, tmp_path: Path
) -> None:
    key = job_at_the_model(node, phantom, tmp_path)
    os.kill(parent(node), signal.SIGKILL)
    job = wait_for(node, key, is_done)
    assert [run.outcome for run in job.runs] == ["lost", "done"]
    assert job.runs[1].started_at - job.runs[0].started_at < 60


def test_a_worker_that_is_asked_to_stop_hands_its_job_back(
    node: Node, phantom: Phantom, tmp_path: Path
) -> None:
    key = job_at_the_model(node, phantom, tmp_path)
    asked = parent(node)
    os.kill(asked, signal.SIGTERM)
    job = wait_for(node, key, is_done)
    assert [run.outcome for run in job.runs] == ["handed back", "done"]
    assert not Path(f"/proc/{asked}").exists()


def test_a_killed_model_process_is_started_anew_under_its_job(
    node: Node, phantom: Phantom, tmp_path: Path
) -> None:
    key = job_at_the_model(node, phantom, tmp_path)
    os.kill(model_process(node), signal.SIGKILL)
    job = wait_for(node, key, is_done)
    assert [(run.outcome, run.error_code) for run in job.runs] == [
        ("failed", "model-process-died"),
        ("done", None),
    ]


def test_an_upgrade_with_a_job_waiting_loses_nothing(
    node: Node, phantom: Phantom, tmp_path: Path
) -> None:
    supervisor(node, "stop", "worker")
    study_uid = send(node, phantom, tmp_path)
    [queued] = wait_for_jobs(node, study_uid, bool)
    key = queued.key
    assert queued.state == "queued"
    with ledger_of(node.data) as ledger, ledger.write() as connection:
        # as if another version of the model had been there until an hour ago
        connection.execute(
            text("update model set digest = 'old', announced_at = announced_at - 3600")
        )
        connection.execute(text("pragma defer_foreign_keys = on"))
        for table, column in (("job", "key"), ("outbox", "job_key"), ("event", "job_key")):
            connection.execute(
                text(f"update {table} set {column} = 'old' where {column} = :key"), {"key": key}
            )
        connection.execute(
            text("update job set model_digest = 'old', base_key = 'old' where key = 'old'")
        )
    supervisor(node, "start", "worker")
    jobs = wait_for_jobs(node, study_uid, lambda jobs: any(job.state == "done" for job in jobs))
    assert sorted(job.state for job in jobs) == ["done", "superseded"]
    assert next(job for job in jobs if job.state == "superseded").model_digest == "old"


def wait_for_jobs(
    node: Node, study_uid: str, hold: Callable[[list[JobRow]], object]
) -> list[JobRow]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with view_of(node.data) as view:
            jobs = view.jobs(study_uid=study_uid)
        if hold(jobs):
            return jobs
        time.sleep(0.2)
    raise AssertionError(f"not within a minute: {jobs}")
