"""Batches: one sequence for any ranks and workers, resumed anywhere, with the arrays of the shards, and no hang."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batch_builders import PlainReader, write_shards

from omniges.data import loader as loader_module
from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import Batch, BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing
from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.features.text_tokens import TextTokenCodec

TICKS = 8
LENGTHS = (30, 9, 17, 8, 25, 7, 40, 12, 19, 31, 5)  # 21 windows of 8 ticks; two clips are shorter
WINDOWS = sum(length // TICKS for length in LENGTHS)
SEQUENCING = Sequencing(window_ticks=TICKS, seed=11)
IN_PROCESS = LoaderSettings(workers=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("batches") / "shards", LENGTHS, per_shard=3)


@pytest.fixture(scope="module")
def plain(folder: Path) -> PlainReader:
    return PlainReader(folder)


catalog_of = functools.cache(read_catalog)


def loader_of(
    folder: Path,
    share: RankShare | None = None,
    settings: LoaderSettings = IN_PROCESS,
    sequencing: Sequencing = SEQUENCING,
    **filters: Any,
) -> BatchLoader:
    data = [DataSource(catalog_of(folder, Filters(**filters)))]
    return BatchLoader(data, sequencing, share or RankShare(batch_size=6), settings)


def names(batch: Batch) -> list[tuple[int, str, int]]:
    """Position, key and first tick of each window."""
    return list(zip(batch.positions.tolist(), batch.keys, batch.start_ticks.tolist(), strict=True))


def mapped_names(pid: int) -> set[str]:
    """Names in shared memory that a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text("utf-8").splitlines()
    return {line.split(maxsplit=5)[5] for line in maps if " /dev/shm/" in line}


def take(loader: BatchLoader, batches: int) -> list[tuple[int, str, int]]:
    return [name for batch in itertools.islice(loader, batches) for name in names(batch)]


