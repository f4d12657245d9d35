"""Ways to damage a shard folder: what `tests/robustness/shard_sets.py` takes apart, applied to folders on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import shard_sets
from shard_sets import ShardSet

from omniges.shards.manifest import ManifestRow
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE
from omniges.verify.run import VerifyResult, verify
from omniges.verify.settings import VerifySettings


def run(folder: str | Path, level: str = "full", **settings: Any) -> VerifyResult:
    """Verify in this process."""
    return verify(VerifySettings(folder=folder, level=level, **({"num_workers": 1} | settings)))  # type: ignore[arg-type]


def codes(result: VerifyResult, severity: str = "error") -> set[str]:
    return {finding.code for finding in result.findings if finding.severity == severity}


@contextmanager
def content(path: Path, data: bytes | None) -> Iterator[None]:
    """A file with other content, or without it, for a while."""
    before = path.read_bytes() if path.exists() else None
    try:
        path.write_bytes(data) if data is not None else path.unlink()
        yield
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)


Fault = Callable[[ShardSet], None]


def rebuilt(source: Path, target: Path, fault: Fault) -> Path:
    """A folder with a fault inserted and all checksums recomputed."""
    shutil.rmtree(target, ignore_errors=True)
    shards = ShardSet.read(source)
    fault(shards)
    return shards.write(target)


def edited_dataset(folder: Path, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """dataset.json edited, its checksum updated."""
    return shard_sets.edited_dataset((folder / DATASET_FILE).read_bytes(), edit)


def edited_manifest(folder: Path, edit: Callable[[list[ManifestRow]], list[ManifestRow]]) -> dict[str, bytes]:
    """The manifest with edited rows, and a dataset.json that lists its new checksum."""
    files = {name: (folder / name).read_bytes() for name in (DATASET_FILE, MANIFEST_FILE)}
    return shard_sets.edited_rows(files, edit)
