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
from segnode_cli.supervise import Supervised, running
from segnode_contract.errors import SetupError
from segnode_contract.job import OPEN_STATES, JobState
from segnode_contract.ledger.view import JobRow
from segnode_contract.settings import load_settings

_RESULT_S = 900.0


def run_node(data: Path, config: Path, *, http_port: int, dicom_port: int, workers: int) -> None:
    """Keep a node up until Ctrl-C."""
    settings = load_settings(config)
    node = prepare(data, config, settings, http_port=http_port, dicom_port=dicom_port)
    with running(node, workers, say) as supervised:
        _addresses(node, None)
        _until_interrupted(supervised)


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
    with running(node, 2, say) as supervised:
        folder = study or _phantom(node)
        sent = send_paths(
            [folder], Peer(aet=settings.dicom.aet, host="127.0.0.1", port=node.dicom_port)
        )
        jobs = _await_results(node, sent, supervised)
        summary = _summary(node, jobs, time.monotonic() - began)
        _addresses(node, str(summary["viewer_url"]))
        for job in jobs:
            if job.state != JobState.DONE:
                say(f"{job.model} has no result: {job.error_sentence or job.state}")
        if not leave:
            _until_interrupted(supervised)
    if leave:
        print(json.dumps(summary))
    without = _models_without_result(jobs)
    if without:
        raise SetupError(f"{', '.join(without)} gave no result; the lines above say why.")


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


def _await_results(node: Node, sent: Sent, supervised: Supervised) -> list[JobRow]:
    began = time.monotonic()
    with (
        view_of(node.data) as view,
        Status("waiting for the quiet period", console=console) as line,
    ):
        while time.monotonic() < began + _RESULT_S and supervised.alive():
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
        f"No result came within {time.monotonic() - began:.0f} s; "
        f"`segnode jobs --data {node.data}` says more, and {node.data / 'logs'}."
    )


def _progress(job: JobRow) -> str:
    stage = job.stages[-1].stage if job.stages else "queued"
    return f"{job.model} {job.state if job.state != JobState.RUNNING else stage}"


def _models_without_result(jobs: list[JobRow]) -> list[str]:
    # a study's localizer is refused, rightly, and its other series is not
    done = {job.model for job in jobs if job.state == JobState.DONE}
    return sorted({job.model for job in jobs} - done)


def _summary(node: Node, jobs: list[JobRow], seconds: float) -> dict[str, object]:
    results = [
        {
            "model": job.model,
            "state": job.state,
            "seg_series_uid": next((o.series_uid for o in job.objects if o.role == "SEG"), None),
        }
        for job in jobs
    ]
    tissue = [job for job in jobs if job.model == "ct-tissue" and job.state == JobState.DONE]
    shown = (tissue or jobs)[0]
    return {
        "state": "failed" if _models_without_result(jobs) else "done",
        "study_uid": shown.study_uid,
        "results": results,
        "seg_series_uid": results[jobs.index(shown)]["seg_series_uid"] if tissue else None,
        "viewer_url": f"{node.url}/ohif/viewer?StudyInstanceUIDs={shown.study_uid}",
        "seconds": round(seconds, 1),
    }


def _addresses(node: Node, viewer_url: str | None) -> None:
    say("")
    say(f"overlay    {viewer_url or node.url + '/ohif/'}")
    say(f"dashboard  {node.url}/segnode/")
    say(f"Orthanc    {node.url}/app/explorer.html")
    say(f"DICOM      {node.settings.dicom.aet}@127.0.0.1:{node.dicom_port}")
    for role in ("administrator", "viewer"):
        name, password = node.login(role)
        say(f"log in as  {name}, password {password}")
    say("")


def _until_interrupted(supervised: Supervised) -> None:
    try:
        say("Ctrl-C ends the node")
        while supervised.alive():
            time.sleep(1)
    except KeyboardInterrupt:
        return
    raise SetupError(
        f"The node's supervisor was ended from outside, and the node with it; start it again. "
        f"{supervised.logs} may say more."
    )
