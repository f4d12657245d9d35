"""The output folder: whose it is, whether it is complete, who writes to it, and what may be taken away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.pipeline.discover import Discovery, Recording
from omniges.pipeline.settings import MAX_FILE_BYTES, PreprocessSettings
from omniges.shards.dataset import read_dataset
from omniges.shards.schema import DATASET_FILE
from omniges.shards.transaction import Begun, Workspace
from omniges.storage.canonical_json import canonical_json, file_sha256, sha256_hex

_MAX_REMOVED: Final = 0.1  # the share of an earlier set's samples that an update may drop without a word

# Output bytes a byte of motion input: 415 + 213 float32 a frame against BEAT2's 165 float32 and 103 float64.
_GROWTH: Final = 1.75


def read_complete(settings: PreprocessSettings) -> dict[str, Any] | None:
    """The dataset.json of a complete folder with these settings, or None where there is nothing to go on from.

    Raises UsageFault for a folder made with other settings, naming what differs, unless --force starts anew.
    """
    out = settings.out
    if not (out / DATASET_FILE).exists() or settings.force:
        return None
    try:
        found = read_dataset(out)
    except DataError as error:
        raise UsageFault(f"{error} (--force starts anew)") from error
    _refuse_differences(f"{out} was made", found["settings"], Begun.of(settings.document(), anew=False).settings)
    return found


def check_begun(settings: PreprocessSettings, workspace: Workspace) -> None:
    """Keep an unfinished run's work where this run can go on with it, else throw it away or refuse.

    Raises UsageFault where it was begun with other settings or package versions, unless --force starts anew.
    """
    begun, wanted = workspace.begun(), Begun.of(settings.document(), anew=settings.force)
    if begun is None or (settings.force and begun != wanted):
        workspace.wipe()
        return
    place = f"{workspace.folder}: an unfinished run was begun"
    _refuse_differences(place, begun.settings, wanted.settings)
    _refuse_differences(place, begun.tool, wanted.tool, "package versions")


def check_tool(settings: PreprocessSettings, complete: dict[str, Any] | None) -> None:
    """Refuse to update a set with other package versions than made it: its samples would not be of one kind."""
    if complete is not None:
        now = Begun.of(settings.document(), anew=False).tool
        _refuse_differences(
            f"{settings.out} has to be updated, and was made", complete["tool"], now, "package versions"
        )


def check_latents(settings: PreprocessSettings, complete: dict[str, Any] | None) -> None:
    """Refuse to update a set that a codec has encoded: its latents cannot be made here, and would be lost."""
    names = sorted((complete or {}).get("codecs", {}))
    if names:
        raise UsageFault(
            f"{settings.out} has to be updated, and holds latents of {', '.join(names)}, which an update would drop. "
            "Write to another --out and run omniges encode on that, or start anew with --force and encode again"
        )


def _refuse_differences(what: str, found: Any, wanted: Any, noun: str = "settings") -> None:
    differences = _differences(found, wanted)
    if differences:
        raise UsageFault(
            f"{what} with other {noun}: {'; '.join(differences)}. Choose another --out, or start anew with --force"
        )


def check_removal(settings: PreprocessSettings, earlier: Set[str], remaining: Set[str]) -> None:
    """Raise UsageFault where an update would drop too many of the samples there are (both sets of stems)."""
    gone = sorted(earlier - remaining)
    if len(gone) > _MAX_REMOVED * len(earlier) and not settings.allow_removal:
        some = ", ".join(gone[:3]) + (", …" if len(gone) > 3 else "")
        raise UsageFault(
            f"{settings.out}: {len(gone)} of {len(earlier)} samples would go ({some}), more than {_MAX_REMOVED:.0%}. "
            "Check --root and its files; if it is meant, say --allow-removal"
        )


def is_unchanged(
    settings: PreprocessSettings,
    discovery: Discovery,
    complete: dict[str, Any],
    digests: dict[str, dict[str, str | None]],
) -> bool:
    """Whether all files are there at their size and every input has the content it had, by hash, not by date.

    `digests` are those of the recordings that the set knows.
    """
    if any(recording.stem not in digests for recording in discovery.recordings):
        return False
    for name, facts in (complete["files"] | complete["shards"]).items():
        path = settings.out / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            return False
    return bool(complete["plan"]["inputs_sha256"] == inputs_hash(digests, discovery))


def digest_inputs(
    recordings: Sequence[Recording], workers: int, count: Callable[[int, int], None]
) -> dict[str, dict[str, str | None]]:
    """Digests of every file of the recordings, by stem and relative path; `count` hears of MB read."""
    found = {}
    total, done = sum(recording.size for recording in recordings), 0
    with ThreadPoolExecutor(workers) as pool:
        for recording, digests in zip(recordings, pool.map(_input_digests, recordings), strict=True):
            found[recording.stem] = digests
            done += recording.size
            count(done // 1_000_000, total // 1_000_000)
    return found


def _input_digests(recording: Recording) -> dict[str, str | None]:
    """Sha256 of each file of a recording, None where it cannot be read: what a run over it would note."""
    found: dict[str, str | None] = {}
    for source in recording.files.values():
        try:
            found[source.relative] = file_sha256(Path(source.path))
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


def check_space(settings: PreprocessSettings, recordings: Sequence[Recording]) -> None:
    """Refuse before any work where the disk is plainly too small for what these recordings will need."""
    motion = sum(recording.files["npz"].size for recording in recordings)
    audio = sum(recording.files["wav"].size for recording in recordings)
    needed = int(motion * _GROWTH + (audio if settings.convert.keep_audio else 0))
    free = shutil.disk_usage(settings.out).free
    if free < 0.8 * needed:  # compressed inputs make the estimate too high
        raise EnvironmentFault(
            f"{settings.out}: about {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free. "
            "Free some space or choose another --out (what lies there is kept until the new shards are complete)"
        )
