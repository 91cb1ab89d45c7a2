"""Read an object with highdicom and compare it: `-m tests.bench.writers_read FILE CASE_FOLDER`.

Whoever wrote it, the reader is the same.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import highdicom as hd
import numpy as np

from .writers_once import forget_peak, labels_of, memory_mb


def main() -> None:
    """Read, compare, and print what it took as one line of JSON."""
    warnings.simplefilter("ignore")
    path, case = Path(sys.argv[1]), Path(sys.argv[2])
    uids = json.loads((case / "uids.json").read_text())["instances"]
    forget_peak()
    began = time.perf_counter()
    held = hd.seg.segread(path).get_pixels_by_source_instance(
        uids,
        combine_segments=True,
        ignore_spatial_locations=True,  # dcmqi does not say that they are preserved
        assert_missing_frames_are_empty=True,
        dtype=np.uint8,
    )
    seconds = time.perf_counter() - began
    peak_mb = memory_mb("VmHWM")
    wrong = int(np.count_nonzero(held != labels_of(case)))
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb, "wrong": wrong}))


if __name__ == "__main__":
    main()
