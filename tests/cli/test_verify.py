"""`segnode verify` on a node with results, with differences made on purpose.

Differences of the ledger are made in a copy, so that the node does not mend them meanwhile.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from segnode_cli import listing
from segnode_cli import verify as verifying
from segnode_cli.ct_series import as_file, ct_series
from segnode_cli.jobs import view_of
from segnode_cli.node import CONFIG, VIEWER, Node, prepare
from segnode_cli.phantom import chest_phantom
from segnode_cli.send import Peer, send_paths
from segnode_cli.supervise import check_programs, running
from segnode_cli.verify import Comparison, agree, compare
from segnode_contract.errors import ArchiveUnavailable, SetupError
from segnode_contract.job import OPEN_STATES
from segnode_contract.ledger.view import JobRow
from segnode_contract.settings import load_settings
from segnode_worker.archive import DicomWebArchive

SEGNODE = str(Path(sys.executable).parent / "segnode")
NAME = "CANARY^Verify"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    try:
        check_programs()
        if not VIEWER.is_dir():
            raise SetupError(f"the OHIF viewer is not in {VIEWER}")
    except SetupError as error:
        if os.environ.get("CI"):
            pytest.fail(error.sentence)
        pytest.skip(error.sentence)
    config = CONFIG / "demo.toml"
    node = prepare(tmp_path_factory.mktemp("node"), config, load_settings(config))
    with running(node, 2, print):
        yield node


@pytest.fixture(scope="module")
def jobs(node: Node, tmp_path_factory: pytest.TempPathFactory) -> list[JobRow]:
    """Two jobs that are done; what they made has arrived and was decided."""
    folder = tmp_path_factory.mktemp("phantom")
    phantom = chest_phantom(spacing_mm=(5.0, 3.0, 3.0))
    images = ct_series(phantom.hu, spacing_mm=phantom.spacing_mm, seed="verify", patient_name=NAME)
    for number, image in enumerate(images):
        image.save_as(folder / f"{number:03}.dcm", enforce_file_format=True)
    sent = send_paths([folder], Peer(aet="SEGNODE", host="127.0.0.1", port=node.dicom_port))
    deadline = time.monotonic() + 180
    with view_of(node.data) as view:
        while time.monotonic() < deadline:
            jobs = view.jobs(study_uid=sent.study_uids[0])
            if len(jobs) == 2 and not any(job.state in OPEN_STATES for job in jobs):
                break
            time.sleep(0.3)
    assert {job.state for job in jobs} == {"done"}
    assert codes(node.data) == []
    return jobs


@pytest.fixture
def copy(node: Node, jobs: list[JobRow], tmp_path: Path) -> Ledger:
    """The node's ledger copied when it is at rest, beside the same archive."""
    deadline = time.monotonic() + 30
    with sqlite3.connect(node.data / "ledger.sqlite") as ledger:
        # Orthanc forgets a change with what was deleted, and intake reads all series again
        while ledger.execute("select 1 from series where decided_at is null").fetchone():
            assert time.monotonic() < deadline
            time.sleep(0.2)
    ledger.close()
    return Ledger(node, tmp_path)


class Ledger:
    def __init__(self, node: Node, folder: Path) -> None:
        self.data = folder
        self.file = folder / "ledger.sqlite"
        self.lines = dict(
            line.split("=", 1)
            for line in (node.data / "environment").read_text(encoding="utf-8").splitlines()
        )
        with sqlite3.connect(node.data / "ledger.sqlite") as here, self._open() as there:
            here.backup(there)
        here.close()
        there.close()
        self.say(SEGNODE_LEDGER_URL=f"sqlite:///{self.file}")

    def say(self, **changed: str) -> None:
        self.lines |= changed
        text = "".join(f"{key}={value}\n" for key, value in self.lines.items())
        (self.data / "environment").write_text(text, encoding="utf-8")

    def run(self, statement: str, *values: object) -> None:
        with self._open() as connection:
            changed = connection.execute(statement, values).rowcount
        connection.close()
        assert changed > 0

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.file)


def codes(data: Path) -> list[tuple[str, str]]:
    return sorted((finding.code, finding.what) for finding in compare(data).findings)


def seg_of(job: JobRow) -> tuple[str, str]:
    seg, _ = job.objects
    return seg.series_uid, seg.instance_uid


