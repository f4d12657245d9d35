"""Memory of training: what a learner really holds, and the table in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from flow_builders import CONFIG, PIECES, model_of, windows_of

from omniges.model.presets import ModelConfig
from omniges.model.tasks import draw_plan
from omniges.pretrained.initialize import config_over_tokens
from omniges.pretrained.omniflow.parameter_names import Anatomy, Grid
from omniges.pretrained.omniflow.weight_map import trunk_config
from omniges.trainer.config import TrainSettings
from omniges.trainer.train_step import Learner, LearningRate, training_memory

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pretrained.md"


def test_it_is_what_a_learner_holds_after_a_step() -> None:
    rate = LearningRate(peak=1e-3, schedule="constant", warmup_steps=0, total_steps=None)
    settings = TrainSettings()
    learner = Learner(model_of(), Accelerator(cpu=True), settings, rate)
    positions = list(range(8))
    learner.micro_step(windows_of(positions), draw_plan(settings.flow_settings(), 0, np.array(positions)), last=True)
    gradients = sum(p.grad.nbytes for p in learner.model.parameters() if p.grad is not None)
    learner.finish_step(0)
    held = {file: sum(x.nbytes for x in tensors.values()) for file, tensors in learner.tensors().items()}
    counters = 4 * len(list(learner.model.parameters()))
    found = training_memory(CONFIG, pieces=PIECES, speakers=2)
    assert found.gathered == 0
    assert found.weights == held["model.safetensors"]
    assert found.average == held["ema.safetensors"]
    assert found.moments == held["optimizer.safetensors"] - counters
    assert found.gradients == gradients
    assert found.total == 20 * sum(p.numel() for p in learner.model.parameters())


def test_shards_divide_all_but_what_is_gathered() -> None:
    whole = training_memory(CONFIG, pieces=PIECES, speakers=2)
    for shards in (2, 3, 8):
        part = training_memory(CONFIG, pieces=PIECES, speakers=2, shards=shards)
        assert part.gathered > 0
        assert 0 <= shards * (part.total - part.gathered) - whole.total < 20 * shards
    assert training_memory(CONFIG, pieces=PIECES, speakers=2, average=False).total * 20 == whole.total * 16


def published() -> ModelConfig:
    """Sizes of the published trunk over this project's tokens."""
    anatomy = Anatomy(
        width=1536,
        layers=24,
        head_features=64,
        mlp_width=6144,
        joint_width=4096,
        pooled_width=2048,
        text_outputs=64,
        qk_norm="rms",
        dual_layers=frozenset(range(13)),
        image=Grid(channels=16, outputs=16, patch=2, table_side=384),
        audio=Grid(channels=8, outputs=8, patch=2, table_side=192),
    )
    return config_over_tokens(trunk_config(anatomy))


def test_the_table_in_the_documentation_is_computed() -> None:
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [int(shards) for shards, _, _ in rows] == [1, 2, 4, 8, 16]
    for shards, plain, averaged in rows:
        for average, said in ((False, plain), (True, averaged)):
            found = training_memory(published(), pieces=20_000, speakers=25, average=average, shards=int(shards))
            assert f"{found.total / 1e9:.1f}" == said
