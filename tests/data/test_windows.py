"""`WindowDataset` gives windows as plain numpy cuts them out of whole samples, in any number of processes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate
from torch.utils.data.distributed import DistributedSampler

from omniges.data import windows
from omniges.data.samples import Sample, Word, open_shards
from omniges.data.windows import ARRAYS, WindowDataset
from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault
from omniges.features.text_tokens import TextTokenCodec

ROWS = {"gesture": 3, "jaw_eyes": 3, "mel": 10, "waveform": 1600}


def recorded(sample: Sample, name: str, start_tick: int, ticks: int) -> np.ndarray[Any, Any]:
    """The rows of a window, cut out of the whole sample."""
    whole = getattr(sample, name)
    assert whole is not None
    cut: np.ndarray[Any, Any] = whole[start_tick * ROWS[name] : (start_tick + ticks) * ROWS[name]]
    return cut


@pytest.mark.parametrize("name", ["whole_set", "version_1"])
def test_raw_windows_are_cut_out_of_whole_samples(name: str, request: pytest.FixtureRequest) -> None:
    """Every window of a stride that does not divide it, every array."""
    folder: Path = request.getfixturevalue(name)
    data = WindowDataset(folder, window_ticks=10, stride_ticks=4, arrays=ARRAYS, normalized=False, split=None)
    shards = open_shards(folder)
    codec = TextTokenCodec((folder / "tokenizer.json").read_bytes())
    expected = [(row.key, start) for row in shards.rows for start in range(0, row.ticks - 9, 4)]
    items = [data[number] for number in range(len(data))]
    assert [(item["key"], item["start_tick"]) for item in items] == expected
    for item in items:
        sample, start = shards[item["key"]], item["start_tick"]
        for array in ROWS:
            assert np.array_equal(item[array], recorded(sample, array, start, 10))
            assert item["present"][array].all()
        words = [{"word": w.word, "start": w.start_s, "end": w.end_s} for w in sample.words]
        ids = codec.encode(words, sample.frames // 3).ids[start : start + 10]
        assert item["text_tokens"].tolist() == ids.tolist()
        spoken = [w for w in sample.words if w.start_s < start / 10 + 1 - 1e-6 and w.end_s > start / 10 + 1e-6]
        assert item["words"] == " ".join(w.word for w in spoken)
        assert [w.word for w in item["timed_words"]] == [w.word for w in spoken]
        for timed, word in zip(item["timed_words"], spoken, strict=True):
            assert timed.start_s == pytest.approx(max(0, word.start_s - start / 10))
            assert timed.end_s == pytest.approx(min(1, word.end_s - start / 10))
        assert data.speaker_names[item["speaker"]] == sample.speaker
        assert item["labels"] == sample.labels
    assert data.vocabulary_size == 1 + 4 * codec.vocab_size


def test_normalized_windows_are_those_of_stats_json(whole_set: Path, version_1: Path) -> None:
    """(x − mean) / std in float32; jaw_eyes of version 1 by statistics over its own train split."""
    statistics = json.loads((whole_set / "stats.json").read_bytes())
    for folder in (whole_set, version_1):
        arrays = ("gesture", "mel", "jaw_eyes", "waveform")
        data = WindowDataset(folder, window_ticks=7, split="val", arrays=arrays)
        shards = open_shards(folder)
        for item in (data[0], data[-1]):
            for name in ("gesture", "mel", "jaw_eyes"):
                mean, std = (np.array(statistics[name][of]) for of in ("mean", "std"))
                divisor = np.where(std < 1e-6, 1, std).astype(np.float32)
                raw = recorded(shards[item["key"]], name, item["start_tick"], 7)
                assert np.array_equal(item[name], (raw - mean.astype(np.float32)) / divisor)
            raw = recorded(shards[item["key"]], "waveform", item["start_tick"], 7)
            assert np.array_equal(item["waveform"], raw)


def test_what_is_absent_is_masked_zero_normalized_and_nan_raw(partial_set: Path) -> None:
    """Each array follows the parts that its sample names."""
    arrays = ("gesture", "jaw_eyes", "mel", "waveform", "text_tokens")
    normalized = WindowDataset(partial_set, window_ticks=20, arrays=arrays)
    raw = WindowDataset(partial_set, window_ticks=20, arrays=arrays, normalized=False)
    channels = {"upper": (0, 78), "hands": (78, 258), "lower": (258, 312), "root": (312, 315), "face": (315, 415)}
    for one, other in zip(normalized, raw, strict=True):  # type: ignore[arg-type]
        sample = open_shards(partial_set)[one["key"]]
        has = {name: np.ones(1, bool) for name in arrays}
        has["gesture"] = np.concatenate(
            [np.full(stop - start, part in sample.present) for part, (start, stop) in channels.items()]
        )
        has |= {"jaw_eyes": np.full(9, "jaw_eyes" in sample.present), "mel": np.full(64, "audio" in sample.present)}
        has |= {"waveform": np.array("audio" in sample.present), "text_tokens": np.array("text" in sample.present)}
        for name in arrays:
            assert np.array_equal(one["present"][name], has[name])
            if name != "text_tokens":
                there = np.broadcast_to(has[name], one[name].shape)
                values = one[name].numpy()
                assert np.isfinite(values).all()
                assert (values[~there] == 0).all()
                assert np.array_equal(np.isnan(other[name].numpy()), ~there)
        assert "text" in sample.present or not one["text_tokens"].any()


def test_clips_that_are_short_or_lack_a_part_are_left_out_and_counted(partial_set: Path, whole_set: Path) -> None:
    data = WindowDataset(whole_set, window_ticks=23, split=None)
    assert (len(data), data.left_out) == (5, {"too short": 3, "without a required part": 0})
    data = WindowDataset(partial_set, window_ticks=5, require=("text", "hands"))
    assert (len(data), data.left_out) == (2 * 4, {"too short": 0, "without a required part": 6})
    assert "clips left out: 6 without a required part" in repr(data)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def test_batches_are_the_items_stacked(whole_set: Path) -> None:
    """Batches are equal with our collating and torch's, requested one by one or together."""
    plain = tuple(name for name in ARRAYS if name != "timed_words")
    data = WindowDataset(whole_set, window_ticks=5, arrays=plain)
    expected = default_collate([data[number] for number in (3, 0, 9)])
    for items in ([data[number] for number in (3, 0, 9)], data.__getitems__([3, 0, 9])):
        assert same(WindowDataset.collate(items), expected)
        assert same(default_collate(items), expected)
    data = WindowDataset(whole_set, window_ticks=5, arrays=ARRAYS)
    words = data.collate(data.__getitems__([3, 0]))["timed_words"]
    assert words == [data[3]["timed_words"], data[0]["timed_words"]]
    assert isinstance(words[0][0], Word)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_worker_processes_read_the_same(whole_set: Path, start: str) -> None:
    """Two workers, forked and spawned, after this process has read some windows itself; digests are marked for all."""
    data = WindowDataset(whole_set, window_ticks=5, arrays=ARRAYS)
    expected = [data.collate([data[k] for k in range(n, min(n + 4, len(data)))]) for n in range(0, len(data), 4)]
    fresh = WindowDataset(whole_set, window_ticks=5, arrays=ARRAYS)
    for one in (data, fresh):
        loader = DataLoader(one, 4, num_workers=2, multiprocessing_context=start, collate_fn=one.collate)
        assert all(same(found, wanted) for found, wanted in zip(loader, expected, strict=True))
    assert fresh._marks.sum() == data._marks.sum() == 4 * 6


