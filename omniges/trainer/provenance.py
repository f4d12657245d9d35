"""Provenance of a run: its data, the git state of the code, package versions, and properties of the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from omniges import __version__
from omniges.data.sequence import DataSource
from omniges.shards.document import read_dataset

_PACKAGES: Final = ("accelerate", "diffusers", "numpy", "safetensors", "tokenizers", "torch")
_GIT_LIMIT_S: Final = 10
_SHA1_DIGITS: Final = 40


def data_provenance(data: Sequence[DataSource]) -> list[dict[str, Any]]:
    """Return the provenance of each shard set as a dictionary.

    A dictionary contains the path or URL, weight, manifest hash, filters, codecs, the numbers of clips, hours and
    speakers, and the program that wrote the set (``tool``).
    """
    return [
        {
            "shards": source.shard_source().describe("").rstrip("/"),
            "weight": source.weight,
            "manifest_hash": source.catalog.manifest_hash,
            "filters": source.catalog.filters.as_json(),
            "clips": len(source.catalog.table),
            "hours": round(float(source.catalog.table.ticks.sum()) / 36_000, 4),
            "speakers": len(source.catalog.speaker_names),
            "tool": read_dataset(source.catalog.folder).get("tool"),
            "codecs": {stream: {"name": e.name} | e.as_json() for stream, e in source.catalog.codecs.items()},
        }
        for source in data
    ]


def package_versions() -> dict[str, str]:
    """Return the versions of omniges, of Python and of the packages that affect results, by name."""
    versions = {"omniges": __version__, "python": platform.python_version()}
    return versions | {name: metadata.version(name) for name in _PACKAGES}


def git_state(package: Path | None = None) -> dict[str, Any] | None:
    """Return the commit of the checkout that contains a package, and the files of the package that differ from it.

    This function reads git objects, and hashes the files of the working tree in Python. It does not call `git status`,
    which could run programs that the repository configures (core.fsmonitor, filters).

    Args:
        package: Folder of the package; None: the folder of omniges.

    Returns:
        ``commit``, the git object name, and ``changed``, the sorted paths of committed files that differ or are
        missing. Files that are not in the commit do not count. If git fails, or if the commit does not contain the
        package's ``__init__.py``, the function returns None. One cause is a package that is installed in an
        environment inside the checkout of another repository.
    """
    program = shutil.which("git")
    where = package or Path(__file__).resolve().parents[1]
    if program is None:
        return None
    commit = _git(program, where, "rev-parse", "--verify", "HEAD^{commit}")
    listing = None if commit is None else _git(program, where, "ls-tree", "-r", "-z", commit.strip(), ".")
    if commit is None or listing is None:
        return None
    committed = {}  # object name by path; a line has mode, type, object name, tab and path
    for line in filter(None, listing.split("\0")):
        facts, _, name = line.partition("\t")
        committed[name] = facts.rpartition(" ")[2]
    if "__init__.py" not in committed:
        return None
    changed = [name for name, digest in committed.items() if _blob_digest(where / name, len(digest)) != digest]
    shown = [name.encode("utf-8", "backslashreplace").decode() for name in changed]
    return {"commit": commit.strip(), "changed": sorted(shown)}


def _blob_digest(path: Path, digits: int) -> str | None:
    """Return the git object name of a file's content or a link's target; None if the path cannot be read.

    With 40 `digits`, the name is a SHA-1; with 64, a SHA-256.
    """
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            content = os.fsencode(path.readlink())
        elif stat.S_ISREG(mode):
            content = path.read_bytes()
        else:
            return None
    except OSError:
        return None
    digest = hashlib.sha1(usedforsecurity=False) if digits == _SHA1_DIGITS else hashlib.sha256()
    digest.update(b"blob %d\0" % len(content) + content)
    return digest.hexdigest()


def _git(program: str, folder: Path, *words: str) -> str | None:
    """Run git in a folder and return its output; None if git fails or takes too long."""
    command = [program, "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *words]
    # Use only the repository that contains the folder, fetch no objects, and never prompt.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    closed = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_LIMIT_S, check=False, env=kept | closed)
    except subprocess.TimeoutExpired:
        return None
    return os.fsdecode(done.stdout) if done.returncode == 0 else None


def machine(device: torch.device, world_size: int) -> dict[str, Any]:
    """Return the properties of the machine that may change the last bits of results.

    Args:
        device: Device of the model.
        world_size: Number of ranks.

    Returns:
        A dictionary of ``device``, ``threads``, ``world_size``, ``cores``, ``processor`` and ``platform``.
    """
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "cores": len(os.sched_getaffinity(0)),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(terse=True),
    }
