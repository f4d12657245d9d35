"""Implementation of `omniges inspect`: recognize what a path contains, and describe it.

This module itself describes shard folders and their samples. `inspect_files` and `inspect_models` describe the rest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from omniges.errors import UsageFault
from omniges.exchange import inspect_files as files
from omniges.exchange.facts import Inspected, range_cells, range_of, require_start
from omniges.exchange.tracks import is_record, motion_files, records
from omniges.pipeline.summary import duration_text, print_line, print_table, size_text
from omniges.shards.manifest import ManifestRow
from omniges.shards.present import CHANNELS_OF
from omniges.shards.reader import SampleArrays, ShardFolder, notes_of
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE
from omniges.storage.redact import one_line
from omniges.visualize.pictures import draw_sample

ACCEPTED: Final = (
    "a folder of shards, results or motion files, a run, a checkpoint, or a file (.npz, .wav, .TextGrid or the "
    ".json of a result)"
)
# Not imported, because the modules that define these names load torch.
_CHECKPOINT_FILE, _LOG_FILE, _CHECKPOINTS = "checkpoint.json", "log.jsonl", "checkpoints"


def inspect(path: Path, key: str | None = None, motion_rate_hz: float | None = None) -> Inspected:
    """Recognize what a path contains, such as shards or a checkpoint, and describe it.

    Args:
        path: A folder or file of a type in `ACCEPTED`.
        key: Key or stem of one sample to describe, if the path is a folder of shards; None: the complete folder.
        motion_rate_hz: Frames per second, used only for motion files that do not state their frame rate.

    Returns:
        The description: a JSON object, and functions that print and draw it.

    Raises:
        UsageFault: The path has another type, or a key is passed with a path that is not a folder of shards.
        DataError: A file is damaged.
    """
    if path.is_dir():
        if _has(path, DATASET_FILE, MANIFEST_FILE) or any(path.glob("*.tar")):
            return inspect_shards(path) if key is None else inspect_sample(path, key)
        inspector = _of_folder(path, motion_rate_hz)
    else:
        inspector = _of_file(path, motion_rate_hz)
    if key is not None:
        raise UsageFault(f"KEY {key}: expected only with a folder of shards, found {path}; remove KEY")
    return inspector(path)


def _has(folder: Path, *names: str) -> bool:
    return any((folder / name).exists() for name in names)


def _of_folder(path: Path, motion_rate_hz: float | None) -> Callable[[Path], Inspected]:
    if _has(path, _CHECKPOINT_FILE):
        from omniges.exchange.inspect_models import inspect_checkpoint  # noqa: PLC0415 - loads torch

        return inspect_checkpoint
    if _has(path, _LOG_FILE, _CHECKPOINTS):
        from omniges.exchange.inspect_models import inspect_run  # noqa: PLC0415 - loads torch

        return inspect_run
    if records(path):
        return files.inspect_results
    if motion_files(path):
        return partial(files.inspect_motion_folder, motion_rate_hz=motion_rate_hz)
    raise UsageFault(f"{path}: expected {ACCEPTED}, found a folder with none of them; check the path")


def _of_file(path: Path, motion_rate_hz: float | None) -> Callable[[Path], Inspected]:
    if not path.exists():
        raise UsageFault(f"{path}: expected {ACCEPTED}, found nothing there; check the path")
    kind = path.suffix.lower()
    known: dict[str, Callable[[Path], Inspected]] = {
        ".npz": partial(files.inspect_motion, motion_rate_hz=motion_rate_hz),
        ".wav": files.inspect_audio,
        ".textgrid": files.inspect_words,
    }
    if kind == ".json" and is_record(path, named=True):
        return partial(files.inspect_result, motion_rate_hz=motion_rate_hz)
    if kind in known:
        return known[kind]
    raise UsageFault(f"{path}: expected {ACCEPTED}, found another file; check the path")


def inspect_shards(folder: Path) -> Inspected:
    """Describe a folder of shards; raise UsageFault or DataError if the folder is incomplete or damaged."""
    source = ShardFolder(folder)
    return Inspected(folder_facts(source), partial(print_folder, source), playable=True)


def inspect_sample(folder: Path, key: str) -> Inspected:
    """Describe one sample of a shard folder.

    Args:
        folder: Folder of shards.
        key: Key or stem of the sample.

    Returns:
        The description: a JSON object, and functions that print and draw it.

    Raises:
        UsageFault: The key is unknown.
        DataError: A file is damaged.
    """
    source = ShardFolder(folder)
    sample = source.sample(source.row(key))
    return Inspected(sample_facts(sample), partial(print_sample, sample), partial(draw, sample), playable=True)


def folder_facts(source: ShardFolder) -> dict[str, Any]:
    """Describe a shard folder as a JSON object: settings, totals, splits, shards, codecs, speakers, notes and keys."""
    rows = source.rows
    return {
        "kind": "shards",
        "folder": str(source.folder),
        "manifest_hash": source.dataset["manifest_hash"],
        "tool": source.dataset["tool"],
        "settings": source.dataset["settings"],
        "totals": source.dataset["totals"],
        "splits": source.dataset["splits"],
        "shards": source.dataset["shards"],
        "codecs": source.dataset.get("codecs", {}),
        "speakers": {
            name: {"samples": len(own), "seconds": sum(row.seconds for row in own)}
            for name, own in _by_speaker(rows).items()
        },
        "notes": dict(Counter(note for row in rows for note in row.notes)),
        "keys": [row.key for row in rows],
    }


def _by_speaker(rows: list[ManifestRow] | Any) -> dict[str, list[ManifestRow]]:
    speakers: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.speaker_id or 0, row.key)):
        speakers[row.speaker or "unknown"].append(row)
    return speakers


def print_folder(source: ShardFolder, console: Console, shown: int = 20) -> None:
    """Print splits, speakers, notes and the first samples of a shard folder.

    Args:
        source: The opened shard folder.
        console: Console to which the tables are printed.
        shown: Number of samples to list.
    """
    shards = Counter(shard["split"] for shard in source.dataset["shards"].values())
    splits = [
        (split, shards[split], totals["samples"], duration_text(totals["seconds"]), totals["words"])
        for split, totals in source.dataset["splits"].items()
    ]
    print_table(console, ("split", "shards", "samples", "length", "words"), splits, (1, 2, 3, 4))
    speakers = []
    for name, own in _by_speaker(source.rows).items():
        languages = ", ".join(sorted({row.language or "unknown" for row in own}))
        emotions = ", ".join(sorted({row.labels.get("emotion") or "unknown" for row in own}))
        speakers.append((name, len(own), duration_text(sum(row.seconds for row in own)), languages, emotions))
    print_table(console, ("speaker", "samples", "length", "languages", "emotions"), speakers, (1, 2))
    samples = [
        (r.key, r.split, r.frames, r.mel_frames, r.words, duration_text(r.seconds), r.shard, ", ".join(r.notes) or "–")
        for r in source.rows[:shown]
    ]
    columns = ("sample", "split", "frames", "mel frames", "words", "length", "shard", "notes")
    print_table(console, columns, samples, (2, 3, 4, 5))
    if len(source.rows) > shown:
        print_line(console, f"… and {len(source.rows) - shown} more (--format json lists all)")
    for name, entry in source.codecs.items():
        print_line(console, f"latents: {name}, {entry.described}, fingerprint {entry.fingerprint[:16]}…")
    total = sum(shard["bytes"] for shard in source.dataset["shards"].values())
    print_line(console, f"{size_text(total)}, manifest hash {source.dataset['manifest_hash'][:16]}…")


def sample_facts(sample: SampleArrays) -> dict[str, Any]:
    """Describe a sample as a JSON object: metadata, shard, members, shapes and value ranges of arrays, and words."""
    arrays = {
        "gesture.npy": sample.gesture.gesture,
        "mel.npy": sample.mel,
        "jaw_eyes.npy": sample.gesture.jaw_eyes,
        "betas.npy": sample.betas,
        "start_xz.npy": sample.gesture.start_xz,
    } | {f"{codec}.npy": latents for codec, latents in sample.latents.items() if len(latents)}
    return {
        "kind": "sample",
        "metadata": sample.metadata,
        "shard": sample.row.shard,
        "members": {
            name: {"offset": place.offset, "bytes": place.size, "sha256": place.sha256}
            for name, place in sample.row.members.items()
        },
        "arrays": {
            name: {"shape": list(array.shape), "dtype": str(array.dtype), **range_of(array)}
            for name, array in arrays.items()
        },
        "words": sample.words,
    }


def print_sample(sample: SampleArrays, console: Console, shown_words: int = 12) -> None:
    """Print the identity, provenance, members and first words of one sample.

    Args:
        sample: The sample, read from a shard folder.
        console: Console to which the tables are printed.
        shown_words: Number of words to list.
    """
    facts = sample_facts(sample)
    metadata = facts["metadata"]
    names = ("key", "split", "speaker", "language", "frames", "mel_frames", "ticks")
    identity = [(name, one_line(str(metadata[name]))) for name in names]
    identity += [(name, one_line(value) or "unknown") for name, value in sorted(sample.row.labels.items())]
    identity.append(("present", ", ".join(sample.row.present)))
    identity.append(("length", f"{metadata['seconds']:.3f} s"))
    identity.append(("cut", ", ".join(f"{name} {value:g}" for name, value in metadata["cut"].items())))
    identity += [(name, one_line(f"{path} ({digest[:12]}…)")) for name, (path, digest) in sample.row.sources.items()]
    identity += [("note", one_line(note)) for note in notes_of(metadata)]
    print_table(console, ("field", "value"), identity)
    members = []
    for name, place in facts["members"].items():
        array = facts["arrays"].get(name)
        shape = " × ".join(map(str, array["shape"])) if array else "–"
        numbers = range_cells(array) if array else ["–"] * 3
        members.append((name, shape, place["bytes"], *numbers))
    print_table(console, ("member", "shape", "bytes", "min", "mean", "max"), members, (1, 2, 3, 4, 5))
    blocks = []
    for name, columns in CHANNELS_OF.items():
        spread = sample.gesture.gesture[:, columns].std(axis=0, dtype=np.float64).mean()
        shown = "absent" if np.isnan(spread) else f"{spread:.4f}"
        blocks.append((name, f"{columns.start}:{columns.stop}", shown))
    print_table(console, ("gesture block", "channels", "std"), blocks, (2,))
    text = "  ".join(f"{w['start']:.2f} {w['word']}" for w in sample.words[:shown_words])
    more = f"  … {len(sample.words)} in all" if len(sample.words) > shown_words else ""
    print_line(console, f"words: {text}{more}")


def draw(sample: SampleArrays, start_s: float = 0.0, seconds: float | None = None) -> bytes:
    """Draw the mel, words, motion energy and stick figures of a sample.

    Args:
        sample: The sample, read from a shard folder.
        start_s: Time in the sample at which the picture starts, in seconds.
        seconds: Length of the picture in seconds; None: to the end of the sample.

    Returns:
        The bytes of a PNG file.

    Raises:
        UsageFault: `start_s` is outside the sample.
    """
    row = sample.row
    facts = [fact for fact in (row.speaker, row.labels.get("emotion"), row.split) if fact]
    require_start(start_s, row.seconds, "the sample")
    return draw_sample(
        title=f"{row.stem}  ({', '.join(facts)})",
        gesture=sample.gesture.gesture,
        jaw_eyes=sample.gesture.jaw_eyes,
        start_xz=sample.gesture.start_xz,
        mel=sample.mel if "audio" in row.present else sample.mel[:0],
        words=sample.words,
        start_s=start_s,
        seconds=seconds,
    )
