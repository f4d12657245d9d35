"""The output folder: whose it is, whether it is complete, who writes to it, and what may be taken away."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.pipeline.discover import Discovery, Recording
from omniges.pipeline.outcome import MAX_FILE_BYTES
from omniges.pipeline.settings import PreprocessSettings
from omniges.publish import final_name, os_errors, sync_folder
from omniges.shards.dataset import read_dataset
from omniges.shards.schema import (
    DATASET_FILE,
    MANIFEST_FILE,
    REPORT_FILE,
    SPLITS,
    STATS_FILE,
    TOKENIZER_FILE,
    UNFINISHED_FILE,
    canonical_json,
    sha256_hex,
)

__all__ = ["check_output", "check_space", "clear", "inputs_hash", "is_unchanged", "locked", "unmark"]

_OWN_NAMES: Final = re.compile(
    rf"(?:{'|'.join(SPLITS)})-\d{{6}}\.tar|"
    + "|".join(map(re.escape, (MANIFEST_FILE, STATS_FILE, TOKENIZER_FILE, REPORT_FILE)))
)
# Output bytes a byte of motion input: 415 + 213 float32 a frame against BEAT2's 165 float32 and 103 float64.
_GROWTH: Final = 1.75


def check_output(settings: PreprocessSettings) -> dict[str, Any] | None:
    """The dataset.json of a complete folder with these settings, or None where the run begins anew.

    Raises UsageFault for a folder made with other settings, naming what differs, and for files that bear our names
    but are not ours, for those are never touched.
    """
    out = settings.out
    if not (out / DATASET_FILE).exists():
        names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        ours = [name for name in names if _OWN_NAMES.fullmatch(name)]
        if ours and UNFINISHED_FILE not in names:
            raise UsageFault(f"{out}: {ours[0]} is there, but not from an omniges run. Choose another --out")
        return None
    try:
        found = read_dataset(out)
    except DataError as error:
        if settings.force:
            return None
        raise UsageFault(f"{error} (--force starts anew)") from error
    differences = _differences(found["settings"], json.loads(canonical_json(settings.document())))
    if differences and not settings.force:
        raise UsageFault(
            f"{out} was made with other settings: {'; '.join(differences)}. "
            "Choose another --out, or start anew with --force"
        )
    return None if differences else found


def is_unchanged(settings: PreprocessSettings, discovery: Discovery, complete: dict[str, Any]) -> bool:
    """Whether all files are there at their size and every input has the content it had, by hash, not by date."""
    for name, facts in (complete["files"] | complete["shards"]).items():
        path = settings.out / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            return False
    with ThreadPoolExecutor(settings.workers) as pool:
        digests = pool.map(_input_digests, discovery.recordings)
        inputs = {recording.stem: found for recording, found in zip(discovery.recordings, digests, strict=True)}
    return bool(complete["plan"]["inputs_sha256"] == inputs_hash(inputs, discovery))


def _input_digests(recording: Recording) -> dict[str, str | None]:
    """Sha256 of each file of a recording, None where it cannot be read: what a run over it would note."""
    found: dict[str, str | None] = {}
    for source in recording.files.values():
        try:
            with Path(source.path).open("rb") as stream:
                found[source.relative] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            found[source.relative] = None
        if source.size > MAX_FILE_BYTES:
            found[source.relative] = None
    return found


def inputs_hash(inputs: dict[str, dict[str, str | None]], discovery: Discovery) -> str:
    """Sha256 of what the inputs are: files and their digests by stem, and the split lists."""
    everything = {
        "recordings": inputs | {stem: {} for stem in discovery.rejected},
        "split_lists": dict(discovery.split_lists),
    }
    return sha256_hex(canonical_json(everything))


def _differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        return [
            line
            for key in keys
            for line in _differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if found == wanted else [f"{name} was {json.dumps(found)}, is now {json.dumps(wanted)}"]


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the kernel lets go when the owner dies, so no lock is ever stale."""
    with os_errors(out, "open"):
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EnvironmentFault(f"{out}: another omniges run is writing here. Wait for it, or stop it") from error
        yield
    finally:
        os.close(descriptor)


def check_space(settings: PreprocessSettings, discovery: Discovery) -> None:
    """Refuse before any work where the disk is plainly too small."""
    motion = sum(recording.files["npz"].size for recording in discovery.recordings)
    audio = sum(recording.files["wav"].size for recording in discovery.recordings)
    needed = int(motion * _GROWTH + (audio if settings.convert.keep_audio else 0))
    present = sum(path.stat().st_size for path in settings.out.iterdir() if _OWN_NAMES.fullmatch(path.name))
    free = shutil.disk_usage(settings.out).free + present
    if free < 0.8 * needed:  # compressed inputs make the estimate too high
        raise EnvironmentFault(
            f"{settings.out}: about {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free. "
            "Free some space or choose another --out"
        )


def clear(out: Path) -> None:
    """Take away what an earlier run left: dataset.json first, then shards and temporary files; nothing foreign."""
    with os_errors(out):
        (out / DATASET_FILE).unlink(missing_ok=True)
        sync_folder(out)
        for path in sorted(out.iterdir()):
            # Others name temporary files likewise: one is ours only if what it was to become is.
            name = final_name(path.name) or path.name
            leftover = name != path.name and name in {DATASET_FILE, UNFINISHED_FILE}
            if leftover or _OWN_NAMES.fullmatch(name):
                path.unlink()


def unmark(out: Path) -> None:
    """Take the marker of an unfinished run away."""
    with os_errors(out):
        (out / UNFINISHED_FILE).unlink(missing_ok=True)
        sync_folder(out)
