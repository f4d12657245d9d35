"""The average is the closed form of the weights it saw, in float32, whatever the weights' precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from omniges.trainer.train_step import Ema


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
