"""A folder in place of an archive."""

from __future__ import annotations

import resource

import pytest

from segnode_cli.ct_series import as_file, ct_series
from segnode_contract.errors import BrokenInstance, SetupError
from segnode_worker.archive import confirm
from segnode_worker.folder import FolderArchive


@pytest.fixture
def folder(tmp_path, hu):
    """Two series of one study among other files."""
    images = tmp_path / "images"
    for name, orientation in {"one": "HPL", "two": "PFL"}.items():
        (images / name).mkdir(parents=True)
        series = ct_series(hu, spacing_mm=(3, 1.5, 1.25), orientation=orientation, seed=name)
        for number, image in enumerate(series):
            (images / name / str(number)).write_bytes(as_file(image))
    (images / "notes.txt").write_text("not an image")
    return images


def test_each_series_is_found_with_its_number_of_images(folder, tmp_path):
    archive = FolderArchive(folder, tmp_path / "out")
    assert sorted(archive.series().values()) == [9, 20]
    for (study_uid, series_uid, modality), count in archive.series().items():
        assert modality == "CT"
        assert len(archive.fetch_series(study_uid, series_uid)) == count


def test_a_result_is_written_whole_and_confirmed(folder, tmp_path, made):
    archive = FolderArchive(folder, tmp_path / "out")
    archive.store("1.2", made.data)
    archive.store("1.2", made.data)
    confirm(archive, "1.2", made.data)
    (path,) = (tmp_path / "out").iterdir()
    assert path.read_bytes() == made.data
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_folder_without_dicom_says_so(tmp_path):
    with pytest.raises(SetupError, match="no DICOM file"):
        FolderArchive(tmp_path, tmp_path / "out").series()


def test_a_folder_that_is_not_there_says_so(tmp_path):
    with pytest.raises(SetupError, match="no folder"):
        FolderArchive(tmp_path / "nowhere", tmp_path / "out").series()


def test_a_broken_file_among_good_ones_is_named(folder, tmp_path):
    whole = (folder / "one" / "3").read_bytes()
    (folder / "one" / "3").write_bytes(whole[:150])
    with pytest.raises(BrokenInstance, match="one/3"):
        FolderArchive(folder, tmp_path / "out").series()


def test_an_output_folder_that_cannot_be_written_leaves_nothing(folder, tmp_path, made):
    (tmp_path / "out").write_text("a file, where a folder should be")
    with pytest.raises(SetupError, match="cannot be written"):
        FolderArchive(folder, tmp_path / "out").store("1.2", made.data)


def test_a_full_disk_says_so_and_leaves_nothing(folder, tmp_path, made):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(SetupError, match="cannot be written"):
            FolderArchive(folder, tmp_path / "out").store("1.2", made.data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out").iterdir()) == []