@pytest.fixture(scope="module")
def sequence(folder: Path) -> list[tuple[int, str, int]]:
    """The first 240 windows, as one rank sees them."""
    with loader_of(folder, RankShare(batch_size=24)) as loader:
        return take(loader, 10)


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Any, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class TestContent:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_arrays_are_those_of_tarfile_and_numpy_bit_for_bit(
        self, folder: Path, plain: PlainReader, workers: int
    ) -> None:
        codec = TextTokenCodec((folder / "tokenizer.json").read_bytes())
        seen = set()
        with loader_of(folder, settings=LoaderSettings(workers=workers)) as loader:
            for batch in itertools.islice(loader, 9):
                assert batch.gesture.shape == (6, TICKS * 3, 415)
                assert batch.audio.shape == (6, TICKS * 10, 64)
                assert batch.text.shape == (6, TICKS)
                assert (batch.gesture.dtype, batch.audio.dtype, batch.text.dtype) == (
                    torch.float32,
                    torch.float32,
                    torch.int32,
                )
                for row, (_, key, start) in enumerate(names(batch)):
                    for stream, arrays in (("gesture", batch.gesture), ("mel", batch.audio)):
                        found = arrays[row].numpy()
                        np.testing.assert_array_equal(found, plain.window(key, stream, start, TICKS))
                    clip_ticks = len(plain.array(key, "gesture")) // 3
                    tokens = codec.encode(plain.words(key), clip_ticks).ids[start : start + TICKS]
                    np.testing.assert_array_equal(batch.text[row].numpy(), tokens)
                    assert batch.speakers[row] == key.split("_")[1]
                    seen.add(key)
        assert len(seen) == sum(length >= TICKS for length in LENGTHS)

    def test_channels_that_hardly_vary_keep_their_scale(self, tmp_path: Path) -> None:
        def still(_key: str, members: dict[str, Any]) -> None:
            data = np.frombuffer(members["gesture.npy"][1], np.float32).reshape(-1, 415)
            data.flags.writeable or data.setflags(write=False)
            held = data.copy()
            held[:, 5] = 0.25
            members["gesture.npy"] = (members["gesture.npy"][0], memoryview(held.tobytes()))

        write_shards(tmp_path / "s", LENGTHS, per_shard=4, fault=still)
        stats = json.loads((tmp_path / "s" / "stats.json").read_text())
        mean = np.float32(stats["gesture"]["mean"][5])
        catalog = read_catalog(tmp_path / "s", Filters())
        statistics = json.loads(json.dumps(catalog.statistics))
        statistics["gesture"]["std"][5] = 0.9e-6
        data = [DataSource(replace(catalog, statistics=statistics))]
        with BatchLoader(data, SEQUENCING, RankShare(batch_size=4), IN_PROCESS) as loader:
            batch = next(iter(loader))
            assert (batch.gesture[:, :, 5] == float(np.float32(0.25) - mean)).all()

    def test_statistics_of_no_sample_are_refused(self, tmp_path: Path) -> None:
        write_shards(tmp_path / "s", LENGTHS, per_shard=4, split="val")
        with pytest.raises(UsageFault, match=r"of 0 samples.*--split-csv"):
            loader_of(tmp_path / "s", split="val")

    def test_batches_stay_as_they_are_while_they_are_kept(self, folder: Path) -> None:
        with loader_of(folder, settings=LoaderSettings(workers=1, prefetch=1)) as loader:
            kept = [batch.gesture[:2] for batch in itertools.islice(loader, 12)]
        with loader_of(folder) as loader:
            for batch, earlier in zip(loader, kept, strict=False):
                assert torch.equal(batch.gesture[:2], earlier)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_memory_is_used_again_once_a_batch_is_gone(self, folder: Path, workers: int) -> None:
        with loader_of(folder, settings=LoaderSettings(workers=workers, prefetch=2)) as loader:
            places = {batch.gesture.data_ptr() for batch in itertools.islice(loader, 40)}
        assert len(places) <= 2 * workers + 2

    def test_handing_over_copies_nothing(self, folder: Path) -> None:
        with loader_of(folder) as loader:
            batch = next(iter(loader))
            assert loader._store is not None
            roots = [root.ctypes.data for root in loader._store._roots]
            ends = [start + loader._store.block_bytes for start in roots]
            tensors = (batch.gesture, batch.audio, batch.text, batch.positions, batch.start_ticks)
            for tensor in tensors:
                assert any(a <= tensor.data_ptr() < b for a, b in zip(roots, ends, strict=True))


