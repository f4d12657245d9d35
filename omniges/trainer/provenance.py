"""Where a run comes from: its data, the code's git state, package versions, and what of the machine decides bits."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from omniges import __version__
from omniges.shards.dataset import read_dataset
from omniges.trainer.data.setup import DataSource

__all__ = ["data_provenance", "git_state", "machine", "package_versions"]

_PACKAGES: Final = ("accelerate", "diffusers", "numpy", "safetensors", "tokenizers", "torch")
_GIT_LIMIT_S: Final = 10


def data_provenance(data: Sequence[DataSource]) -> list[dict[str, Any]]:
    """For each folder what it holds and who made it: manifest hash, filters, clips, versions of the converter."""
    found = []
    for source in data:
        catalog = source.catalog
        dataset = read_dataset(catalog.folder)
        found.append(
            {
                "shards": source.shard_source().describe("").rstrip("/"),
                "weight": source.weight,
                "manifest_hash": catalog.manifest_hash,
                "filters": catalog.filters.as_json(),
                "clips": len(catalog.table),
                "hours": round(float(catalog.table.ticks.sum()) / 36_000, 4),
                "speakers": len(catalog.speaker_names),
                "tool": dataset.get("tool"),
                "codecs": {stream: {"name": e.name} | e.as_json() for stream, e in catalog.codecs.items()},
            }
        )
    return found


def package_versions() -> dict[str, str]:
    """Versions of omniges and of the packages that decide what is computed."""
    versions = {"omniges": __version__, "python": platform.python_version()}
    return versions | {name: metadata.version(name) for name in _PACKAGES}


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit and whether files differ from it, of the checkout that this code lies in; None for installed packages."""
    program = shutil.which("git")
    where = folder or Path(__file__).resolve().parent
    if program is None:
        return None
    commit = _git(program, where, "rev-parse", "HEAD")
    changed = _git(program, where, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changed is None:
        return None
    return {"commit": commit.strip(), "changed": sorted(line[3:] for line in changed.splitlines())}


def _git(program: str, folder: Path, *words: str) -> str | None:
    """What git prints, or None where the folder is in no repository or git does not answer."""
    # Without optional locks: looking must not get in the way of a commit that is being made.
    command = [program, "--no-optional-locks", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def machine(device: torch.device, world_size: int) -> dict[str, Any]:
    """What of the machine decides the last bits: device, threads, processes, processor."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "cores": len(os.sched_getaffinity(0)),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(terse=True),
    }
