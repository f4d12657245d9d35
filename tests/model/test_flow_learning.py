"""The model learns all six tasks from shards: what it is given must lower its loss on windows it has not seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_helpers import run_preprocess
from torch import Tensor

from omniges.features.text_tokens import TextTokenCodec
from omniges.model.draws import FlowSettings, draw_plan
from omniges.model.flow import FlowModel, Windows, draw_noise
from omniges.model.spec import PRESETS, build_model
from omniges.model.streams import STREAMS, noised
from omniges.model.tasks import TASKS
from omniges.shards.reader import ShardFolder
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus

TICKS, BATCH, STEPS, LEVEL = 40, 16, 160, 0.97


def clips_of(shards: Path, splits: set[str]) -> list[dict[str, Tensor]]:
    """Whole clips: (3 n, 415), (10 n, 64), (n,)."""
    folder, codec = ShardFolder(shards), TextTokenCodec((shards / "tokenizer.json").read_bytes())
    found = []
    for row in folder.rows:
        if row.split in splits:
            sample = folder.sample(row)
            n = len(sample.gesture.gesture) // 3
            arrays = (sample.gesture.gesture[: 3 * n], codec.encode(sample.words, n).ids, sample.mel[: 10 * n])
            found.append({name: torch.from_numpy(a.copy()) for name, a in zip(STREAMS, arrays, strict=True)})
    return found


def cut(clips: list[dict[str, Tensor]], places: list[tuple[int, int]], positions: np.ndarray) -> Windows:
    """Windows at (clip, first tick)."""
    rates = {"gesture": 3, "text": 1, "audio": 10}
    arrays = {
        name: torch.stack([clips[k][name][rate * t : rate * (t + TICKS)] for k, t in places])
        for name, rate in rates.items()
    }
    return Windows(arrays, torch.from_numpy(positions), torch.zeros(len(places), dtype=torch.int64))


def train(model: FlowModel, clips: list[dict[str, Tensor]]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    generator, flow = np.random.default_rng(0), FlowSettings()
    for step in range(STEPS):
        positions = np.arange(BATCH) + BATCH * step
        chosen = generator.integers(len(clips), size=BATCH)
        places = [(int(k), int(generator.integers(len(clips[k]["text"]) - TICKS + 1))) for k in chosen]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50, (STEPS - step) / 50)
        loss = model(cut(clips, places, positions), draw_plan(flow, 1, positions), flow, 1)
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def cost(model: FlowModel, windows: Windows, task: str, *, others: bool) -> float:
    """Mean loss near pure noise, given a window's own conditions or another window's."""
    (condition,), (target,) = TASKS[task].conditions, TASKS[task].targets
    given = model.stream(condition).tokens(windows.arrays[condition])
    given = given.roll(1, dims=0) if others else given
    arrays = windows.arrays[target]
    clean = model.stream(target).tokens(arrays)
    noise = draw_noise(9, windows.positions, target, clean.shape[1:])
    levels = torch.full((len(arrays),), LEVEL)
    tokens = {target: noised(clean, noise, levels), condition: given}
    outputs = model.trunk(
        tokens,
        {target: levels, condition: 0 * levels},
        seconds={name: model.stream(name).seconds(TICKS) for name in tokens},
    )
    return float(model.stream(target).losses(outputs[target], arrays, clean, noise).mean())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_each_task_uses_what_it_is_given_on_windows_it_has_not_seen(tmp_path: Path):
    """A minute or two on two cores; six words, so a blind guess of a word costs 1.8 nats."""
    write_sample_corpus(tmp_path / "corpus", CorpusSettings(clips=40, seconds=16.0, words=6, speakers=2, seed=5))
    shards = tmp_path / "shards"
    assert run_preprocess(tmp_path / "corpus", shards).exit_code == 0
    clips, unseen = clips_of(shards, {"train"}), clips_of(shards, {"val", "test"})
    torch.manual_seed(0)
    statistics = json.loads((shards / "stats.json").read_bytes())
    vocab_size = TextTokenCodec((shards / "tokenizer.json").read_bytes()).pieces
    model = build_model(PRESETS["tiny"], statistics=statistics, vocab_size=vocab_size, speakers=2)
    train(model, clips)
    model.eval()
    places = [(k, t) for k, clip in enumerate(unseen) for t in range(0, len(clip["text"]) - TICKS + 1, TICKS)]
    windows = cut(unseen, places, np.arange(len(places)))
    ratios = {}
    for task in ("t2g", "g2t", "a2g", "g2a", "t2a", "a2t"):
        own, other = (cost(model, windows, task, others=others) for others in (False, True))
        ratios[task] = own / other
    assert max(ratios.values()) < 0.75, ratios
