"""Scenarios to interrupt: small data sets, folders at the start, and the content that must exist at the end."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final
from unittest import mock

from omniges.pipeline import run as run_module
from omniges.pipeline.convert import convert
from omniges.pipeline.discover import Recording
from omniges.pipeline.engines import engine as engine_module
from omniges.pipeline.settings import ConvertSettings, PreprocessSettings, Rejected, Sample, Summary
from omniges.pipeline.worker import Outcome
from omniges.progress import LineReporter
from omniges.shards.schema import DATASET_FILE
from omniges.shards.tar import Segment
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus
from omniges.verify.run import verify
from omniges.verify.settings import Level, VerifySettings

NAMES: Final = ("fresh", "update", "shifted", "force", "missing-shard", "turned")
_SHARD_BYTES: Final = 250_000  # a clip of 2 s takes 0.16 MB: shards of one or two
_SMALL_SHARD_BYTES: Final = 100_000  # a shard a clip, so that an added one gives all after it another name
Digests = dict[str, str]


@dataclass(frozen=True)
class Scenario:
    """A command over a folder in some state."""

    name: str
    root: Path
    old: Path | None  # the folder to begin from, None for one that is not there
    expected: Digests  # of the tree that an undisturbed run into a new folder leaves
    begun_root: Path | None = None  # the root of the first, killed run, where its inputs were others
    force: bool = False
    shard_bytes: int = _SHARD_BYTES

    def words(self, out: Path, *, first: bool) -> list[str]:
        """The command of the `first` run or of those after it."""
        root = self.begun_root if first and self.begun_root else self.root
        words = ["preprocess", "--root", str(root), "--out", str(out), "--workers", "1"]
        words += [
            "--shard-size",
            str(self.shard_bytes),
            "--allow-removal",
            "--max-rejected",
            "1",
            "--run-log",
            str(self.log_of(out)),
        ]
        return words + ["--force"] * self.force

    def settings(self, out: Path, *, first: bool) -> PreprocessSettings:
        """The same, for a run in this process."""
        root = self.begun_root if first and self.begun_root else self.root
        return PreprocessSettings(
            root=root, output_dir=out, shard_bytes=self.shard_bytes, force=self.force, allow_removal=True,
            run_log=self.log_of(out), num_workers=1,
        )  # fmt: skip

    @staticmethod
    def log_of(out: Path) -> Path:
        """The run log, outside what is watched."""
        return out.parent.parent / "run.jsonl"

    def begin(self, folder: Path) -> Path:
        """Lay out a folder to run in; the output folder, in a parent that a run from nothing has to make."""
        folder.mkdir(parents=True)
        out = folder / "watched/out"
        if self.old is None:
            out.parent.mkdir()
        else:
            shutil.copytree(self.old, out)
        return out


def make_scenarios(work: Path) -> dict[str, Scenario]:
    """Write the data sets, convert each undisturbed once, and prove the results sound."""
    whole, before, between = work / "whole", work / "before", work / "between"
    write_sample_corpus(whole, CorpusSettings(clips=10, seconds=2.0, words=6, speakers=2, seed=5))
    for other in (before, between):
        shutil.copytree(whole, other)
    stems = sorted(path.stem for path in whole.rglob("*.TextGrid"))
    for stem in (stems[1], stems[5]):  # added by the update, so that the shards after them move up
        _remove(before, stem)
    _change_audio(before, stems[3])
    _change_audio(between, stems[7])
    for root in (whole, between):  # removed, and rejected
        _remove(root, stems[8])
        next(root.rglob(f"{stems[9]}.npz")).write_bytes(b"junk")
    small = Scenario("", whole, None, {}, shard_bytes=_SMALL_SHARD_BYTES)
    plain = Scenario("", whole, None, {})
    sets = {
        "whole": plain,
        "before": replace(plain, root=before),
        "small": small,
        "small-before": replace(small, root=before),
        "audio": plain,
    }
    prepared = {name: _converted(work / "sets" / name, plan, keep_audio=name == "audio") for name, plan in sets.items()}
    partial = work / "partial"
    shutil.copytree(prepared["whole"], partial)
    (partial / "train-000001.tar").unlink()
    result = everything_in(prepared["whole"])
    scenarios = (
        Scenario("fresh", whole, None, result),
        Scenario("update", whole, prepared["before"], result),
        Scenario(
            "shifted", whole, prepared["small-before"], everything_in(prepared["small"]), shard_bytes=_SMALL_SHARD_BYTES
        ),
        Scenario("force", whole, prepared["audio"], result, force=True),
        Scenario("missing-shard", whole, partial, result),
        Scenario("turned", whole, prepared["before"], result, begun_root=between),
    )
    return {scenario.name: scenario for scenario in scenarios}


def _converted(folder: Path, plan: Scenario, *, keep_audio: bool) -> Path:
    """The folder that an undisturbed run leaves."""
    out = plan.begin(folder)
    _run(replace(plan.settings(out, first=False), convert=ConvertSettings(keep_audio=keep_audio)))
    assert not _verify_faults(out, "deep"), folder
    return out


def _remove(root: Path, stem: str) -> None:
    for path in root.rglob(f"{stem}.*"):
        path.unlink()


def _change_audio(root: Path, stem: str) -> None:
    (path,) = root.rglob(f"{stem}.wav")
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)


# --- running here


class _OwnConverter:
    """Stands for the pool: converts in this process, and each recording once in its life."""

    known: ClassVar[dict[tuple[str, ConvertSettings], Outcome]] = {}

    def __init__(self, settings: ConvertSettings, *_: object) -> None:
        self._settings = settings

    def slowest(self) -> None:
        """Nothing takes long here."""

    def run(self, recordings: Sequence[Recording]) -> Generator[tuple[Recording, Outcome], None, None]:
        """Outcomes in order."""
        for recording in recordings:
            key = (recording.files["npz"].path, self._settings)
            if key not in self.known:
                self.known[key] = _received(convert(recording, self._settings))
            yield recording, self.known[key]


def _received(outcome: Sample[Segment] | Rejected) -> Outcome:
    if isinstance(outcome, Rejected):
        return outcome
    segment = memoryview(b"".join(bytes(buffer) for buffer in outcome.segment.buffers))
    return Sample(outcome.row, segment, outcome.notes, outcome.partials, outcome.words, outcome.cut)


@contextmanager
def own_converter() -> Iterator[None]:
    """Convert in this process, without workers: what is written, and in which order, is the same."""
    with mock.patch.object(engine_module, "ConvertPool", _OwnConverter):
        yield


def preprocess_here(scenario: Scenario, out: Path, *, first: bool = False) -> Summary:
    """The scenario's command in this process."""
    return _run(scenario.settings(out, first=first))


