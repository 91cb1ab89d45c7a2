"""What routes say of other people's series, as Orthanc holds them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

import segnode_models
from segnode_contract.condition import read_condition
from segnode_contract.ledger.intake import AnnouncedModel
from segnode_contract.route import Route
from segnode_plugin.deciding import Arrived, Known, Outcome, decide
from segnode_plugin.facts import SeriesFacts, series_facts

from ..conftest import free_port


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An Orthanc without plugins."""

    url: str

    def get(self, uri: str) -> Any:
        return json.loads(self._ask(uri))

    def series_named(self, series_uid: str) -> list[str]:
        found = json.loads(self._ask("/tools/lookup", series_uid.encode()))
        return [item["ID"] for item in found if item["Type"] == "Series"]

    def store(self, file: bytes) -> str:
        """Store an image; return the Orthanc id of its series."""
        return str(json.loads(self._ask("/instances", file))["ParentSeries"])

    def clear(self) -> None:
        for patient in self.get("/patients"):
            self._ask(f"/patients/{patient}", method="DELETE")

    def _ask(self, uri: str, body: bytes | None = None, method: str | None = None) -> bytes:
        asked = urllib.request.Request(self.url + uri, body, method=method)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            found: bytes = answer.read()
            return found


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    if shutil.which("Orthanc") is None:
        if os.environ.get("CI"):
            pytest.fail("Orthanc is not installed; `make test` installs it")
        pytest.skip("Orthanc is not installed; `make test` installs it")
    folder = tmp_path_factory.mktemp("archive")
    archive = Archive(url=f"http://127.0.0.1:{free_port()}")
    words = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": int(archive.url.rpartition(":")[2]),
        "HttpBindAddresses": ["127.0.0.1"],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(words))
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            _wait(archive, server, folder / "log")
            yield archive
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture
def archive(orthanc: Archive) -> Iterator[Archive]:
    """An empty archive."""
    yield orthanc
    orthanc.clear()