def archive(node: Node) -> DicomWebArchive:
    return DicomWebArchive(f"{node.url}/dicom-web", "worker", node.passwords["worker"])


def stored(node: Node, job: JobRow) -> bytes:
    data = archive(node).fetch_instance(job.study_uid, *seg_of(job))
    assert data is not None
    return data


def ask(node: Node, method: str, path: str, body: str | None = None) -> bytes:
    word = base64.b64encode(f"admin:{node.passwords['admin']}".encode()).decode()
    headers = {"Authorization": f"Basic {word}", "Origin": node.url}
    content = body.encode() if body is not None else None
    request = urllib.request.Request(node.url + path, content, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def delete(node: Node, instance_uid: str, series_uid: str) -> None:
    for found in json.loads(ask(node, "POST", "/tools/lookup", instance_uid)):
        series = json.loads(ask(node, "GET", f"/instances/{found['ID']}/series"))
        if series["MainDicomTags"]["SeriesInstanceUID"] == series_uid:
            ask(node, "DELETE", f"/instances/{found['ID']}")


@pytest.fixture
def forge(node: Node, jobs: list[JobRow]) -> Iterator[Callable[..., Dataset]]:
    """Store a SEG of ours that no job made; it is deleted after."""
    made: list[Dataset] = []

    def store(**changed: str) -> Dataset:
        seg = dcmread(BytesIO(stored(node, jobs[0])))
        for keyword, value in changed.items():
            setattr(seg, keyword, value)
        seg.file_meta.MediaStorageSOPInstanceUID = seg.SOPInstanceUID
        archive(node).store(jobs[0].study_uid, as_file(seg))
        made.append(seg)
        return seg

    yield store
    for seg in made:
        delete(node, seg.SOPInstanceUID, seg.SeriesInstanceUID)


def test_a_healthy_node_agrees(node: Node, jobs: list[JobRow]) -> None:
    said = subprocess.run(
        [SEGNODE, "verify", "--data", str(node.data)], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    assert "4 results" in said.stdout
    assert "of 2 jobs and 5 series compared; ledger and archive agree." in said.stdout
    assert said.stdout.count("\n") == 1


def test_differences_are_listed_without_a_name(jobs: list[JobRow], copy: Ledger) -> None:
    copy.run("update result set digest = 'ab' where instance_uid = ?", seg_of(jobs[0])[1])
    text, listed = (
        subprocess.run(
            [SEGNODE, "verify", "--data", str(copy.data), *more],
            capture_output=True,
            text=True,
            check=False,
        )
        for more in ([], ["--json"])
    )
    assert (text.returncode, listed.returncode) == (1, 1)
    [line] = text.stdout.splitlines()
    assert line.startswith(f"result-differs {seg_of(jobs[0])[1]} The archive holds other bytes")
    [finding] = json.loads(listed.stdout)
    assert (finding["code"], finding["what"]) == ("result-differs", seg_of(jobs[0])[1])
    assert f"{finding['code']} {finding['what']} {finding['sentence']}" == line
    assert "CANARY" not in text.stdout + text.stderr + listed.stdout + listed.stderr


def test_a_deleted_seg_is_missing_until_it_is_back(node: Node, jobs: list[JobRow]) -> None:
    data = stored(node, jobs[0])
    series_uid, instance_uid = seg_of(jobs[0])
    delete(node, instance_uid, series_uid)
    try:
        assert codes(node.data) == [("result-missing", instance_uid)]
    finally:
        archive(node).store(jobs[0].study_uid, data)
    assert codes(node.data) == []


def test_other_content_under_the_uid_differs(node: Node, jobs: list[JobRow]) -> None:
    data = stored(node, jobs[0])
    series_uid, instance_uid = seg_of(jobs[0])
    delete(node, instance_uid, series_uid)
    changed = dcmread(BytesIO(data))
    changed.SegmentSequence[0].SegmentLabel = "Liver"
    archive(node).store(jobs[0].study_uid, as_file(changed))
    try:
        assert codes(node.data) == [("result-differs", instance_uid)]
    finally:
        delete(node, instance_uid, series_uid)
        archive(node).store(jobs[0].study_uid, data)
    assert codes(node.data) == []


def test_a_seg_of_ours_without_a_job_is_found(
    node: Node, forge: Callable[..., Dataset], capsys: pytest.CaptureFixture[str]
) -> None:
    seg = forge(SOPInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid())
    assert not agree(node.data, as_json=False)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"result-unknown {seg.SOPInstanceUID} ")
    assert "No job of this ledger made it" in line


def test_a_second_seg_in_the_series_of_a_job_is_found(
    node: Node, jobs: list[JobRow], forge: Callable[..., Dataset]
) -> None:
    seg = forge(SOPInstanceUID=generate_uid())
    [finding] = compare(node.data).findings
    assert (finding.code, finding.what) == ("result-unknown", seg.SOPInstanceUID)
    assert f"that of job {jobs[0].key[:12]}" in finding.sentence


def test_one_result_in_two_series_is_found(node: Node, forge: Callable[..., Dataset]) -> None:
    seg = forge(SeriesInstanceUID=generate_uid())
    # Orthanc gives neither of both by WADO-RS
    uid = seg.SOPInstanceUID
    assert codes(node.data) == [("result-missing", uid), ("result-twice", uid)]


@pytest.mark.parametrize(
    "changed",
    [{"DeviceSerialNumber": "elsewhere"}, {"Manufacturer": "Another"}],
    ids=["another node's", "another maker's"],
)
def test_a_seg_of_others_is_left_alone(
    node: Node, forge: Callable[..., Dataset], changed: dict[str, str]
) -> None:
    forge(SOPInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid(), **changed)
    compared = compare(node.data)
    assert compared.findings == []
    assert compared.foreign == ("DeviceSerialNumber" in changed)


def test_a_lost_row_of_a_result_is_found(jobs: list[JobRow], copy: Ledger) -> None:
    copy.run("delete from result where job_key = ?", jobs[0].key)
    assert codes(copy.data) == [
        ("job-unconfirmed", jobs[0].key),
        *sorted(("result-unknown", each.instance_uid) for each in jobs[0].objects),
    ]


def test_a_done_job_without_confirmation_is_found(jobs: list[JobRow], copy: Ledger) -> None:
    copy.run("update result set confirmed_at = null where job_key = ?", jobs[0].key)
    assert codes(copy.data) == [("job-unconfirmed", jobs[0].key)]


def add_object(copy: Ledger, job: JobRow, role: str) -> str:
    """Record an object that the archive does not have."""
    uid = str(generate_uid())
    copy.run(
        "insert into result (instance_uid, job_key, role, series_uid, digest, bytes) "
        "values (?, ?, ?, '1.2.3', 'ab', 1)",
        uid,
        job.key,
        role,
    )
    return uid


def test_the_result_of_a_failed_job_is_found_whole_or_half(
    jobs: list[JobRow], copy: Ledger
) -> None:
    copy.run("update job set state = 'failed' where key = ?", jobs[0].key)
    copy.run("update result set confirmed_at = null where job_key = ?", jobs[0].key)
    assert codes(copy.data) == [("result-unconfirmed", jobs[0].key)]
    add_object(copy, jobs[0], "SR 2")
    assert codes(copy.data) == [("half-stored", jobs[0].key)]


@pytest.mark.parametrize("state", ["queued", "running", "waiting", "withdrawn"])
def test_what_is_under_way_or_withdrawn_may_be_incomplete(
    jobs: list[JobRow], copy: Ledger, state: str
) -> None:
    copy.run("update job set state = ? where key = ?", state, jobs[0].key)
    copy.run("update job set lease_until = ? where key = ?", time.time() + 60, jobs[0].key)
    add_object(copy, jobs[0], "SR 2")
    assert codes(copy.data) == []


def test_a_withdrawn_result_may_be_there_or_gone(
    node: Node, jobs: list[JobRow], copy: Ledger
) -> None:
    copy.run("update job set state = 'withdrawn' where key = ?", jobs[0].key)
    assert codes(copy.data) == []
    data = stored(node, jobs[0])
    series_uid, instance_uid = seg_of(jobs[0])
    delete(node, instance_uid, series_uid)
    try:
        assert codes(copy.data) == []
    finally:
        archive(node).store(jobs[0].study_uid, data)


def test_two_objects_of_one_role_are_found(jobs: list[JobRow], copy: Ledger) -> None:
    uid = add_object(copy, jobs[0], "SEG")
    copy.run("update result set confirmed_at = 1 where instance_uid = ?", uid)
    assert codes(copy.data) == [("result-missing", uid), ("result-twice", jobs[0].key)]


def test_two_results_of_one_model_are_found(jobs: list[JobRow], copy: Ledger) -> None:
    copy.run("update job set model = 'ct-tissue'")
    [finding] = compare(copy.data).findings
    assert finding.code == "job-twice"
    assert finding.what in {job.key for job in jobs}


@pytest.mark.parametrize(("age_s", "found"), [(1000, True), (50, False), (-10, False)])
def test_a_lease_that_ended_long_ago_is_found(
    jobs: list[JobRow], copy: Ledger, age_s: float, found: bool
) -> None:
    copy.run(
        "update job set state = 'running', lease_until = ? where key = ?",
        time.time() - age_s,
        jobs[0].key,
    )
    assert codes(copy.data) == ([("lease-expired", jobs[0].key)] if found else [])


def test_a_result_that_went_with_its_study_is_no_difference(
    jobs: list[JobRow], copy: Ledger
) -> None:
    copy.run("update job set study_uid = '1.2.3' where key = ?", jobs[0].key)
    compared = compare(copy.data)
    assert compared.findings == []
    assert (compared.gone, compared.results) == (2, 2)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_INTAKE_S", 0.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("code", "statement"),
    [
        ("series-unseen", "delete from series where series_uid = ?"),
        (
            "series-undecided",
            "update series set series_uid = null, decided_at = null, last_instance_at = 1 "
            "where series_uid = ?",
        ),
        (
            "series-grew",
            "update series set instance_count = instance_count - 1 where series_uid = ?",
        ),
        ("job-missing", "update job set series_uids = '1.2.3' where series_uids = ?"),
    ],
)
def test_a_series_without_a_valid_decision_is_found(
    jobs: list[JobRow], copy: Ledger, code: str, statement: str
) -> None:
    [uid] = jobs[0].series_uids
    copy.run(statement, uid)
    assert codes(copy.data) == [(code, uid)]