def test_a_pickled_dataset_reads_the_same(whole_set: Path) -> None:
    data = WindowDataset(whole_set, window_ticks=5, arrays=ARRAYS)
    before = data[2]
    assert same(pickle.loads(pickle.dumps(data))[2], before)  # noqa: S301 - our own


def test_ranks_share_the_windows(whole_set: Path) -> None:
    """Each window once among three ranks, but for those that fill the last round."""
    data = WindowDataset(whole_set, window_ticks=5, stride_ticks=2)
    seen = []
    for rank in range(3):
        sampler: DistributedSampler[Any] = DistributedSampler(data, 3, rank, seed=5)
        for batch in DataLoader(data, 4, sampler=sampler):
            seen += list(zip(batch["key"], batch["start_tick"].tolist(), strict=True))
    assert set(seen) == {(item["key"], item["start_tick"]) for item in data}  # type: ignore[attr-defined]
    assert len(seen) == -(-len(data) // 3) * 3


def test_an_open_set_is_taken_with_its_filters(whole_set: Path) -> None:
    """Numbers of speakers stay those of the whole set."""
    data = WindowDataset(open_shards(whole_set, speakers="speaker1"), window_ticks=5, arrays="speaker", split="val")
    assert {item["speaker"] for item in data} == {1}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arrays": ("gesture", "motion")}, "arrays: expected one of gesture, jaw_eyes, mel, .*, found 'motion'"),
        ({"require": "hand"}, "require: expected one of text, audio, .*, found 'hand'"),
        ({"window_ticks": 0}, "expected a whole number of at least 1, found 0"),
        ({"stride_ticks": 0}, "stride_ticks: expected a whole number of at least 1, found 0"),
        ({"window_ticks": 900}, "expected a clip of at least 900 ticks, found none among 6; the longest has 25 ticks"),
        ({"split": "test"}, "choose from train, val"),
        ({"speakers": "scott"}, "choose from speaker0, speaker1"),
    ],
)
def test_an_argument_that_is_invalid_is_one_clear_line(
    whole_set: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageFault, match=message) as caught:
        WindowDataset(whole_set, **({"window_ticks": 10} | arguments))
    assert "\n" not in str(caught.value)


