"""Send 200 studies of 100 small slices from 8 senders at once: make load

STUDIES=16 sends fewer. Every other sender uses C-STORE, the others STOW-RS. Prints numbers; ends
with 1 where a result is missing, or ledger and archive differ.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Empty
from typing import NamedTuple
from xmlrpc.client import ServerProxy

import numpy as np
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from rich.console import Console
from rich.table import Table
from supervisor.xmlrpc import SupervisorTransport

from segnode_cli.ct_series import as_file, ct_series
from segnode_cli.jobs import view_of
from segnode_cli.node import CONFIG, Node, prepare
from segnode_cli.phantom import chest_phantom
from segnode_cli.send import CALLING
from segnode_cli.show import say
from segnode_cli.supervise import Supervised, running
from segnode_cli.verify import compare
from segnode_contract.job import OPEN_STATES
from segnode_contract.ledger.view import JobRow
from segnode_contract.settings import load_settings
from segnode_worker.archive import DicomWebArchive

STUDIES = int(os.environ.get("STUDIES", "200"))
SHAPE = (100, 64, 64)
SENDERS = 8
WORKERS = 2
PATIENCE_S = 1800.0
MOST_AGAIN = 20


class Sent(NamedTuple):
    """A study that was taken, with the times of its first and last image."""

    study_uid: str
    began: float
    ended: float
    again: int


@dataclass(frozen=True, kw_only=True)
class Sender:
    """One process that sends its studies one after the other."""

    number: int
    dicom_port: int
    archive_url: str
    password: str

    @property
    def stows(self) -> bool:
        return self.number % 2 == 1

    def send(self, series: Sequence[Dataset]) -> int:
        """Send a series; return how often an image had to be sent again, as scanners do."""
        if self.stows:
            archive = DicomWebArchive(self.archive_url, "worker", self.password)
            for image in series:
                archive.store(str(image.StudyInstanceUID), as_file(image))
            return 0
        peer = AE(ae_title=CALLING)
        peer.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        left, again = list(series), -1
        while left:
            again += 1
            assert again < MOST_AGAIN, f"{len(left)} images were not taken"
            link = peer.associate("127.0.0.1", self.dicom_port, ae_title="SEGNODE")
            while left and link.is_established and link.send_c_store(left[0]).get("Status") == 0:
                left.pop(0)
            link.release()
        return again


def studies_of(number: int) -> list[list[Dataset]]:
    """Make a sender's studies, which differ in their UIDs only."""
    phantom = chest_phantom()
    index = [np.arange(n) * have // n for n, have in zip(SHAPE, phantom.hu.shape, strict=True)]
    left, back, head = (
        mm * have / n
        for mm, have, n in zip(phantom.spacing_mm, phantom.hu.shape, SHAPE, strict=True)
    )
    hu = phantom.hu[np.ix_(*index)]
    return [
        ct_series(hu, spacing_mm=(left, back, head), seed=f"load {number} {study}")
        for study in range(number, STUDIES, SENDERS)
    ]


def send_all(sender: Sender, start: Barrier, sent: Queue[Sent]) -> None:
    """Send, and tell of each study when its first and its last image were taken."""
    studies = studies_of(sender.number)
    start.wait()
    for series in studies:
        began = time.time()
        again = sender.send(series)
        sent.put(Sent(str(series[0].StudyInstanceUID), began, time.time(), again))


def orthanc_mb(supervised: Supervised) -> tuple[float, float]:
    """Return Orthanc's resident memory, and the most it ever was."""
    transport = SupervisorTransport(serverurl=f"unix://{supervised.socket}")
    asked = ServerProxy("http://127.0.0.1", transport=transport).supervisor
    pid = asked.getProcessInfo("orthanc")["pid"]  # type: ignore[call-overload, index]
    transport.close()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    now, most = (int(values[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return now, most


def await_jobs(node: Node) -> list[JobRow]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with view_of(node.data) as view:
            jobs = view.jobs(limit=10 * STUDIES)
        ended = sum(job.state not in OPEN_STATES for job in jobs)
        if ended >= STUDIES and ended == len(jobs):
            return jobs
        assert time.monotonic() < deadline, f"{ended} of {len(jobs)} jobs ended"
        time.sleep(5)


def main() -> int:
    """Send, wait, compare, print."""
    config = CONFIG / "segnode.toml"
    context = multiprocessing.get_context("spawn")
    sent: Queue[Sent] = context.Queue()
    start = context.Barrier(SENDERS + 1)
    with tempfile.TemporaryDirectory(prefix="segnode-load-") as data:
        node = prepare(Path(data), config, load_settings(config))
        with running(node, WORKERS, say) as supervised:
            senders = [
                context.Process(
                    target=send_all,
                    args=(
                        Sender(
                            number=number,
                            dicom_port=node.dicom_port,
                            archive_url=f"{node.url}/dicom-web",
                            password=node.passwords["worker"],
                        ),
                        start,
                        sent,
                    ),
                )
                for number in range(SENDERS)
            ]
            for process in senders:
                process.start()
            start.wait()
            before_mb, _ = orthanc_mb(supervised)
            say("sending")
            taken = all_sent(senders, sent)
            sent_mb, _ = orthanc_mb(supervised)
            say("all sent; waiting for results")
            jobs = await_jobs(node)
            after_mb, most_mb = orthanc_mb(supervised)
            say("comparing ledger and archive")
            compared = compare(node.data)
    lines = {
        "Orthanc's memory before, MB": before_mb,
        "after the last image, MB": sent_mb,
        "after the last result, MB": after_mb,
        "at most, MB": most_mb,
    }
    report(taken, jobs, lines)
    print(compared.summary())
    for finding in compared.findings:
        print(finding.code, finding.what, finding.sentence)
    done = {job.study_uid for job in jobs if job.state == "done"}
    all_done = len(jobs) == STUDIES and done == {study.study_uid for study in taken}
    return 0 if all_done and not compared.findings else 1


def all_sent(senders: Sequence[BaseProcess], sent: Queue[Sent]) -> list[Sent]:
    taken: list[Sent] = []
    while len(taken) < STUDIES:
        try:
            taken.append(sent.get(timeout=5))
        except Empty:
            assert not any(process.exitcode for process in senders), "a sender failed"
    for process in senders:
        process.join()
    return taken


def report(taken: Sequence[Sent], jobs: Sequence[JobRow], lines: dict[str, float]) -> None:
    last = {study.study_uid: study.ended for study in taken}
    first = min(study.began for study in taken)
    sending_s = max(last.values()) - first
    confirmed = {
        job.study_uid: max(each.confirmed_at or 0.0 for each in job.objects)
        for job in jobs
        if job.objects
    }
    waits = sorted(confirmed[uid] - at for uid, at in last.items() if uid in confirmed)
    works = sorted(sum(s.seconds or 0.0 for s in j.stages if s.stage != "queued") for j in jobs)
    queued = sorted(job.created_at - last[job.study_uid] for job in jobs)
    lines = {
        "images per second while sending": STUDIES * SHAPE[0] / sending_s,
        "sending took, s": sending_s,
        "associations made anew": float(sum(study.again for study in taken)),
        "results": float(len(waits)),
        "first image to last result, s": max(confirmed.values()) - first,
        "last image to job queued, p50, s": statistics.median(queued),
        "last image to job queued, p95, s": queued[int(0.95 * len(queued))],
        "last image to result confirmed, p50, s": statistics.median(waits),
        "last image to result confirmed, p95, s": waits[int(0.95 * len(waits))],
        "work on one job, p50, s": statistics.median(works),
        "work on one job, p95, s": works[int(0.95 * len(works))],
        **lines,
    }
    title = f"{STUDIES} studies of {SHAPE[0]} slices of {SHAPE[1]} x {SHAPE[2]}, {SENDERS} senders"
    table = Table("what", "value", title=f"{title}, {WORKERS} workers on {os.cpu_count()} cores")
    for what, value in lines.items():
        table.add_row(what, f"{value:.1f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