def _wait(archive: Archive, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            archive.get("/system")
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return


CARD = (Path(segnode_models.__file__).parent / "builtin" / "ct_tissue" / "card.toml").read_text()
MODELS = {
    name: AnnouncedModel(name=name, version="1", digest="d", card=card, announced_at=0.0)
    for name, card in (
        ("ct-tissue", CARD),
        ("mr-brain", "a card that nobody can read"),
    )
}
CT = {"model": "ct-tissue", "modality": "CT"}
MR = {"model": "mr-brain", "modality": "MR"}
YES = "every condition holds"
TOO_FEW = "1 image; the model ct-tissue needs 3 slices"
SECONDARY = "Image Type says SECONDARY, and derived series are not wanted"


def where(**clause: Any) -> dict[str, Any]:
    return {"where": read_condition(clause, "where")}


STRAIGHT = where(fact="obliquity_deg", at_most=10)
OBLIQUE_CT = ("rt-utils/oriented_data", "*.dcm")
TILTED_CT = ("qact-ge-tilt", "*.dcm")
ENHANCED_CT = ("dcmqi/segmentations/23x38x3/multiframe", "*.dcm")
ABDOMEN_MR = ("ts-mr-built/dicom", "*.dcm")
BRAIN_MR = ("datalad-mr", "*.dcm")
ONE_SLICE = ("cornerstone-ct-ts", "CTImage.dcm")
SCOUT = ("pydicom/files/98892001/CT2N", "*")


def facts_of(
    archive: Archive, data: Path, series: tuple[str, str], *, one_study: bool = True
) -> SeriesFacts:
    folder = data / series[0]
    if not folder.is_dir():
        pytest.skip(f"the folder of real images has no {series[0]}")
    stored = []
    for path in sorted(folder.glob(series[1])):
        file = BytesIO()
        image = dcmread(path)
        if one_study:  # the oblique CT has a study for each of its slices
            image.StudyInstanceUID = "1.2.3"
        image.save_as(file)
        stored.append(archive.store(file.getvalue()))
    facts = series_facts(archive, stored[0])
    assert facts is not None
    return facts


def said_of(facts: SeriesFacts, *routes: Route) -> Outcome:
    known = Known(routes=routes, priorities=(), models=MODELS, ours=lambda uid: False)
    return decide(Arrived(series=(facts,), trigger="series", came_at=(0.0,)), known)


@pytest.mark.parametrize(
    ("series", "asked", "reason"),
    [
        (OBLIQUE_CT, CT, SECONDARY),
        (OBLIQUE_CT, CT | {"derived": True}, YES),
        (
            OBLIQUE_CT,
            CT | {"derived": True} | STRAIGHT,
            "obliquity_deg is 26.14, at most 10 is wanted",
        ),
        (
            OBLIQUE_CT,
            CT | {"derived": True} | where(fact="orientation", equals="oblique"),
            "orientation is AXIAL, OBLIQUE is wanted",
        ),
        (("rt-utils/one_slice_data", "*.dcm"), CT | {"derived": True}, TOO_FEW),
        (TILTED_CT, CT | {"body_parts": ("HEAD",)}, YES),
        (TILTED_CT, CT | STRAIGHT, "obliquity_deg is 18.5, at most 10 is wanted"),
        (
            TILTED_CT,
            CT | where(fact="largest_gap_mm", at_most=5),
            "largest_gap_mm is 6.999, at most 5 is wanted",
        ),
        (ENHANCED_CT, CT, YES),  # three frames are three slices
        (
            ENHANCED_CT,
            CT | where(fact="coverage_mm", at_least=5),
            "coverage_mm is not known, at least 5 is wanted",
        ),
        (ENHANCED_CT, CT | {"body_parts": ("HEAD",)}, "Body Part Examined is missing, HEAD is"),
        (ABDOMEN_MR, CT, "Modality is MR, CT is wanted"),
        (ABDOMEN_MR, MR | {"body_parts": ("ABDOMEN",)} | STRAIGHT, YES),
        (
            ABDOMEN_MR,
            MR | where(fact="slice_spacing_mm", at_most=2),
            "slice_spacing_mm is 3, at most 2 is wanted",
        ),
        (BRAIN_MR, MR, SECONDARY),
        (
            BRAIN_MR,
            MR | {"derived": True} | where(attribute="SeriesDescription", matches=r"\bt1w\b"),
            YES,
        ),
        (
            BRAIN_MR,
            MR | {"derived": True} | where(fact="coverage_mm", at_least=100),
            "coverage_mm is 16, at least 100 is wanted",
        ),
        (ONE_SLICE, CT, TOO_FEW),
        (
            ONE_SLICE,
            MR | {"modality": "CT"} | where(fact="kernel", equals="sharp"),
            "kernel is SOFT, SHARP is wanted",
        ),
        (SCOUT, CT | {"scouts": True}, "Image Type says LOCALIZER"),
    ],
)
def test_a_route_says_of_a_real_series(
    archive: Archive, shared_data: Path, series: tuple[str, str], asked: dict[str, Any], reason: str
) -> None:
    facts = facts_of(archive, shared_data, series)
    outcome = said_of(facts, Route(name="r", **asked))
    [[verdict]] = outcome.verdicts
    assert verdict.reason.startswith(reason)
    assert verdict.taken is (reason == YES)
    assert len(outcome.jobs) == verdict.taken


def test_a_real_series_in_three_studies_has_no_job(archive: Archive, shared_data: Path) -> None:
    facts = facts_of(archive, shared_data, OBLIQUE_CT, one_study=False)
    [[verdict]] = said_of(facts, Route(name="r", derived=True, **CT)).verdicts
    assert verdict.reason.startswith("3 series in the archive have this Series Instance UID")


def test_orthanc_says_when_a_series_came_and_again_changes_nothing(
    archive: Archive, shared_data: Path
) -> None:
    before = time.time()
    first = facts_of(archive, shared_data, ABDOMEN_MR)
    assert 0 < first.received_s <= before + 1
    time.sleep(1.1)
    again = facts_of(archive, shared_data, ABDOMEN_MR)
    assert again == first