class TestRanks:
    def check(self, folder: Path, sequence: list[tuple[int, str, int]], world: int, workers: int, micro: int) -> None:
        batch_size = 48 // world // micro
        steps = 3
        found: list[list[list[tuple[int, str, int]]]] = []
        for rank in range(world):
            share = RankShare(rank=rank, world_size=world, batch_size=batch_size, accumulation=micro)
            with loader_of(folder, share, LoaderSettings(workers=workers)) as loader:
                found.append([names(batch) for batch in itertools.islice(loader, steps * micro)])
        assert {len(batches) for batches in found} == {steps * micro}
        for step in range(steps):
            union = [name for m in range(micro) for rank in range(world) for name in found[rank][step * micro + m]]
            assert union == sequence[48 * step : 48 * (step + 1)]

    @pytest.mark.parametrize("micro", [1, 2])
    @pytest.mark.parametrize("world", [1, 2, 3, 8])
    def test_the_union_of_ranks_is_the_same_global_batch(
        self, folder: Path, sequence: list[tuple[int, str, int]], world: int, micro: int
    ) -> None:
        self.check(folder, sequence, world, 0, micro)

    @pytest.mark.slow
    @pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 2), (1, 4)])
    def test_and_with_workers(
        self, folder: Path, sequence: list[tuple[int, str, int]], world: int, workers: int
    ) -> None:
        self.check(folder, sequence, world, workers, 1)

    @pytest.mark.long
    @pytest.mark.parametrize("workers", range(5))
    @pytest.mark.parametrize("world", [1, 2, 3, 8])
    def test_and_in_every_combination(
        self, folder: Path, sequence: list[tuple[int, str, int]], world: int, workers: int
    ) -> None:
        self.check(folder, sequence, world, workers, 1)

    def test_every_window_of_an_epoch_once(self, sequence: list[tuple[int, str, int]]) -> None:
        for epoch in range(3):
            own = [name[1:] for name in sequence if name[0] // WINDOWS == epoch]
            assert len(own) == len(set(own)) == WINDOWS

    @pytest.mark.parametrize(
        ("clips", "per_shard"), [(5, 1), (200, 200), pytest.param(5000, 5000, marks=pytest.mark.long)]
    )
    def test_equal_steps_for_any_packing(self, tmp_path: Path, clips: int, per_shard: int) -> None:
        """Shards of one sample, and one shard of 200 samples or 5,000; workers more than shards, or none."""
        write_shards(tmp_path / "s", [1] * clips, per_shard, alike=True)
        sequencing = Sequencing(window_ticks=1)
        counts, union = [], set()
        for rank in range(3):
            share = RankShare(rank=rank, world_size=3, batch_size=7)
            settings = LoaderSettings(workers=0 if rank else 3)
            with loader_of(tmp_path / "s", share, settings, sequencing) as loader:
                found = [names(batch) for batch in itertools.islice(loader, 8)]
            counts.append([len(batch) for batch in found])
            union |= {name[0] for batch in found for name in batch}
        assert counts == [[7] * 8] * 3
        assert union == set(range(3 * 7 * 8))

    def test_the_packing_does_not_matter(self, folder: Path, tmp_path: Path, sequence: list[Any]) -> None:
        write_shards(tmp_path / "s", LENGTHS, per_shard=11)
        with loader_of(tmp_path / "s", RankShare(batch_size=24)) as loader:
            assert take(loader, 10) == sequence


class TestState:
    @pytest.mark.parametrize("stop", [0, 1, 3, 5, 9])
    def test_stop_and_resume_anywhere_under_any_world_size(
        self, folder: Path, sequence: list[tuple[int, str, int]], stop: int
    ) -> None:
        """World sizes 1 → 2 → 3 → 1, with batches that do not divide the epoch, through an epoch's end."""
        state: dict[str, Any] | None = None
        done = 0
        for world, batch_size in ((1, 6), (2, 3), (3, 2), (1, 6)):
            states = []
            parts: list[list[Any]] = []
            for rank in range(world):
                with loader_of(folder, RankShare(rank=rank, world_size=world, batch_size=batch_size)) as loader:
                    if state is not None:
                        assert loader.load_state_dict(json.loads(json.dumps(state))).note is None
                    parts.append([names(batch) for batch in itertools.islice(loader, stop)])
                    states.append(loader.state_dict())
            found = [name for k in range(stop) for rank in range(world) for name in parts[rank][k]]
            assert found == sequence[done : done + len(found)]
            assert all(other == states[0] for other in states)
            done += stop * 6
            state = states[0]
            assert state["position"] == done

    def test_resume_at_an_epochs_end(self, folder: Path, sequence: list[tuple[int, str, int]]) -> None:
        share = RankShare(batch_size=7)
        assert WINDOWS % 7 == 0
        with loader_of(folder, share) as loader:
            take(loader, WINDOWS // 7)
            state = loader.state_dict()
        assert state["position"] == WINDOWS
        with loader_of(folder, share) as loader:
            loader.load_state_dict(state)
            assert take(loader, 4) == sequence[WINDOWS : WINDOWS + 28]

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [(0, 2), (2, 0), (1, 3)])
    def test_workers_may_change_and_what_was_read_ahead_does_not_count(
        self, folder: Path, sequence: list[tuple[int, str, int]], workers: tuple[int, int]
    ) -> None:
        before, after = (LoaderSettings(workers=count, prefetch=3) for count in workers)
        with loader_of(folder, settings=before) as loader:
            assert take(loader, 4) == sequence[:24]
            state = loader.state_dict()
        with loader_of(folder, settings=after) as loader:
            loader.load_state_dict(state)
            assert take(loader, 4) == sequence[24:48]

    def test_it_is_small_and_holds_position_only(self, folder: Path) -> None:
        with loader_of(folder, settings=LoaderSettings(workers=2)) as loader:
            take(loader, 7)
            state = loader.state_dict()
        assert len(json.dumps(state)) < 1000
        assert state.keys() == {
            *("version", "manifest_hashes", "content_hashes", "filters", "weights", "window_ticks", "seed", "shuffle"),
            *("tick_multiple", "position", "global_batch"),
        }
        assert str(folder) not in json.dumps(state)

    def test_another_manifest_with_the_same_content_is_gone_on_with_and_an_earlier_state_by_its_manifest(
        self, folder: Path
    ) -> None:
        with loader_of(folder) as loader:
            state = loader.state_dict()
            assert loader.load_state_dict(state | {"manifest_hashes": ["f" * 64]}).note is None
            later = {"content_hashes", "tick_multiple"}
            earlier = {name: value for name, value in state.items() if name not in later}
            assert loader.load_state_dict(earlier).note is None
            with pytest.raises(UsageFault, match="manifest_hashes: "):
                loader.load_state_dict(earlier | {"manifest_hashes": ["f" * 64]})

    def test_a_distant_position_costs_no_more(self, folder: Path) -> None:
        with loader_of(folder) as loader:
            state = loader.state_dict() | {"position": 10**15}
            start = time.perf_counter()
            loader.load_state_dict(state)
            assert names(next(iter(loader)))[0][0] == 10**15
            assert time.perf_counter() - start < 5

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"seed": 12}, "seed: 12 in the saved state, 11 in this run"),
            ({"window_ticks": 9}, "window_ticks: 9 in the saved state, 8 in this run"),
            ({"manifest_hashes": ["f" * 64], "content_hashes": ["e" * 64]}, f"manifest_hashes: '{'f' * 64}' in"),
            ({"weights": [2.0]}, "weights: 2.0 in the saved state, 1.0 in this run"),
            ({"shuffle": False}, "shuffle: False in the saved state, True in this run"),
            ({"tick_multiple": 4}, "tick_multiple: 4 in the saved state, 1 in this run"),
            ({"content_hashes": ["e" * 64]}, f"content_hashes: '{'e' * 64}' in the saved state, '"),
            ({"content_hashes": ["e" * 64], "seed": 12}, "windows .seed: 12 in the saved state, 11 in this run.; res"),
            ({"seed": 12, "window_ticks": 9}, "window_ticks: 9 in .*, 8 in this run; seed: 12 in .*, 11 in"),
        ],
    )
    def test_another_sequence_is_refused_with_the_difference(
        self, folder: Path, change: dict[str, Any], words: str
    ) -> None:
        loader = loader_of(folder)
        with pytest.raises(UsageFault, match=words) as caught:
            loader.load_state_dict(loader.state_dict() | change)
        assert "\n" not in str(caught.value)
        assert loader.position == 0

    def test_other_filters_are_refused_field_by_field(self, folder: Path) -> None:
        saved = loader_of(folder, speakers=("1", "speaker2")).state_dict()
        with pytest.raises(UsageFault, match=r"filters.speakers: \['1', 'speaker2'\] in .*, \['1'\] in this run"):
            loader_of(folder, speakers=("1",)).load_state_dict(saved)
        loader_of(folder, speakers=("speaker2", "1", "1")).load_state_dict(saved)  # the same filter, written otherwise

    def test_another_global_batch_is_reported(self, folder: Path, sequence: list[Any]) -> None:
        saved = loader_of(folder).state_dict() | {"position": 30}
        with loader_of(folder, RankShare(batch_size=4)) as loader:
            note = loader.load_state_dict(saved).note
            assert note is not None
            assert "global batch 4, was 6" in note
            assert take(loader, 2) == sequence[30:38]

    @pytest.mark.parametrize(
        "change", [{"version": 2}, {"position": -1}, {"position": "3"}, {"position": 2**63}, {"global_batch": 0}]
    )
    def test_what_is_no_state_is_refused(self, folder: Path, change: dict[str, Any]) -> None:
        loader = loader_of(folder)
        with pytest.raises(DataError, match="loader state"):
            loader.load_state_dict(loader.state_dict() | change)
        with pytest.raises(DataError):
            loader.load_state_dict({"version": 1})


