"""Fuzzes what `omniges verify-shards` parses: tar headers, npy headers, manifest, dataset.json, KEY.json, words.txt.

    python tests/robustness/fuzz.py --minutes 10 --workers 2 --seed 0

Each case changes the bytes of one target by one to four mutations and makes the checksums fit, so that the parser
behind them is reached. It must end within a time limit, without a crash (processes are watched from outside: a parser
in C that dies takes its process along) and without calling sound what is not: a changed tar is an error at level full;
any other target, at level deep, is an error or still says the same (read back by the standard library, numpy or
pyarrow and compared, leaving out fields that nothing else in the folder could contradict).

A case follows from seed and index; `--only 123` repeats one. Exit code 1 if any case failed.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue as ProcessQueue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from queue import Empty
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from damage import Bases, Site, make_bases, pack, read_bases
from shard_faults import Folder, pick, shard_names
from shard_sets import BLOCK, ShardSet, edited_dataset, members_of, relisted

from omniges.shards.manifest import parse_manifest
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE
from omniges.storage.files import canonical_json
from omniges.verify.run import VerifyResult, verify
from omniges.verify.settings import Level, VerifySettings

_LIMIT_S: Final = 30.0
_MEMORY_BYTES: Final = 6 << 30
_ARRAYS: Final = ("gesture.npy", "mel.npy", "jaw_eyes.npy", "betas.npy", "start_xz.npy")

# What no other file of a set could contradict.
_FREE: Final = {"audio": ("encoding", "channels"), "motion": ("key_style", "betas", "gender", "model", "frame_rate_hz")}


@dataclass(frozen=True)
class Case:
    """Changed files, the level that must see it, and whether the change still says the same."""

    target: str
    changes: dict[str, bytes]
    level: Level
    same: Callable[[], bool]


# --- mutations

_BYTES: Final = (0, 1, 0x20, 0x22, 0x2D, 0x30, 0x39, 0x5B, 0x7B, 0x7F, 0x80, 0xFE, 0xFF)
_TOKENS: Final = (
    *(b"", b"0", b"-1", b"1e999", b"1" * 30, b"null", b"true", b"NaN", b"[]", b"{}", b'""', b'"\\u0000"', b"\\", b"'"),
    *(b"-0", b"1.0", b"\xed\xa0\x80", b"[" * 2000, b"77777777777\0", b"\x80" + bytes(11), b"<f8", b"|O", b"True", b","),
)


def mutated(rng: np.random.Generator, data: bytes, spots: range) -> bytes:
    """Data with one to four changes that begin within `spots`."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5)) if rng.random() < 0.5 else 1):
        place = min(int(rng.integers(spots.start, max(spots.start + 1, spots.stop))), max(0, len(changed) - 1))
        size = int(rng.integers(1, 17))
        way = int(rng.integers(8))
        if way == 0 and changed:
            changed[place] ^= 1 << int(rng.integers(8))
        elif way == 1 and changed:
            changed[place] = pick(rng, _BYTES)
        elif way == 2:
            changed[place : place + size] = rng.bytes(size)
        elif way == 3:
            token = pick(rng, _TOKENS)
            changed[place : place + (len(token) if rng.integers(2) else 0)] = token
        elif way == 4:
            del changed[place : place + size]
        elif way == 5:
            changed[place:place] = changed[place : place + size]
        elif way == 6:
            source = int(rng.integers(max(1, len(changed))))
            changed[place : place + size] = changed[source : source + size]
        else:
            changed[place : place + 4] = pick(rng, (b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff" * 4, bytes(4)))
    return bytes(changed)


# --- targets


def _tar(rng: np.random.Generator, files: Folder, _shards: ShardSet) -> Case:
    name = pick(rng, shard_names(files))
    before = files[name]
    starts, inside, position = [], [], 0
    for member in members_of(before):
        starts.append(position)
        inside.append(range(position + BLOCK, position + BLOCK + len(member.data)))
        position += len(member.raw)
    start = pick(rng, [*starts, position, position + BLOCK])
    data = mutated(rng, before, range(start, start + BLOCK))
    # A change that spilled into data alone has a checksum in dataset.json that fits: that is for deep to find.
    same_size = len(data) == len(before)
    changed = [k for k, pair in enumerate(zip(before, data, strict=True)) if pair[0] != pair[1]] if same_size else []
    spilled = len(changed) > 0 and all(any(place in part for part in inside) for place in changed)
    changes = {name: data, DATASET_FILE: relisted(files, {name: data})}
    return Case("tar header", changes, "deep" if spilled else "full", lambda: data == before)


def _npy(rng: np.random.Generator, _files: Folder, shards: ShardSet) -> Case:
    place, member = int(rng.integers(len(shards.samples))), pick(rng, _ARRAYS)
    pieces = shards.samples[place].members()[member]
    before = b"".join(map(bytes, pieces))
    data = mutated(rng, before, range(len(pieces[0])))

    def same() -> bool:
        arrays = [np.load(io.BytesIO(version), allow_pickle=False) for version in (before, data)]
        return bool(arrays[0].dtype == arrays[1].dtype) and arrays[0].tobytes() == arrays[1].tobytes()

    return Case("npy header", _with_member(shards, place, member, data), "deep", same)


def _with_member(shards: ShardSet, place: int, member: str, data: bytes) -> dict[str, bytes]:
    """The files of the set with one member's bytes replaced."""
    sample = replace(shards.samples[place], raw={member: data})
    return replace(shards, samples=[*shards.samples[:place], sample, *shards.samples[place + 1 :]]).build()


def _json_member(member: str) -> Callable[[np.random.Generator, Folder, ShardSet], Case]:
    def make(rng: np.random.Generator, _files: Folder, shards: ShardSet) -> Case:
        place = int(rng.integers(len(shards.samples)))
        sample = shards.samples[place]
        before = canonical_json(sample.metadata if member == "json" else sample.words)
        data = mutated(rng, before, range(len(before)))

        def same() -> bool:
            value = json.loads(data)
            if canonical_json(value) != data:
                return False
            if member == "json":
                return _without_free(value) == _without_free(json.loads(before))
            return _words_valid(value, sample.row.seconds) and len(value) == sample.row.words

        return Case(f"KEY.{member}", _with_member(shards, place, member, data), "deep", same)

    return make


def _without_free(value: dict[str, Any]) -> dict[str, Any]:
    """KEY.json without what nothing else in a set repeats."""
    rest = dict(value)
    for part, fields in _FREE.items():
        rest[part] = {name: found for name, found in value[part].items() if name not in fields}
    rest["notes"] = [line.partition(": ")[0] for line in value["notes"].splitlines()]
    return rest


def _words_valid(words: Any, seconds: float) -> bool:
    """The contract of KEY.words.txt, said once more."""
    now = 0.0
    for word in words:
        if set(word) != {"word", "start", "end"} or not isinstance(word["word"], str) or not word["word"].strip():
            return False
        edges = (word["start"], word["end"])
        if any(type(edge) not in {int, float} or not math.isfinite(edge) for edge in edges):
            return False
        if not now <= edges[0] < edges[1] <= seconds:
            return False
        now = edges[1]
    return bool(words)


def _manifest(rng: np.random.Generator, files: Folder, _shards: ShardSet) -> Case:
    """Uncompressed half of the time, so that pages and not the decompressor are reached; often near the footer."""
    before = files[MANIFEST_FILE]
    if rng.integers(2):
        buffer = io.BytesIO()
        table = pq.ParquetFile(pa.BufferReader(before), pre_buffer=False).read(use_threads=False)
        pq.write_table(table, buffer, compression="none", use_dictionary=bool(rng.integers(2)))
        before = buffer.getvalue()
    footer = int.from_bytes(before[-8:-4], "little") + 8
    spots = pick(rng, (range(len(before)), range(len(before) - footer, len(before)), range(len(before) - footer)))
    data = mutated(rng, before, spots)
    changes = {MANIFEST_FILE: data, DATASET_FILE: relisted(files, {MANIFEST_FILE: data})}
    return Case("manifest", changes, "deep", lambda: parse_manifest(data) == parse_manifest(files[MANIFEST_FILE]))


def _dataset(rng: np.random.Generator, files: Folder, _shards: ShardSet) -> Case:
    """The text itself, which its checksum guards, or a value in it and the checksum updated."""
    before = files[DATASET_FILE]
    data = mutated(rng, before, range(len(before)))
    try:
        document = json.loads(data)
        sealed = isinstance(document, dict) and bool(rng.integers(2))
        data = edited_dataset(data, lambda _: None) if sealed else data
    except (ValueError, RecursionError):
        pass

    def same() -> bool:
        documents = [json.loads(version) for version in (before, data)]
        for document in documents:
            document.pop("checksum")
            document["tool"] = {}
            document["plan"] = {name: document["plan"][name] for name in ("stems", "rejected", "settings_sha256")}
        return canonical_json(documents[0]) == canonical_json(documents[1])

    return Case("dataset.json", {DATASET_FILE: data}, "deep", same)


TARGETS: Final[tuple[Callable[[np.random.Generator, Folder, ShardSet], Case], ...]] = (
    *(_tar, _npy, _manifest, _manifest, _dataset),
    *(_json_member("json"), _json_member("words.txt")),
)


def _few_samples(folder: Path) -> Bases:
    """Sets of three samples, so that a case takes milliseconds."""
    sets = []
    for shards in read_bases(folder).sets:
        few = replace(shards, samples=shards.samples[:3], keep_files=False)
        pack(few, 1 << 30)
        built = few.build()
        sets.append(replace(few, files={name: built[name] for name in few.files}, keep_files=True))
    return Bases([few.build() for few in sets], sets)


def draw(folders: list[dict[str, bytes]], sets: list[ShardSet], seed: int, index: int) -> tuple[int, Case]:
    """The base and case of an index."""
    rng = np.random.default_rng([seed, 4, index])
    place = int(rng.integers(len(folders)))
    return place, TARGETS[index % len(TARGETS)](rng, folders[place], sets[place])


def judge(site: Site, case: Case) -> str:
    """Verify a case; why it failed, or nothing."""
    site.damage(dict(case.changes))
    try:
        result = verify(VerifySettings(folder=site.folder, level=case.level, num_workers=1))
    except Exception as error:  # noqa: BLE001 - any traceback is what is looked for
        return f"crashed with {type(error).__name__}: {error}"
    finally:
        site.mend(dict(case.changes))
    return _wrongly_sound(result, case)


def _wrongly_sound(result: VerifyResult, case: Case) -> str:
    if not result.valid:
        return ""
    try:
        return "" if case.same() else "called sound, though it says something else"
    except (ValueError, TypeError, KeyError, AttributeError, EOFError) as error:
        return f"called sound, though it cannot be read: {type(error).__name__}: {error}"


# --- processes


def _work(
    folder: Path, job: tuple[int, int, int], now: Synchronized[int], out: ProcessQueue[tuple[str, int, str]]
) -> None:
    """Cases first, first + step, … for ever; `now` tells the watcher which one is in hand."""
    seed, first, step = job
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    bases = _few_samples(folder)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        sites = [Site(Path(temporary) / f"base-{k}", files) for k, files in enumerate(bases.folders)]
        index = first
        while True:
            place, case = draw(bases.folders, bases.sets, seed, index)
            now.value = index
            out.put((case.target, index, judge(sites[place], case)))
            index += step


class _Watched:
    """A worker process and what it is at; after a crash or a hang another one takes over behind the case."""

    def __init__(self, folder: Path, seed: int, first: int, step: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._folder, self._seed, self._step = folder, seed, step
        self.results: ProcessQueue[tuple[str, int, str]] = self._context.Queue()
        self._start(first)

    def _start(self, first: int) -> None:
        self._now: Synchronized[int] = self._context.Value("q", -1)
        job = (self._seed, first, self._step)
        self._process: SpawnProcess = self._context.Process(
            target=_work, args=(self._folder, job, self._now, self.results), daemon=True
        )
        self._process.start()
        self._at, self._since = -1, time.monotonic()

    def look(self) -> tuple[int, str] | None:
        """Index and reason of a crash or a hang, after which the next case is begun."""
        if self._now.value != self._at:
            self._at, self._since = self._now.value, time.monotonic()
        if self._process.is_alive() and time.monotonic() - self._since < _LIMIT_S + 30 * (self._at < 0):
            return None
        reason = f"the process died, exit code {self._process.exitcode}"
        if self._process.is_alive():
            reason = f"over {_LIMIT_S:g} s"
        self.stop()
        index = self._now.value
        if index < 0:
            raise SystemExit(f"a worker could not begin: {reason}")
        self._start(index + self._step)
        return index, reason

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _run(folder: Path, seed: int, workers: int, minutes: float) -> tuple[Counter[str], list[str]]:
    counts: Counter[str] = Counter()
    failures: list[str] = []
    end = time.monotonic() + 60 * minutes
    watched = [_Watched(folder, seed, first, workers) for first in range(workers)]
    try:
        while time.monotonic() < end:
            for worker in watched:
                fault = worker.look()
                if fault is not None:
                    failures.append(f"--seed {seed} --only {fault[0]}: {fault[1]}")
                try:
                    while True:
                        target, index, reason = worker.results.get(timeout=0.1)
                        counts[target] += 1
                        if reason:
                            failures.append(f"--seed {seed} --only {index}: {target}: {reason}")
                except Empty:
                    pass
    finally:
        for worker in watched:
            worker.stop()
    return counts, failures


def _only(folder: Path, seed: int, index: int) -> None:
    """One case in this process, with what was found."""
    bases = _few_samples(folder)
    place, case = draw(bases.folders, bases.sets, seed, index)
    site = Site(folder / "site", bases.folders[place])
    reason = judge(site, case)
    site.damage(dict(case.changes))
    for finding in verify(VerifySettings(folder=site.folder, level=case.level, num_workers=1)).findings:
        print(f"{finding.code} {finding.file} {finding.key} {finding.member}: {finding.found} / {finding.expected}")
    print(f"{case.target}: {reason or 'as it should be'}")
    sys.exit(bool(reason))


def main() -> None:
    """Parse, fuzz, print; exit 1 on a failure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", type=int, metavar="INDEX", help="one case, and what was found")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_bases(Path(temporary))
        if chosen.only is not None:
            _only(folder, chosen.seed, chosen.only)
        counts, failures = _run(folder, chosen.seed, chosen.workers, chosen.minutes)
    for target, count in sorted(counts.items()):
        print(f"{target:16}{count:12,} cases")
    print(f"seed {chosen.seed}, {chosen.minutes:g} minutes, {counts.total():,} cases, {len(failures)} failed")
    print("\n".join(failures))
    sys.exit(bool(failures) or not counts)


if __name__ == "__main__":
    main()
