"""Other people's whole writers, each in a virtual environment of its own outside the project.

They want packages that the node does not (a tool kit for GPUs, say), so that they are none of its
dependencies. An environment sees the packages of the project and adds what it lacks. `make bench`
makes both; by hand it is

    PEER=~/.cache/segnode-bench/TotalSegmentator && /usr/bin/python3 -m venv $PEER
    ls -d $PWD/.venv/lib/python3.*/site-packages > $PEER/lib/python3.11/site-packages/project.pth
    $PEER/bin/pip install --no-deps TotalSegmentator==2.18.0
    $PEER/bin/pip install dicom2nifti tqdm nibabel

What cannot be installed or run is left out, and the table says why. BENCH_PEERS names another
folder; where it is empty, both are left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from .writers_once import Writer, headers_of, labels_of

PACKAGES: Mapping[str, Sequence[Sequence[str]]] = {
    "TotalSegmentator": (
        ("--no-deps", "TotalSegmentator==2.18.0"),
        ("dicom2nifti", "tqdm", "nibabel"),
    ),
    "MONAI Deploy": (
        ("--no-deps", "--ignore-installed", "monai==1.6.1"),  # both lie in one folder
        ("monai-deploy-app-sdk==4.0.0",),
    ),
}


class LeftOut(Exception):
    """A writer that cannot be measured here, and why."""


def interpreter_of(peer: str) -> str:
    """Return the Python that can import a peer; its environment is made where there is none.

    Raises
    ------
    LeftOut
        If it does not install.
    """
    root = os.environ.get("BENCH_PEERS", str(Path.home() / ".cache" / "segnode-bench"))
    if not root:
        raise LeftOut("BENCH_PEERS is empty")
    folder = Path(root) / peer.replace(" ", "-")
    stamp, wanted = folder / "installed", str(PACKAGES[peer])
    if not stamp.exists() or stamp.read_text() != wanted:
        _install(folder, PACKAGES[peer])
        stamp.write_text(wanted)
    return str(folder / "bin" / "python")


def _install(folder: Path, packages: Sequence[Sequence[str]]) -> None:
    _call([sys.executable, "-m", "venv", "--clear", str(folder)])
    [own] = folder.glob("lib/python3.*/site-packages")
    (own / "project.pth").write_text(sysconfig.get_path("purelib"))
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    for some in packages:
        _call([*pip, "--disable-pip-version-check", *some])


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LeftOut(last_line(done.stderr) or f"{command[0]} fails")


def last_line(text: str) -> str:
    """Return what a program said last."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def totalsegmentator(case: Path, out: Path) -> Writer:
    """Prepare TotalSegmentator's own; it reads the images itself, pixels and all."""
    import numpy as np

    save = import_module("totalsegmentator.dicom_io").save_mask_as_dicomseg
    # as NIfTI has them: columns towards left, rows towards anterior, slices towards head
    turned = np.asfortranarray(labels_of(case).transpose(2, 1, 0)[:, ::-1])
    names = {number: f"part_{number}" for number in range(1, int(turned.max()) + 1)}
    affine = np.eye(4)  # it takes the geometry from the images

    def write() -> Path:
        path = out / "totalsegmentator.dcm"
        save(turned, names, case / "images", path, affine)
        return path

    return Writer(write=write)


def monai_deploy(case: Path, out: Path) -> Writer:
    """Prepare the operator of MONAI Deploy App SDK, called without an application about it."""
    from pydicom.sr.codedict import codes

    core = import_module("monai.deploy.core")
    domain = import_module("monai.deploy.core.domain")
    made_by = import_module("monai.deploy.operators.dicom_seg_writer_operator")
    labels, images = labels_of(case), headers_of(case)
    series = domain.DICOMSeries(images[0].SeriesInstanceUID)
    for image in images:
        series.add_sop_instance(image)
    selected = domain.StudySelectedSeries(domain.DICOMStudy(images[0].StudyInstanceUID))
    selected.add_selected_series(domain.SelectedSeries("images", series))
    descriptions = [
        made_by.SegmentDescription(
            segment_label=f"Part {number}",
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Organ,
            algorithm_name="bench",
            algorithm_version="1",
        )
        for number in range(1, int(labels.max()) + 1)
    ]
    operator = made_by.DICOMSegmentationWriterOperator(
        core.Fragment(), segment_descriptions=descriptions, output_folder=out
    )

    def write() -> Path:
        operator.process_images(labels, [selected], out)
        [path] = out.glob("*.dcm")
        return path

    return Writer(write=write)