class TestFixedOrder:
    FIXED = Sequencing(window_ticks=TICKS, shuffle=False)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("world", "batch_size", "micro", "workers"),
        [(1, 4, 1, 0), (3, 4, 1, 0), (8, 2, 1, 0), (2, 3, 2, 0), (3, 30, 1, 0), (1, 4, 1, 2), (2, 3, 2, 2)],
    )
    def test_each_window_once_and_equal_steps(
        self, folder: Path, world: int, batch_size: int, micro: int, workers: int
    ) -> None:
        parts = []
        for rank in range(world):
            share = RankShare(rank=rank, world_size=world, batch_size=batch_size, accumulation=micro)
            with loader_of(folder, share, LoaderSettings(workers=workers), self.FIXED) as loader:
                parts.append([names(batch) for batch in loader])
                assert len(parts[-1]) == loader.batches
        assert len({len(batches) for batches in parts}) == 1
        found = [name for batches in zip(*parts, strict=True) for batch in batches for name in batch]
        assert [position for position, *_ in found] == list(range(WINDOWS))
        assert found == sorted(found, key=lambda name: (name[1], name[2]))
        assert all(start % TICKS == 0 for *_, start in found)

    def test_a_second_pass_is_the_same(self, folder: Path) -> None:
        with loader_of(folder, RankShare(batch_size=4), sequencing=self.FIXED) as loader:
            first = [names(batch) for batch in loader]
            assert [names(batch) for batch in loader] == first
            assert len(first[-1]) == WINDOWS % 4


