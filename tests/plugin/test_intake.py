"""From changes to jobs, with an archive that is a dictionary."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from segnode_contract.findings import Findings
from segnode_contract.job import ResultObject
from segnode_contract.ledger import IntakeLedger, Ledger, LedgerView, WorkerLedger, WorkLedger
from segnode_contract.route import Route
from segnode_contract.settings import Dicom, Limits, Listen, Node, Settings
from segnode_contract.settings import Intake as IntakeSettings
from segnode_plugin.intake import Intake


def settings(*routes: Route) -> Settings:
    return Settings(
        node=Node(name="test"),
        listen=Listen(),
        intake=IntakeSettings(quiet_s=0.0),
        limits=Limits(),
        dicom=Dicom(),
        users=(),
        modalities=(),
        routes=routes or (Route(name="any CT", model="ct-tissue", modality="CT"),),
    )


class Archive:
    """Orthanc's REST as far as intake asks, with series that grow."""

    def __init__(self) -> None:
        self.id = "archive-1"
        self.instances: dict[str, dict[str, Any]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.metadata: dict[str, list[str]] = {}
        self.received: dict[str, str] = {}
        """When the first image of a series came, where a test says it."""
        self.log: list[dict[str, Any]] = []

    def add(self, series: str, uid: str, **tags: str) -> None:
        self.instances[uid] = {
            "ID": uid,
            "ParentSeries": series,
            "MainDicomTags": {"SOPInstanceUID": uid},
        }
        self.tags[series] = {"Modality": "CT", **tags}
        change = {"ChangeType": "NewInstance", "ID": uid, "Seq": len(self.log) + 1}
        self.log.append(change)

    def archive_id(self) -> str:
        return self.id

    def series_named(self, series_uid: str) -> list[str]:
        return [s for s in self.tags if series_uid == self.uid_of(s)]

    def uid_of(self, series: str) -> str:
        return f"1.{series.partition('@')[0]}"

    def get(self, uri: str) -> Any:  # noqa: PLR0911 # one line per address
        path, _, query = uri.partition("?")
        parts = path.strip("/").split("/")
        match parts:
            case ["changes"] if query == "last":
                return {"Changes": self.log[-1:], "Done": True, "Last": len(self.log)}
            case ["changes"]:
                since = int(query.split("&")[0].removeprefix("since="))
                return {"Changes": self.log[since:], "Done": True, "Last": len(self.log)}
            case ["series"]:
                return sorted(self.tags)
            case ["instances", uid]:
                return self.instances.get(uid)
            case ["instances", uid, "simplified-tags"]:
                return self.tags[self.instances[uid]["ParentSeries"]]
            case ["series", series]:
                tags = {"SeriesInstanceUID": self.uid_of(series)}
                inside = [u for u, i in self.instances.items() if i["ParentSeries"] == series]
                known = {"ParentStudy": "study", "MainDicomTags": tags, "Instances": inside}
                return known if series in self.tags else None
            case ["instances", uid, "metadata"]:
                series = self.instances[uid]["ParentSeries"]
                return {"RemoteAET": "CT1", "ReceptionDate": self.received.get(series, "")}
            case ["series", series, "metadata"]:
                return self.metadata.get(series, [])
            case ["series", series, "instances"]:
                return [i for i in self.instances.values() if i["ParentSeries"] == series]
            case ["studies", _]:
                listed = sorted(self.tags)
                return {"MainDicomTags": {"StudyInstanceUID": "1.2"}, "Series": listed}
        raise AssertionError(uri)


@pytest.fixture
def archive() -> Archive:
    return Archive()


def announce(ledger: Ledger, *models: str) -> None:
    for name in models or ("ct-tissue",):
        WorkerLedger(ledger, "w1").announce(name, "1.0.0", "d" * 64, "card")


def states(ledger: Ledger) -> list[tuple[str, int]]:
    return [(job.state, job.instance_count) for job in LedgerView(ledger).jobs()]


def reasons(ledger: Ledger) -> dict[str, str]:
    [series] = LedgerView(ledger).series("1.2")
    return {verdict["route"]: verdict["reason"] for verdict in series.verdicts}


def test_a_series_that_arrives_gets_its_job(archive: Archive, ledger: Ledger) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), settings())
    intake.tick()
    for number in range(3):
        archive.add("7", f"1.7.{number}")
    intake.tick()
    assert states(ledger) == [("queued", 3)]