@pytest.mark.usefixtures("impatient")
def test_a_series_that_waits_for_a_model_names_its_route(jobs: list[JobRow], copy: Ledger) -> None:
    [uid] = jobs[0].series_uids
    waits = [{"route": "tissue", "taken": True, "reason": "waits: no worker has announced it"}]
    copy.run(
        "update series set decided_at = null, last_instance_at = 1, decision = ? "
        "where series_uid = ?",
        json.dumps(waits),
        uid,
    )
    [finding] = compare(copy.data).findings
    assert (finding.code, finding.what) == ("series-undecided", uid)
    assert "model of route tissue" in finding.sentence


def test_a_series_within_its_quiet_period_is_no_difference(
    jobs: list[JobRow], copy: Ledger
) -> None:
    copy.run("update series set decided_at = null, last_instance_at = ?", time.time())
    assert codes(copy.data) == []


def test_the_archive_is_read_page_after_page(
    jobs: list[JobRow], copy: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_PAGE", 1)
    compared = compare(copy.data)
    assert (compared.series, compared.results) == (5, 4)
    copy.run("delete from result")
    assert [f.code for f in compare(copy.data).findings].count("result-unknown") == 4


def test_a_wrong_password_and_a_silent_archive_are_said(copy: Ledger) -> None:
    url = copy.lines["SEGNODE_ARCHIVE_URL"]
    copy.say(SEGNODE_ARCHIVE_URL="http://127.0.0.1:9/dicom-web")
    with pytest.raises(ArchiveUnavailable, match="does not answer"):
        compare(copy.data)
    copy.say(SEGNODE_ARCHIVE_URL=url, SEGNODE_PASSWORD_ADMIN="wrong")
    with pytest.raises(SetupError, match="refuses the administrator"):
        compare(copy.data)


def test_a_folder_without_a_node_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="There is no node in"):
        compare(tmp_path)


def test_nothing_compared_says_so() -> None:
    assert Comparison().summary() == (
        "0 results (0 MB) of 0 jobs and 0 series compared; ledger and archive agree."
    )
