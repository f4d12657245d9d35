"""Rate, average and AdamW as their formulas say, state by name, and what a learner holds in memory."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from flow_builders import CONFIG, VOCAB_SIZE, model_of, windows_of
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from omniges.errors import DataError, UsageFault
from omniges.model.draws import draw_plan
from omniges.model.spec import ModelConfig, build_model
from omniges.pretrained.architecture import Architecture, Grid
from omniges.pretrained.initialize import config_over_tokens
from omniges.pretrained.trunk import trunk_config
from omniges.trainer.config import Schedule, TrainSettings
from omniges.trainer.train_step import (
    Ema,
    Learner,
    LearningRate,
    decaying,
    ema_decay,
    load_moments,
    make_optimizer,
    moments,
    training_memory,
)

STEPS = st.integers(0, 10**7)
BETAS = (0.9, 0.95)
STATISTICS = {"gesture": {"mean": [0.0] * 415, "std": [1.0] * 415}, "mel": {"mean": [0.0] * 64, "std": [1.0] * 64}}
PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/pretrained.md"


def rate_in_words(schedule: str, peak: float, warmup: int, total: int, step: int) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    gone = (step - warmup) / (total - warmup)
    return {
        "constant": peak,
        "linear": peak * max(0.0, 1 - gone),
        "cosine": peak * math.cos(min(1.0, gone) * math.pi / 2) ** 2,  # (1 + cos 2x) / 2 = cos² x
    }[schedule]


@given(st.sampled_from(get_args(Schedule)), st.floats(1e-6, 1.0), st.integers(0, 1000), st.integers(1, 10**6), STEPS)
def test_the_rate_is_the_closed_form(schedule, peak, warmup, after, step):
    rate = LearningRate(peak=peak, schedule=schedule, warmup_steps=warmup, total_steps=warmup + after)
    assert rate.at(step) == pytest.approx(rate_in_words(schedule, peak, warmup, warmup + after, step), abs=1e-12)


def test_values_one_can_check_by_hand():
    cosine = LearningRate(peak=1.0, schedule="cosine", warmup_steps=4, total_steps=8)
    assert [cosine.at(k) for k in (0, 1, 3, 4, 6, 8, 100)] == pytest.approx([0.25, 0.5, 1, 1, 0.5, 0, 0])
    linear = LearningRate(peak=1.0, schedule="linear", warmup_steps=0, total_steps=4)
    assert [linear.at(k) for k in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    constant = LearningRate(peak=2.0, warmup_steps=2)
    assert [constant.at(k) for k in (0, 1, 2, 10**9)] == [1, 2, 2, 2]


@given(st.floats(0, 0.99999), STEPS)
def test_the_decay_is_the_closed_form(decay, step):
    assert ema_decay(decay, step) == pytest.approx(min(decay, 1 - 9 / (step + 10)))


def test_an_end_within_the_warm_up_is_refused():
    with pytest.raises(UsageFault, match="--lr-warmup-steps 8: expected fewer than the 8 steps"):
        LearningRate(peak=1.0, schedule="linear", warmup_steps=8, total_steps=8)


def closed_form(values: list[torch.Tensor], decay: float) -> torch.Tensor:
    """Sum of the values seen, each weighted by (1 − d) times the decays after it; in float64."""
    average = torch.zeros_like(values[0], dtype=torch.float64)
    for k, value in enumerate(values):
        weight = 1.0 if k == 0 else 1 - min(decay, k / (9 + k))
        for later in range(k + 1, len(values)):
            weight *= min(decay, later / (9 + later))
        average += weight * value.double()
    return average


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_it_is_the_weighted_sum_of_all_weights_seen(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2)
    seen: dict[str, list[torch.Tensor]] = {name: [p.detach().clone()] for name, p in model.named_parameters()}
    ema = Ema(model, decay)
    for step in range(30):
        for name, p in model.named_parameters():
            p.data = torch.randn(p.shape, generator=generator)
            seen[name].append(p.detach().clone())
        ema._parameters = list(model.parameters())
        ema.update(step)
    for name, values in seen.items():
        # The weight of the k-th value, k ≥ 1, comes with the update number k − 1, whose decay is k / (9 + k) at most.
        torch.testing.assert_close(ema.tensors[name].double(), closed_form(values, decay), rtol=1e-5, atol=1e-6)


def test_small_changes_of_half_precision_weights_are_not_lost() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    ema = Ema(model, 0.9999)
    with torch.no_grad():
        model.weight += 2**-7
    for step in range(10**5, 10**5 + 100):
        ema.update(step)
    assert ema.tensors["weight"].dtype == torch.float32
    assert ema.tensors["weight"].item() == pytest.approx(1 + 2**-7 * (1 - 0.9999**100), abs=1e-5)


def test_it_shares_no_memory_with_the_weights() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.5)
    before = ema.tensors["weight"].clone()
    nn.init.zeros_(model.weight)
    assert torch.equal(ema.tensors["weight"], before)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, rate: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def test_steps_are_adamw_by_its_formula() -> None:
    model = small_model()
    reference = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in reference.items()}
    second = {name: torch.zeros_like(p) for name, p in reference.items()}
    optimizer = make_optimizer(model, betas=BETAS, weight_decay=0.2)
    for t in range(1, 6):
        step(model, optimizer, seed=t)
        for name, p in model.named_parameters():
            g = p.grad.double()
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * g
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * g**2
            m, v = first[name] / (1 - BETAS[0] ** t), second[name] / (1 - BETAS[1] ** t)
            decay = 0.2 if name in {"0.weight", "2.weight"} else 0.0
            reference[name] = reference[name] * (1 - 0.1 * decay) - 0.1 * m / (v.sqrt() + 1e-8)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.double(), reference[name], rtol=1e-4, atol=1e-5)


def test_in_the_real_model_all_matrices_decay_and_no_bias_norm_or_embedding_does() -> None:
    config = ModelConfig(width=16, layers=1, heads=2)
    model = build_model(config, statistics=STATISTICS, vocab_size=300, speakers=2)
    matrices = decaying(model)
    others = {name for name, _ in model.named_parameters()} - matrices
    assert all(name.endswith(".weight") for name in matrices)
    assert {name for name in others if not name.endswith(".bias")} == {
        "trunk.speaker.weight",
        "streams.text.piece",
        "streams.text.mark",
        *(f"trunk.blocks.0.branches.{name}.qk_norm.weight" for name in ("gesture", "text", "audio")),
    }


def test_state_goes_by_name_into_an_optimizer_of_another_order() -> None:
    model, other = small_model(), small_model()
    optimizer = make_optimizer(model, betas=BETAS, weight_decay=0.2)
    for t in range(3):
        step(model, optimizer, seed=t)
    other.load_state_dict(model.state_dict())
    resumed = make_optimizer(other, betas=BETAS, weight_decay=0.2)
    saved = {name: tensor.clone() for name, tensor in sorted(moments(model, optimizer).items(), reverse=True)}
    load_moments(other, resumed, saved, "x")
    step(model, optimizer, seed=9)
    step(other, resumed, seed=9)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert moments(model, optimizer).keys() == saved.keys()


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_state_of_another_model_is_refused(change: str) -> None:
    model = small_model()
    optimizer = make_optimizer(model, betas=BETAS, weight_decay=0.2)
    step(model, optimizer, seed=0)
    saved = moments(model, optimizer)
    if change == "missing":
        del saved["0.weight.exp_avg"]
    elif change == "extra":
        saved["3.weight.exp_avg"] = torch.zeros(2)
    else:
        saved["0.weight.exp_avg"] = torch.zeros(2, 2)
    with pytest.raises(DataError, match="the file belongs to another model"):
        load_moments(model, optimizer, saved, "somewhere")


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
    found = training_memory(CONFIG, vocab_size=VOCAB_SIZE, speakers=2)
    assert found.gathered == 0
    assert found.weights == held["model.safetensors"]
    assert found.average == held["ema.safetensors"]
    assert found.moments == held["optimizer.safetensors"] - counters
    assert found.gradients == gradients
    assert found.total == 20 * sum(p.numel() for p in learner.model.parameters())


def test_shards_divide_all_but_what_is_gathered() -> None:
    whole = training_memory(CONFIG, vocab_size=VOCAB_SIZE, speakers=2)
    for shards in (2, 3, 8):
        part = training_memory(CONFIG, vocab_size=VOCAB_SIZE, speakers=2, shards=shards)
        assert part.gathered > 0
        assert 0 <= shards * (part.total - part.gathered) - whole.total < 20 * shards
    assert training_memory(CONFIG, vocab_size=VOCAB_SIZE, speakers=2, average=False).total * 20 == whole.total * 16


def published() -> ModelConfig:
    """Sizes of the published trunk over this project's tokens."""
    architecture = Architecture(
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
    return config_over_tokens(trunk_config(architecture))


@pytest.mark.slow
def test_the_table_in_the_documentation_is_computed() -> None:
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [int(shards) for shards, _, _ in rows] == [1, 2, 4, 8, 16]
    for shards, plain, averaged in rows:
        for average, said in ((False, plain), (True, averaged)):
            found = training_memory(published(), vocab_size=20_000, speakers=25, average=average, shards=int(shards))
            assert f"{found.total / 1e9:.1f}" == said
