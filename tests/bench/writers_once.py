"""One tool writes one object: `-m tests.bench.writers_once TOOL CASE_FOLDER OUT_FOLDER`.

Labels and headers of the images are at hand before the clock starts; it stops when the file is on
disk. Other people's whole writers read the images themselves, since that is how they are called.
It imports no more than the tool needs, for what is loaded counts in the peak memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pydicom import Dataset

    from segnode_worker.stack import Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A tool that has all it needs."""

    write: Callable[[], Path]
    verify: Callable[[], None] | None = None
    """The tool's own proof of what it wrote."""


Prepare = Callable[[Path, Path], Writer]
"""From the folders of a case and of what is written."""


def labels_of(case: Path) -> NDArray[np.uint8]:
    """Return the labels, mapped: shape ``(slices, rows, columns)``, from the feet up."""
    import numpy as np

    labels: NDArray[np.uint8] = np.load(case / "labels.npy", mmap_mode="r")
    return labels


def headers_of(case: Path) -> list[Dataset]:
    """Return the images without their pixels, from the feet up."""
    from pydicom import dcmread

    return [dcmread(path, stop_before_pixels=True) for path in sorted((case / "images").iterdir())]


def stack_of(case: Path) -> Stack:
    """Return the node's own stack of the images."""
    from segnode_worker.stack import stack_series

    return stack_series([path.read_bytes() for path in sorted((case / "images").iterdir())])


def _segnode(form: str, case: Path, out: Path) -> Writer:
    from datetime import datetime

    from segnode_contract.findings import Findings
    from segnode_contract.form import Form
    from segnode_worker.proof import prove
    from segnode_worker.segmentation import ResultIdentity, encode
    from segnode_worker.spool import Kept, Spool

    from .writers_inputs import card_of

    stack, labels = stack_of(case), labels_of(case)
    card = card_of(int(labels.max()))
    if stack.sources[0].uid != _uids(case)[0]:
        labels = labels[::-1]
    planes, findings, spool = labels[None], Findings(), Spool(out)
    made: list[Kept] = []
    identity = ResultIdentity(
        job_key=os.urandom(32).hex(), model_digest="0" * 64, node_id="bench", form=Form(form)
    )

    def write() -> Path:
        made_at = datetime.now().astimezone()
        made.append(spool.put(encode(stack, planes, card, findings, identity, made_at)))
        return out / f"{made[0].digest}.dcm"

    def verify() -> None:
        prove(made[0].data, stack, planes, card, findings)

    return Writer(write=write, verify=verify)


def _highdicom(form: str, case: Path, out: Path) -> Writer:
    labels, images = labels_of(case), headers_of(case)

    def write() -> Path:
        made_by_highdicom(images, labels, form).save_as(out / "highdicom.dcm")
        return out / "highdicom.dcm"

    return Writer(write=write)


def made_by_highdicom(images: Sequence[Dataset], labels: NDArray[np.uint8], form: str) -> Dataset:
    """Return what highdicom makes of labels, as its documentation shows it."""
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    algorithm = hd.AlgorithmIdentificationSequence(
        name="bench", version="1", family=codes.cid7162.ArtificialIntelligence
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"Part {number}",
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Organ,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number in range(1, int(labels.max()) + 1)
    ]
    return hd.seg.Segmentation(
        source_images=images,
        pixel_array=labels,
        segmentation_type=form,
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=9000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="bench",
        manufacturer_model_name="bench",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=RLELossless if form == "LABELMAP" else ExplicitVRLittleEndian,
    )


def _dcmqi(form: str, case: Path, out: Path) -> Writer:
    command = [
        *(str(Path(sys.executable).with_name("itkimage2segimage")), "--segmentationType", form),
        *("--inputImageList", str(case / "labels.nrrd")),
        *("--inputDICOMDirectory", str(case / "images")),
        *("--inputMetadata", str(case / "segments.json")),
        *("--outputDICOM", str(out / "dcmqi.dcm")),
    ]

    def write() -> Path:
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return out / "dcmqi.dcm"

    return Writer(write=write)


def _peer(name: str, case: Path, out: Path) -> Writer:
    from . import writers_peers

    prepare: Prepare = getattr(writers_peers, name)
    return prepare(case, out)


TOOLS: Mapping[str, Prepare] = {
    "segnode": partial(_segnode, "BINARY"),
    "segnode LABELMAP": partial(_segnode, "LABELMAP"),
    "highdicom": partial(_highdicom, "BINARY"),
    "highdicom LABELMAP": partial(_highdicom, "LABELMAP"),
    "dcmqi": partial(_dcmqi, "binary"),
    "dcmqi LABELMAP": partial(_dcmqi, "labelmap"),
    "TotalSegmentator": partial(_peer, "totalsegmentator"),
    "MONAI Deploy": partial(_peer, "monai_deploy"),
}


def main() -> None:
    """Write, and print what it took as one line of JSON."""
    warnings.simplefilter("ignore")
    tool, case, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    writer = TOOLS[tool](case, out)
    before_mb = forget_peak()
    began = time.perf_counter()
    path = writer.write()
    sync(path)
    said: dict[str, Any] = {"seconds": time.perf_counter() - began, "path": str(path)}
    children_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    said |= {"peak_mb": max(memory_mb("VmHWM"), children_mb), "before_mb": before_mb}
    said["bytes"] = path.stat().st_size
    if writer.verify is not None:
        forget_peak()
        began = time.perf_counter()
        writer.verify()
        said["verify"] = time.perf_counter() - began
        said["verify_mb"] = memory_mb("VmHWM")
    print(json.dumps(said))


def sync(path: Path) -> None:
    """Wait until a file is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def forget_peak() -> int:
    """Let the peak memory of this process count from now on; return what it has, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5)
    return memory_mb("VmRSS")


def memory_mb(what: str) -> int:
    """Return `VmHWM` or `VmRSS` of this process; getrusage would count what its parent had."""
    status = Path("/proc/self/status").read_text()
    [line] = [row for row in status.splitlines() if row.startswith(what)]
    return int(line.split()[1]) // 1024


def _uids(case: Path) -> list[str]:
    uids: list[str] = json.loads((case / "uids.json").read_text())["instances"]
    return uids


if __name__ == "__main__":
    main()
