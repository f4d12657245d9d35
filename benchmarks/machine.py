"""Description of the machine, on which measurements depend: processor, cores, memory, versions and load."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

_PACKAGES: Final = (
    "omniges",
    "numpy",
    "scipy",
    "librosa",
    "numba",
    "praatio",
    "soundfile",
    "pyarrow",
    "tokenizers",
    "torch",
    "webdataset",
)


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def describe_machine(work: Path) -> dict[str, Any]:
    """Describe this machine: hardware, software versions, load average, and the file system of the folder `work`."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(pages * page_bytes / 1e9, 1),
        "system": platform.platform(),
        "filesystem": _filesystem(work),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _filesystem(folder: Path) -> str:
    """Return the type of a folder's file system; on tmpfs fsync costs nothing."""
    resolved = folder.resolve()
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        mount, kind = line.split()[1:3]
        if resolved.is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]
