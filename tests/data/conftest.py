"""Shard sets in which samples lack parts, and the same samples as version 1 had them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_set_builders import as_version_1, take, write_takes


def _key(number: int) -> str:
    return f"{1 + number % 2}_speaker{number % 2}_0_{number}_{number}"


@pytest.fixture(scope="session")
def whole_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight samples of 2 to 2.7 s, audio kept, sem in every other one; the last two are val."""
    takes = [
        take(_key(n), 2.0 + 0.1 * n, split="train" if n < 6 else "val", lacking=() if n % 2 else ("sem",))
        for n in range(8)
    ]
    return write_takes(tmp_path_factory.mktemp("whole") / "shards", takes)


@pytest.fixture(scope="session")
def version_1(whole_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples in version 1 of the contract."""
    return as_version_1(whole_set, tmp_path_factory.mktemp("first") / "shards")


@pytest.fixture(scope="session")
def partial_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight samples: the first six have no words, notes or sem, some no audio, motion, hands, face or jaw_eyes."""
    lacking = [(), ("audio",), ("motion",), ("hands", "face"), ("jaw_eyes",), ()]
    takes = [take(f"1_speaker_0_{n}_{n}", 2.0, lacking=("text", "sem", *parts)) for n, parts in enumerate(lacking)]
    takes += [take(f"2_speaker_0_{n}_{n}", 2.0) for n in (6, 7)]
    folder = tmp_path_factory.mktemp("partial") / "shards"
    return write_takes(folder, takes, noted=[one.key for one in takes[6:]], shard_bytes=800_000)
