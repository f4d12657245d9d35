"""The two sides that the benchmark of windows compares read the same content, and it measures both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import window_dataset
from sample_set_builders import take, write_takes

from omniges.data.windows import WindowDataset


@pytest.mark.slow
def test_both_sides_read_the_same_windows_and_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw items of the plain Dataset are ours; every pair has its figures."""
    monkeypatch.setattr(window_dataset, "TICKS", 16)
    monkeypatch.setattr(window_dataset, "BATCH_SIZE", 2)
    shards = write_takes(tmp_path / "shards", [take(f"1_a_0_{n}_{n}", 4.0) for n in range(2)])
    window_dataset.write_plain(shards, tmp_path / "plain")
    ours = WindowDataset(shards, window_ticks=16, stride_ticks=8, arrays=window_dataset.ARRAYS, normalized=False)
    plain = window_dataset.PlainFiles(tmp_path / "plain", {})
    assert len(ours) == len(plain) == 2 * 4
    for number in range(8):
        one, other = ours[number], plain[number]
        assert all(torch.equal(one[name], other[name]) for name in window_dataset.ARRAYS)
    found = window_dataset.measure(window_dataset._pairs(shards, tmp_path / "plain", 0), 0.05, 2)
    assert [len(figures["ratios"]) for figures in found] == [2] * 3