def test_what_arrived_while_the_plugin_was_away_is_found(archive: Archive, ledger: Ledger) -> None:
    announce(ledger)
    Intake(archive, IntakeLedger(ledger), settings()).tick()
    archive.add("7", "1.7.1")
    Intake(archive, IntakeLedger(ledger), settings()).tick()
    assert states(ledger) == [("queued", 1)]


def test_a_series_is_not_decided_before_it_is_quiet(archive: Archive, ledger: Ledger) -> None:
    announce(ledger)
    slow = settings()
    object.__setattr__(slow, "intake", IntakeSettings(quiet_s=60.0))
    intake = Intake(archive, IntakeLedger(ledger), slow)
    archive.add("7", "1.7.1")
    intake.tick()
    assert states(ledger) == []
    with ledger.write() as connection:
        connection.execute(text("update series set last_instance_at = last_instance_at - 61"))
    intake.tick()
    assert states(ledger) == [("queued", 1)]


@pytest.mark.parametrize("change", ["replaced", "outgrown"])
def test_a_replaced_index_is_read_from_the_start(
    archive: Archive, ledger: Ledger, change: str
) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), settings())
    for number in range(5):
        archive.add("7", f"1.7.{number}")
    intake.tick()
    fresh = Archive()
    fresh.id = "archive-2" if change == "replaced" else "archive-1"
    fresh.add("8", "1.8.1")
    Intake(fresh, IntakeLedger(ledger), settings()).tick()
    assert sorted(states(ledger)) == [("queued", 1), ("queued", 5)]


def test_a_late_slice_makes_a_new_job(archive: Archive, ledger: Ledger) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), settings())
    archive.add("7", "1.7.1")
    intake.tick()
    archive.add("7", "1.7.2")
    intake.tick()
    assert sorted(states(ledger)) == [("queued", 2), ("superseded", 1)]


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "MR"}, "Modality is MR, CT is wanted"),
        ({"Modality": "SEG"}, "Modality is SEG, CT is wanted"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "Image Type says LOCALIZER"),
        ({"BodyPartExamined": "HEAD"}, "Body Part Examined is HEAD, CHEST or THORAX is wanted"),
        ({}, "Body Part Examined is missing, CHEST or THORAX is wanted"),
        ({"BodyPartExamined": "chest"}, "1 instances, at least 5 are wanted"),
    ],
    ids=["other modality", "our own output", "localizer", "other part", "no part", "too few"],
)
def test_a_series_without_a_job_has_its_reason(
    archive: Archive, ledger: Ledger, tags: dict[str, str], reason: str
) -> None:
    announce(ledger)
    few = 5 if reason.startswith("1 ") else 1
    route = Route(
        name="chest",
        model="ct-tissue",
        modality="CT",
        body_parts=("CHEST", "THORAX"),
        min_instances=few,
    )
    archive.add("7", "1.7.1", **tags)
    Intake(archive, IntakeLedger(ledger), settings(route)).tick()
    assert states(ledger) == []
    assert reasons(ledger) == {"chest": reason}


