"""Extraction and comparison of facts about files and outputs, which must be equal for both trees."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import soundfile

from omniges.generation.settings import GenerateSettings
from omniges.options import every_setting
from omniges.pipeline.settings import PreprocessSettings
from omniges.trainer.config import TrainSettings

Facts = dict[str, str]
"""Facts about outputs as texts, by name; for example, the SHA-256 of a file by the path of the file."""
Found = dict[str, Facts]
"""Facts by the name of their row in the table."""

VOLATILE: Final = frozenset({"elapsed_s", "samples_per_s", "waiting_for_data", "seconds", "share_of_time", "git"})
"""Keys of logs whose values are not compared: times, and the git commit."""
_RENAMED: Final[dict[str, str]] = {
    former: setting.name
    for settings in (PreprocessSettings, TrainSettings, GenerateSettings)
    for setting in every_setting(settings)
    for former in setting.option.was
}
"""Current names of settings by former name, because an earlier commit may write former names."""
_WORDED: Final = frozenset({"remarks"})
"""Keys of lists of sentences for people; only the number of sentences is compared."""
_SHOWN: Final = 110  # number of characters of a fact that the line of a difference shows


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `difference` names the first fact that is not equal."""

    check: str
    what: str
    before: str
    now: str
    equal: bool
    difference: str = ""


GROWS: Final = frozenset({"commands and flags", "verify and inspect"})
"""Rows in which the working tree may have more facts than the earlier commit."""


def compare(check: str, what: str, before: Facts, now: Facts) -> Row:
    """Compare the facts of both trees; without facts, the row counts as different, because nothing is proved."""
    if what in GROWS:
        now = {name: fact for name, fact in now.items() if name in before}
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    difference = ""
    if names:
        first = names[0]
        sides = [_shown(facts[first]) if first in facts else "absent" for facts in (before, now)]
        difference = f"{first}: before {sides[0]} · now {sides[1]}" + f" (first of {len(names)})" * (len(names) > 1)
    elif not before:
        difference = "nothing was found to compare"
    return Row(check, what, _summary(before), _summary(now), not difference, difference)


def _shown(fact: str) -> str:
    return fact if len(fact) <= _SHOWN else f"{fact[:_SHOWN]}…"


def _summary(facts: Facts) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{len(facts)}: {digest[:10]}" if facts else "none"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_facts(folder: Path, without: Collection[str] = ()) -> Facts:
    """Return the SHA-256 of every file below a folder, by relative path; files with suffixes `without` are skipped."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in without)
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in found}


def member_facts(folder: Path) -> Facts:
    """Return the SHA-256 and the offset of every member of every tar file in a folder."""
    facts = {}
    for path in sorted(folder.glob("*.tar")):
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    stream = archive.extractfile(member)
                    content = stream.read() if stream else b""
                    facts[f"{path.name}/{member.name}"] = f"{hashlib.sha256(content).hexdigest()} at {member.offset}"
        except tarfile.TarError as error:
            facts[path.name] = f"cannot be read: {error}"
    return facts


_SAME_BYTES: Final = ("gesture.npy", "mel.npy", "jaw_eyes.npy", "start_xz.npy")
_NEW_STATISTICS: Final = frozenset({"jaw_eyes", "counts", "difference_std"})
_SAME_OF_SET: Final = ("features", "settings", "plan", "totals", "splits")
_OTHER_SETTINGS: Final = frozenset({"settings_sha256", "max_length_mismatch_s", "motion_rate_hz"})
"""Settings of preprocess that are new, or whose default changed (the allowed difference of lengths)."""
_NOTHING: Final = (None, "", -1)


def contract_version(folder: Path) -> int:
    """Return the version of the shard contract of a folder."""
    return int(json.loads((folder / "dataset.json").read_bytes())["version"])


def content_facts(folder: Path) -> Facts:
    """Return the content of a folder of shards, independent of the version of the contract."""
    facts: Facts = {name: _sha256(folder / name) for name in ("tokenizer.json", "report.jsonl")}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                key, _, name = member.name.partition(".")
                facts |= {
                    f"{key} {what}": fact for what, fact in _member_content(name, stream.read() if stream else b"")
                }
    # In version 1, a sample without spans has no member for spans.
    facts = {f"{fact.partition(' ')[0]} spans": "[]" for fact in facts if " " in fact} | facts
    dataset, stats = (json.loads((folder / name).read_bytes()) for name in ("dataset.json", "stats.json"))
    facts |= json_facts({name: dataset[name] for name in _SAME_OF_SET}, "dataset.json:", _OTHER_SETTINGS)
    return facts | json_facts(stats, "stats.json:", _NEW_STATISTICS) | _row_facts(folder / "manifest.parquet")


def _member_content(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Yield (name, content) of a tar member; the names are equal for both versions of the contract."""
    if name in _SAME_BYTES:
        yield name, hashlib.sha256(data).hexdigest()
    elif name == "betas.npy":
        yield name, _numbers(np.load(io.BytesIO(data), allow_pickle=False).astype(np.float64))
    elif name == "audio.npy":
        yield "waveform", _numbers(np.load(io.BytesIO(data), allow_pickle=False))
    elif name == "flac":
        yield "waveform", _numbers(soundfile.read(io.BytesIO(data), dtype="float64")[0].astype(np.float32))
    elif name in {"words.json", "words.txt", "sem.json", "sem.txt"}:
        yield "words" if name.startswith("words") else "spans", json.dumps(json.loads(data))
    else:
        yield from json_facts(_shared_metadata(json.loads(data)), name).items()


