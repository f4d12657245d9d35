"""Every sample of a set has the same members, and KEY.json the same keys and types; kept waveforms come back."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_helpers import run_preprocess

from omniges.formats.audio import encode_pcm_wav, encode_wav
from omniges.pipeline.export import export
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import CONTRACT, PARTS, STATS_FILE


def form(value: Any) -> Any:
    """The keys and JSON types of a value; a list could have another form in each sample, so there must be none."""
    assert not isinstance(value, list)
    assert value is not None
    return {name: form(inner) for name, inner in value.items()} if isinstance(value, dict) else type(value).__name__


def assert_one_form(folder: Path, *, keeps_audio: bool) -> None:
    source = ShardFolder(folder)
    members = {tuple(row.members) for row in source.rows}
    assert members == {CONTRACT.members + (("audio.npy",) if keeps_audio else ())}
    forms = [form(json.loads(source.member(row, "json"))) for row in source.rows]
    assert all(one == forms[0] for one in forms)
    for row in source.rows:
        metadata = json.loads(source.member(row, "json"))
        assert metadata["present"] == {part: part in row.present for part in PARTS}
        for name in ("gesture.npy", "mel.npy", "jaw_eyes.npy"):
            assert source.array(row, name).dtype == np.float32
        assert source.array(row, "betas.npy").dtype == np.float64
        for member in (CONTRACT.words, CONTRACT.semantic):
            assert isinstance(json.loads(source.member(row, member)), list)


@pytest.fixture(scope="module")
def uneven(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose recordings differ: sound of other rates, encodings and channels, no annotation, a foreign stem."""
    root = tmp_path_factory.mktemp("uneven") / "root"
    for path in corpus.rglob("*"):
        if path.is_file():
            target = root / path.relative_to(corpus)
            target.parent.mkdir(parents=True, exist_ok=True)
            stem = path.stem.replace("1_synthetica_0_2_2", "somebody")
            target.with_name(stem + path.suffix).write_bytes(path.read_bytes())
    waves = sorted(root.rglob("*.wav"))
    for path in root.rglob("sem/*_1_1.txt"):
        path.unlink()
    samples = _pcm16(waves[0]) / 2.0**15
    waves[0].write_bytes(encode_wav(samples.astype(np.float32), 16_000))
    waves[1].write_bytes(encode_pcm_wav(_pcm16(waves[1]).astype(np.int32) * 256 + 77, 16_000, bits=24))
    return root


def _pcm16(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


@pytest.fixture(scope="module")
def kept(uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "shards"
    run_preprocess(uneven, out, keep_audio=True)
    return out


class TestForm:
    def test_of_the_synthetic_corpus(self, shards: Path) -> None:
        assert_one_form(shards, keeps_audio=True)

    def test_of_recordings_that_differ(self, kept: Path) -> None:
        rows = ShardFolder(kept).rows
        assert {row.speaker for row in rows} > {None}
        assert {"sem" in row.present for row in rows} == {True, False}
        assert {"labels" in row.present for row in rows} == {True, False}
        assert_one_form(kept, keeps_audio=True)

    def test_of_a_set_without_audio(self, uneven: Path, tmp_path: Path) -> None:
        run_preprocess(uneven, tmp_path / "o")
        assert_one_form(tmp_path / "o", keeps_audio=False)

    def test_of_real_recordings(self, beat2_sample: Path, tmp_path: Path) -> None:
        run_preprocess(beat2_sample, tmp_path / "o", keep_audio=True)
        assert_one_form(tmp_path / "o", keeps_audio=True)

    def test_statistics_describe_every_array(self, kept: Path) -> None:
        stats = json.loads((kept / STATS_FILE).read_bytes())
        for name, channels in (("gesture", 415), ("mel", 64), ("jaw_eyes", 9)):
            for statistic in ("mean", "std", "min", "max", "counts", "difference_std"):
                assert len(stats[name][statistic]) == channels, (name, statistic)
            assert set(stats[name]["counts"]) == {stats[name]["frames"]}


class TestWaveforms:
    def test_pcm16_pcm24_and_float_come_back_bit_by_bit(self, uneven: Path, kept: Path, tmp_path: Path) -> None:
        encodings = {row["audio"]["encoding"] for row in _metadata(kept)}
        assert encodings == {"pcm16", "pcm24", "float32"}
        export(kept, tmp_path / "back")
        exported = {path.name: path.read_bytes() for path in (tmp_path / "back").rglob("*.wav")}
        assert len(exported) == len(ShardFolder(kept).rows)
        for path in uneven.rglob("*.wav"):
            if path.name in exported:
                assert exported[path.name] == path.read_bytes(), path.name


def _metadata(folder: Path) -> list[dict[str, Any]]:
    source = ShardFolder(folder)
    return [json.loads(source.member(row, "json")) for row in source.rows]
