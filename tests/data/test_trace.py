"""`omniges trace-batches` lists what a loader hands over, in the promised fields, without reading shards or torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from batch_builders import PlainReader, write_shards
from pipeline_helpers import omniges

from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing
from omniges.data.settings import TraceSettings
from omniges.data.trace import trace
from omniges.errors import UsageFault
from omniges.features.text_tokens import TextTokenCodec

LENGTHS = (30, 9, 17, 8, 25, 7)
FLAGS = ("--world-size", 2, "--rank", 1, "--batch-size", 3, "--window-ticks", 8, "--seed", 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("trace") / "shards", LENGTHS, per_shard=2)


def settings_of(folder: Path, **changes: Any) -> TraceSettings:
    chosen: dict[str, Any] = {
        "shards": folder,
        "window_ticks": 8,
        "seed": 5,
        "rank": 1,
        "world_size": 2,
        "batch_size": 3,
    }
    return TraceSettings(**(chosen | changes))


def test_the_command_lists_what_the_loader_hands_over(folder: Path) -> None:
    data = [DataSource(read_catalog(folder, Filters()))]
    expected = []
    share = RankShare(rank=1, world_size=2, batch_size=3)
    with BatchLoader(data, Sequencing(window_ticks=8, seed=5), share, LoaderSettings(workers=0)) as loader:
        for step, batch in zip(range(7), loader, strict=False):
            rows = zip(batch.positions.tolist(), batch.keys, batch.start_ticks.tolist(), strict=True)
            fields = ("step", "rank", "position", "key", "start_tick", "split")
            expected += [dict(zip(fields, (step, 1, *row, "train"), strict=True)) for row in rows]
    done = omniges("trace-batches", "--shards", folder, *FLAGS, "--from-step", 4, "--steps", 3)
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == expected[12:]
    assert [list(record) for record in found] == [["step", "rank", "position", "key", "start_tick", "split"]] * 9


def test_decoding_adds_the_digest_of_the_arrays(folder: Path) -> None:
    """The digest is that of the normalised window and its text tokens, read here with tarfile and numpy."""
    plain = PlainReader(folder)
    codec = TextTokenCodec((folder / "tokenizer.json").read_bytes())
    records = list(trace(settings_of(folder, steps=3, decode=True)))
    assert [{k: v for k, v in r.items() if k != "sha256"} for r in records] == list(trace(settings_of(folder, steps=3)))
    for record in records:
        key, start = record["key"], record["start_tick"]
        digest = hashlib.sha256()
        for stream in ("gesture", "mel"):
            digest.update(plain.window(key, stream, start, 8).tobytes())
        ticks = len(plain.array(key, "gesture")) // 3
        digest.update(codec.encode(plain.words(key), ticks).ids[start : start + 8].astype("<i4").tobytes())
        assert record["sha256"] == digest.hexdigest()


def test_without_decoding_no_shard_is_needed(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.suffix != ".tar":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert list(trace(settings_of(tmp_path))) == list(trace(settings_of(folder)))


def test_a_distant_step(folder: Path) -> None:
    (record, *_) = trace(settings_of(folder, from_step=10**14))
    assert record["position"] == 6 * 10**14 + 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rank", 2, "--world-size", 2), "rank: expected a number from 0 to 1"),
        (("--split", "val"), "expected samples of split 'val'"),
        (("--window-ticks", 99), "--window-ticks 30 or less"),
        (("--steps", 0), "--steps 0: expected a whole number of at least 1"),
        (("--from-step", -1), "--from-step -1: expected a whole number of at least 0"),
        (("--batch-size", 0), "at least 1"),
        (("--from-step", 10**20), "--from-step 100000000000000000000: expected steps below"),
    ],
)
def test_wrong_flags_exit_2_with_the_way_out(folder: Path, flags: tuple[object, ...], words: str) -> None:
    done = omniges("trace-batches", "--shards", folder, *flags)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_a_damaged_shard_exits_1_when_decoding(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        data = bytearray(path.read_bytes())
        if path.suffix == ".tar":
            data[5000] ^= 1
        (tmp_path / path.name).write_bytes(data)
    done = omniges("trace-batches", "--shards", tmp_path, "--window-ticks", 8, "--decode")
    assert done.returncode == 1
    assert "omniges verify-shards" in done.stderr


def test_steps_that_do_not_exist_are_refused(folder: Path) -> None:
    with pytest.raises(UsageFault):
        settings_of(folder, steps=0)