def _run(settings: PreprocessSettings) -> Summary:
    with own_converter(), Path(os.devnull).open("w") as stream:
        return run_module.preprocess(settings, LineReporter(stream))


# --- judging


def everything_in(folder: Path) -> Digests:
    """Sha256 of every file below a folder, hidden ones too; a folder below it is named as one."""
    return {
        str(path.relative_to(folder)): "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
    }


def state_faults(scenario: Scenario, out: Path) -> list[str]:
    """Return the faults of a folder between runs: it is complete as before or after, or has no dataset.json."""
    if not (out / DATASET_FILE).is_file():
        return []
    seen = {name: digest for name, digest in everything_in(out).items() if not name.startswith(".")}
    known = [scenario.expected]
    if scenario.old is not None:
        known.append(everything_in(scenario.old))
    if seen in known or not _verify_faults(out, "full"):
        return []
    return [f"unsound: {DATASET_FILE} is there, and {', '.join(_verify_faults(out, 'full'))}"]


def end_faults(scenario: Scenario, out: Path) -> list[str]:
    """Return the faults of a folder after the last run."""
    if not out.is_dir():
        return ["differs: there is no folder"]
    found = everything_in(out)
    faults = [f"leftover: {name}" for name in sorted(found.keys() - scenario.expected.keys())]
    faults += [f"differs: {name}" for name in scenario.expected if found.get(name) != scenario.expected[name]]
    faults += [
        f"leftover: {name} beside the folder"
        for name in sorted({path.name for path in out.parent.iterdir()} - {out.name})
    ]
    return faults + [f"unsound: {fault}" for fault in _verify_faults(out, "deep")]


def _verify_faults(out: Path, level: Level) -> list[str]:
    result = verify(VerifySettings(folder=out, level=level, num_workers=1))
    return [f"{finding.code} in {finding.file}" for finding in result.findings if finding.severity == "error"]