class TestMixtures:
    def test_weights_and_own_epochs(self, folder: Path, tmp_path: Path) -> None:
        other = write_shards(tmp_path / "other", [TICKS * 2 + 3] * 4, per_shard=2, seed=5)
        data = [
            DataSource(read_catalog(folder, Filters()), weight=1.0),
            DataSource(read_catalog(other, Filters()), weight=3.0),
        ]
        plain = [PlainReader(folder), PlainReader(other)]
        found: list[list[tuple[str, int]]] = [[], []]
        with BatchLoader(data, SEQUENCING, RankShare(batch_size=20), LoaderSettings(workers=1)) as loader:
            for batch in itertools.islice(loader, 6):
                for row, (_, key, start) in enumerate(names(batch)):
                    found[batch.sources[row]].append((key, start))
                    reader = plain[batch.sources[row]]
                    reader.stats = plain[0].stats  # a mixture is normalised by its first folder
                    window = reader.window(key, "gesture", start, TICKS)
                    np.testing.assert_array_equal(batch.gesture[row].numpy(), window)
            state = loader.state_dict()
        assert [len(own) for own in found] == [30, 90]
        for own, windows in zip(found, (WINDOWS, 8), strict=True):
            for epoch in range(len(own) // windows):
                assert len(set(own[epoch * windows : (epoch + 1) * windows])) == windows
        assert len(state["manifest_hashes"]) == 2
        with pytest.raises(UsageFault, match="manifest_hashes"):
            loader_of(folder).load_state_dict(state)


class TestFaults:
    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_damaged_member_is_named_and_not_skipped(self, tmp_path: Path, workers: int) -> None:
        folder = write_shards(tmp_path / "s", LENGTHS, per_shard=3)
        catalog = read_catalog(folder, Filters())
        table = catalog.table
        victim = int(np.flatnonzero(table.ticks == 17)[0])
        offset = int(table.offsets[victim, 0])
        shard = folder / table.shard_name(int(table.shard[victim]))
        data = bytearray(shard.read_bytes())
        data[offset + 1000] ^= 1
        shard.write_bytes(data)
        with BatchLoader(
            [DataSource(catalog)], SEQUENCING, RankShare(batch_size=2), LoaderSettings(workers=workers)
        ) as loader:
            for _ in range(2):  # and again: nothing was skipped
                with pytest.raises(DataError) as caught:
                    take(loader, 40)
                text = str(caught.value)
                place = f"{table.key(victim)}.gesture.npy at byte {offset}"
                assert all(part in text for part in (str(shard), place, "omniges verify-shards"))
                assert "\n" not in text
                stopped = loader.position
                assert not loader.worker_pids
            data[offset + 1000] ^= 1
            shard.write_bytes(data)
            assert take(loader, 1)[0][0] == stopped

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("how", ["missing", "cut"])
    def test_a_missing_or_cut_shard_is_named(self, tmp_path: Path, workers: int, how: str) -> None:
        folder = write_shards(tmp_path / "s", LENGTHS, per_shard=3)
        shard = folder / "train-000001.tar"
        shard.unlink() if how == "missing" else os.truncate(shard, shard.stat().st_size - 512)
        with (
            loader_of(folder, settings=LoaderSettings(workers=workers)) as loader,
            pytest.raises(DataError, match=r"train-000001\.tar: .*verify-shards"),
        ):
            take(loader, 10)

    def test_a_killed_worker_is_named_and_the_rest_ended(self, folder: Path) -> None:
        with loader_of(folder, settings=LoaderSettings(workers=2)) as loader:
            iterator = iter(loader)
            first = names(next(iterator))
            pids = loader.worker_pids
            os.kill(pids[1], signal.SIGKILL)
            with pytest.raises(EnvironmentFault, match=r"train-0.*at byte .*exited \(.*killed by SIGKILL\)"):
                take(loader, 20)
            assert not any(map(is_running, pids))
            position = loader.position
            assert position % 6 == 0
            assert position >= 6
            assert names(next(iter(loader)))[0][0] == position  # it can go on
            assert first[0][0] == 0

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_shard_cut_while_it_is_mapped_is_bad_data(self, workers: int, tmp_path: Path) -> None:
        """The kernel ends a worker with SIGBUS; the training process lives and says where, without workers too."""
        folder = write_shards(tmp_path / "s", [64] * 6, per_shard=6)
        with loader_of(folder, settings=LoaderSettings(workers=workers, prefetch=1, verify="never")) as loader:
            take(loader, 1)
            os.truncate(folder / "train-000000.tar", 0)
            words = r"train-000000\.tar: .* at byte \d+.*truncated while it was read.*verify-shards"
            with pytest.raises(DataError, match=words):
                take(loader, 60)

    def test_a_worker_that_does_not_answer_is_named(self, folder: Path) -> None:
        with loader_of(folder, settings=LoaderSettings(workers=1, prefetch=1)) as loader:
            take(loader, 1)
            loader._settings = replace(loader._settings, stall_s=0.5)
            (pid,) = loader.worker_pids
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(EnvironmentFault, match=r"a batch within 0\.5 s.*still reading .*at byte"):
                take(loader, 5)
            assert not is_running(pid)

    def test_a_worker_that_does_not_start_is_named(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loader_module, "WORKER_COMMAND", (sys.executable, "-c", "raise SystemExit('no luck')"))
        with (
            loader_of(folder, settings=LoaderSettings(workers=1)) as loader,
            pytest.raises(EnvironmentFault, match=r"worker.*exit code 1: no luck"),
        ):
            take(loader, 1)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    def test_workers_leave_signals_to_the_training_process(self, folder: Path, number: signal.Signals) -> None:
        with loader_of(folder, settings=LoaderSettings(workers=1, prefetch=1)) as loader:
            take(loader, 1)
            os.kill(loader.worker_pids[0], number)
            take(loader, 5)

    def test_numbers_that_mean_nothing_are_refused(self) -> None:
        for wrong in ({"workers": -1}, {"prefetch": 0}, {"stall_s": 0.0}):
            with pytest.raises(UsageFault):
                LoaderSettings(**wrong)  # type: ignore[arg-type]


class TestNothingIsLeft:
    """Neither processes nor descriptors, and there are no names in /dev/shm to begin with."""

    @staticmethod
    def leave(loader: BatchLoader, end: str) -> tuple[int, ...]:
        """Take a batch and leave the loop in one of several ways; returns the workers' process ids."""
        if end == "with":
            with loader:
                take(loader, 3)
                return loader.worker_pids
        if end == "exception":
            with pytest.raises(RuntimeError, match="ours"), loader:
                for _ in loader:
                    pids = loader.worker_pids
                    raise RuntimeError("ours")
            return pids
        for _ in loader:
            break
        return loader.worker_pids

    @pytest.mark.slow
    @pytest.mark.parametrize("end", ["with", "break", "exception", "forgotten"])
    def test_after(self, folder: Path, end: str) -> None:
        with loader_of(folder, settings=LoaderSettings(workers=1)) as loader:
            take(loader, 1)  # what is opened once for all is open now
        del loader
        before = descriptors()
        loader = loader_of(folder, settings=LoaderSettings(workers=2))
        pids = self.leave(loader, end)
        assert len(pids) == 2
        if end == "break":
            assert all(map(is_running, pids))
            assert take(loader, 1)[0][0] == 6  # it goes on where it was left
            loader.close()
        del loader
        wait_until(lambda: descriptors() == before)
        assert not any(map(is_running, pids))

    def test_no_process_of_it_has_a_name_in_shared_memory(self, folder: Path) -> None:
        """Other processes of the machine use shared memory too, so only the maps of its own processes are read."""
        before = mapped_names(os.getpid())
        with loader_of(folder, settings=LoaderSettings(workers=2)) as loader:
            take(loader, 2)
            assert mapped_names(os.getpid()) <= before
            assert [mapped_names(pid) for pid in loader.worker_pids] == [set(), set()]

    SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests in the background ignores it
from pathlib import Path
from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing
data = [DataSource(read_catalog(Path(sys.argv[1]), Filters()))]
loader = BatchLoader(data, Sequencing(window_ticks=8), RankShare(batch_size=6), LoaderSettings(workers=2))
for batch in loader:
    print(*loader.worker_pids, flush=True)
    time.sleep(0.01)
"""

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
    def test_after_a_signal_to_the_program(self, folder: Path, number: signal.Signals) -> None:
        """Ctrl-C goes to the whole group, as from a terminal; the others to the program alone."""
        process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            assert process.stdout is not None
            pids = [int(pid) for pid in process.stdout.readline().split()]
            assert len(pids) == 2
            os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
            _, errors = process.communicate(timeout=30)
            assert process.returncode == -number
            assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
            wait_until(lambda: not any(map(is_running, pids)))

    @pytest.mark.slow
    def test_at_the_programs_end(self, folder: Path) -> None:
        script = self.SCRIPT.replace("time.sleep(0.01)", "break")
        done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        wait_until(lambda: not any(is_running(int(pid)) for pid in done.stdout.split()))


class TestSteadiness:
    @pytest.mark.slow
    def test_memory_and_open_files_are_flat_over_ten_epochs(self, tmp_path: Path) -> None:
        folder = write_shards(tmp_path / "s", [20] * 120, per_shard=1)  # more shards than are kept mapped
        settings = LoaderSettings(workers=1, prefetch=1)
        with loader_of(folder, RankShare(batch_size=40), settings) as loader:
            epoch = loader.windows_per_epoch // 40
            take(loader, 2 * epoch)
            (worker,) = loader.worker_pids
            before = self.usage(worker)
            for _ in range(10):
                take(loader, epoch)
            after = self.usage(worker)
        for name, (files_before, kb_before) in before.items():
            files_after, kb_after = after[name]
            assert files_after == files_before, name
            assert files_after < 64 + 40, name
            assert kb_after < kb_before + 2000, name

    @staticmethod
    def usage(worker: int) -> dict[str, tuple[int, int]]:
        """Open files and private memory in kB of this process and a worker."""
        gc.collect()
        found = {}
        for name in ("self", str(worker)):
            status = Path(f"/proc/{name}/status").read_text()
            kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
            found[name] = (len(os.listdir(f"/proc/{name}/fd")), kb)
        return found
