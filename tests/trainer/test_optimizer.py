"""AdamW as its formula says, decay on matrices alone, state by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from omniges.errors import DataError
from omniges.model.presets import ModelConfig, build_model
from omniges.trainer.train_step import decaying, load_moments, make_optimizer, moments

BETAS = (0.9, 0.95)
STATISTICS = {"gesture": {"mean": [0.0] * 415, "std": [1.0] * 415}, "mel": {"mean": [0.0] * 64, "std": [1.0] * 64}}


def model_of() -> nn.Module:
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
    model = model_of()
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
    model = build_model(config, statistics=STATISTICS, pieces=300, speakers=2)
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
    model, other = model_of(), model_of()
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
    model = model_of()
    optimizer = make_optimizer(model, betas=BETAS, weight_decay=0.2)
    step(model, optimizer, seed=0)
    saved = moments(model, optimizer)
    if change == "missing":
        del saved["0.weight.exp_avg"]
    elif change == "extra":
        saved["3.weight.exp_avg"] = torch.zeros(2)
    else:
        saved["0.weight.exp_avg"] = torch.zeros(2, 2)
    with pytest.raises(DataError, match="not of this model's shapes"):
        load_moments(model, optimizer, saved, "somewhere")