def test_waveforms_and_statistics_that_are_not_there(tmp_path: Path) -> None:
    from sample_set_builders import take, write_takes

    folder = write_takes(tmp_path / "shards", [take("1_a_0_1_1", 2.0, split="val")], keep_audio=False)
    with pytest.raises(UsageFault, match="preprocess again with --keep-audio"):
        WindowDataset(folder, split="val", window_ticks=5, arrays="waveform")
    with pytest.raises(UsageFault, match=r"found those of 0 samples; use normalized=False"):
        WindowDataset(folder, split="val", window_ticks=5)
    assert len(WindowDataset(folder, split="val", window_ticks=5, normalized=False)) == 4


def test_what_no_train_sample_has_cannot_be_normalized(tmp_path: Path) -> None:
    """It is refused only if it is requested and a chosen clip has it."""
    from sample_set_builders import take, write_takes

    takes = [take("1_a_0_1_1", 2.0, lacking=("face", "jaw_eyes", "audio")), take("1_a_0_2_2", 2.0, split="val")]
    takes.append(take("2_b_0_3_3", 2.0, split="val", lacking=("face",)))
    folder = write_takes(tmp_path / "shards", takes)
    for array, part in (("gesture", "face"), ("jaw_eyes", "jaw_eyes"), ("mel", "audio")):
        words = rf"stats.json: expected statistics of {part}.* for {array}, found none, .*; use normalized="
        with pytest.raises(UsageFault, match=words) as caught:
            WindowDataset(folder, split="val", window_ticks=5, arrays=array)
        assert "\n" not in str(caught.value)
        assert len(WindowDataset(folder, split="val", window_ticks=5, arrays=array, normalized=False)) == 8
        assert len(WindowDataset(folder, window_ticks=5, arrays=array)) == 4
    assert len(WindowDataset(folder, split="val", speakers="b", window_ticks=5, arrays="gesture")) == 4
    assert len(WindowDataset(folder, split="val", window_ticks=5, arrays=("waveform", "words"))) == 8


@pytest.mark.parametrize("member", ["gesture.npy", "mel.npy", "jaw_eyes.npy", "audio.npy", "words.txt"])
def test_a_flipped_bit_is_found_at_the_first_use(whole_set: Path, tmp_path: Path, member: str) -> None:
    """The error names shard, key and member, wherever the bit is in the member and wherever the window is."""
    folder = Path(shutil.copytree(whole_set, tmp_path / "shards"))
    row = open_shards(folder, split="train").rows[0]
    place = row.members[member]
    data = bytearray((folder / row.shard).read_bytes())
    data[place.offset + place.size - 1] ^= 1
    (folder / row.shard).write_bytes(data)
    arrays = ("gesture", "mel", "jaw_eyes", "waveform", "text_tokens")
    windows = WindowDataset(folder, window_ticks=5, arrays=arrays)
    with pytest.raises(DataError, match=rf"{row.shard}: {row.key}.{member} at byte {place.offset}: expected sha256"):
        windows[0]