def _numbers(array: npt.NDArray[np.floating]) -> str:
    return f"{array.dtype} {array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"


def _shared_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the content of KEY.json with the fields of version 1, without empty values."""
    shared = {name: value for name, value in metadata.items() if name not in {"present", "labels"}}
    shared |= metadata.get("labels", {})
    notes = metadata["notes"]
    shared["notes"] = notes.splitlines() if isinstance(notes, str) else [f"{n['code']}: {n['found']}" for n in notes]
    shared["sources"] = {name: source for name, source in metadata["sources"].items() if source["path"]}
    return {name: value for name, value in shared.items() if value not in _NOTHING}


def _row_facts(path: Path) -> Facts:
    """Return the facts of the manifest, without positions and checksums of members."""
    facts: Facts = {}
    for row in pq.read_table(path, use_threads=False).to_pylist():
        own = {name.removeprefix("label_"): value for name, value in row.items() if not name.startswith("present_")}
        own = {name: value for name, value in own.items() if value not in _NOTHING and not _is_place(name)}
        facts |= json_facts(own, f"manifest {row['key']}:")
    return facts


def _is_place(column: str) -> bool:
    """Return whether a manifest column is a position or a checksum of members; columns of source files are not."""
    source = column.startswith(("wav_", "npz_", "textgrid_")) or column in {"sem_path", "sem_sha256"}
    return column == "shard" or (column.endswith(("_offset", "_size", "_sha256")) and not source)


def json_facts(document: object, name: str = "", without: Collection[str] = ()) -> Facts:
    """Return every value of a JSON document by its path; a float is the shortest text that restores all its bits."""
    return dict(_flat(document, name, without))


def _flat(value: Any, name: str, without: Collection[str]) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for former, inner in value.items():
            key = str(_RENAMED.get(former, former))
            path = f"{name}.{key}" if name else key
            if key in _WORDED:
                yield path, f"{len(inner)} sentences"
            elif key not in without:
                yield from _flat(inner, path, without)
    elif isinstance(value, list) and value:
        for place, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{place}]", without)
    else:
        yield name, json.dumps(value)


def json_file_facts(folder: Path, without: Collection[str] = ()) -> Facts:
    """Return every value of every JSON file below a folder, except those of the keys `without`."""
    facts: Facts = {}
    for path in folder.rglob("*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        facts |= json_facts(document, path.relative_to(folder).as_posix() + ":", without)
    return facts
