"""Sets Python's clock wrong, in every process that has this folder on its path."""

import os
import time

_shift_s = float(os.environ.get("SEGNODE_CLOCK_SHIFT_S", "0"))
if _shift_s:
    _true = time.time
    time.time = lambda: _true() + _shift_s
    time.time_ns = lambda: int((_true() + _shift_s) * 1e9)
