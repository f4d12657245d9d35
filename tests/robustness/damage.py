"""Damages shard folders, one fault each, and counts what `omniges verify-shards` finds.

    python tests/robustness/damage.py --faults 10000 --sound 1000 --content 2000 --seed 0 --workers 2

Four parts. **Faults**: shards cut at every 512-byte boundary, then faults drawn over all kinds of
`shard_faults` and `folder_faults`; level full must find every one and name it (faults
that dataset.json agrees with down to the checksum of the data: level deep), level quick all that docs/how-to/verify.md
promises of it. **Content faults** of `content_faults`, every checksum recomputed: deep must find every
one. **Sound sets** of varied size and options, from `omniges preprocess` and repacked from what it wrote: no finding at
any level. **One shard with 10^6 tiny members**, with its manifest and without, and the time that took.

Each draw follows from seed and index alone: `--only faults:123` repeats one and prints what was found. `--minutes`
goes on with new faults until that time is over. Exit code 1 if anything was missed, or anything sound was not.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal

import numpy as np
from content_faults import CONTENT_KINDS
from folder_faults import FOLDER_KINDS
from shard_faults import SHARD_KINDS, Content, Damage, Folder, block_cuts, pick, quick_finds, shard_names
from shard_sets import Sample, ShardSet

from omniges.features import timebase
from omniges.pipeline.run import preprocess
from omniges.pipeline.settings import ConvertSettings, PreprocessSettings
from omniges.progress import LineReporter
from omniges.shards.schema import shard_name
from omniges.shards.tar import END_OF_ARCHIVE, member_header
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus
from omniges.verify.run import VerifyResult, verify
from omniges.verify.settings import Level, VerifySettings

Part = Literal["faults", "content", "sound"]
_KINDS: Final = (*SHARD_KINDS, *FOLDER_KINDS)
_CHUNK: Final = 100
_CASE_S: Final = 60
_DRAWS: Final = 100  # tries until a drawn change is one


@dataclass(frozen=True)
class Outcome:
    """One draw: its kind, and why it is a miss if it is one."""

    kind: str
    misses: tuple[str, ...] = ()
    quick_promised: bool = False
    quick_found: bool = False


# --- folders to damage


_OPTIONS: Final[tuple[dict[str, Any], ...]] = (
    {"clips": 8, "audio": "pcm16", "keep": False, "shard_bytes": 20_000},
    {"clips": 7, "audio": "pcm16", "keep": True, "shard_bytes": 90_000},
    {"clips": 6, "audio": "float32", "keep": True, "shard_bytes": 1},
    {"clips": 5, "audio": "pcm16", "keep": False, "shard_bytes": 1 << 30},
    {"clips": 12, "audio": "pcm16", "keep": False, "shard_bytes": 45_000},
)


@dataclass(frozen=True)
class Bases:
    """Sound folders of few frames, in memory and taken apart; from two runs for each set of options."""

    folders: list[dict[str, bytes]]
    sets: list[ShardSet]

    def other(self, place: int) -> dict[str, bytes]:
        """The folder of another run."""
        return self.folders[(place + 1) % len(self.folders)]


def convert(corpus: Path, out: Path, *, keep_audio: bool, shard_bytes: int) -> Path:
    """`omniges preprocess` in this process."""
    with Path(os.devnull).open("w", encoding="utf-8") as stream:
        settings = PreprocessSettings(
            root=corpus,
            output_dir=out,
            convert=ConvertSettings(keep_audio=keep_audio),
            shard_bytes=shard_bytes,
            num_workers=1,
        )
        summary = preprocess(settings, LineReporter(stream))
    if summary.exit_code != 0:
        raise SystemExit(f"{corpus}: preprocess ended with {summary.exit_code}")
    return out


def make_bases(folder: Path) -> Path:
    """Convert small corpora of several kinds into folders below `folder`; slow, done once for all processes."""
    for place, options in enumerate(_OPTIONS):
        corpus = folder / f"corpus-{place}"
        settings = CorpusSettings(
            clips=options["clips"], seconds=2.0, words=6, speakers=2, seed=place, audio=options["audio"]
        )
        write_sample_corpus(corpus, settings)
        convert(corpus, folder / f"shards-{place}", keep_audio=options["keep"], shard_bytes=options["shard_bytes"])
    return folder


def read_bases(folder: Path) -> Bases:
    """The folders of `make_bases`, their samples cut to a few frames so that thousands of verifications are quick."""
    sets = []
    for place, options in enumerate(_OPTIONS):
        shards = ShardSet.read(folder / f"shards-{place}")
        for k, sample in enumerate(shards.samples):
            shorten(sample, 3 + k % 4)
        shards.keep_files = False
        pack(shards, options["shard_bytes"])
        built = shards.build()
        sets.append(replace(shards, files={name: built[name] for name in shards.files}, keep_files=True))
    return Bases([shards.build() for shards in sets], sets)


def shorten(sample: Sample, frames: int) -> None:
    """Cut a sample to its first frames, everything that follows from its length included."""
    mel_frames = timebase.mel_frames_for(frames)
    seconds = timebase.seconds_of_frames(frames)
    lengths = (("gesture.npy", frames), ("jaw_eyes.npy", frames), ("mel.npy", mel_frames))
    for name, length in lengths:
        sample.arrays[name] = sample.arrays[name][:length]
    counts: dict[str, Any] = {"frames": frames, "mel_frames": mel_frames, "ticks": timebase.ticks_of_frames(frames)}
    texts = ("so", "and", "then") if frames % 2 else ("yes",)
    edges = [round(seconds * k / len(texts), 6) for k in range(len(texts) + 1)]
    sample.words = [
        {"word": text, "start": start, "end": min(end, seconds)}
        for text, start, end in zip(texts, edges, edges[1:], strict=False)
    ]
    sample.row = replace(sample.row, **counts, seconds=seconds, words=len(texts))
    sample.metadata |= counts | {"seconds": seconds}
    sample.metadata["motion"] |= {"frames": frames * sample.metadata["motion"]["frame_stride"]}
    audio = sample.metadata["audio"]
    left_s = max(0.0, audio["samples"] / audio["rate_hz"] - frames / timebase.FRAME_RATE_HZ)
    sample.metadata["cut"] |= {"motion_s": 0.0, "audio_s": round(left_s, 6)}


def pack(shards: ShardSet, shard_bytes: int) -> None:
    """Put the samples into shards of about this size, in key order within each split."""
    shards.samples.sort(key=lambda sample: (sample.row.shard.partition("-")[0], sample.row.key))
    split, index, size = "", 0, 0
    for sample in shards.samples:
        if sample.row.split != split:
            split, index, size = sample.row.split, 0, 0
        elif size >= shard_bytes:
            index, size = index + 1, 0
        sample.row = replace(sample.row, shard=shard_name(sample.row.split, index))  # type: ignore[arg-type]
        size += sum(len(piece) for pieces in sample.members().values() for piece in pieces)


# --- one draw


class _TimeOut(Exception):
    """A verification took longer than any may."""


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise _TimeOut


def _check(folder: Path, level: Level) -> VerifyResult | str:
    """A verification in this process, or what went wrong with it."""
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(_CASE_S)
    try:
        return verify(VerifySettings(folder=folder, level=level, num_workers=1))
    except _TimeOut:
        return f"{level} took over {_CASE_S} s"
    except Exception as error:  # noqa: BLE001 - any traceback is a miss, and the harness goes on to count others
        return f"{level} crashed with {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def _codes(result: VerifyResult) -> set[str]:
    return {finding.code for finding in result.findings if finding.severity == "error"}


class Site:
    """A folder on disk that is damaged and mended again."""

    def __init__(self, folder: Path, files: Folder) -> None:
        """Write the sound files."""
        self.folder, self.files = folder, files
        folder.mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)

    def damage(self, changes: Folder | dict[str, Content]) -> None:
        """Put a fault in place."""
        for name, content in changes.items():
            path = self.folder / name
            if isinstance(content, bytes):
                path.write_bytes(content)
                continue
            path.unlink(missing_ok=True)
            if content == "link":
                path.symlink_to(self.folder / ".." / "target")
            elif content == "folder":
                path.mkdir()
            elif content == "pipe":
                os.mkfifo(path)

    def mend(self, changes: Folder | dict[str, Content]) -> None:
        """Put the sound files back."""
        for name, content in changes.items():
            path = self.folder / name
            path.rmdir() if content == "folder" else path.unlink(missing_ok=True)
            if name in self.files:
                path.write_bytes(self.files[name])


def draw_fault(bases: Bases, seed: int, index: int) -> tuple[int, str, Damage]:
    """The base, kind and fault of an index: first every cut between two blocks of the first base, then all kinds."""
    cuts = block_cuts(bases.folders[0])
    if index < len(cuts):
        name, length = cuts[index]
        codes = frozenset({"shard-cut", "shard-end"})
        return 0, "cut between blocks", Damage({name: bases.folders[0][name][:length]}, f"{name} to {length}", codes)
    rng = np.random.default_rng([seed, 1, index])
    kind = _KINDS[index % len(_KINDS)]
    for _ in range(_DRAWS):
        place = int(rng.integers(len(bases.folders)))
        files = bases.folders[place]
        if kind.name == "shards swapped with each other" and len(shard_names(files)) < 2:
            continue
        damage = kind.draw(rng, files, bases.other(place))
        if any(files.get(name) != content for name, content in damage.changes.items()):
            return place, kind.name, damage
    raise AssertionError(f"{kind.name}: no change in {_DRAWS} draws")


def shard_fault(bases: Bases, sites: Sequence[Site], seed: int, index: int, *, tell: bool = False) -> Outcome:
    """Damage a folder, look at it at its level and at quick, mend it."""
    place, kind, damage = draw_fault(bases, seed, index)
    site, promised = sites[place], quick_finds(bases.folders[place], damage)
    misses = []
    changes = dict(damage.changes)
    site.damage(changes)
    try:
        result, quick = _check(site.folder, damage.level), _check(site.folder, "quick")
    finally:
        site.mend(changes)
    if isinstance(result, str):
        misses.append(result)
    elif result.valid:
        misses.append(f"{damage.level} finds nothing: {damage.text}")
    elif damage.codes and not damage.codes & _codes(result):
        found = ", ".join(sorted(_codes(result)))
        misses.append(f"{damage.level} names {found}, not {' or '.join(sorted(damage.codes))}: {damage.text}")
    if isinstance(quick, str):
        misses.append(quick)
    elif promised and quick.valid:
        misses.append(f"quick finds nothing though it promises to: {damage.text}")
    if tell:
        _tell(damage.text, result)
    return Outcome(kind, tuple(misses), promised, not isinstance(quick, str) and not quick.valid)


def _tell(text: str, result: VerifyResult | str) -> None:
    print(text)
    for finding in result.findings if isinstance(result, VerifyResult) else ():
        print(f"  {finding.code} {finding.file} {finding.key} {finding.member} {finding.offset}: {finding.found}")


def content_fault(bases: Bases, folder: Path, seed: int, index: int, *, tell: bool = False) -> Outcome:
    """A fault in what the data mean, every checksum right, looked at at level deep."""
    kind = CONTENT_KINDS[index % len(CONTENT_KINDS)]
    rng = np.random.default_rng([seed, 2, index])
    for _ in range(_DRAWS):
        place = int(rng.integers(len(bases.sets)))
        shards = copy.deepcopy(bases.sets[place])
        try:
            kind.insert(rng, shards)
            built = shards.build()
        except IndexError:  # this set has no other value to draw
            continue
        if built != bases.folders[place]:
            break
    else:
        raise AssertionError(f"{kind.name}: no change in {_DRAWS} draws")
    site = Site(folder, built)
    try:
        result = _check(folder, "deep")
    finally:
        shutil.rmtree(site.folder)
    if tell:
        _tell(kind.name, result)
    if isinstance(result, str):
        return Outcome(kind.name, (result,))
    if result.valid:
        return Outcome(kind.name, ("deep finds nothing",))
    if not any(code.startswith(wanted) for code in _codes(result) for wanted in kind.codes):
        return Outcome(kind.name, (f"deep names {', '.join(sorted(_codes(result)))}, not {' or '.join(kind.codes)}",))
    return Outcome(kind.name)


# --- sound sets

_PREPROCESSED_EVERY: Final = 25


def sound_set(bases: Bases, corpora: Path, folder: Path, seed: int, index: int) -> Outcome:
    """A sound set: one in 25 straight from preprocess, the others some samples of one, cut and packed again."""
    rng = np.random.default_rng([seed, 3, index])
    if index % _PREPROCESSED_EVERY == 0:
        kind = "from preprocess"
        corpus = corpora / f"corpus-{int(rng.integers(len(_OPTIONS)))}"
        size = int(pick(rng, (1, 200_000, 400_000, 1 << 28)))
        convert(corpus, folder, keep_audio=bool(rng.integers(2)), shard_bytes=size)
    else:
        kind = "packed again"
        shards = copy.deepcopy(pick(rng, bases.sets))
        count = int(rng.integers(1, len(shards.samples) + 1))
        chosen = sorted(int(k) for k in rng.permutation(len(shards.samples))[:count])
        shards.samples = [shards.samples[k] for k in chosen]
        for sample in shards.samples:
            shorten(sample, int(rng.integers(3, len(sample.arrays["gesture.npy"]) + 1)))
        shards.keep_files = False
        pack(shards, int(pick(rng, (1, 20_000, 60_000, 1 << 30))))
        Site(folder, shards.build())
    misses = []
    try:
        for level in ("quick", "full", "deep"):
            result = _check(folder, level)
            if isinstance(result, str):
                misses.append(result)
            else:
                misses += [f"{level}: {f.code} {f.file} {f.key}: {f.found}" for f in result.findings]
    finally:
        shutil.rmtree(folder)
        folder.with_name(folder.name + ".run.jsonl").unlink(missing_ok=True)
    return Outcome(kind, tuple(misses))


# --- many draws


@dataclass(frozen=True)
class _Chunk:
    """Indices that one process draws."""

    part: Part
    seed: int
    indices: range
    corpora: Path


def _run_chunk(chunk: _Chunk, *, tell: bool = False) -> list[tuple[int, Outcome]]:
    outcomes = []
    bases = _bases(chunk.corpora)
    with tempfile.TemporaryDirectory(dir=chunk.corpora) as temporary:
        work = Path(temporary)
        (work / "target").write_bytes(b"what a link leads to")
        sites = (
            [Site(work / f"base-{k}", files) for k, files in enumerate(bases.folders)] if chunk.part == "faults" else []
        )
        for index in chunk.indices:
            if chunk.part == "faults":
                outcome = shard_fault(bases, sites, chunk.seed, index, tell=tell)
            elif chunk.part == "content":
                outcome = content_fault(bases, work / "content", chunk.seed, index, tell=tell)
            else:
                outcome = sound_set(bases, chunk.corpora, work / "sound", chunk.seed, index)
            outcomes.append((index, outcome))
        for site in sites:
            result = _check(site.folder, "full")
            if isinstance(result, str) or result.findings:
                raise AssertionError(f"a folder was not mended: {result}")
    return outcomes


_READ: Final[dict[Path, Bases]] = {}  # of this process


def _bases(corpora: Path) -> Bases:
    if corpora not in _READ:
        _READ[corpora] = read_bases(corpora)
    return _READ[corpora]


@dataclass
class _Row:
    drawn: int = 0
    found: int = 0
    promised: int = 0
    quick: int = 0


@dataclass
class _Table:
    rows: dict[tuple[str, str], _Row] = field(default_factory=lambda: defaultdict(_Row))
    misses: list[str] = field(default_factory=list)

    def add(self, part: Part, seed: int, index: int, outcome: Outcome) -> None:
        row = self.rows[part, outcome.kind]
        row.drawn += 1
        row.found += not outcome.misses
        row.promised += outcome.quick_promised
        row.quick += outcome.quick_found
        self.misses += [f"--seed {seed} --only {part}:{index}  {outcome.kind}: {text}" for text in outcome.misses]

    def print(self) -> None:
        titles = {"faults": "faults, level full", "content": "content faults, level deep", "sound": "sound sets"}
        for part, title in titles.items():
            own = {kind: row for (its, kind), row in self.rows.items() if its == part}
            if not own:
                continue
            heads: tuple[str, ...] = (
                ("drawn", "sound", "", "") if part == "sound" else ("drawn", "found", "quick promises", "quick finds")
            )
            heads = heads[: 4 if part == "faults" else 2]
            print(f"\n{title:44}" + "".join(f"{head:>15}" for head in heads))
            for kind, row in own.items():
                print(f"  {kind:42}{row.drawn:15,}{row.found:15,}" + self._quick(part, row))
            whole = _Row(
                *(sum(getattr(row, name) for row in own.values()) for name in ("drawn", "found", "promised", "quick"))
            )
            print(f"  {'all':42}{whole.drawn:15,}{whole.found:15,}" + self._quick(part, whole))

    @staticmethod
    def _quick(part: str, row: _Row) -> str:
        return f"{row.promised:15,}{row.quick:15,}" if part == "faults" else ""


def _chunks(part: Part, count: int, seed: int, corpora: Path, start: int = 0) -> Iterator[_Chunk]:
    for first in range(start, start + count, _CHUNK):
        yield _Chunk(part, seed, range(first, min(first + _CHUNK, start + count)), corpora)


def _million(corpora: Path, count: int) -> list[str]:
    """A shard of so many tiny members, in place of a real one, walked with a manifest and without; why it is a miss."""
    files = _bases(corpora).folders[0]
    name = shard_names(files)[0]
    misses = []
    with tempfile.TemporaryDirectory(dir=corpora) as temporary:
        site = Site(Path(temporary) / "shards", files)
        with (site.folder / name).open("wb") as stream:
            stream.write(files[name][: -len(END_OF_ARCHIVE)])
            for k in range(count):
                stream.write(member_header(f"{k}.json", 0))
            stream.write(END_OF_ARCHIVE)
        for gone in ((), ("manifest.parquet",)):
            for other in gone:
                (site.folder / other).unlink()
            start = time.perf_counter()
            result = _check(site.folder, "full")
            seconds = time.perf_counter() - start
            text = "without a manifest" if gone else "with its manifest"
            print(f"{count:,} tiny members, {text}: {seconds:.1f} s", file=sys.stderr)
            if isinstance(result, str):
                misses.append(f"{count:,} tiny members {text}: {result}")
            elif result.valid or not (gone or "member-foreign" in _codes(result)):
                misses.append(f"{count:,} tiny members {text}: found {sorted(_codes(result))}")
    return misses


def _run(chosen: argparse.Namespace, corpora: Path) -> _Table:
    table = _Table()
    end = time.monotonic() + chosen.minutes * 60
    counts: tuple[tuple[Part, int], ...] = (
        ("faults", chosen.faults),
        ("content", chosen.content),
        ("sound", chosen.sound),
    )
    chunks = [chunk for part, count in counts for chunk in _chunks(part, count, chosen.seed, corpora)]
    context = multiprocessing.get_context("spawn")
    start, following = chosen.faults, chosen.content
    with ProcessPoolExecutor(chosen.workers, mp_context=context) as pool:
        while chunks:
            futures = {pool.submit(_run_chunk, chunk): chunk for chunk in chunks}
            for done in as_completed(futures):
                chunk = futures[done]
                for index, outcome in done.result():
                    table.add(chunk.part, chunk.seed, index, outcome)
            chunks = []
            if time.monotonic() < end:
                chunks = [*_chunks("faults", 10 * _CHUNK, chosen.seed, corpora, start)]
                chunks += _chunks("content", 2 * _CHUNK, chosen.seed, corpora, following)
                start, following = start + 10 * _CHUNK, following + 2 * _CHUNK
    return table


def main() -> None:
    """Parse, draw, print; exit 1 on a miss."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", type=int, default=10_000, help="damaged folders, one fault each")
    parser.add_argument("--content", type=int, default=2_000, help="faults with every checksum recomputed")
    parser.add_argument("--sound", type=int, default=1_000, help="sound sets")
    parser.add_argument("--tiny", type=int, default=1_000_000, help="members of the shard of tiny members; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0.0, help="go on with new faults until this time is over")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", metavar="PART:INDEX", help="one draw: faults, content or sound, and its index")
    chosen = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        corpora = make_bases(Path(temporary))
        if chosen.only:
            part, _, index = chosen.only.partition(":")
            chunk = _Chunk(part, chosen.seed, range(int(index), int(index) + 1), corpora)
            misses = [text for _, outcome in _run_chunk(chunk, tell=True) for text in (outcome.kind, *outcome.misses)]
            print("\n".join(misses))
            sys.exit(len(misses) > 1)
        table = _run(chosen, corpora)
        table.misses += _million(corpora, chosen.tiny) if chosen.tiny else []
    table.print()
    print(f"\nseed {chosen.seed}, {time.monotonic() - began:.0f} s, {len(table.misses)} missed")
    print("\n".join(table.misses))
    sys.exit(bool(table.misses))


if __name__ == "__main__":
    main()
