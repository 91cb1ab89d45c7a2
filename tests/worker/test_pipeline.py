"""A job that is broken off at any place ends with one result, made once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from mmap import mmap
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.card import Card, parse_card
from segnode_contract.errors import (
    ArchiveUnavailable,
    ImagesChanged,
    ModelFailed,
    PriorMissing,
    ProofFailed,
    SeriesChanged,
    SpoolFull,
    StoreRefused,
    UidCollision,
)
from segnode_contract.findings import Findings
from segnode_contract.form import Form
from segnode_contract.identity import content_digest, job_key
from segnode_contract.job import Claim, NewJob, Stage
from segnode_contract.ledger import IntakeLedger, Ledger, LedgerView, WorkerLedger, WorkLedger
from segnode_contract.ledger.intake import Decision
from segnode_contract.ledger.overlays import study_overlays
from segnode_contract.pictures import SIGNATURE
from segnode_contract.settings import Limits
from segnode_worker.folder import FolderArchive
from segnode_worker.pipeline import run_job
from segnode_worker.spool import Spool

from .brighter import Brighter
from .many_segments import card_of

DIGEST = "d" * 64


class Bright(Brighter):
    """Finds what is brighter than water, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(0)
        self.asked = 0
        self.others: Mapping[str, NDArray[np.float32]] = {}
        self.prior: NDArray[np.uint8] | None = None

    def segment(
        self, card: Card, digest: str, volume: hd.Volume, attributes: Mapping[str, str], **more: Any
    ) -> tuple[NDArray[np.uint8], Findings]:
        self.asked += 1
        with more["stage"](Stage.INFER):
            more["told"](0.5)
        self.volume, self.others, self.prior = volume, more["others"], more["prior"]
        return super().segment(card, digest, volume, attributes, **more)


class Dropping(FolderArchive):
    """A folder that keeps what it is given, and seems away once it has the last of two."""

    def store(self, study_uid: str, data: bytes | mmap) -> None:
        super().store(study_uid, data)
        if dcmread(BytesIO(bytes(data))).Modality == "SR":
            raise ArchiveUnavailable("The archive does not answer.")


@pytest.fixture
def images(hu: NDArray[np.int16]) -> list[Dataset]:
    return ct_series(hu, spacing_mm=(3.0, 1.5, 1.25), seed="pipeline")


@pytest.fixture
def inbox(images: list[Dataset], tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, image in enumerate(images):
        (folder / f"{number}.dcm").write_bytes(as_file(image))
    return folder


@pytest.fixture
def archive(inbox: Path, tmp_path: Path) -> FolderArchive:
    return FolderArchive(inbox, tmp_path / "out")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    return spool


def job_of(card: Card, *series: list[Dataset], **more: object) -> NewJob:
    uids = [image.SOPInstanceUID for images in series for image in images]
    series_uids = [images[0].SeriesInstanceUID for images in series]
    values: dict[str, object] = {
        "key": job_key(
            series_uids=series_uids,
            instance_uids=uids,
            model=card.name,
            model_digest=DIGEST,
            parameters={name: str(value) for name, value in more.items()},
            form="BINARY",
        ),
        "study_uid": series[0][0].StudyInstanceUID,
        "series_uids": tuple(series_uids),
        "content": content_digest(uids),
        "instance_count": len(uids),
        "route": "r",
        "route_rank": 0,
        "model": card.name,
        "model_version": card.version,
        "model_digest": DIGEST,
        "lane": "default",
        "last_instance_at": 0.0,
    }
    return NewJob(**(values | more))  # type: ignore[arg-type] # as above


def arrive(ledger: Ledger, *jobs: NewJob) -> None:
    intake = IntakeLedger(ledger)
    intake.note("a", 1, ["o"])
    [quiet] = intake.quiet("a", 0)
    intake.decide(
        "a",
        Decision(
            orthanc_id="o",
            last_instance_at=quiet.last_instance_at,
            study_uid=jobs[0].study_uid,
            series_uid=jobs[0].series_uids[0],
            instance_count=jobs[0].instance_count,
            verdicts=(),
            jobs=jobs,
        ),
    )


def worker_with(ledger: Ledger, *cards: Card) -> WorkLedger:
    for card in cards:
        WorkerLedger(ledger, "w").announce(card.name, card.version, DIGEST, card.source)
    return WorkLedger(ledger, "w", Limits(back_off_s=(0.0,)))


@pytest.fixture
def work(ledger: Ledger, card: Card, images: list[Dataset]) -> WorkLedger:
    """A worker's ledger with one queued job."""
    arrive(ledger, job_of(card, images))
    return worker_with(ledger, card)


def take(work: WorkLedger) -> Claim:
    claim = work.claim("default", [DIGEST])
    assert claim is not None
    return claim


def results(tmp_path: Path) -> list[bytes]:
    """Return what the archive has been given: the SEG, then the report."""
    found = [path.read_bytes() for path in (tmp_path / "out").glob("*.dcm")]
    return sorted(found, key=lambda data: str(dcmread(BytesIO(data)).Modality))


def spooled(tmp_path: Path) -> list[bytes]:
    return [(tmp_path / "spool" / name).read_bytes() for name in waiting(tmp_path)]


def waiting(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "spool").iterdir()]


