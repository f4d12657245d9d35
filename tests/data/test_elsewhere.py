"""docs/how-to/elsewhere.md is true: each block runs, and what other libraries load is equal to `open_shards`."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from pipeline_helpers import run_preprocess
from sample_set_builders import take, write_takes

from omniges.data.samples import open_shards

# Nothing is asked of the network; read when the library is imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

PAGE = (Path(__file__).resolve().parents[2] / "docs/how-to/elsewhere.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

# webdataset leaves its files to the garbage collector, Hugging Face datasets some of its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hugging Face datasets, with a cache of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()
    return library


@pytest.fixture(scope="module")
def float_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kept audio of float sources, whose values no 24 bit hold."""
    takes = []
    for number in range(3):
        one = take(f"1_a_0_{number}_{number}", 2.0)
        samples = np.random.default_rng(number).uniform(-1, 1, 32_000).astype(np.float32) / 3
        assert one.wav
        takes.append(replace(one, wav=replace(one.wav, samples=samples, encoding="float32", pcm=None)))
    return write_takes(tmp_path_factory.mktemp("float") / "shards", takes)


@pytest.fixture(scope="module")
def late_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first six samples have no words, no notes and no sem, the seventh has."""
    takes = [take(f"1_a_0_{n}_{n}", 2.0 + n / 10, lacking=() if n == 6 else ("text", "sem")) for n in range(7)]
    return write_takes(tmp_path_factory.mktemp("late") / "shards", takes, noted=["1_a_0_6_6"])


@pytest.fixture(scope="module")
def late_audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first six samples have no audio and no label, the seventh has; no sample has hands."""
    takes = [take(f"1_a_0_{n}_{n}", 2.0, lacking=("hands",) if n == 6 else ("hands", "audio")) for n in range(7)]
    unlabelled = [replace(one, labels=dict.fromkeys(one.labels, "")) for one in takes[:6]]
    return write_takes(tmp_path_factory.mktemp("late-audio") / "shards", [*unlabelled, takes[6]])


@pytest.fixture(scope="module")
def late_motion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first six samples have no motion, the seventh has."""
    takes = [take(f"1_a_0_{n}_{n}", 2.0, lacking=() if n == 6 else ("motion",)) for n in range(7)]
    return write_takes(tmp_path_factory.mktemp("late-motion") / "shards", takes)


@pytest.fixture(scope="module")
def real(beat2_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real takes, of a float and a PCM16 source, audio kept."""
    out = tmp_path_factory.mktemp("real") / "shards"
    run_preprocess(beat2_sample, out, keep_audio=True)
    return out


SETS = ["whole_set", "float_source", "late_text", "late_audio", "late_motion", "partial_set", "real"]


@pytest.fixture(params=SETS)
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def hold(samples: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Compare every field of every sample, whole, with `open_shards`."""
    shards = open_shards(folder)
    keys = []
    for sample in samples:
        own = shards[sample["__key__"]]
        keys.append(own.key)
        fields = {"gesture.npy": own.gesture, "mel.npy": own.mel, "jaw_eyes.npy": own.jaw_eyes}
        fields |= {"betas.npy": own.betas, "start_xz.npy": own.start_xz}
        fields |= {"audio.npy": np.empty(0, np.float32) if own.waveform is None else own.waveform}
        for name, expected in fields.items():
            found = np.asarray(sample[name])
            assert found.shape == expected.shape, name
            assert np.array_equal(found.astype(expected.dtype), expected, equal_nan=True), name
        assert sample["json"] == own.metadata
        words = [(one["word"], one["start"], one["end"]) for one in json.loads(sample["words.txt"])]
        assert words == [(one.word, one.start_s, one.end_s) for one in own.words]
        spans = [(one["name"], one["start"], one["end"]) for one in json.loads(sample["sem.txt"])]
        assert spans == [(one.name, one.start_s, one.end_s) for one in own.semantic or ()]
        assert {*sample} == {*fields, "json", "words.txt", "sem.txt", "__key__", "__url__"} | (
            {"__local_path__"} & sample.keys()
        )
    assert sorted(keys) == sorted(shards.keys)


@pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "table"])
def test_hugging_face_datasets_loads_all_of_every_sample(folder: Path, streaming: bool, datasets: Any) -> None:
    """Streamed and not; the schema that is inferred from the first samples fits the others."""
    shards = {"train": sorted(map(str, folder.glob("*.tar")))}
    hold(datasets.load_dataset("webdataset", data_files=shards, split="train", streaming=streaming), folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_stock_webdataset_loads_all_of_every_sample(folder: Path, workers: int) -> None:
    """Plain webdataset reads them without our code, in this process and in two workers."""
    shards = sorted(map(str, folder.glob("*.tar")))
    data = wds.WebDataset(shards, shardshuffle=False, empty_check=False).decode()
    hold(wds.WebLoader(data, batch_size=None, num_workers=workers), folder)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{number}" for number in range(len(BLOCKS))])
def test_each_block_of_the_page_runs(
    block: str, whole_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Each block runs in a folder that has the shards as `shards`, and its results are not empty."""
    if "datasets" in block.split():
        request.getfixturevalue("datasets")
    (tmp_path / "shards").symlink_to(whole_set)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/how-to/elsewhere.md", "exec"), names)  # noqa: S102 - our own page
    gesture = names["gesture"] if "gesture" in names else names["sample"]["gesture.npy"]
    assert np.shape(gesture)[-1] == 415