def test_our_own_result_starts_nothing_even_where_a_route_takes_it(
    archive: Archive, ledger: Ledger
) -> None:
    announce(ledger)
    routes = [Route(name=m, model="ct-tissue", modality=m) for m in ("CT", "SEG")]
    intake = Intake(archive, IntakeLedger(ledger), settings(*routes))
    archive.add("7", "1.7.1")
    intake.tick()
    work = WorkLedger(ledger, "w1", Limits())
    claim = work.claim("default", ["d" * 64])
    assert claim is not None
    seg = ResultObject(role="SEG", instance_uid="1.8.1", series_uid="1.8", data=b"")
    work.made(claim, [seg], Findings(), "i" * 64)
    archive.add("8", "1.8.1", Modality="SEG")
    intake.tick()
    assert states(ledger) == [("running", 1)]
    ours = next(s for s in LedgerView(ledger).series("1.2") if s.series_uid == "1.8")
    assert {verdict["reason"] for verdict in ours.verdicts} == {"a result of ours"}


def test_a_route_waits_until_a_worker_has_its_model(archive: Archive, ledger: Ledger) -> None:
    archive.add("7", "1.7.1")
    intake = Intake(archive, IntakeLedger(ledger), settings())
    intake.tick()
    assert states(ledger) == []
    assert reasons(ledger) == {"any CT": "waits: no worker has announced the model"}
    announce(ledger)
    Intake(archive, IntakeLedger(ledger), settings()).tick()
    assert states(ledger) == [("queued", 1)]


def test_an_absent_model_holds_no_other_route(archive: Archive, ledger: Ledger) -> None:
    announce(ledger)
    routes = [Route(name=m, model=m, modality="CT") for m in ("ct-liver", "ct-tissue")]
    archive.add("7", "1.7.1")
    intake = Intake(archive, IntakeLedger(ledger), settings(*routes))
    intake.tick()
    assert [job.model for job in LedgerView(ledger).jobs()] == ["ct-tissue"]
    announce(ledger, "ct-liver")
    Intake(archive, IntakeLedger(ledger), settings(*routes)).tick()
    assert {job.model for job in LedgerView(ledger).jobs()} == {"ct-tissue", "ct-liver"}


def test_a_series_that_cannot_be_read_does_not_hold_the_others(
    archive: Archive, ledger: Ledger
) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), settings())
    archive.add("7", "1.7.1")
    archive.add("8", "1.8.1")
    del archive.instances["1.7.1"]["MainDicomTags"]["SOPInstanceUID"]
    intake.tick()
    assert states(ledger) == [("queued", 1)]


def test_a_series_that_was_deleted_meanwhile_is_dropped(archive: Archive, ledger: Ledger) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), settings())
    archive.add("7", "1.7.1")
    IntakeLedger(ledger).note(archive.id, 1, ["gone"])
    intake.tick()
    assert IntakeLedger(ledger).quiet(archive.id, 0) == []


def test_series_whose_changes_were_deleted_are_found_at_the_next_start(
    archive: Archive, ledger: Ledger
) -> None:
    announce(ledger)
    Intake(archive, IntakeLedger(ledger), settings()).tick()
    archive.add("7", "1.7.1")
    archive.add("8", "1.8.1")
    archive.log = [{"ChangeType": "Deleted", "ID": "x", "Seq": n} for n in range(2)]
    Intake(archive, IntakeLedger(ledger), settings()).tick()
    assert states(ledger) == [("queued", 1), ("queued", 1)]


def test_an_instance_whose_change_was_deleted_is_found_at_the_next_start(
    archive: Archive, ledger: Ledger
) -> None:
    announce(ledger)
    archive.add("7", "1.7.1")
    Intake(archive, IntakeLedger(ledger), settings()).tick()
    archive.add("7", "1.7.2")
    archive.log[-1] = {"ChangeType": "Deleted", "ID": "x", "Seq": 2}
    Intake(archive, IntakeLedger(ledger), settings()).tick()
    assert sorted(states(ledger)) == [("queued", 2), ("superseded", 1)]


