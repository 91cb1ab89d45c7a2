"""`segnode up` and `segnode demo`."""

from __future__ import annotations

import json
import time
from pathlib import Path

from pydicom.uid import generate_uid
from rich.status import Status

from segnode_cli.ct_series import ct_series
from segnode_cli.jobs import view_of
from segnode_cli.node import Node, prepare
from segnode_cli.phantom import chest_phantom
from segnode_cli.send import Peer, Sent, dicom_files, send_paths
from segnode_cli.show import console, say
from segnode_cli.supervise import running
from segnode_contract.errors import SetupError
from segnode_contract.job import OPEN_STATES, JobState
from segnode_contract.ledger.view import JobRow
from segnode_contract.settings import load_settings

_RESULT_S = 900.0


def run_node(data: Path, config: Path, *, http_port: int, dicom_port: int, workers: int) -> None:
    """Keep a node up until Ctrl-C."""
    settings = load_settings(config)
    node = prepare(data, config, settings, http_port=http_port, dicom_port=dicom_port)
    with running(node, workers, say):
        _addresses(node, None)
        _until_interrupted()


def run_demo(
    data: Path, config: Path, *, study: Path | None, leave: bool, http_port: int, dicom_port: int
) -> None:
    """Start a node, send a study, await its results, say where they are."""
    began = time.monotonic()
    settings = load_settings(config)
    if study is not None:
        if not study.is_dir():
            raise SetupError(f"{study} is not a folder; STUDY names a folder with DICOM files.")
        dicom_files([study])  # before a node is started for nothing
    node = prepare(data, config, settings, http_port=http_port, dicom_port=dicom_port)
    with running(node, 2, say):
        folder = study or _phantom(node)
        sent = send_paths(
            [folder], Peer(aet=settings.dicom.aet, host="127.0.0.1", port=node.dicom_port)
        )
        jobs = _await_results(node, sent)
        summary = _summary(node, sent, jobs, time.monotonic() - began)
        _addresses(node, str(summary["viewer_url"]))
        if not leave:
            _until_interrupted()
    if leave:
        print(json.dumps(summary))
    failed = [job for job in jobs if job.state != JobState.DONE]
    if failed:
        raise SetupError(f"{failed[0].model}: {failed[0].error_sentence or failed[0].state}")


def _phantom(node: Node) -> Path:
    say("making a chest phantom")
    phantom = chest_phantom()
    folder = node.data / "phantom"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    # a new study each time: the same again would be the same job
    series = ct_series(phantom.hu, spacing_mm=phantom.spacing_mm, seed=generate_uid())
    for number, instance in enumerate(series):
        instance.save_as(folder / f"{number:04}.dcm", enforce_file_format=True)
    return folder


def _await_results(node: Node, sent: Sent) -> list[JobRow]:
    deadline = time.monotonic() + _RESULT_S
    with (
        view_of(node.data) as view,
        Status("waiting for the quiet period", console=console) as line,
    ):
        while time.monotonic() < deadline:
            jobs = [job for uid in sent.study_uids for job in view.jobs(study_uid=uid)]
            decided = {
                s.series_uid: s for uid in sent.study_uids for s in view.series(uid) if s.decided_at
            }
            if set(sent.series_uids) <= set(decided):
                if not jobs:
                    reasons = {v["reason"] for s in decided.values() for v in s.verdicts}
                    raise SetupError(f"No route took the study: {'; '.join(sorted(reasons))}.")
                if not any(job.state in OPEN_STATES for job in jobs):
                    return jobs
            line.update("; ".join(_progress(job) for job in jobs) or "waiting for the quiet period")
            time.sleep(0.3)
    raise SetupError(
        f"No result came within {_RESULT_S:.0f} s; `segnode jobs --data {node.data}` says more."
    )


def _progress(job: JobRow) -> str:
    stage = job.stages[-1].stage if job.stages else "queued"
    return f"{job.model} {job.state if job.state != JobState.RUNNING else stage}"


def _summary(node: Node, sent: Sent, jobs: list[JobRow], seconds: float) -> dict[str, object]:
    results = [
        {
            "model": job.model,
            "state": job.state,
            "seg_series_uid": next((o.series_uid for o in job.objects if o.role == "SEG"), None),
        }
        for job in jobs
    ]
    study_uid = jobs[0].study_uid
    tissue = next((r["seg_series_uid"] for r in results if r["model"] == "ct-tissue"), None)
    done = all(job.state == JobState.DONE for job in jobs)
    return {
        "state": "done" if done else "failed",
        "study_uid": study_uid,
        "results": results,
        "seg_series_uid": tissue,
        "viewer_url": f"{node.url}/ohif/viewer?StudyInstanceUIDs={study_uid}",
        "seconds": round(seconds, 1),
    }


def _addresses(node: Node, viewer_url: str | None) -> None:
    say("")
    say(f"overlay    {viewer_url or node.url + '/ohif/'}")
    say(f"dashboard  {node.url}/segnode/")
    say(f"Orthanc    {node.url}/app/explorer.html")
    say(f"DICOM      {node.settings.dicom.aet}@127.0.0.1:{node.dicom_port}")
    say(f"log in as  admin, password {node.passwords['admin']}")
    say("")


def _until_interrupted() -> None:
    try:
        say("Ctrl-C ends the node")
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