def test_a_job_ends_with_a_confirmed_result_and_an_empty_spool(
    work: WorkLedger, archive: FolderArchive, spool: Spool, ledger: Ledger, tmp_path: Path
) -> None:
    model = Bright()
    run_job(take(work), archive, model, work, spool, "node")
    assert model.asked == 1
    assert [dcmread(BytesIO(data)).Modality for data in results(tmp_path)] == ["SEG", "SR"]
    assert waiting(tmp_path) == []
    [job] = LedgerView(ledger).jobs()
    assert all(each.confirmed_at for each in job.objects)


@pytest.mark.parametrize("form", Form)
def test_a_result_has_the_form_that_its_job_was_made_for(
    ledger: Ledger,
    images: list[Dataset],
    archive: FolderArchive,
    spool: Spool,
    tmp_path: Path,
    form: Form,
) -> None:
    card = card_of(1)
    arrive(ledger, job_of(card, images, form=form))
    work = worker_with(ledger, card)
    run_job(take(work), archive, Bright(), work, spool, "node")
    made = [dcmread(BytesIO(data)) for data in results(tmp_path)]
    [seg] = [each for each in made if each.Modality == "SEG"]
    assert seg.SegmentationType == form
    assert seg.pixel_array.sum() > 0


def test_a_retry_sends_the_same_bytes_and_asks_no_model(
    work: WorkLedger, archive: FolderArchive, spool: Spool, inbox: Path, tmp_path: Path
) -> None:
    model, claim = Bright(), take(work)
    away = FolderArchive(inbox, inbox / "0.dcm" / "nowhere")
    with pytest.raises(Exception, match="nowhere") as raised:
        run_job(claim, away, model, work, spool, "node")
    work.failed(claim, ArchiveUnavailable(str(raised.value)), 1)
    kept = spooled(tmp_path)
    run_job(take(work), archive, model, work, spool, "node")
    assert model.asked == 1
    assert sorted(results(tmp_path)) == sorted(kept)