def test_an_item_costs_its_own_bytes(whole_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the header, unless the digest of the member has to be compared."""
    read: list[int] = []
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda file, size, at: read.append(size) or pread(file, size, at))
    monkeypatch.setattr(os, "preadv", lambda file, into, at: read.append(into[0].nbytes) or preadv(file, into, at))
    data = WindowDataset(whole_set, window_ticks=5, arrays="gesture", verify="never")
    read.clear()
    window = data[0]["gesture"]
    assert window.numel() * 4 <= sum(read) < window.numel() * 4 + 256


def test_a_shard_of_another_size_or_gone_is_reported(whole_set: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole_set, tmp_path / "shards"))
    data = WindowDataset(folder, window_ticks=5)
    path = folder / data.shards.rows[0].shard
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"train-000000.tar: expected \d+ bytes, found \d+"):
        data[0]
    path.unlink()
    with pytest.raises(OmnigesError, match="expected this shard, found that the file does not exist"):
        data[0]


@pytest.mark.parametrize("left", [0, 4096])
def test_a_shard_cut_after_it_was_opened_is_one_error(whole_set: Path, tmp_path: Path, left: int) -> None:
    """Nothing is mapped: the kernel would end the program with SIGBUS."""
    folder = Path(shutil.copytree(whole_set, tmp_path / "shards"))
    data = WindowDataset(folder, window_ticks=5, verify="never")
    assert len(data[0]["gesture"]) == 15
    os.truncate(folder / data.shards.rows[0].shard, left)
    with pytest.raises(
        DataError, match=r"train-000000.tar: expected \d+ bytes at byte \d+, found \d+; the shard was truncated while"
    ):
        [data[number] for number in range(len(data))]


def test_shared_rows_are_what_was_written_and_a_full_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = windows._SharedRows(3, (5, 7))
    values = torch.randn(3, 5, 7)
    for row in (2, 0, 1):
        rows.write(row, values[row])
    assert torch.equal(rows.batch, values)
    assert rows.batch.is_shared()
    monkeypatch.setattr(os, "pwrite", lambda _descriptor, data, _place: data.nbytes - 1)
    with pytest.raises(
        EnvironmentFault, match=r"expected 140 bytes for a batch, found room for 139; make room in /dev/shm"
    ):
        rows.write(0, values[0])


def test_an_array_of_another_kind_is_reported(whole_set: Path, tmp_path: Path) -> None:
    """The header is checked even if digests are not, so no other shape or type is read as numbers."""
    folder = Path(shutil.copytree(whole_set, tmp_path / "shards"))
    row = open_shards(folder, split="train").rows[0]
    data = bytearray((folder / row.shard).read_bytes())
    at = row.members["mel.npy"].offset
    data[at : at + 128] = data[at : at + 128].replace(b"'<f4'", b"'<i4'")
    (folder / row.shard).write_bytes(data)
    with pytest.raises(DataError, match=r"mel.npy at byte \d+: expected an npy array \(200, 64\) of float32"):
        WindowDataset(folder, window_ticks=5, verify="never")[0]


def test_an_open_set_keeps_its_own_verification(whole_set: Path) -> None:
    for verify, other in (("first", "never"), ("never", "first")):
        opened = open_shards(whole_set, verify=verify)
        for chosen in (None, verify):
            assert WindowDataset(opened, window_ticks=5, verify=chosen)._verify == (verify == "first")
        with pytest.raises(UsageFault, match=f"verify: expected '{verify}', as of the open set, .*found '{other}'"):
            WindowDataset(opened, window_ticks=5, verify=other)
    with pytest.raises(UsageFault, match="verify: expected one of"):
        WindowDataset(whole_set, window_ticks=5, verify="often")