@pytest.mark.parametrize(
    ("tags", "metadata", "reason"),
    [
        ({"ImageType": "DERIVED\\SECONDARY\\AXIAL"}, [], "Image Type says SECONDARY"),
        ({"ImageType": "DERIVED\\PRIMARY\\AXIAL\\CT_SOM5 MIP"}, [], "says CT_SOM5 MIP"),
        ({"ImageType": "DERIVED\\PRIMARY\\MPR"}, [], "says MPR"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, [], "Secondary Capture"),
        ({}, ["LastUpdate", "AnonymizedFrom"], "copy made in Orthanc"),
        ({}, ["ModifiedFrom"], "copy made in Orthanc"),
    ],
    ids=["secondary", "mip", "mpr", "capture", "anonymised", "modified"],
)
def test_what_was_made_from_other_images_starts_nothing_by_itself(
    archive: Archive,
    ledger: Ledger,
    tags: dict[str, str],
    metadata: list[str],
    reason: str,
) -> None:
    announce(ledger)
    archive.add("7", "1.7.1", **tags)
    archive.metadata["7"] = metadata
    plain = Route(name="plain", model="ct-tissue", modality="CT")
    Intake(archive, IntakeLedger(ledger), settings(plain)).tick()
    assert states(ledger) == []
    assert reason in reasons(ledger)["plain"]


def test_a_route_may_ask_for_derived_series_and_copies(archive: Archive, ledger: Ledger) -> None:
    announce(ledger)
    archive.add("7", "1.7.1", ImageType="DERIVED\\SECONDARY")
    archive.metadata["7"] = ["ModifiedFrom"]
    all_of_them = Route(name="all", model="ct-tissue", modality="CT", derived=True, copies=True)
    Intake(archive, IntakeLedger(ledger), settings(all_of_them)).tick()
    assert states(ledger) == [("queued", 1)]


def test_what_a_scanner_derived_itself_is_taken(archive: Archive, ledger: Ledger) -> None:
    announce(ledger)
    archive.add("7", "1.7.1", ImageType="DERIVED\\PRIMARY\\AXIAL")
    Intake(archive, IntakeLedger(ledger), settings()).tick()
    assert states(ledger) == [("queued", 1)]


def test_a_series_uid_of_two_patients_starts_nothing_more(archive: Archive, ledger: Ledger) -> None:
    """DICOMweb has one address for both, and Orthanc answers it with nothing."""
    announce(ledger)
    archive.add("7", "1.7.1")
    archive.add("7@another", "1.7.2")
    Intake(archive, IntakeLedger(ledger), settings()).tick()
    assert states(ledger) == []
    said = [list(series.verdicts) for series in LedgerView(ledger).series("1.2")]
    assert ["2 series in the archive" in verdicts[0]["reason"] for verdicts in said] == [True, True]


def test_an_image_that_the_archive_cannot_read_holds_no_other_and_is_looked_for_again(
    archive: Archive, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(ledger)
    intake = Intake(archive, IntakeLedger(ledger), settings())
    intake.tick()
    archive.add("7", "1.7.1")
    archive.add("8", "1.8.1")
    whole = archive.get

    def torn(uri: str) -> Any:
        if uri == "/instances/1.7.1":
            raise OSError("torn")
        return whole(uri)

    monkeypatch.setattr(archive, "get", torn)
    intake.tick()
    assert states(ledger) == [("queued", 1)]
    monkeypatch.undo()
    intake.tick()
    assert states(ledger) == [("queued", 1), ("queued", 1)]


def test_a_rescan_that_failed_is_made_again_soon(
    archive: Archive, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(ledger)
    archive.add("7", "1.7.1")
    intake = Intake(archive, IntakeLedger(ledger), settings())
    intake.tick()
    archive.add("8", "1.8.1")
    archive.log.clear()  # all changes were deleted
    whole = archive.get

    def broken(uri: str) -> Any:
        if uri == "/series":
            raise OSError("broken")
        return whole(uri)

    monkeypatch.setattr(archive, "get", broken)
    monkeypatch.setattr("segnode_plugin.intake._ASK_AGAIN_S", 0.0)
    with pytest.raises(OSError, match="broken"):
        intake.tick()
    monkeypatch.setattr(archive, "get", whole)
    intake.tick()
    assert states(ledger) == [("queued", 1), ("queued", 1)]