def test_what_was_stored_just_before_a_break_is_adopted(
    work: WorkLedger,
    archive: FolderArchive,
    spool: Spool,
    inbox: Path,
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    model, claim = Bright(), take(work)
    with pytest.raises(ArchiveUnavailable) as raised:
        run_job(claim, Dropping(inbox, tmp_path / "out"), model, work, spool, "node")
    work.failed(claim, raised.value, 1)
    before = results(tmp_path)
    claim = take(work)
    run_job(claim, archive, model, work, spool, "node")
    work.done(claim, 1)
    assert model.asked == 1
    assert results(tmp_path) == before
    job = LedgerView(ledger).job(claim.key)
    assert job is not None
    assert "adopted" in [event.kind for event in job.events]


def test_with_the_spool_gone_the_archives_own_object_is_adopted(
    work: WorkLedger, archive: FolderArchive, spool: Spool, inbox: Path, tmp_path: Path
) -> None:
    model, claim = Bright(), take(work)
    with pytest.raises(ArchiveUnavailable) as raised:
        run_job(claim, Dropping(inbox, tmp_path / "out"), model, work, spool, "node")
    work.failed(claim, raised.value, 1)
    for name in waiting(tmp_path):
        (tmp_path / "spool" / name).unlink()
    run_job(take(work), archive, model, work, spool, "node")
    assert model.asked == 1


def test_an_object_that_the_archive_wrote_anew_is_adopted_when_it_holds_the_same_voxels(
    work: WorkLedger,
    archive: FolderArchive,
    spool: Spool,
    inbox: Path,
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    model, claim = Bright(), take(work)
    with pytest.raises(ArchiveUnavailable) as raised:
        run_job(claim, Dropping(inbox, tmp_path / "out"), model, work, spool, "node")
    work.failed(claim, raised.value, 1)
    spool.drop(name.removesuffix(".dcm") for name in waiting(tmp_path))
    rewrite(tmp_path, ContentCreatorName="Another^Archive")
    before = results(tmp_path)
    claim = take(work)
    run_job(claim, archive, model, work, spool, "node")
    work.done(claim, 1)
    assert model.asked == 2
    assert results(tmp_path) == before


def test_other_content_under_our_uid_is_an_error_and_stays(
    work: WorkLedger, archive: FolderArchive, spool: Spool, inbox: Path, tmp_path: Path
) -> None:
    model, claim = Bright(), take(work)
    with pytest.raises(ArchiveUnavailable) as raised:
        run_job(claim, Dropping(inbox, tmp_path / "out"), model, work, spool, "node")
    work.failed(claim, raised.value, 1)
    pixels = bytearray(dcmread(BytesIO(results(tmp_path)[0])).PixelData)
    pixels[7] ^= 255
    rewrite(tmp_path, PixelData=bytes(pixels))
    forged = results(tmp_path)
    claim = take(work)
    with pytest.raises(UidCollision, match="other content under the UID"):
        run_job(claim, archive, model, work, spool, "node")
    assert results(tmp_path) == forged


def test_a_damaged_spool_file_is_not_sent(
    work: WorkLedger, archive: FolderArchive, spool: Spool, inbox: Path, tmp_path: Path
) -> None:
    model, claim = Bright(), take(work)
    away = FolderArchive(inbox, inbox / "0.dcm" / "nowhere")
    with pytest.raises(Exception, match="nowhere"):
        run_job(claim, away, model, work, spool, "node")
    work.failed(claim, ArchiveUnavailable("away"), 1)
    whole = spooled(tmp_path)
    path = tmp_path / "spool" / waiting(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-1])
    run_job(take(work), archive, model, work, spool, "node")
    assert model.asked == 2
    assert sorted(results(tmp_path)) == sorted(whole)


def test_the_spool_is_its_owners_and_forgets_what_nobody_needs(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.put([b"o", b"ne"])
    spool.put([b"two"])
    names = waiting(tmp_path)
    assert all((tmp_path / "spool" / n).stat().st_mode & 0o777 == 0o600 for n in names)
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    needed = {names[0].removesuffix(".dcm")}
    spool.tidy(needed)
    assert sorted(waiting(tmp_path)) == sorted(names)
    monkeypatch.setattr("segnode_worker.spool._SETTLED_S", -1)
    spool.tidy(needed)
    assert waiting(tmp_path) == [names[0]]


def test_a_spool_that_takes_nothing_says_so_and_keeps_no_half(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SpoolFull, match="No space left"):
        spool.put([b"o", b"ne"])
    assert waiting(tmp_path) == []


def test_what_fails_its_proof_leaves_no_file(
    work: WorkLedger,
    archive: FolderArchive,
    spool: Spool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ProofFailed("Segment 1 differs.")

    monkeypatch.setattr("segnode_worker.result.prove_report", fails)
    with pytest.raises(ProofFailed):
        run_job(take(work), archive, Bright(), work, spool, "node")
    assert waiting(tmp_path) == []


def rewrite(tmp_path: Path, **changes: object) -> None:
    """Change the SEG that the archive has."""
    [path] = [p for p in (tmp_path / "out").glob("*.dcm") if dcmread(p).Modality == "SEG"]
    dataset = dcmread(path)
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)


def test_images_that_are_not_the_jobs_are_awaited_before_anything_is_said_of_them(
    work: WorkLedger, archive: FolderArchive, spool: Spool, inbox: Path
) -> None:
    (inbox / "4.dcm").unlink()  # a gap, which the stack would refuse for good
    with pytest.raises(SeriesChanged, match="gave 8 images"):
        run_job(take(work), archive, Bright(), work, spool, "node")


def test_a_store_that_came_through_late_is_adopted(
    work: WorkLedger, spool: Spool, inbox: Path, tmp_path: Path
) -> None:
    class Late(FolderArchive):
        def store(self, study_uid: str, data: bytes | mmap) -> None:
            super().store(study_uid, data)
            raise StoreRefused("The archive has it already.")

    claim = take(work)
    run_job(claim, Late(inbox, tmp_path / "out"), Bright(), work, spool, "node")
    work.done(claim, 1)
    assert len(results(tmp_path)) == 2


def darken(inbox: Path) -> None:
    """Put other pixels under the UIDs of one image."""
    image = dcmread(inbox / "4.dcm")
    image.PixelData = bytes(len(image.PixelData))
    image.save_as(inbox / "4.dcm", enforce_file_format=True)


def test_images_that_came_again_unchanged_keep_their_result(
    work: WorkLedger,
    archive: FolderArchive,
    spool: Spool,
    ledger: Ledger,
    card: Card,
    images: list[Dataset],
    tmp_path: Path,
) -> None:
    model, claim = Bright(), take(work)
    run_job(claim, archive, model, work, spool, "node")
    work.done(claim, 1)
    before = results(tmp_path)
    key = claim.key
    again = replace(job_of(card, images), last_instance_at=9.0)
    arrive(ledger, again)
    claim = take(work)
    assert claim.key == key
    run_job(claim, archive, model, work, spool, "node")
    work.done(claim, 1)
    assert model.asked == 1
    assert results(tmp_path) == before


def test_other_pixels_under_the_same_uids_are_an_error_and_their_result_is_shown_no_more(
    work: WorkLedger,
    archive: FolderArchive,
    spool: Spool,
    ledger: Ledger,
    card: Card,
    images: list[Dataset],
    inbox: Path,
    tmp_path: Path,
) -> None:
    model, claim = Bright(), take(work)
    run_job(claim, archive, model, work, spool, "node")
    work.done(claim, 1)
    study_uid, before = claim.study_uid, results(tmp_path)
    assert len(study_overlays(ledger, study_uid).overlays) == 1
    darken(inbox)
    arrive(ledger, replace(job_of(card, images), last_instance_at=9.0))
    claim = take(work)
    with pytest.raises(ImagesChanged, match="under the same UIDs") as raised:
        run_job(claim, archive, model, work, spool, "node")
    work.failed(claim, raised.value, 1)
    assert results(tmp_path) == before
    assert study_overlays(ledger, study_uid).overlays == ()


def test_other_pixels_before_anything_was_stored_are_segmented_anew(
    work: WorkLedger, spool: Spool, archive: FolderArchive, inbox: Path, tmp_path: Path
) -> None:
    model, claim = Bright(), take(work)
    away = FolderArchive(inbox, inbox / "0.dcm" / "nowhere")
    with pytest.raises(Exception, match="nowhere"):
        run_job(claim, away, model, work, spool, "node")
    work.failed(claim, ArchiveUnavailable("away"), 1)
    stale = spooled(tmp_path)
    darken(inbox)
    run_job(take(work), archive, model, work, spool, "node")
    assert model.asked == 2
    assert not set(results(tmp_path)) & set(stale)


def test_a_shadow_run_measures_and_stores_nothing(
    archive: FolderArchive,
    spool: Spool,
    ledger: Ledger,
    card: Card,
    images: list[Dataset],
    tmp_path: Path,
) -> None:
    arrive(ledger, job_of(card, images, shadow=True))
    work = worker_with(ledger, card)
    model, claim = Bright(), take(work)
    run_job(claim, archive, model, work, spool, "node")
    work.done(claim, 1)
    assert model.asked == 1
    assert results(tmp_path) == waiting(tmp_path) == []
    job = LedgerView(ledger).job(claim.key)
    assert job is not None
    assert job.row.state == "done"
    assert [stage.stage for stage in job.row.stages][-1] == "verify"
    assert any(event.kind == "shadow" for event in job.events)


def test_a_chain_hands_on_the_labels_that_the_first_model_gave(
    archive: FolderArchive, spool: Spool, ledger: Ledger, card: Card, images: list[Dataset]
) -> None:
    source = card.source.replace('name = "test-tissue"', 'name = "then"').replace(
        "min_slices = 3", 'min_slices = 3\nbuilds_on = "test-tissue"'
    )
    then = parse_card(source, where="test")
    first = job_of(card, images)
    arrive(ledger, first, job_of(then, images, builds_on=first.key))
    work = worker_with(ledger, card, then)
    model, claim = Bright(), take(work)
    run_job(claim, archive, model, work, spool, "node")
    assert work.claim("default", [DIGEST]) is None
    work.done(claim, 1)
    assert model.prior is None
    claim = take(work)
    run_job(claim, archive, model, work, spool, "node")
    work.done(claim, 1)
    assert model.prior is not None
    assert model.prior.shape == (2, *model.volume.array.shape)
    assert np.array_equal(model.prior[0], model.volume.array > 0)
    assert not model.prior[1].any()


def test_a_chain_ends_where_the_first_result_lacks_a_segment(
    archive: FolderArchive, spool: Spool, ledger: Ledger, card: Card, images: list[Dataset]
) -> None:
    """An organ that was withheld must not be read as one that is not there."""
    source = card.source.replace('name = "test-tissue"', 'name = "then"').replace(
        "min_slices = 3", 'min_slices = 3\nbuilds_on = "test-tissue"'
    )
    then = parse_card(source, where="test")
    first = job_of(card, images)
    arrive(ledger, first, job_of(then, images, builds_on=first.key))
    strict = card.source.replace("number = 1\n", "number = 1\nplausible_ml = [100, 200]\n")
    work = worker_with(ledger, parse_card(strict, where="test"), then)
    claim = take(work)
    run_job(claim, archive, Bright(), work, spool, "node")
    work.done(claim, 1)
    with pytest.raises(ModelFailed, match=r"lacks a segment.*100 to 200 ml") as raised:
        run_job(take(work), archive, Bright(), work, spool, "node")
    assert raised.value.code == "prior-withheld"


def test_a_chain_waits_where_the_first_result_was_deleted(
    archive: FolderArchive,
    spool: Spool,
    ledger: Ledger,
    card: Card,
    images: list[Dataset],
    tmp_path: Path,
) -> None:
    first = job_of(card, images)
    arrive(ledger, first, job_of(card, images, builds_on=first.key, model="other"))
    work = worker_with(ledger, card, replace(card, name="other"))
    claim = take(work)
    run_job(claim, archive, Bright(), work, spool, "node")
    work.done(claim, 1)
    for path in (tmp_path / "out").glob("*.dcm"):
        path.unlink()
    with pytest.raises(PriorMissing, match="does not have the result of test-tissue"):
        run_job(take(work), archive, Bright(), work, spool, "node")


def test_a_job_of_two_series_gives_its_model_both(
    archive: FolderArchive,
    spool: Spool,
    ledger: Ledger,
    card: Card,
    images: list[Dataset],
    hu: NDArray[np.int16],
    inbox: Path,
    tmp_path: Path,
) -> None:
    late = ct_series((hu + 10).astype(np.int16), spacing_mm=(3.0, 1.5, 1.25), seed="late")
    for number, image in enumerate(late):
        image.StudyInstanceUID = images[0].StudyInstanceUID
        image.FrameOfReferenceUID = images[0].FrameOfReferenceUID
        (inbox / f"late{number}.dcm").write_bytes(as_file(image))
    source = card.source.replace(
        "min_slices = 3",
        'min_slices = 3\n[[input.series]]\nrole = "native"\n[[input.series]]\nrole = "late"',
    )
    both = parse_card(source, where="test")
    arrive(ledger, job_of(both, images, late, roles=("native", "late")))
    work = worker_with(ledger, both)
    model, claim = Bright(), take(work)
    run_job(claim, archive, model, work, spool, "node")
    work.done(claim, 1)
    assert np.abs(model.others["late"] - model.volume.array - 10).max() < 1e-2
    made = [dcmread(BytesIO(data)) for data in results(tmp_path)]
    [seg] = [each for each in made if each.Modality == "SEG"]
    [referenced] = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == images[0].SeriesInstanceUID


class Showing(FolderArchive):
    """A folder that keeps pictures of what it has, as many as it may."""

    def __init__(self, folder_in: Path, folder_out: Path, most: int = 100) -> None:
        super().__init__(folder_in, folder_out)
        self.most = most
        self.pictures: dict[tuple[str, int], bytes] = {}

    def keep_picture(self, instance_uid: str, number: int, picture: bytes) -> None:
        assert self.fetch_instance("", "", instance_uid) is not None
        if len(self.pictures) == self.most:
            raise ArchiveUnavailable("The node does not answer.")
        self.pictures[instance_uid, number] = picture


def test_the_pictures_of_a_job_reach_the_archive(
    work: WorkLedger, spool: Spool, inbox: Path, ledger: Ledger, tmp_path: Path
) -> None:
    archive, claim = Showing(inbox, tmp_path / "out"), take(work)
    run_job(claim, archive, Bright(), work, spool, "node")
    [job] = LedgerView(ledger).jobs()
    [seg] = [each for each in job.objects if each.role == "SEG"]
    assert list(archive.pictures) == [(seg.instance_uid, number) for number in (1, 2, 3)]
    assert len(set(archive.pictures.values())) == 3
    assert all(picture.startswith(SIGNATURE) for picture in archive.pictures.values())


@pytest.mark.parametrize("most", [0, 1])
def test_a_job_is_done_without_its_pictures(
    work: WorkLedger,
    spool: Spool,
    inbox: Path,
    ledger: Ledger,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    most: int,
) -> None:
    archive, claim = Showing(inbox, tmp_path / "out", most), take(work)
    run_job(claim, archive, Bright(), work, spool, "node")
    work.done(claim, 1)
    [job] = LedgerView(ledger).jobs()
    assert job.state == "done"
    assert len(archive.pictures) == most
    [said] = [record for record in caplog.records if record.msg == "pictures not kept"]
    assert vars(said)["job_key"] == claim.key
    assert vars(said)["code"] == "archive-unavailable"


def test_a_picture_that_cannot_be_drawn_costs_no_result(
    work: WorkLedger,
    spool: Spool,
    inbox: Path,
    ledger: Ledger,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("CANARY^NAME")

    monkeypatch.setattr("segnode_worker.result.pictures", broken)
    archive, claim = Showing(inbox, tmp_path / "out"), take(work)
    run_job(claim, archive, Bright(), work, spool, "node")
    work.done(claim, 1)
    assert archive.pictures == {}
    assert len(results(tmp_path)) == 2
    assert "pictures not drawn" in caplog.text
    assert "CANARY" not in caplog.text


def test_a_shadow_run_shows_nothing(
    spool: Spool,
    ledger: Ledger,
    card: Card,
    images: list[Dataset],
    inbox: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("segnode_worker.result.pictures", lambda *_: pytest.fail("drawn"))
    arrive(ledger, job_of(card, images, shadow=True))
    work = worker_with(ledger, card)
    archive = Showing(inbox, tmp_path / "out")
    run_job(take(work), archive, Bright(), work, spool, "node")
    assert archive.pictures == {}
