"""One job as most would write it first: `-m tests.bench.side_straightforward DATA URL STUDY`.

Nothing is slowed down on purpose: each library as its documentation shows it, with its defaults.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import highdicom as hd
import numpy as np
import requests
import torch
from dicomweb_client.api import DICOMwebClient
from monai.data.meta_tensor import MetaTensor
from monai.inferers.utils import sliding_window_inference
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from tests.models.trained import CLIP_HU, PATCH, SPACING_MM

from .bench import peak_mb_of
from .side_segnode import series_of


def main() -> None:
    """Run, and print the seconds of each step as one line of JSON."""
    warnings.simplefilter("ignore")
    data, url, study = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    session = requests.Session()
    session.auth = ("worker", os.environ["BENCH_PASSWORD"])
    client = DICOMwebClient(f"{url}/dicom-web", session=session)
    series = series_of(url, study)
    network = torch.jit.load(str(data / "models/shapes/model.ts")).eval()
    seconds: dict[str, float] = {}
    _one_job(client, network, (study, series), seconds)
    second: dict[str, float] = {}
    _one_job(client, network, (study, series), second)
    peak_mb = peak_mb_of(os.getpid())
    print(json.dumps({**seconds, "second": second["chain"], "peak_mb": peak_mb}))


def _one_job(
    client: DICOMwebClient,
    network: torch.nn.Module,
    where: tuple[str, str],
    seconds: dict[str, float],
) -> None:
    @contextmanager
    def step(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began

    study, series = where
    began = time.perf_counter()
    with step("fetch"):
        images = client.retrieve_series(study, series)
    with step("stack"):
        images.sort(key=lambda image: image.ImagePositionPatient[2])
        hu = np.stack([i.pixel_array * i.RescaleSlope + i.RescaleIntercept for i in images])
        image = MetaTensor(torch.from_numpy(hu.astype(np.float32)), affine=_affine(images))
    with step("infer"):
        labels = _segment(image, network)
    with step("encode"):
        seg = _encode(images, labels)
    with step("store"):
        client.store_instances([seg], study)
    seconds["chain"] = time.perf_counter() - began
    print(np.bincount(labels.reshape(-1)), file=sys.stderr)


def _affine(images: list[Dataset]) -> np.ndarray:
    """Return the affine from (slice, row, column) to RAS millimetres."""
    first, second = images[0], images[1]
    across = [float(v) for v in first.ImageOrientationPatient]
    place = np.array(first.ImagePositionPatient, float)
    affine = np.eye(4)
    affine[:3, 0] = np.array(second.ImagePositionPatient, float) - place
    affine[:3, 1] = np.array(across[3:]) * float(first.PixelSpacing[0])
    affine[:3, 2] = np.array(across[:3]) * float(first.PixelSpacing[1])
    affine[:3, 3] = place
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _segment(image: MetaTensor, network: torch.nn.Module) -> np.ndarray:
    before = Compose(
        [
            EnsureChannelFirstd(keys="image", channel_dim="no_channel"),
            Orientationd(keys="image", axcodes="SPL"),
            Spacingd(keys="image", pixdim=SPACING_MM),
            ScaleIntensityRanged(
                keys="image", a_min=CLIP_HU[0], a_max=CLIP_HU[1], b_min=0, b_max=1, clip=True
            ),
        ]
    )
    after = Compose(
        [
            Invertd(keys="pred", transform=before, orig_keys="image", nearest_interp=False),
            AsDiscreted(keys="pred", argmax=True),
        ]
    )
    item = before({"image": image})
    with torch.no_grad():
        item["pred"] = sliding_window_inference(
            item["image"][None].float(), PATCH, 4, network, overlap=0.25, mode="gaussian"
        )[0]
    return np.asarray(after(item)["pred"][0]).astype(np.uint8)


def _encode(images: list[Dataset], labels: np.ndarray) -> hd.seg.Segmentation:
    algorithm = hd.AlgorithmIdentificationSequence(
        name="shapes", version="1", family=codes.cid7162.ArtificialIntelligence
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Organ,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, label in enumerate(("Organ", "Rod"), 1)
    ]
    return hd.seg.Segmentation(
        source_images=images,
        pixel_array=labels,
        segmentation_type="BINARY",
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=9999,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="bench",
        manufacturer_model_name="bench",
        software_versions="1",
        device_serial_number="1",
    )


if __name__ == "__main__":
    main()
