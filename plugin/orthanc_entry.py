"""Orthanc's PythonScript: the one place that imports `orthanc`.

Orthanc puts this folder on `sys.path`, so the packages beside it import uninstalled; what they
depend on comes from a venv made with the interpreter that Orthanc embeds.
"""

import os
import site
import sys
from pathlib import Path

import orthanc

_venv = Path(os.environ.get("SEGNODE_VENV", Path(__file__).resolve().parents[1] / ".venv"))
_packages = _venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
_before = list(sys.path)
site.addsitedir(str(_packages))
# before Debian's own packages, which are older
sys.path[1:] = [p for p in sys.path if p not in _before] + [p for p in _before[1:] if p]

from segnode_plugin.entry import start  # noqa: E402 # its dependencies were not there before

start(orthanc)
