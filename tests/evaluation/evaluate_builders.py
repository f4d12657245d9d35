"""Shards, files of another system and records for the tests of `evaluate`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from omniges.evaluation.report import TaskReport
from omniges.evaluation.run import evaluate
from omniges.evaluation.scores import Figure
from omniges.evaluation.settings import EvaluateSettings
from omniges.generation.records import GeneratedRecord
from omniges.pipeline.run import preprocess
from omniges.pipeline.settings import ConvertSettings, PreprocessSettings, Selection
from omniges.progress import make_reporter
from omniges.shards.reader import SampleArrays, ShardFolder
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus


def shards_of(folder: Path, *, keep_audio: bool) -> Path:
    """Six clips of 8 s: beats leave out 2 s at either end."""
    corpus = folder / "corpus"
    write_sample_corpus(corpus, CorpusSettings(clips=6, seconds=8.0, seed=3))
    settings = PreprocessSettings(
        root=corpus,
        output_dir=folder / "shards",
        selection=Selection(),
        convert=ConvertSettings(keep_audio=keep_audio),
        num_workers=1,
    )
    preprocess(settings, make_reporter("json"))
    return folder / "shards"


def write(folder: Path, shards: Path, content: Callable[[SampleArrays], bytes], ending: str) -> list[SampleArrays]:
    """A file of another system for every sample."""
    folder.mkdir()
    source = ShardFolder(shards)
    samples = [source.sample(row) for row in source.rows]
    for sample in samples:
        (folder / f"{sample.row.key}{ending}").write_bytes(content(sample))
    return samples


def task_of(folder: Path, shards: Path, **changes: Any) -> TaskReport:
    """The report of the one task in a folder."""
    settings = {"generated": (folder,), "shards": shards, "resamples": 50} | changes
    ((_, task),) = evaluate(EvaluateSettings(**settings)).tasks.items()
    return task


def scored(folder: Path, shards: Path, **changes: Any) -> dict[tuple[str, str], Figure]:
    """Its figures by metric and row."""
    return {(figure.metric, figure.row): figure for figure in task_of(folder, shards, **changes).figures}


def record_of(shards: Path, key: str, task: str, files: dict[str, bytes], **changes: Any) -> GeneratedRecord:
    """A record of files by the end of their names, as `generate` writes it."""
    name = changes.get("name", key)
    kinds = {".npz": "gesture", ".mel.npy": "mel", ".wav": "audio", ".TextGrid": "text"}
    entries = {
        kinds[ending]: {"path": f"{name}{ending}", "sha256": hashlib.sha256(content).hexdigest()}
        for ending, content in files.items()
    }
    facts: dict[str, Any] = {
        "omniges": "0",
        "task": task,
        "name": name,
        "source": {"shards": str(shards), "manifest_sha256": "", "key": key},
        "sample": 0,
        "ticks": 40,
        "seconds": 4.0,
        "files": entries,
        "inputs": (),
        "model": {},
        "settings": {},
        "seams_s": (),
        "measures": {},
        "remarks": (),
    }
    return GeneratedRecord(**(facts | changes))


def put(folder: Path, shards: Path, key: str, task: str, files: dict[str, bytes], **changes: Any) -> None:
    """A result with its record."""
    folder.mkdir(exist_ok=True)
    record = record_of(shards, key, task, files, **changes)
    for ending, content in files.items():
        (folder / f"{record.name}{ending}").write_bytes(content)
    (folder / f"{record.name}.json").write_bytes(record.document())


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """An array as npy."""
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def put_mel(folder: Path, shards: Path, recorded: SampleArrays, mel: np.ndarray[Any, Any], **changes: Any) -> None:
    """A record with its mel."""
    changes = {"ticks": len(mel) // 10, "seconds": len(mel) / 100} | changes
    put(folder, shards, recorded.row.key, "t2a", {".mel.npy": npy(mel.astype(np.float32))}, **changes)
